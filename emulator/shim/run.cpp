#include "run.h"

#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trap.h"

// The linker's names for the ends of the table; there are none if there is no kernel.
extern "C" {
extern const kolo_kernel __start_kolo_table[] __attribute__((weak, visibility("hidden")));
extern const kolo_kernel __stop_kolo_table[] __attribute__((weak, visibility("hidden")));
}

namespace kolo {

namespace {

constexpr int poison = 0xa5;

// The thread's copy of this library's thread-local memory, where shared memory lies.
struct Shared {
    char *first = nullptr;
    size_t bytes = 0;
};

int find_shared(struct dl_phdr_info *info, size_t, void *out) {
    const uintptr_t here = reinterpret_cast<uintptr_t>(&find_shared);
    bool own = false;
    size_t bytes = 0;
    for (int index = 0; index < info->dlpi_phnum; index++) {
        const ElfW(Phdr) &header = info->dlpi_phdr[index];
        const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
        own |= header.p_type == PT_LOAD && here >= begin && here < begin + header.p_memsz;
        bytes = header.p_type == PT_TLS ? header.p_memsz : bytes;
    }
    if (own) {
        *static_cast<Shared *>(out) = {static_cast<char *>(info->dlpi_tls_data), bytes};
    }
    return own;
}

// Shared memory holds nothing that a block may rely on.
void spoil(const Shared &shared) {
    Worker *const own = worker;
    Thread *const thread = current;
    if (shared.first != nullptr) {
        memset(shared.first, poison, shared.bytes);
    }
    worker = own;
    current = thread;
}

void out_of(Launch *launch, const char *what) {
    uint32_t none = KOLO_OK;
    if (launch->code.compare_exchange_strong(none, KOLO_OPERATING_SYSTEM)) {
        snprintf(launch->message, launch->bytes, "the machine has no more %s", what);
    }
}

void run_blocks(Worker *own, const Shared &shared) {
    Launch *const launch = own->launch;
    const uint64_t seed = launch->grid->order;
    Order order = {seed};
    const Turn turn(launch->blocks, seed == 0 ? nullptr : &order);
    for (;;) {
        const uint64_t block = launch->next.fetch_add(1);
        if (block >= launch->blocks || launch->code.load() != KOLO_OK) {
            return;
        }
        spoil(shared);
        own->run(turn.at(block));
    }
}

// What each thread of the system does that takes part in a launch.
void work(Launch *launch) {
    const kolo_grid &grid = *launch->grid;
    // Not on the stack: a jump out of a kernel comes back here, and finds everything as it was.
    Worker *const own = static_cast<Worker *>(calloc(1, sizeof(Worker)));
    if (own == nullptr) {
        return out_of(launch, "memory");
    }
    own->launch = launch;
    own->threads = grid.threads[0] * grid.threads[1] * grid.threads[2];
    own->order.state = grid.order;
    own->began_ns = now_ns();
    if (grid.waits != KOLO_WAITS_NEVER) {
        own->fibers = static_cast<Fiber *>(calloc(own->threads, sizeof(Fiber)));
        own->stacks = Stacks::take(own->threads);
    }
    worker = own;
    Shared shared;
    dl_iterate_phdr(find_shared, &shared);
    {
        const Trap trap(own);
        if (!trap.is_set() || (grid.waits != KOLO_WAITS_NEVER && (own->fibers == nullptr || own->stacks == nullptr))) {
            out_of(launch, "room for threads");
        } else if (sigsetjmp(own->escape, 0) == 0) {
            run_blocks(own, shared);
        }
    }
    worker = nullptr;
    current = nullptr;
    if (own->stacks != nullptr) {
        // One that was overrun is not used again.
        bool whole = true;
        for (size_t index = 0; index < own->stacks->count; index++) {
            whole &= !own->stacks->is_overrun(index);
        }
        if (whole) {
            Stacks::give_back(own->stacks);
        }
    }
    free(own->fibers);
    free(own);
}

void *work_elsewhere(void *launch) {
    work(static_cast<Launch *>(launch));
    return nullptr;
}

} // namespace

} // namespace kolo

const kolo_kernel *kolo_kernels(uint32_t *count) {
    *count = static_cast<uint32_t>(__stop_kolo_table - __start_kolo_table);
    return __start_kolo_table;
}

uint32_t kolo_run(const kolo_kernel *kernel, const kolo_grid *grid, void **arguments, char *message, size_t bytes) {
    kolo::Launch launch = {kernel, grid, arguments, 0, {0}, {KOLO_OK}, message, bytes};
    launch.blocks = static_cast<uint64_t>(grid->blocks[0]) * grid->blocks[1] * grid->blocks[2];
    // Blocks that may wait for each other each get a thread of the system, up to a limit; others run one after the other.
    uint64_t together = grid->waits == KOLO_WAITS_ANYWHERE ? grid->together : 1;
    together = together < launch.blocks ? together : launch.blocks;
    pthread_t *const others = static_cast<pthread_t *>(calloc(together, sizeof(pthread_t)));
    uint64_t started = 1;
    for (; others != nullptr && started < together; started++) {
        if (pthread_create(&others[started], nullptr, kolo::work_elsewhere, &launch) != 0) {
            kolo::out_of(&launch, "threads");
            break;
        }
    }
    if (others == nullptr) {
        kolo::out_of(&launch, "memory");
    }
    kolo::work(&launch);
    for (uint64_t index = 1; index < started; index++) {
        pthread_join(others[index], nullptr);
    }
    free(others);
    return launch.code.load();
}
