// Every line of inline PTX. The host build has twins of these functions in a header of its own.
//
// What the functions promise: `sys` is the scope of all devices and the host. An acquire that reads what a release
// wrote sees whatever came before the release, also writes of other threads that the releasing thread had
// synchronised with (PTX ISA, "Memory Consistency Model", causality order).
#pragma once

#ifdef KOLO_HOST
#include "kolo_ptx_host.h"
#else

// Reads a flag that peers write.
static __device__ __forceinline__ unsigned int kolo_load_acquire_sys(const unsigned int *flag) {
    unsigned int value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

// Writes a flag that peers read.
static __device__ __forceinline__ void kolo_store_release_sys(unsigned int *flag, unsigned int value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(flag), "r"(value) : "memory");
}

// Orders all before it against all after it, for everybody.
static __device__ __forceinline__ void kolo_fence_sys() {
    asm volatile("fence.acq_rel.sys;" : : : "memory");
}

// Nanoseconds of a clock that only goes forward; its steps may be as long as a microsecond.
static __device__ __forceinline__ unsigned long long kolo_globaltimer() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Leaves the execution units to others for a moment. Called in every spin.
static __device__ __forceinline__ void kolo_pause() {
    asm volatile("nanosleep.u32 100;" : : : "memory");
}

// 16 bytes that are read once: they take no room in the first cache.
static __device__ __forceinline__ uint4 kolo_load_stream(const uint4 *from) {
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

// 16 bytes that this kernel does not read again.
static __device__ __forceinline__ void kolo_store_stream(uint4 *to, uint4 value) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

// f16 bits to f32, exact, subnormals included.
static __device__ __forceinline__ float kolo_f16_to_f32(unsigned short half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

// f32 to f16 bits, rounded once to nearest even, subnormals included.
static __device__ __forceinline__ unsigned short kolo_f32_to_f16(float value) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

#endif
