// The global norm of many tensors, in two passes: a sum of squares for each tile, then the sum of those. Both in f64,
// in an order that depends on the table of tiles alone: equal gradients give equal bits on every rank and run, at any
// alignment.
#include "fold.cuh"
#include "norm.cuh"
#include "tiles.cuh"

// The argument of kolo_squares_T.
struct Squares {
    // Tiles of elements of T. `unpack` says that they are read from the fused buffer, else they are from the tensors;
    // scales are not looked at.
    Move move;
    // Of f64, one a tile.
    u64 sums;
};
static_assert(sizeof(Squares) == 40, "Rust builds the same");

template <class T>
KOLO_INLINE void squares(const Squares &argument, f64 *warps) {
    for (u32 i = blockIdx.x; i < argument.move.tile_count; i += gridDim.x) {
        Placed tile = place(argument.move, i);
        u64 from = argument.move.unpack ? tile.fused : tile.tensor;
        bool aligned = from % VECTOR == 0;
        f64 sum = 0.0;
        // Which thread has an element depends on its number alone, however it is read.
        for (u32 group = threadIdx.x; group * PER_VECTOR<T> < tile.count; group += THREADS) {
            u32 first = group * PER_VECTOR<T>;
            bool whole = aligned && first + PER_VECTOR<T> <= tile.count;
            Vector in = {};
            if (whole) {
                in = load_vector(from + first * sizeof(T));
            }
#pragma unroll
            for (u32 e = 0; e < PER_VECTOR<T>; ++e) {
                if (whole || first + e < tile.count) {
                    T element = whole ? get<T>(in, e) : load_element<T>(from + (first + e) * sizeof(T));
                    f64 value = static_cast<f64>(widen(element));
                    sum = sum + value * value;
                }
            }
        }
        sum = sum_of_block(sum, warps);
        if (threadIdx.x == 0) {
            at<f64>(argument.sums)[i] = sum;
        }
    }
}

#define KOLO_SQUARES(T)                                                                                                \
    KOLO_KERNEL kolo_squares_##T(Squares argument) {                                                                   \
        __shared__ f64 warps[THREADS / WARP];                                                                          \
        squares<T>(argument, warps);                                                                                   \
    }

KOLO_SQUARES(f16)
KOLO_SQUARES(bf16)
KOLO_SQUARES(f32)
KOLO_SQUARES(f64)

// The argument of kolo_norm.
struct Total {
    // As kolo_squares_T leaves them; `count` of them.
    u64 sums;
    // Of the Norm to write.
    u64 result;
    // The greatest norm that is left as it is; 0.0 for no clipping.
    f64 max_norm;
    // By which gradients are multiplied before anything else: one over the loss scale, 1.0 for none.
    f64 unscale;
    u32 count;
    u32 unused;
};
static_assert(sizeof(Total) == 40, "Rust builds the same");

// One block.
KOLO_KERNEL kolo_norm(Total argument) {
    __shared__ f64 warps[THREADS / WARP];
    f64 sum = 0.0;
    for (u32 i = threadIdx.x; i < argument.count; i += THREADS) {
        sum = sum + at<const f64>(argument.sums)[i];
    }
    sum = sum_of_block(sum, warps);
    if (threadIdx.x == 0) {
        f64 norm = sqrt(sum) * fabs(argument.unscale);
        bool clips = argument.max_norm > 0.0 && norm > argument.max_norm;
        f64 factor = clips ? argument.unscale * (argument.max_norm / norm) : argument.unscale;
        // NaN and infinity differ from themselves when taken from themselves.
        *at<Norm>(argument.result) = {norm, factor, norm - norm == 0.0 ? 1u : 0u, 0};
    }
}
