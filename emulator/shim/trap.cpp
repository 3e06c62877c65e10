#include "trap.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace kolo {

namespace {

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t count = sizeof signals / sizeof *signals;
struct sigaction before[count];
pthread_once_t once = PTHREAD_ONCE_INIT;

// The workers by thread. A handler cannot use thread-local memory: a thread that never had any would have to allocate it.
// A slot belongs to a thread while that thread's number stands in it; nobody else looks at its worker.
constexpr int slots = 2048;
std::atomic<pthread_t> threads[slots];
Worker *workers[slots];

Worker *worker_of(pthread_t thread) {
    for (int index = 0; index < slots; index++) {
        if (threads[index].load(std::memory_order_relaxed) == thread) {
            return workers[index];
        }
    }
    return nullptr;
}

[[noreturn]] void end(Worker *own, uint32_t code, const char *format, va_list list) {
    uint32_t none = KOLO_OK;
    if (own->launch->code.compare_exchange_strong(none, code)) {
        vsnprintf(own->launch->message, own->launch->bytes, format, list);
    }
    siglongjmp(own->escape, 1);
}

[[noreturn]] void end_with(Worker *own, uint32_t code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    end(own, code, format, list);
}

void on_signal(int signal, siginfo_t *info, void *context) {
    Worker *const own = worker_of(pthread_self());
    if (own != nullptr) {
        if (signal == SIGSEGV || signal == SIGBUS) {
            end_with(own, KOLO_ILLEGAL_ADDRESS, "an access to address %p", info->si_addr);
        }
        end_with(own, KOLO_LAUNCH_FAILED, "signal %d: an impossible instruction or a division by zero", signal);
    }
    // Not ours: whoever handled it before.
    for (size_t index = 0; index < count; index++) {
        if (signals[index] != signal) {
            continue;
        }
        const struct sigaction &old = before[index];
        if ((old.sa_flags & SA_SIGINFO) != 0) {
            old.sa_sigaction(signal, info, context);
        } else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) {
            old.sa_handler(signal);
        } else {
            // The instruction is run again, and ends the process as it would have without us.
            sigaction(signal, &old, nullptr);
        }
    }
}

void install() {
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    // A handler that leaves by a jump must not leave its signal blocked.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (size_t index = 0; index < count; index++) {
        if (sigaction(signals[index], &action, &before[index]) != 0) {
            abort();
        }
    }
}

constexpr size_t stack_bytes = 64 << 10;

} // namespace

Trap::Trap(Worker *worker) : slot(-1), stack(nullptr) {
    pthread_once(&once, install);
    // A fiber that runs out of stack leaves none for a handler.
    sigaltstack(nullptr, &old);
    if ((old.ss_flags & SS_DISABLE) != 0) {
        stack = malloc(stack_bytes);
        if (stack == nullptr) {
            return;
        }
        stack_t own = {};
        own.ss_sp = stack;
        own.ss_size = stack_bytes;
        sigaltstack(&own, nullptr);
    }
    for (int index = 0; index < slots; index++) {
        // No thread has the number 0.
        pthread_t nobody = 0;
        if (threads[index].compare_exchange_strong(nobody, pthread_self())) {
            workers[index] = worker;
            slot = index;
            return;
        }
    }
}

Trap::~Trap() {
    if (slot >= 0) {
        workers[slot] = nullptr;
        threads[slot].store(0, std::memory_order_release);
    }
    if (stack != nullptr) {
        sigaltstack(&old, nullptr);
        free(stack);
    }
}

void fail(uint32_t code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    end(worker, code, format, list);
}

} // namespace kolo

// ---- the compiler's checks -----------------------------------------------------------------------------------------
// Kernels are compiled with checks of alignment and of the bounds of arrays, which call these.

namespace {

struct Source {
    const char *file;
    uint32_t line;
    uint32_t column;
};

struct Type {
    uint16_t kind;
    uint16_t info;
    char name[1];
};

struct Mismatch {
    Source source;
    const Type *type;
    unsigned char log_alignment;
    unsigned char kind;
};

struct Bounds {
    Source source;
    const Type *array;
    const Type *index;
};

} // namespace

extern "C" {

__attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1_abort(const Mismatch *data, uintptr_t address) {
    kolo::fail(KOLO_MISALIGNED_ADDRESS, "%s:%u: address 0x%llx of a %s is no multiple of %u", data->source.file,
               data->source.line, static_cast<unsigned long long>(address), data->type->name,
               1u << data->log_alignment);
}

__attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds_abort(const Bounds *data, uintptr_t index) {
    kolo::fail(KOLO_ILLEGAL_ADDRESS, "%s:%u: index %lld is outside of a %s", data->source.file, data->source.line,
               static_cast<long long>(index), data->array->name);
}
}
