// CUDA C++ for the host's compiler: included before each kernel source, by force. What a kernel uses and this lacks is an
// error of the compiler.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "thread.h"

#ifndef KOLO_HOST_SCAN
// While sources are searched for kernels, this word stays as it is.
#define __global__ __attribute__((visibility("hidden")))
#define __launch_bounds__(...)
#endif
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// A block runs on one thread of the system, so what belongs to that thread belongs to the block.
#define __shared__ thread_local

#define threadIdx (kolo::current->thread)
#define blockIdx (kolo::current->block)
#define blockDim (kolo::current->threads)
#define gridDim (kolo::current->blocks)
#define warpSize 32

struct __align__(8) uint2 {
    unsigned int x, y;
};
struct __align__(16) uint4 {
    unsigned int x, y, z, w;
};
struct __align__(8) int2 {
    int x, y;
};
struct __align__(16) int4 {
    int x, y, z, w;
};
struct __align__(8) float2 {
    float x, y;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct __align__(16) double2 {
    double x, y;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }

namespace kolo {

// The bits of a value, and back.
template <typename To, typename From> static inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a value and its bits have one size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

template <typename T>
static inline T exchanged(unsigned site, Exchange kind, uint32_t mask, T value, unsigned by, unsigned width = 32) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    word = exchange(site, kind, mask, word, by, width);
    memcpy(&value, &word, sizeof value);
    return value;
}

template <typename T> static inline T shuffle(unsigned site, uint32_t mask, T value, int lane, int width = 32) {
    return exchanged(site, Exchange::index, mask, value, static_cast<unsigned>(lane), static_cast<unsigned>(width));
}
template <typename T> static inline T shuffle_xor(unsigned site, uint32_t mask, T value, int bits, int width = 32) {
    return exchanged(site, Exchange::exclusive_or, mask, value, static_cast<unsigned>(bits),
                     static_cast<unsigned>(width));
}
template <typename T> static inline T shuffle_up(unsigned site, uint32_t mask, T value, unsigned by, int width = 32) {
    return exchanged(site, Exchange::up, mask, value, by, static_cast<unsigned>(width));
}
template <typename T> static inline T shuffle_down(unsigned site, uint32_t mask, T value, unsigned by, int width = 32) {
    return exchanged(site, Exchange::down, mask, value, by, static_cast<unsigned>(width));
}

// __syncwarp, which may be called without a mask.
struct SyncWarp {
    unsigned site;
    void operator()(uint32_t mask = 0xffffffffu) const { exchange(site, Exchange::sync, mask, 0, 0, 32); }
};
static inline unsigned vote(unsigned site, Exchange kind, uint32_t mask, int predicate) {
    return static_cast<unsigned>(exchange(site, kind, mask, predicate != 0, 0, 32));
}

// Adds by exchanging bits until nobody was in between.
template <typename T, typename Word> static inline T add_by_exchange(T *address, T value) {
    Word *word = reinterpret_cast<Word *>(address);
    Word seen = __atomic_load_n(word, __ATOMIC_RELAXED);
    for (;;) {
        const Word wanted = bits<Word>(bits<T>(seen) + value);
        if (__atomic_compare_exchange_n(word, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            return bits<T>(seen);
        }
    }
}

} // namespace kolo

// Each use has a number of its own: threads that meet at different ones have diverged.
#define __syncthreads() kolo::barrier(__COUNTER__)
#define __syncwarp (kolo::SyncWarp{__COUNTER__})
#define __shfl_sync(...) kolo::shuffle(__COUNTER__, __VA_ARGS__)
#define __shfl_xor_sync(...) kolo::shuffle_xor(__COUNTER__, __VA_ARGS__)
#define __shfl_up_sync(...) kolo::shuffle_up(__COUNTER__, __VA_ARGS__)
#define __shfl_down_sync(...) kolo::shuffle_down(__COUNTER__, __VA_ARGS__)
#define __ballot_sync(mask, predicate) kolo::vote(__COUNTER__, kolo::Exchange::ballot, mask, predicate)
#define __any_sync(mask, predicate) static_cast<int>(kolo::vote(__COUNTER__, kolo::Exchange::any, mask, predicate))
#define __all_sync(mask, predicate) static_cast<int>(kolo::vote(__COUNTER__, kolo::Exchange::all, mask, predicate))

static inline float atomicAdd(float *address, float value) {
    return kolo::add_by_exchange<float, uint32_t>(address, value);
}
static inline double atomicAdd(double *address, double value) {
    return kolo::add_by_exchange<double, uint64_t>(address, value);
}
static inline int atomicAdd(int *address, int value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }
static inline unsigned atomicAdd(unsigned *address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
static inline unsigned long long atomicAdd(unsigned long long *address, unsigned long long value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#define __trap() kolo::fail(719, "%s:%d: __trap()", __FILE__, __LINE__)

static inline unsigned __float_as_uint(float value) { return kolo::bits<unsigned>(value); }
static inline int __float_as_int(float value) { return kolo::bits<int>(value); }
static inline float __uint_as_float(unsigned value) { return kolo::bits<float>(value); }
static inline float __int_as_float(int value) { return kolo::bits<float>(value); }
static inline long long __double_as_longlong(double value) { return kolo::bits<long long>(value); }
static inline double __longlong_as_double(long long value) { return kolo::bits<double>(value); }

// Rounded to nearest, as everything is here; sources are compiled without contraction.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return sqrt(a); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

static inline int __popc(unsigned value) { return __builtin_popcount(value); }
static inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
static inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
static inline int __ffs(int value) { return __builtin_ffs(value); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }
static inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
static inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
