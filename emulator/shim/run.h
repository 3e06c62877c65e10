// What the emulator calls: the table of kernels and the runner. src/library.rs declares the same.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

struct kolo_kernel {
    const char *name;
    // Calls the kernel for one thread; an address for each argument.
    void (*call)(void **arguments);
    // Bytes of each parameter.
    const uint32_t *sizes;
    uint32_t parameters;
};

// How the threads of a kernel depend on each other, as its PTX shows it.
enum kolo_waits : uint32_t {
    KOLO_WAITS_NEVER = 0,
    KOLO_WAITS_IN_BLOCK = 1,
    KOLO_WAITS_ANYWHERE = 2,
};

struct kolo_grid {
    uint32_t blocks[3];
    uint32_t threads[3];
    // Bytes of dynamic shared memory.
    uint32_t shared;
    kolo_waits waits;
    // Blocks that run together where one may wait for another.
    uint32_t together;
    // Whether fibers switch by ucontext.
    uint32_t ucontext;
    // 0 runs threads and blocks in order; anything else is the seed of another order.
    uint64_t order;
    // How long a kernel may go on without progress.
    uint64_t limit_ns;
};

// What kolo_run returns: 0, or a code of the driver API.
enum kolo_code : uint32_t {
    KOLO_OK = 0,
    KOLO_OPERATING_SYSTEM = 304,
    KOLO_ILLEGAL_ADDRESS = 700,
    KOLO_LAUNCH_TIMEOUT = 702,
    KOLO_MISALIGNED_ADDRESS = 716,
    KOLO_LAUNCH_FAILED = 719,
};

// The table, and how many kernels it has.
__attribute__((visibility("default"))) const kolo_kernel *kolo_kernels(uint32_t *count);

// Runs all blocks of a grid, and returns when none runs any more. What went wrong is written to `message`.
__attribute__((visibility("default"))) uint32_t kolo_run(const kolo_kernel *kernel, const kolo_grid *grid,
                                                        void **arguments, char *message, size_t bytes);
}
