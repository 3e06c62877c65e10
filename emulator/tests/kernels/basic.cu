// Kernels without waits: plain arithmetic, atomics, and mistakes.

extern "C" __global__ void kolo_test_scale(float *data, unsigned long long count, float by) {
    unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) {
        data[at] *= by;
    }
}

struct Table {
    unsigned long long from[16];
    unsigned int count;
    float scale;
};

// A structure by value, as kolo's kernels take them.
extern "C" __global__ void kolo_test_table(const Table table, float *to) {
    unsigned int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < table.count) {
        to[at] = *(const float *)table.from[at] * table.scale;
    }
}

extern "C" __global__ void kolo_test_count(unsigned int *counter, float *sum, double *precise) {
    atomicAdd(counter, 1u);
    atomicAdd(sum, 0.5f);
    atomicAdd(precise, 0.25);
}

// Writes where every thread stands, for grids of three dimensions.
extern "C" __global__ void kolo_test_index(uint4 *to) {
    unsigned int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned int at = block * blockDim.x * blockDim.y * blockDim.z + thread;
    to[at] = make_uint4(threadIdx.x | threadIdx.y << 10 | threadIdx.z << 20, blockIdx.x, blockIdx.y, blockIdx.z);
}

// Writes past the end by as many elements as it is told.
extern "C" __global__ void kolo_test_stray(float *data, unsigned long long count, unsigned long long past) {
    data[count + past] = 1.0f;
}

// Reads 16 bytes at any address.
extern "C" __global__ void kolo_test_wide(const unsigned char *from, uint4 *to) {
    *to = *(const uint4 *)from;
}

// As long as it is told, and then some.
extern "C" __global__ void kolo_test_fill(unsigned int *data, unsigned int count, unsigned int value) {
    for (unsigned int at = threadIdx.x; at < count; at += blockDim.x) {
        data[at] = value;
    }
}

extern "C" __global__ void kolo_test_trap(const unsigned int *word) {
    if (*word != 0) {
        __trap();
    }
}

extern "C" __global__ void kolo_test_sites(float *a, float b, double c, unsigned short d, unsigned char e, char f) {
    a[0] = b + (float)c + (float)d + (float)e + (float)f;
}
