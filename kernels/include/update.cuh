// Optimizer steps: values, their gradients and what the rule remembers are read once, and values and memory written
// once.
//
// Each operation rounds once to the type of the values (16-bit floats: computed in f32, then rounded), as optimizers
// on the host do: equal gradients give equal bits on every rank and on either device.
#pragma once

#include "memory.cuh"
#include "norm.cuh"
#include "tiles.cuh"
#include "values.cuh"

// A parameter of this step.
struct Parameter {
    // Of its values, of type V.
    u64 values;
    // Of its gradient, of type G: where autograd left it, or in the fused buffer.
    u64 gradient;
    // Of what the rule remembers, of type V: SGD's momentum, Adam's first and second moment. Not looked at by rules
    // that have none.
    u64 first, second;
    // Adam's: rate / (1 - beta1^t), and the root of 1 - beta2^t, for its step t.
    f64 step, root;
    // Whether nothing is remembered yet: the memory is written, and not read.
    u32 fresh;
    u32 unused;
};
static_assert(sizeof(Parameter) == 56, "Rust builds the same");

// What the arguments of all updates begin with.
struct Update {
    // Of `tile_count` tiles of the parameters' values. Of each, `in_tensor` (a multiple of V's size), `tensor` and
    // `count` are looked at.
    u64 tiles;
    // Of the parameters that the tiles name.
    u64 parameters;
    // Of the Norm whose factor gradients are multiplied by, and which stops the update unless it is finite; 0 for
    // none.
    u64 norm;
    u32 tile_count;
    u32 unused;
};
static_assert(sizeof(Update) == 32, "Rust builds the same");

// ---- Arithmetic that rounds once an operation ----------------------------------------------------------------------

template <class V>
KOLO_INLINE V rounded(f64 value) {
    return Narrow<V>::from(static_cast<Accumulator<V>>(value));
}
template <class V>
KOLO_INLINE V plus(V a, V b) {
    return Narrow<V>::from(widen(a) + widen(b));
}
template <class V>
KOLO_INLINE V minus(V a, V b) {
    return Narrow<V>::from(widen(a) - widen(b));
}
template <class V>
KOLO_INLINE V times(V a, V b) {
    return Narrow<V>::from(widen(a) * widen(b));
}
template <class V>
KOLO_INLINE V over(V a, V b) {
    return Narrow<V>::from(widen(a) / widen(b));
}
KOLO_INLINE f32 root_of(f32 value) {
    return sqrtf(value);
}
KOLO_INLINE f64 root_of(f64 value) {
    return sqrt(value);
}

// A gradient in the type of the values, times the factor; 1.0 leaves it as it is.
template <class V, class G>
KOLO_INLINE V scaled(G gradient, f64 by, V factor) {
    V value = Narrow<V>::from(static_cast<Accumulator<V>>(widen(gradient)));
    return by == 1.0 ? value : times(value, factor);
}

// ---- The loop over elements ----------------------------------------------------------------------------------------

// A group of elements: as many as fit one vector of the narrower type.
template <class T, u32 N>
struct Group {
    T elements[N];
};

template <class T, u32 N>
KOLO_INLINE Group<T, N> load_group(u64 address) {
    Group<T, N> group;
#pragma unroll
    for (u32 v = 0; v < N / PER_VECTOR<T>; ++v) {
        Vector in = load_vector(address + v * VECTOR);
#pragma unroll
        for (u32 e = 0; e < PER_VECTOR<T>; ++e) {
            group.elements[v * PER_VECTOR<T> + e] = get<T>(in, e);
        }
    }
    return group;
}

template <class T, u32 N>
KOLO_INLINE void store_group(u64 address, const Group<T, N> &group) {
#pragma unroll
    for (u32 v = 0; v < N / PER_VECTOR<T>; ++v) {
        Vector out = {};
#pragma unroll
        for (u32 e = 0; e < PER_VECTOR<T>; ++e) {
            put<T>(out, e, group.elements[v * PER_VECTOR<T> + e]);
        }
        store_vector(address + v * VECTOR, out);
    }
}

// Applies a rule to every element. A rule says how many memories it has (0 to 2), and has
// `step(value, gradient, first, second, fresh)`, which changes value and memories.
template <class V, class G, class R>
KOLO_INLINE void update(const Update &update, const R &settings) {
    f64 by = 1.0;
    if (update.norm != 0) {
        const Norm &norm = *at<const Norm>(update.norm);
        if (norm.finite == 0) {
            return;
        }
        by = norm.factor;
    }
    V factor = rounded<V>(by);
    constexpr u32 group = VECTOR / (sizeof(V) < sizeof(G) ? sizeof(V) : sizeof(G));
    for (u32 t = blockIdx.x; t < update.tile_count; t += gridDim.x) {
        const Tile &tile = at<const Tile>(update.tiles)[t];
        const Parameter &parameter = at<const Parameter>(update.parameters)[tile.tensor];
        R rule = settings;
        rule.begin(parameter);
        bool fresh = parameter.fresh != 0;
        u64 element = tile.in_tensor / sizeof(V);
        u64 values = parameter.values + tile.in_tensor, gradient = parameter.gradient + element * sizeof(G);
        u64 first = parameter.first + tile.in_tensor, second = parameter.second + tile.in_tensor;
        bool together = (values | gradient) % VECTOR == 0 && (R::memories < 1 || first % VECTOR == 0) &&
                        (R::memories < 2 || second % VECTOR == 0);
        u32 groups = together ? tile.count / group : 0;
        for (u32 i = threadIdx.x; i < groups; i += THREADS) {
            u64 offset = static_cast<u64>(i) * group * sizeof(V);
            Group<V, group> value = load_group<V, group>(values + offset), one = {}, two = {};
            Group<G, group> slope = load_group<G, group>(gradient + static_cast<u64>(i) * group * sizeof(G));
            if (R::memories > 0 && !fresh) {
                one = load_group<V, group>(first + offset);
            }
            if (R::memories > 1 && !fresh) {
                two = load_group<V, group>(second + offset);
            }
#pragma unroll
            for (u32 e = 0; e < group; ++e) {
                V g = scaled<V>(slope.elements[e], by, factor);
                rule.step(value.elements[e], g, one.elements[e], two.elements[e], fresh);
            }
            store_group(values + offset, value);
            if (R::memories > 0) {
                store_group(first + offset, one);
            }
            if (R::memories > 1) {
                store_group(second + offset, two);
            }
        }
        for (u32 i = groups * group + threadIdx.x; i < tile.count; i += THREADS) {
            u64 offset = static_cast<u64>(i) * sizeof(V);
            V value = load_element<V>(values + offset), one = {}, two = {};
            V g = scaled<V>(load_element<G>(gradient + static_cast<u64>(i) * sizeof(G)), by, factor);
            if (R::memories > 0 && !fresh) {
                one = load_element<V>(first + offset);
            }
            if (R::memories > 1 && !fresh) {
                two = load_element<V>(second + offset);
            }
            rule.step(value, g, one, two, fresh);
            store_element<V>(values + offset, value);
            if (R::memories > 0) {
                store_element<V>(first + offset, one);
            }
            if (R::memories > 1) {
                store_element<V>(second + offset, two);
            }
        }
    }
}
