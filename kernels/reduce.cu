// Reductions. The argument is `Reduce`; a grid of any size, blocks of THREADS threads.
//
// kolo_reduce_OP_T reduces elements of T. Where signs make no difference (sums, products and bits of integers), T is
// the unsigned type, or `bits`, and the kernel serves both. Sums and products of floats are divided and scaled on the
// way; whatever else is to be, is by kolo_scale_T.
//
// kolo_scale_T divides and scales one input.
#include "reduce.cuh"

#define KOLO_REDUCE(NAME, T, OP, FINISH)                                                                               \
    KOLO_KERNEL kolo_##NAME##_##T(const __grid_constant__ Reduce reduce) {                                             \
        reduce_range<T, OP, FINISH>(reduce, 0, reduce.count, share_of_grid());                          \
    }

#define KOLO_FLOAT(T)                                                                                                  \
    KOLO_REDUCE(reduce_sum, T, Sum, Finished)                                                                          \
    KOLO_REDUCE(reduce_product, T, Product, Finished)                                                                  \
    KOLO_REDUCE(reduce_min, T, Min, AsItIs)                                                                            \
    KOLO_REDUCE(reduce_max, T, Max, AsItIs)                                                                            \
    KOLO_REDUCE(scale, T, First, Finished)

KOLO_FLOAT(f16)
KOLO_FLOAT(bf16)
KOLO_FLOAT(f32)
KOLO_FLOAT(f64)

#define KOLO_WITH_SIGN(T)                                                                                              \
    KOLO_REDUCE(reduce_min, T, Min, AsItIs)                                                                            \
    KOLO_REDUCE(reduce_max, T, Max, AsItIs)                                                                            \
    KOLO_REDUCE(scale, T, First, Finished)

KOLO_WITH_SIGN(i8)
KOLO_WITH_SIGN(i16)
KOLO_WITH_SIGN(i32)
KOLO_WITH_SIGN(i64)
KOLO_WITH_SIGN(u8)
KOLO_WITH_SIGN(u16)
KOLO_WITH_SIGN(u32)
KOLO_WITH_SIGN(u64)

#define KOLO_WITHOUT_SIGN(T)                                                                                           \
    KOLO_REDUCE(reduce_sum, T, Sum, AsItIs)                                                                            \
    KOLO_REDUCE(reduce_product, T, Product, AsItIs)

KOLO_WITHOUT_SIGN(u8)
KOLO_WITHOUT_SIGN(u16)
KOLO_WITHOUT_SIGN(u32)
KOLO_WITHOUT_SIGN(u64)

// Bits do not care where an element ends: bytes serve every integer, and `count` is in bytes.
#define KOLO_BITS(NAME, OP)                                                                                            \
    KOLO_KERNEL kolo_reduce_##NAME##_bits(const __grid_constant__ Reduce reduce) {                                     \
        reduce_range<u8, OP, AsItIs, u32>(reduce, 0, reduce.count, share_of_grid());                    \
    }

KOLO_BITS(and, And)
KOLO_BITS(or, Or)
KOLO_BITS(xor, Xor)
