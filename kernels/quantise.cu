// Eight bits an element, in blocks of 256 that share a scale: a quarter of f32's bytes on a slow wire.
//
// A block's scale is its greatest magnitude over 127, in f32; an element becomes the nearest multiple of the scale,
// ties to even. The error is at most half a scale an element. A block that holds a NaN or an infinity comes back as
// NaN, so that it is not overlooked; one whose scale is below what f32 holds, as zeros.
#include "memory.cuh"
#include "fold.cuh"

// Elements that share a scale, and how many of them a thread has: a warp does a block of them.
constexpr u32 QUANTUM = 256;
constexpr u32 PER_THREAD = QUANTUM / WARP;

// The argument of kolo_quantise_T, from elements to bytes and scales, and of kolo_dequantise_T, back.
struct Quantise {
    // Of `count` elements of T, at any alignment.
    u64 elements;
    // Of `count` signed bytes.
    u64 bytes;
    // Of f32, one a block: ceil(count / 256).
    u64 scales;
    u64 count;
};
static_assert(sizeof(Quantise) == 32, "Rust builds the same");

// The nearest whole number of a value between -2^22 and 2^22, ties to even: beyond 1.5 * 2^23 an f32 has no fraction.
KOLO_INLINE i32 nearest(f32 value) {
    return static_cast<i32>(__float_as_uint(value + 12582912.0f) & 0x007fffffu) - 0x00400000;
}

template <class T>
KOLO_INLINE void quantise(const Quantise &argument) {
    u32 lane = threadIdx.x % WARP;
    u64 blocks = (argument.count + QUANTUM - 1) / QUANTUM;
    // All threads of a warp go round as often: they exchange what they have.
    for (u64 block = (static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) / WARP; block < blocks;
         block += static_cast<u64>(gridDim.x) * THREADS / WARP) {
        f32 values[PER_THREAD];
        u32 most = 0;
#pragma unroll
        for (u32 e = 0; e < PER_THREAD; ++e) {
            // Neighbours read neighbours.
            u64 i = block * QUANTUM + e * WARP + lane;
            values[e] = i < argument.count ? widen(load_element<T>(argument.elements + i * sizeof(T))) : 0.0f;
            // Magnitudes order like their bits, and NaN is above all.
            u32 magnitude = __float_as_uint(values[e]) & 0x7fffffffu;
            most = magnitude > most ? magnitude : most;
        }
#pragma unroll
        for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
            u32 other = __shfl_xor_sync(0xffffffffu, most, distance);
            most = other > most ? other : most;
        }
        bool finite = most < 0x7f800000u;
        f32 scale = finite ? __uint_as_float(most) / 127.0f : __uint_as_float(0x7fc00000u);
        bool zero = !(scale > 0.0f);
#pragma unroll
        for (u32 e = 0; e < PER_THREAD; ++e) {
            u64 i = block * QUANTUM + e * WARP + lane;
            // A scale that is subnormal has lost bits: the quotient may be beyond what a byte holds.
            f32 quotient = zero ? 0.0f : values[e] / scale;
            quotient = quotient > 127.0f ? 127.0f : quotient < -127.0f ? -127.0f : quotient;
            if (i < argument.count) {
                *at<i8>(argument.bytes + i) = static_cast<i8>(nearest(quotient));
            }
        }
        if (lane == 0) {
            at<f32>(argument.scales)[block] = scale;
        }
    }
}

template <class T>
KOLO_INLINE void dequantise(const Quantise &argument) {
    u64 step = static_cast<u64>(gridDim.x) * THREADS;
    for (u64 i = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x; i < argument.count; i += step) {
        f32 value = static_cast<f32>(*at<const i8>(argument.bytes + i)) * at<const f32>(argument.scales)[i / QUANTUM];
        store_element<T>(argument.elements + i * sizeof(T), Narrow<T>::from(value));
    }
}

#define KOLO_QUANTISE(T)                                                                                               \
    KOLO_KERNEL kolo_quantise_##T(Quantise argument) {                                                                 \
        quantise<T>(argument);                                                                                         \
    }                                                                                                                  \
    KOLO_KERNEL kolo_dequantise_##T(Quantise argument) {                                                               \
        dequantise<T>(argument);                                                                                       \
    }

KOLO_QUANTISE(f16)
KOLO_QUANTISE(bf16)
KOLO_QUANTISE(f32)
