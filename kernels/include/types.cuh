// Element types: what an element is in memory, and the type in which it is computed with.
//
// The rules are those of the host plane (docs/types.md), to the bit; the payload of a NaN is left open. Sources are
// compiled without contraction of a * b + c into one rounding, on the device and on the host alike.
#pragma once

#include "ptx.cuh"

#if defined(KOLO_HOST) && !defined(__grid_constant__)
#define __grid_constant__
#endif

// Functions of these headers: always part of the kernel that calls them.
#define KOLO_INLINE static __device__ __forceinline__

// Threads of a block, in every kernel: sums over a block add in an order that depends on it.
constexpr int THREADS = 256;

// At the head of a kernel. Four blocks to a multiprocessor are enough to keep memory busy, and leave a thread 64
// registers; kernels that need more of them have two.
#define KOLO_KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 4)
#define KOLO_LARGE_KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
using f32 = float;
using f64 = double;

// IEEE half precision and bfloat16, as bits.
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8 && sizeof(f16) == 2 && sizeof(bf16) == 2, "");

// An address that Rust passes as a number.
template <class T>
KOLO_INLINE T *at(u64 address) {
    return reinterpret_cast<T *>(static_cast<unsigned long>(address));
}

KOLO_INLINE u64 address_of(const void *pointer) {
    return static_cast<u64>(reinterpret_cast<unsigned long>(pointer));
}

// ---- 16-bit floats ------------------------------------------------------------------------------------------------

// f16 bits to f32, exact, in integer arithmetic: what the host build runs, and what the tests compare.
KOLO_INLINE f32 f16_to_f32_portable(u16 half) {
    u32 sign = static_cast<u32>(half & 0x8000) << 16;
    u32 rest = half & 0x7fff;
    // Normal: the fraction moves up, the exponent's bias goes from 15 to 127.
    u32 bits = (rest << 13) + (112u << 23);
    if (rest >= 0x7c00) {
        bits = (rest << 13) | 0x7f800000u | (rest > 0x7c00 ? 0x00400000u : 0u);
    } else if (rest < 0x0400) {
        // Subnormal: a multiple of 2^-24, whose product with a power of two is exact.
        bits = __float_as_uint(static_cast<f32>(static_cast<i32>(rest)) * __uint_as_float(103u << 23));
    }
    return __uint_as_float(sign | bits);
}

// f32 to f16 bits, rounded once to nearest even.
KOLO_INLINE u16 f32_to_f16_portable(f32 value) {
    u32 bits = __float_as_uint(value);
    u32 sign = (bits >> 16) & 0x8000;
    u32 rest = bits & 0x7fffffff;
    u32 half;
    if (rest > 0x7f800000u) {
        half = 0x7e00 | ((rest >> 13) & 0x03ff);
    } else if (rest < 0x38800000u) {
        // Subnormal: the last place of 0.5 is 2^-24, f16's smallest step, so that the adder rounds.
        half = __float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u;
    } else {
        // Just under half a unit, and the odd bit so that ties go to even; a carry raises the exponent.
        half = ((rest + 0x0fff + ((rest >> 13) & 1)) >> 13) - (112u << 10);
        half = half < 0x7c00 ? half : 0x7c00;
    }
    return static_cast<u16>(sign | half);
}

KOLO_INLINE f32 widen(f16 half) {
#ifdef KOLO_HOST
    return f16_to_f32_portable(half.bits);
#else
    return kolo_f16_to_f32(half.bits);
#endif
}

KOLO_INLINE f32 widen(bf16 half) {
    return __uint_as_float(static_cast<u32>(half.bits) << 16);
}

template <class T>
KOLO_INLINE T widen(T value) {
    return value;
}

// Narrow<T>::from(value): the accumulator's value as an element, rounded once to nearest even.
template <class T>
struct Narrow {
    KOLO_INLINE T from(T value) {
        return value;
    }
};

template <>
struct Narrow<f16> {
    KOLO_INLINE f16 from(f32 value) {
#ifdef KOLO_HOST
        return {f32_to_f16_portable(value)};
#else
        return {kolo_f32_to_f16(value)};
#endif
    }
};

template <>
struct Narrow<bf16> {
    KOLO_INLINE bf16 from(f32 value) {
        u32 bits = __float_as_uint(value);
        u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        u32 quiet = (bits >> 16) | 0x0040;
        return {static_cast<u16>((bits & 0x7fffffff) > 0x7f800000u ? quiet : rounded)};
    }
};

// The type in which elements accumulate: f32 for the 16-bit floats, else the type itself.
template <class T>
struct Accumulate {
    using Type = T;
};
template <>
struct Accumulate<f16> {
    using Type = f32;
};
template <>
struct Accumulate<bf16> {
    using Type = f32;
};
template <class T>
using Accumulator = typename Accumulate<T>::Type;

// ---- Integers ------------------------------------------------------------------------------------------------------

// Whether the type is signed, its ends, and the unsigned type that is at least as wide as an int: what wraps without
// undefined behaviour.
template <class T>
struct Integer;

#define KOLO_INTEGER(TYPE, WRAPS, LEAST, MOST, SIGNED)                                                                 \
    template <>                                                                                                        \
    struct Integer<TYPE> {                                                                                             \
        using Wraps = WRAPS;                                                                                           \
        static constexpr TYPE least = static_cast<TYPE>(LEAST);                                                        \
        static constexpr TYPE most = static_cast<TYPE>(MOST);                                                          \
        static constexpr bool is_signed = SIGNED;                                                                      \
    };
KOLO_INTEGER(i8, u32, -128, 127, true)
KOLO_INTEGER(u8, u32, 0, 255, false)
KOLO_INTEGER(i16, u32, -32768, 32767, true)
KOLO_INTEGER(u16, u32, 0, 65535, false)
KOLO_INTEGER(i32, u32, -2147483647 - 1, 2147483647, true)
KOLO_INTEGER(u32, u32, 0, 4294967295u, false)
KOLO_INTEGER(i64, u64, -9223372036854775807ll - 1, 9223372036854775807ll, true)
KOLO_INTEGER(u64, u64, 0, 18446744073709551615ull, false)
#undef KOLO_INTEGER

// Truncated toward zero, saturated at the ends of the type; NaN gives 0.
template <class T>
KOLO_INLINE T saturate(f64 value) {
    // The greatest value plus one is a power of two, so it is exact where the greatest is not.
    constexpr f64 beyond = (static_cast<f64>(Integer<T>::most / 2) + 1.0) * 2.0;
    constexpr f64 least = static_cast<f64>(Integer<T>::least);
    if (!(value == value)) {
        return 0;
    }
    if (value >= beyond) {
        return Integer<T>::most;
    }
    if (value <= least) {
        return Integer<T>::least;
    }
    return static_cast<T>(value);
}

static_assert((static_cast<f64>(Integer<u64>::most / 2) + 1.0) * 2.0 == 18446744073709551616.0, "2^64");
static_assert((static_cast<f64>(Integer<i8>::most / 2) + 1.0) * 2.0 == 128.0, "2^7");
