// Kernels in which a thread waits for what another writes: of its block, of another block, of another process.
#include "ptx.cuh"

// Thread 0 waits for the last thread of its block.
extern "C" __global__ void kolo_test_wait_thread(unsigned int *flag, unsigned int *to) {
    if (threadIdx.x == 0) {
        while (kolo_load_acquire_sys(flag) == 0) {
            kolo_pause();
        }
        to[0] = 7;
    } else if (threadIdx.x == blockDim.x - 1) {
        kolo_store_release_sys(flag, 1);
    }
}

// Every block waits for all others: a barrier of the grid.
extern "C" __global__ void kolo_test_wait_blocks(unsigned int *arrived, unsigned int *data, unsigned int *to) {
    __shared__ unsigned int all;
    if (threadIdx.x == 0) {
        data[blockIdx.x] = blockIdx.x + 1;
        kolo_fence_sys();
        atomicAdd(arrived, 1u);
        while (kolo_load_acquire_sys(arrived) < gridDim.x) {
            kolo_pause();
        }
        unsigned int sum = 0;
        for (unsigned int block = 0; block < gridDim.x; block++) {
            sum += data[block];
        }
        all = sum;
    }
    __syncthreads();
    to[blockIdx.x * blockDim.x + threadIdx.x] = all;
}

// `rounds` times: tells the peer, waits for it, and adds what it has written.
extern "C" __global__ void kolo_test_rounds(unsigned int *own, const unsigned int *peer, unsigned int rounds,
                                            unsigned int *sum) {
    unsigned int total = 0;
    for (unsigned int round = 1; round <= rounds; round++) {
        own[1] = round * 3;
        kolo_store_release_sys(own, 2 * round - 1);
        while (kolo_load_acquire_sys(peer) < 2 * round - 1) {
            kolo_pause();
        }
        total += peer[1];
        kolo_store_release_sys(own, 2 * round);
        while (kolo_load_acquire_sys(peer) < 2 * round) {
            kolo_pause();
        }
    }
    *sum = total;
}

// Waits for what nobody writes, or until a while is over.
extern "C" __global__ void kolo_test_for_ever(const unsigned int *flag, unsigned long long nanoseconds) {
    const unsigned long long began = kolo_globaltimer();
    while (kolo_load_acquire_sys(flag) == 0 && kolo_globaltimer() - began < nanoseconds) {
        kolo_pause();
    }
}
