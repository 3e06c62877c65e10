// A block: its threads as fibers, and the rules by which they meet.
#pragma once

#include <atomic>
#include <setjmp.h>

#include "fiber.h"
#include "run.h"
#include "thread.h"

namespace kolo {

// A launch, as all that run it see it.
struct Launch {
    const kolo_kernel *kernel;
    const kolo_grid *grid;
    void **arguments;
    uint64_t blocks;
    // The next block that nobody has taken yet.
    std::atomic<uint64_t> next;
    // The first failure; its message is written by whoever sets it.
    std::atomic<uint32_t> code;
    char *message;
    size_t bytes;
};

enum class State : uint8_t { ready, at_barrier, in_exchange, done };

struct Fiber {
    Thread seen;
    Place place;
    ucontext_t context;
    State state;
    // Whether it gave up its turn because it waits for something outside of the block's rules.
    bool spun;
    unsigned site;
    // Its part in an exchange of its warp.
    Exchange kind;
    uint32_t mask;
    uint64_t value;
    uint64_t result;
    unsigned by;
    unsigned width;
};

// Draws orders of threads and blocks.
struct Order {
    uint64_t state;

    uint64_t draw();
};

// An order of 0..count: each number once.
struct Turn {
    uint64_t count, step, start;

    // In order if `order` is null.
    Turn(uint64_t count, Order *order);
    uint64_t at(uint64_t index) const { return (start + index * step) % count; }
};

// A thread of the system that runs blocks.
struct Worker {
    Launch *launch;
    // Where a failure of the kernel ends.
    sigjmp_buf escape;
    Fiber *fibers;
    Stacks *stacks;
    Place scheduler;
    ucontext_t scheduler_context;
    unsigned threads;
    unsigned live;
    unsigned at_barrier;
    Order order;
    uint64_t began_ns;

    bool ucontext() const { return launch->grid->ucontext != 0 || !has_assembly; }
    // Runs one block; leaves it where the launch has failed elsewhere.
    void run(uint64_t block);
    void run_in_turn(const Thread &first);
    void run_as_fibers(const Thread &first);
    void leave(Fiber *fiber);
    void release_barrier();
    void meet(unsigned warp, uint32_t mask);
    [[noreturn]] void report_deadlock();
};

// The worker of this thread, while it runs blocks.
extern __thread Worker *worker __attribute__((visibility("hidden")));

uint64_t now_ns();

} // namespace kolo
