// As much of CUDA C++ as the headers of plain functions need, for a host compiler.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __forceinline__ inline

struct uint4 {
    unsigned int x, y, z, w;
};

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline unsigned int __float_as_uint(float value) {
    return same_bits<unsigned int>(value);
}
inline float __uint_as_float(unsigned int bits) {
    return same_bits<float>(bits);
}
inline long long __double_as_longlong(double value) {
    return same_bits<long long>(value);
}
inline double __longlong_as_double(long long bits) {
    return same_bits<double>(bits);
}

inline uint4 kolo_load_stream(const uint4 *from) {
    return *from;
}
inline void kolo_store_stream(uint4 *to, uint4 value) {
    *to = value;
}
