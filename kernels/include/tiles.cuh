// Pack and unpack: many tensors to and from one fused buffer, by a table of tiles.
//
// A tensor is cut into tiles of at most 32 KiB, of nearly equal sizes. The table of tiles says where each lies, and
// stays as long as the plan does; the table of tensors says at which address each begins, and changes with every step
// if gradients do.
#pragma once

#include "memory.cuh"
#include "values.cuh"

// A tensor of this step: an entry of the table of tensors.
struct Tensor {
    // Of its first element, at any alignment.
    u64 address;
    // By which its elements are multiplied; 1.0 leaves them as they are, to the bit.
    f64 scale;
};
static_assert(sizeof(Tensor) == 16, "Rust builds the same");

// A part of a tensor.
struct Tile {
    // Bytes from the tensor's beginning to the tile's.
    u64 in_tensor;
    // Bytes from the fused buffer's beginning.
    u64 in_fused;
    // Which tensor.
    u32 tensor;
    // Elements; bytes where bytes are moved.
    u32 count;
};
static_assert(sizeof(Tile) == 24, "Rust builds the same");

// The argument of pack and unpack.
struct Move {
    // Of `tile_count` tiles.
    u64 tiles;
    // Of the tensors that the tiles name.
    u64 tensors;
    // Of the fused buffer, at any alignment.
    u64 fused;
    u32 tile_count;
    // 0: from the tensors to the fused buffer; else back.
    u32 unpack;
};
static_assert(sizeof(Move) == 32, "Rust builds the same");

// Vectors that a thread has under way at once.
constexpr u32 IN_FLIGHT = 4;

// Copies `count` bytes by accesses of the size of T. Both addresses are multiples of it.
template <class T>
KOLO_INLINE void copy_as(u64 from, u64 to, u32 count) {
    for (u32 i = threadIdx.x; i < count / sizeof(T); i += THREADS) {
        *at<T>(to + i * sizeof(T)) = *at<const T>(from + i * sizeof(T));
    }
}

// Copies whole vectors. Both addresses are multiples of one.
KOLO_INLINE void copy_vectors(u64 from, u64 to, u32 vectors) {
    u32 i = threadIdx.x;
    for (; i + (IN_FLIGHT - 1) * THREADS < vectors; i += IN_FLIGHT * THREADS) {
        Vector loaded[IN_FLIGHT];
#pragma unroll
        for (u32 k = 0; k < IN_FLIGHT; ++k) {
            loaded[k] = load_vector(from + static_cast<u64>(i + k * THREADS) * VECTOR);
        }
#pragma unroll
        for (u32 k = 0; k < IN_FLIGHT; ++k) {
            store_vector(to + static_cast<u64>(i + k * THREADS) * VECTOR, loaded[k]);
        }
    }
    for (; i < vectors; i += THREADS) {
        store_vector(to + static_cast<u64>(i) * VECTOR, load_vector(from + static_cast<u64>(i) * VECTOR));
    }
}

// Copies `count` bytes, by the widest accesses that both addresses allow.
KOLO_INLINE void copy_bytes(u64 from, u64 to, u32 count) {
    u32 head = static_cast<u32>((VECTOR - to % VECTOR) % VECTOR);
    head = head < count ? head : count;
    copy_as<u8>(from, to, head);
    from += head;
    to += head;
    count -= head;
    // The width is that of a tile, so all threads take the same branch.
    u32 width = static_cast<u32>(from % VECTOR);
    if (width == 0) {
        copy_vectors(from, to, count / VECTOR);
    } else if (width % 8 == 0) {
        copy_as<u64>(from, to, count / VECTOR * VECTOR);
    } else if (width % 4 == 0) {
        copy_as<u32>(from, to, count / VECTOR * VECTOR);
    } else if (width % 2 == 0) {
        copy_as<u16>(from, to, count / VECTOR * VECTOR);
    } else {
        copy_as<u8>(from, to, count / VECTOR * VECTOR);
    }
    u32 done = count / VECTOR * VECTOR;
    copy_as<u8>(from + done, to + done, count - done);
}

// How an element of S becomes one of D: multiplied in f64 where either is f64 or they are integers, in f32 else; then
// rounded once.
template <class S, class D>
struct Convert {
    KOLO_INLINE D apply(S value, f64 by) {
        // One of the two is an f32, or both accumulate in the same type.
        if (by == 1.0) {
            return Narrow<D>::from(static_cast<Accumulator<D>>(widen(value)));
        }
        return Narrow<D>::from(static_cast<Accumulator<D>>(scale(widen(value), by)));
    }
};
template <class T>
struct Convert<T, T> {
    KOLO_INLINE T apply(T value, f64 by) {
        return by == 1.0 ? value : Narrow<T>::from(scale(widen(value), by));
    }
};
template <>
struct Convert<f32, f64> {
    KOLO_INLINE f64 apply(f32 value, f64 by) {
        f64 wide = static_cast<f64>(value);
        return by == 1.0 ? wide : wide * by;
    }
};

// Converts elements: a group of as many as fit one vector of the narrower type at a time where both sides are
// aligned.
template <class S, class D>
KOLO_INLINE void convert(u64 from, u64 to, u32 count, f64 by) {
    constexpr u32 group = VECTOR / (sizeof(S) < sizeof(D) ? sizeof(S) : sizeof(D));
    constexpr u32 loads = group * sizeof(S) / VECTOR, stores = group * sizeof(D) / VECTOR;
    u64 head = until_aligned<D>(to, count);
    bool together = head < count && (from + head * sizeof(S)) % VECTOR == 0;
    u32 first = together ? static_cast<u32>(head) : count;
    u32 groups = (count - first) / group;
    u32 rest = first + groups * group;
    for (u32 i = threadIdx.x; i < groups; i += THREADS) {
        u64 element = first + static_cast<u64>(i) * group;
        Vector in[loads], out[stores] = {};
#pragma unroll
        for (u32 k = 0; k < loads; ++k) {
            in[k] = load_vector(from + element * sizeof(S) + k * VECTOR);
        }
#pragma unroll
        for (u32 e = 0; e < group; ++e) {
            S value = get<S>(in[e / PER_VECTOR<S>], e % PER_VECTOR<S>);
            put<D>(out[e / PER_VECTOR<D>], e % PER_VECTOR<D>, Convert<S, D>::apply(value, by));
        }
#pragma unroll
        for (u32 k = 0; k < stores; ++k) {
            store_vector(to + element * sizeof(D) + k * VECTOR, out[k]);
        }
    }
    // Head and tail, or everything.
    for (u32 i = threadIdx.x; i < first + (count - rest); i += THREADS) {
        u64 element = i < first ? i : rest + (i - first);
        S value = load_element<S>(from + element * sizeof(S));
        store_element<D>(to + element * sizeof(D), Convert<S, D>::apply(value, by));
    }
}

// Where a tile of this step lies.
struct Placed {
    u64 tensor, fused;
    u32 count;
    f64 scale;
};

KOLO_INLINE Placed place(const Move &move, u32 index) {
    const Tile &tile = at<const Tile>(move.tiles)[index];
    const Tensor &tensor = at<const Tensor>(move.tensors)[tile.tensor];
    return {tensor.address + tile.in_tensor, move.fused + tile.in_fused, tile.count, tensor.scale};
}
