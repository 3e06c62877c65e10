// Stacks, and the switch from one to another.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

#if defined(__x86_64__)
#define KOLO_ASSEMBLY 1
#else
#define KOLO_ASSEMBLY 0
#endif

namespace kolo {

// Stacks for many fibers. They are used again, since fresh ones would have to be filled by the kernel each time.
struct Stacks {
    char *first;
    size_t count;
    Stacks *next;

    // At least `count` stacks, or null.
    static Stacks *take(size_t count);
    static void give_back(Stacks *stacks);

    // Whether somebody has written over the end of a stack.
    bool is_overrun(size_t index) const;

    static constexpr size_t bytes = 64 << 10;

    char *bottom(size_t index) const { return first + index * bytes; }
};

// A place where execution can go on.
struct Place {
    void *stack_pointer;
    // Where ucontext switches, instead.
    ucontext_t *context;
};

// Whether fibers switch by assembly on this machine, unless asked otherwise.
constexpr bool has_assembly = KOLO_ASSEMBLY != 0;

// Makes a place that begins with `begin`, which never returns, on this stack.
void prepare(Place *place, bool ucontext, char *bottom, size_t bytes, void (*begin)());

// Goes on at `to`, and returns when somebody switches back to `from`.
void switch_to(Place *from, const Place *to, bool ucontext);

} // namespace kolo
