// Elements in memory: sixteen bytes at a time where addresses allow it, and one by one, at any alignment, where not.
#pragma once

#include "types.cuh"

// Bytes of a vector.
constexpr u32 VECTOR = 16;

// Elements of a vector.
template <class T>
constexpr u32 PER_VECTOR = VECTOR / sizeof(T);

// ---- Vectors -------------------------------------------------------------------------------------------------------

// Four words, named by number. Numbers are known once loops are unrolled, so that nothing goes through memory.
struct Vector {
    u32 words[4];
};

KOLO_INLINE Vector load_vector(u64 address) {
    uint4 v = kolo_load_stream(at<const uint4>(address));
    return {{v.x, v.y, v.z, v.w}};
}

KOLO_INLINE void store_vector(u64 address, const Vector &vector) {
    uint4 v;
    v.x = vector.words[0];
    v.y = vector.words[1];
    v.z = vector.words[2];
    v.w = vector.words[3];
    kolo_store_stream(at<uint4>(address), v);
}

// The bits of a value, and the value of bits.
template <class T>
struct Bits {
    KOLO_INLINE T value(u64 bits) {
        return static_cast<T>(bits);
    }
    KOLO_INLINE u64 of(T value) {
        // Signs end where the element does.
        constexpr u64 mask = sizeof(T) == 8 ? ~0ull : (1ull << (8 * sizeof(T) % 64)) - 1;
        return static_cast<u64>(value) & mask;
    }
};
template <>
struct Bits<f16> {
    KOLO_INLINE f16 value(u64 bits) {
        return {static_cast<u16>(bits)};
    }
    KOLO_INLINE u64 of(f16 value) {
        return value.bits;
    }
};
template <>
struct Bits<bf16> {
    KOLO_INLINE bf16 value(u64 bits) {
        return {static_cast<u16>(bits)};
    }
    KOLO_INLINE u64 of(bf16 value) {
        return value.bits;
    }
};
template <>
struct Bits<f32> {
    KOLO_INLINE f32 value(u64 bits) {
        return __uint_as_float(static_cast<u32>(bits));
    }
    KOLO_INLINE u64 of(f32 value) {
        return __float_as_uint(value);
    }
};
template <>
struct Bits<f64> {
    KOLO_INLINE f64 value(u64 bits) {
        return __longlong_as_double(static_cast<i64>(bits));
    }
    KOLO_INLINE u64 of(f64 value) {
        return static_cast<u64>(__double_as_longlong(value));
    }
};

// Element `index` of a vector.
template <class T>
KOLO_INLINE T get(const Vector &vector, u32 index) {
    if (sizeof(T) == 8) {
        u64 low = vector.words[(2 * index) % 4], high = vector.words[(2 * index + 1) % 4];
        return Bits<T>::value(low | (high << 32));
    }
    constexpr u32 per_word = sizeof(T) == 8 ? 1 : 4 / sizeof(T);
    return Bits<T>::value(vector.words[index / per_word % 4] >> (8 * sizeof(T) * (index % per_word) % 32));
}

// Puts element `index` into a vector whose words were zero.
template <class T>
KOLO_INLINE void put(Vector &vector, u32 index, T value) {
    u64 bits = Bits<T>::of(value);
    if (sizeof(T) == 8) {
        vector.words[(2 * index) % 4] = static_cast<u32>(bits);
        vector.words[(2 * index + 1) % 4] = static_cast<u32>(bits >> 32);
        return;
    }
    constexpr u32 per_word = sizeof(T) == 8 ? 1 : 4 / sizeof(T);
    vector.words[index / per_word % 4] |= static_cast<u32>(bits) << (8 * sizeof(T) * (index % per_word) % 32);
}

// ---- Single elements -----------------------------------------------------------------------------------------------

// The element at an address, whatever its alignment.
template <class T>
KOLO_INLINE T load_element(u64 address) {
    if (address % sizeof(T) == 0) {
        return *at<const T>(address);
    }
    u64 bits = 0;
#pragma unroll
    for (u32 byte = 0; byte < sizeof(T); ++byte) {
        bits |= static_cast<u64>(*at<const u8>(address + byte)) << (8 * byte);
    }
    return Bits<T>::value(bits);
}

template <class T>
KOLO_INLINE void store_element(u64 address, T value) {
    if (address % sizeof(T) == 0) {
        *at<T>(address) = value;
        return;
    }
    u64 bits = Bits<T>::of(value);
#pragma unroll
    for (u32 byte = 0; byte < sizeof(T); ++byte) {
        *at<u8>(address + byte) = static_cast<u8>(bits >> (8 * byte));
    }
}

// Elements before an address is a multiple of a vector; `none` if it never becomes one.
template <class T>
KOLO_INLINE u64 until_aligned(u64 address, u64 none) {
    u64 bytes = (VECTOR - address % VECTOR) % VECTOR;
    return bytes % sizeof(T) == 0 ? bytes / sizeof(T) : none;
}
