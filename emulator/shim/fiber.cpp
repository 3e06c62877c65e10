#include "fiber.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if KOLO_ASSEMBLY
// Saves what a call must preserve on the old stack, and takes it from the new one. Kernels do not change the modes of the
// floating-point unit, so those stay.
asm(R"(
.text
.p2align 4
.hidden kolo_switch
.globl kolo_switch
.type kolo_switch, @function
kolo_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size kolo_switch, . - kolo_switch
)");
extern "C" void kolo_switch(void **save, void *to);
#endif

namespace kolo {

namespace {

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Stacks *idle = nullptr;

constexpr uint64_t canary = 0x6b6f6c6f5f656e64;

} // namespace

Stacks *Stacks::take(size_t count) {
    pthread_mutex_lock(&lock);
    for (Stacks **place = &idle; *place != nullptr; place = &(*place)->next) {
        if ((*place)->count >= count) {
            Stacks *stacks = *place;
            *place = stacks->next;
            pthread_mutex_unlock(&lock);
            return stacks;
        }
    }
    pthread_mutex_unlock(&lock);
    Stacks *stacks = static_cast<Stacks *>(malloc(sizeof(Stacks)));
    if (stacks == nullptr) {
        return nullptr;
    }
    // Guard pages between so many stacks would be more mappings than a process may have. A word at the end of each stack
    // tells instead, afterwards.
    void *memory = mmap(nullptr, count * bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) {
        free(stacks);
        return nullptr;
    }
    *stacks = {static_cast<char *>(memory), count, nullptr};
    for (size_t index = 0; index < count; index++) {
        memcpy(stacks->bottom(index), &canary, sizeof canary);
    }
    return stacks;
}

void Stacks::give_back(Stacks *stacks) {
    pthread_mutex_lock(&lock);
    stacks->next = idle;
    idle = stacks;
    pthread_mutex_unlock(&lock);
}

bool Stacks::is_overrun(size_t index) const { return memcmp(bottom(index), &canary, sizeof canary) != 0; }

void prepare(Place *place, bool ucontext, char *bottom, size_t bytes, void (*begin)()) {
    if (ucontext || !has_assembly) {
        getcontext(place->context);
        place->context->uc_stack.ss_sp = bottom;
        place->context->uc_stack.ss_size = bytes;
        place->context->uc_link = nullptr;
        makecontext(place->context, begin, 0);
        return;
    }
    // The first switch pops six registers and returns into `begin`, which finds the stack as after a call.
    void **top = reinterpret_cast<void **>(bottom + bytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void *>(begin);
    memset(top - 8, 0, 6 * sizeof(void *));
    place->stack_pointer = top - 8;
}

void switch_to(Place *from, const Place *to, [[maybe_unused]] bool ucontext) {
#if KOLO_ASSEMBLY
    if (!ucontext) {
        kolo_switch(&from->stack_pointer, to->stack_pointer);
        return;
    }
#endif
    swapcontext(from->context, to->context);
}

} // namespace kolo
