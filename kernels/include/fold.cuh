// The sum of a value over the threads of a block, in an order that depends on nothing but THREADS.
#pragma once

#include "types.cuh"

constexpr u32 WARP = 32;

// Returns the sum to thread 0; what the others get means nothing. `warps` is shared memory for THREADS / WARP values.
KOLO_INLINE f64 sum_of_block(f64 value, f64 *warps) {
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
        value = value + __shfl_xor_sync(0xffffffffu, value, distance);
    }
    // A sum before this one may still be read.
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        warps[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    f64 total = 0.0;
    if (threadIdx.x == 0) {
        for (u32 warp = 0; warp < THREADS / WARP; ++warp) {
            total = total + warps[warp];
        }
    }
    return total;
}
