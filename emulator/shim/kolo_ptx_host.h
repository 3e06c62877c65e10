// The host's twins of the inline PTX in kernels/include/ptx.cuh, under the same names.
//
// They are at least as strong as what they stand for, on this machine: that the PTX itself is strong enough cannot be
// seen here.
#pragma once

#include <stdint.h>
#include <time.h>

#include "thread.h"

// Every look at a flag lets the others run: the one who writes it may be a thread of the same block, or of a process that
// has no core now.
static inline uint32_t kolo_load_acquire_sys(const uint32_t *flag) {
    const uint32_t value = __atomic_load_n(flag, __ATOMIC_ACQUIRE);
    kolo::spin();
    return value;
}

static inline void kolo_store_release_sys(uint32_t *flag, uint32_t value) {
    __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

static inline void kolo_fence_sys() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline unsigned long long kolo_globaltimer() {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<unsigned long long>(now.tv_sec) * 1000000000ull + static_cast<unsigned long long>(now.tv_nsec);
}

static inline void kolo_pause() { kolo::spin(); }

static inline uint4 kolo_load_stream(const uint4 *address) { return *address; }

static inline void kolo_store_stream(uint4 *address, uint4 value) { *address = value; }
