// What a kernel's code knows of the thread that it is, and what it may ask of the runner.
#pragma once

#include <stdint.h>

struct uint3 {
    unsigned int x, y, z;
};

struct dim3 {
    unsigned int x = 1, y = 1, z = 1;
};

namespace kolo {

struct Fiber;

// One thread of a grid.
struct Thread {
    uint3 thread;
    uint3 block;
    dim3 threads;
    dim3 blocks;
    // Null where threads run one after the other.
    Fiber *fiber;
};

// The thread whose code runs now. A fiber stays on one thread of the system, so its address may be kept.
extern __thread Thread *current __attribute__((visibility("hidden")));

// __syncthreads. Sites tell apart the barriers of a source: threads of a block must meet at the same one.
void barrier(unsigned site) __attribute__((visibility("hidden")));

// How a warp's lanes exchange values.
enum class Exchange : uint8_t { sync, ballot, any, all, index, exclusive_or, up, down };

// A lane's part in an exchange: it waits for the other lanes of the mask. Returns the bits that it gets.
uint64_t exchange(unsigned site, Exchange kind, uint32_t mask, uint64_t value, unsigned by, unsigned width)
    __attribute__((visibility("hidden")));

// A thread that waits for others lets them run.
void spin() __attribute__((visibility("hidden")));

// Ends the kernel.
[[noreturn]] void fail(uint32_t code, const char *format, ...)
    __attribute__((visibility("hidden"), format(printf, 2, 3)));

} // namespace kolo
