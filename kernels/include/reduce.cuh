// Reductions of 1 to 8 inputs, element by element, in the order of the inputs, into 1 to 8 outputs.
//
// ((x0 (+) x1) (+) x2) .. in the accumulator, then what is to be done once to the result, then one rounding: the bits
// do not depend on the alignment, the grid or the place of an element. All of an element's inputs are read before it
// is written, so outputs may be inputs.
#pragma once

#include "memory.cuh"
#include "values.cuh"

// Inputs of a reduction, and outputs.
constexpr u32 INPUTS = 8;

// The argument of a reduction.
struct Reduce {
    // Of the first elements, in order; `n` of them. Any alignment.
    u64 inputs[INPUTS];
    // `m` of them, which all get the result. Each may be the same as an input; apart from that it overlaps none, and
    // no other output.
    u64 outputs[INPUTS];
    // Elements.
    u64 count;
    // The result is divided by it: a count of at most 2^63 - 1, and 1 for none.
    u64 divide_by;
    // Then it is multiplied by this; 1.0 for none.
    f64 postscale;
    // 1 to INPUTS.
    u32 n;
    u32 m;
};
static_assert(sizeof(Reduce) == 160, "Rust builds the same");

// Vectors that a thread folds at once: as many as keep its accumulators in registers.
template <class L>
constexpr u32 FOLDED = sizeof(L) == 1 ? 1 : 2;

// What is done once to an accumulator before it is stored.
//
// Only where it must be in the accumulator: sums and products of floats. Of whatever else, the result is an element
// already, so that a second pass (kolo_scale_T) gives the same bits, and most never need one.
struct Finished {
    template <class V>
    KOLO_INLINE V apply(V value, const Reduce &reduce) {
        return finish(value, reduce.divide_by, reduce.postscale);
    }
};
struct AsItIs {
    template <class V>
    KOLO_INLINE V apply(V value, const Reduce &) {
        return value;
    }
};

// What becomes of input k's element before it is folded: nothing, usually.
struct Plain {
    template <class T>
    __device__ __forceinline__ T operator()(u32, T value) const {
        return value;
    }
};

// Of some elements, those that the threads of this launch share out among them: `first`, `first + step`, ..
struct Share {
    u64 first, step;
};

KOLO_INLINE Share share_of_grid() {
    return {static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x, static_cast<u64>(gridDim.x) * THREADS};
}

// Reduces a group of VECTORS vectors that lie `stride` bytes apart, beginning `offset` bytes from each input.
template <class T, class O, class F, u32 VECTORS, class I>
KOLO_INLINE void reduce_group(const Reduce &reduce, u64 offset, u64 stride, I input) {
    constexpr u32 per = PER_VECTOR<T>;
    Accumulator<T> sums[VECTORS * per];
#pragma unroll
    for (u32 v = 0; v < VECTORS; ++v) {
        Vector in = load_vector(reduce.inputs[0] + offset + v * stride);
#pragma unroll
        for (u32 e = 0; e < per; ++e) {
            sums[v * per + e] = widen(input(0, get<T>(in, e)));
        }
    }
#pragma unroll 1
    for (u32 k = 1; k < reduce.n; ++k) {
        Vector in[VECTORS];
#pragma unroll
        for (u32 v = 0; v < VECTORS; ++v) {
            in[v] = load_vector(reduce.inputs[k] + offset + v * stride);
        }
#pragma unroll
        for (u32 i = 0; i < VECTORS * per; ++i) {
            sums[i] = O::apply(sums[i], widen(input(k, get<T>(in[i / per], i % per))));
        }
    }
#pragma unroll
    for (u32 v = 0; v < VECTORS; ++v) {
        Vector out = {};
#pragma unroll
        for (u32 e = 0; e < per; ++e) {
            put<T>(out, e, Narrow<T>::from(F::apply(sums[v * per + e], reduce)));
        }
#pragma unroll 1
        for (u32 k = 0; k < reduce.m; ++k) {
            store_vector(reduce.outputs[k] + offset + v * stride, out);
        }
    }
}

// The same of a single element.
template <class T, class O, class F, class I>
KOLO_INLINE void reduce_element(const Reduce &reduce, u64 offset, I input) {
    auto sum = widen(input(0, load_element<T>(reduce.inputs[0] + offset)));
#pragma unroll 1
    for (u32 k = 1; k < reduce.n; ++k) {
        sum = O::apply(sum, widen(input(k, load_element<T>(reduce.inputs[k] + offset))));
    }
    T result = Narrow<T>::from(F::apply(sum, reduce));
#pragma unroll 1
    for (u32 k = 0; k < reduce.m; ++k) {
        store_element<T>(reduce.outputs[k] + offset, result);
    }
}

// Reduces `count` elements that begin `offset` bytes from every input, into the same place of every output. `share`
// says which vectors of them, counted from the first whole one, are the caller's, and which of the elements besides.
// Vectors are taken as elements of L.
template <class T, class O, class F, class L = T, class I = Plain>
KOLO_INLINE void reduce_range(const Reduce &reduce, u64 offset, u64 count, Share share, I input = {}) {
    constexpr u32 per = PER_VECTOR<T>;
    u64 head = until_aligned<T>(reduce.inputs[0] + offset, count);
    bool together = head < count;
    u64 middle = offset + head * sizeof(T), stride = share.step * VECTOR;
#pragma unroll 1
    for (u32 k = 0; k < reduce.n; ++k) {
        together = together && (reduce.inputs[k] + middle) % VECTOR == 0;
    }
#pragma unroll 1
    for (u32 k = 0; k < reduce.m; ++k) {
        together = together && (reduce.outputs[k] + middle) % VECTOR == 0;
    }
    u64 vectors = together ? (count - head) / per : 0;
    head = together ? head : count;
    u64 i = share.first;
    for (; i + (FOLDED<L> - 1) * share.step < vectors; i += FOLDED<L> * share.step) {
        reduce_group<L, O, F, FOLDED<L>>(reduce, middle + i * VECTOR, stride, input);
    }
    for (; i < vectors; i += share.step) {
        reduce_group<L, O, F, 1>(reduce, middle + i * VECTOR, stride, input);
    }
    // Head and tail, or everything.
    u64 rest = head + vectors * per;
    for (u64 i = share.first; i < head + (count - rest); i += share.step) {
        reduce_element<T, O, F>(reduce, offset + (i < head ? i : rest + (i - head)) * sizeof(T), input);
    }
}
