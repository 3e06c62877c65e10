// Adasum: the dot products of every pair of ranks' tensors, and the weighted sum. Between the two the host makes one
// weight a rank and tensor of the dot products (src/engine/adasum/weights.rs).
//
// The data are fused buffers, one a rank, cut by one table of tiles: in whole blocks of 8192 elements, the last of
// each tensor shorter, tensor after tensor. So sums are those of the host plane (src/device/host/dots.rs), to the
// bit.
#include "reduce.cuh"
#include "tiles.cuh"

// The argument of kolo_dots_T.
struct Dots {
    // The fused buffers, in rank order; `n` of them.
    u64 inputs[INPUTS];
    // Of `tile_count` tiles; of each, `in_fused` and `count` are looked at.
    u64 tiles;
    // Of f64: for each tile, the dot products of all pairs. That of inputs a <= b is at b (b + 1) / 2 + a.
    u64 sums;
    u32 tile_count;
    u32 n;
};
static_assert(sizeof(Dots) == 88, "Rust builds the same");

// Sums side by side: element i goes into sum i mod 8, and the eight are added in order.
constexpr u32 LANES = 8;
// Tiles' pairs that a block works on at once.
constexpr u32 PAIRS = THREADS / LANES;

template <class T>
KOLO_INLINE void dots(const Dots &dots) {
    u32 pairs = dots.n * (dots.n + 1) / 2, lane = threadIdx.x % LANES;
    u64 all = static_cast<u64>(dots.tile_count) * pairs;
    // All threads of a block go round as often: they exchange what they have.
    for (u64 start = static_cast<u64>(blockIdx.x) * PAIRS; start < all; start += static_cast<u64>(gridDim.x) * PAIRS) {
        u64 item = start + threadIdx.x / LANES;
        f64 sum = 0.0;
        if (item < all) {
            const Tile &tile = at<const Tile>(dots.tiles)[item / pairs];
            u32 a = static_cast<u32>(item % pairs), b = 0;
            // `a` is what is left of the pair's number after the pairs of smaller b.
            while (a > b) {
                b += 1;
                a -= b;
            }
            u64 left = dots.inputs[a] + tile.in_fused, right = dots.inputs[b] + tile.in_fused;
#pragma unroll 8
            for (u32 i = lane; i < tile.count; i += LANES) {
                f64 x = static_cast<f64>(widen(load_element<T>(left + i * sizeof(T))));
                f64 y = static_cast<f64>(widen(load_element<T>(right + i * sizeof(T))));
                sum = sum + x * y;
            }
        }
        f64 total = 0.0;
#pragma unroll
        for (u32 k = 0; k < LANES; ++k) {
            total = total + __shfl_sync(0xffffffffu, sum, k, LANES);
        }
        if (lane == 0 && item < all) {
            at<f64>(dots.sums)[item] = total;
        }
    }
}

// The argument of kolo_dots_total: the dot products of tensors, out of those of their tiles, added in order.
struct Totals {
    // As kolo_dots_T leaves them.
    u64 sums;
    // Of u32: the number of each tensor's first tile, and at last the number of tiles.
    u64 firsts;
    // Of f64: for each tensor, the dot products of all pairs.
    u64 totals;
    u32 tensors;
    u32 pairs;
};
static_assert(sizeof(Totals) == 32, "Rust builds the same");

KOLO_KERNEL kolo_dots_total(Totals totals) {
    u64 all = static_cast<u64>(totals.tensors) * totals.pairs;
    for (u64 item = share_of_grid().first; item < all; item += share_of_grid().step) {
        const u32 *first = at<const u32>(totals.firsts) + item / totals.pairs;
        f64 total = 0.0;
        for (u64 tile = first[0]; tile < first[1]; ++tile) {
            total = total + at<const f64>(totals.sums)[tile * totals.pairs + item % totals.pairs];
        }
        at<f64>(totals.totals)[item] = total;
    }
}

// The argument of kolo_combine_T.
struct Combine {
    // `inputs` and `outputs` are fused buffers; `count` is not looked at. The result is divided and scaled as it
    // says.
    Reduce reduce;
    // Of `tile_count` tiles, cut in any way; of each, `in_fused`, `tensor` and `count` are looked at.
    u64 tiles;
    // Of f64: for each tensor, the weight of every input.
    u64 weights;
    u32 tile_count;
    u32 unused;
};
static_assert(sizeof(Combine) == 184, "Rust builds the same");

// An element times its input's weight, rounded to the type.
struct Weighted {
    const f64 *weights;

    template <class T>
    __device__ __forceinline__ T operator()(u32 input, T value) const {
        return Convert<T, T>::apply(value, weights[input]);
    }
};

template <class T>
KOLO_INLINE void combine(const Combine &combine) {
    for (u32 i = blockIdx.x; i < combine.tile_count; i += gridDim.x) {
        const Tile &tile = at<const Tile>(combine.tiles)[i];
        Weighted weighted = {at<const f64>(combine.weights) + static_cast<u64>(tile.tensor) * combine.reduce.n};
        Share share = {threadIdx.x, THREADS};
        reduce_range<T, Sum, Finished>(combine.reduce, tile.in_fused, tile.count, share, weighted);
    }
}

#define KOLO_ADASUM(T)                                                                                                 \
    KOLO_KERNEL kolo_dots_##T(const __grid_constant__ Dots argument) {                                                 \
        dots<T>(argument);                                                                                             \
    }                                                                                                                  \
    KOLO_KERNEL kolo_combine_##T(const __grid_constant__ Combine argument) {                                           \
        combine<T>(argument);                                                                                          \
    }

KOLO_ADASUM(f16)
KOLO_ADASUM(bf16)
KOLO_ADASUM(f32)
KOLO_ADASUM(f64)
