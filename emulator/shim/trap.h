// Faults of kernels: signals and the compiler's checks, turned into codes of the driver.
#pragma once

#include <signal.h>

#include "block.h"

namespace kolo {

// Makes signals of this thread faults of the kernel that it runs, while it lives.
struct Trap {
    explicit Trap(Worker *worker);
    ~Trap();
    Trap(const Trap &) = delete;

    // Whether there was room for it.
    bool is_set() const { return slot >= 0; }

  private:
    int slot;
    stack_t old;
    void *stack;
};

} // namespace kolo
