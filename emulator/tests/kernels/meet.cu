// Kernels whose threads meet: barriers, shuffles, shared memory; and those that do it wrong.

// A sum over a block by a tree in static shared memory.
extern "C" __global__ void kolo_test_block_sum(const float *from, float *to) {
    __shared__ float part[256];
    part[threadIdx.x] = from[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            part[threadIdx.x] += part[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        to[blockIdx.x] = part[0];
    }
}

// The same without the barrier before the last read: right only if threads happen to run in order.
extern "C" __global__ void kolo_test_no_barrier(const float *from, float *to) {
    __shared__ float part[256];
    part[threadIdx.x] = from[threadIdx.x];
    to[threadIdx.x] = part[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
}

// A sum over a block by shuffles and dynamic shared memory.
extern "C" __global__ void kolo_test_warp_sum(const double *from, double *to) {
    extern __shared__ double warps[];
    double sum = from[blockIdx.x * blockDim.x + threadIdx.x];
    for (int bits = 16; bits > 0; bits /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, bits);
    }
    if (threadIdx.x % 32 == 0) {
        warps[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0;
        for (unsigned int warp = 0; warp < blockDim.x / 32; warp++) {
            all += warps[warp];
        }
        to[blockIdx.x] = all;
    }
}

// Every kind of exchange; eight words a lane.
extern "C" __global__ void kolo_test_exchange(const int *from, int *to, unsigned int half) {
    int value = from[threadIdx.x];
    int *out = to + threadIdx.x * 8;
    out[0] = __shfl_sync(0xffffffffu, value, 3);
    out[1] = __shfl_up_sync(0xffffffffu, value, 2u);
    out[2] = __shfl_down_sync(0xffffffffu, value, 5u);
    out[3] = __shfl_xor_sync(0xffffffffu, value, 6, 8);
    out[4] = (int)__ballot_sync(0xffffffffu, value & 1);
    out[5] = __any_sync(0xffffffffu, value == 7) + 2 * __all_sync(0xffffffffu, value < 1000);
    __syncwarp();
    // Only some lanes, and a group of eight.
    out[6] = threadIdx.x < half ? __shfl_sync((1u << half) - 1, value, 1, 8) : -1;
    out[7] = (int)__shfl_sync(0xffffffffu, (unsigned int)value, (int)threadIdx.x + 1);
}

// Half of the threads meet, the others have left.
extern "C" __global__ void kolo_test_left(unsigned int *data) {
    if (threadIdx.x < blockDim.x / 2) {
        __syncthreads();
        data[threadIdx.x] = 1;
    }
}

// Both halves meet, but at different places.
extern "C" __global__ void kolo_test_diverged(unsigned int *data) {
    if (threadIdx.x < blockDim.x / 2) {
        __syncthreads();
        data[threadIdx.x] = 1;
    } else {
        __syncthreads();
        data[threadIdx.x] = 2;
    }
}

// An index beyond shared memory, if it is told one.
extern "C" __global__ void kolo_test_shared_index(unsigned int *data, unsigned int index) {
    __shared__ unsigned int part[64];
    part[(threadIdx.x + index) % 1024] = threadIdx.x;
    __syncthreads();
    data[threadIdx.x] = part[threadIdx.x];
}

// What shared memory holds before anybody has written to it.
extern "C" __global__ void kolo_test_unwritten(unsigned int *data) {
    __shared__ unsigned int part[64];
    __syncthreads();
    data[threadIdx.x] = part[threadIdx.x];
    __syncthreads();
    part[threadIdx.x] = 1;
}
