#include "block.h"

#include <sched.h>
#include <string.h>
#include <time.h>

namespace kolo {

__thread Thread *current;
__thread Worker *worker;

uint64_t now_ns() {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

uint64_t Order::draw() {
    // splitmix64.
    state += 0x9e3779b97f4a7c15;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static uint64_t common_divisor(uint64_t a, uint64_t b) {
    while (b != 0) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

Turn::Turn(uint64_t count, Order *order) : count(count), step(1), start(0) {
    if (order == nullptr || count < 2) {
        return;
    }
    start = order->draw() % count;
    do {
        step = 1 + order->draw() % (count - 1);
    } while (common_divisor(step, count) != 1);
}

// Where every fiber begins.
static void begin() {
    Worker *const own = worker;
    Fiber *const fiber = current->fiber;
    own->launch->kernel->call(own->launch->arguments);
    own->leave(fiber);
    __builtin_unreachable();
}

static void stop(Worker *own, Fiber *fiber) { switch_to(&fiber->place, &own->scheduler, own->ucontext()); }

void Worker::run(uint64_t block) {
    const kolo_grid &grid = *launch->grid;
    Thread first = {};
    first.block.x = static_cast<unsigned>(block % grid.blocks[0]);
    first.block.y = static_cast<unsigned>(block / grid.blocks[0] % grid.blocks[1]);
    first.block.z = static_cast<unsigned>(block / grid.blocks[0] / grid.blocks[1]);
    first.threads = {grid.threads[0], grid.threads[1], grid.threads[2]};
    first.blocks = {grid.blocks[0], grid.blocks[1], grid.blocks[2]};
    if (grid.waits == KOLO_WAITS_NEVER) {
        run_in_turn(first);
    } else {
        run_as_fibers(first);
    }
}

static uint3 index_in(const dim3 &size, unsigned number) {
    return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

void Worker::run_in_turn(const Thread &first) {
    Thread thread = first;
    current = &thread;
    const Turn turn(threads, launch->grid->order == 0 ? nullptr : &order);
    for (unsigned index = 0; index < threads; index++) {
        thread.thread = index_in(first.threads, static_cast<unsigned>(turn.at(index)));
        launch->kernel->call(launch->arguments);
    }
    current = nullptr;
}

void Worker::run_as_fibers(const Thread &first) {
    for (unsigned index = 0; index < threads; index++) {
        Fiber &fiber = fibers[index];
        fiber.seen = first;
        fiber.seen.thread = index_in(first.threads, index);
        fiber.seen.fiber = &fiber;
        fiber.state = State::ready;
        fiber.place.context = &fiber.context;
        prepare(&fiber.place, ucontext(), stacks->bottom(index), Stacks::bytes, begin);
    }
    scheduler.context = &scheduler_context;
    live = threads;
    at_barrier = 0;
    uint64_t idle_since = 0;
    while (live > 0) {
        bool spun = false, moved = false;
        const Turn turn(threads, launch->grid->order == 0 ? nullptr : &order);
        for (unsigned index = 0; index < threads; index++) {
            const unsigned chosen = static_cast<unsigned>(turn.at(index));
            Fiber &fiber = fibers[chosen];
            if (fiber.state != State::ready) {
                continue;
            }
            fiber.spun = false;
            current = &fiber.seen;
            switch_to(&scheduler, &fiber.place, ucontext());
            if (stacks->is_overrun(chosen)) {
                fail(KOLO_LAUNCH_FAILED, "a thread used more than %zu bytes of stack", Stacks::bytes);
            }
            (fiber.spun ? spun : moved) = true;
        }
        if (launch->code.load(std::memory_order_relaxed) != KOLO_OK) {
            return;
        }
        if (moved) {
            idle_since = 0;
            continue;
        }
        if (!spun) {
            report_deadlock();
        }
        const uint64_t now = now_ns();
        idle_since = idle_since == 0 ? now : idle_since;
        if (now - idle_since > launch->grid->limit_ns) {
            fail(KOLO_LAUNCH_TIMEOUT, "block %u waited for %llu ms in vain", fibers[0].seen.block.x,
                 static_cast<unsigned long long>(launch->grid->limit_ns / 1000000));
        }
        // Whoever is waited for may need this core.
        sched_yield();
    }
    current = nullptr;
}

void Worker::leave(Fiber *fiber) {
    fiber->state = State::done;
    live--;
    // Lanes that wait for all of their warp need not wait for one that has gone.
    const unsigned warp = static_cast<unsigned>(fiber - fibers) / 32;
    for (unsigned index = warp * 32; index < threads && index < warp * 32 + 32; index++) {
        if (fibers[index].state == State::in_exchange) {
            meet(warp, fibers[index].mask);
        }
    }
    stop(this, fiber);
}

void Worker::report_deadlock() {
    unsigned gone = 0, exchanging = 0;
    for (unsigned index = 0; index < threads; index++) {
        gone += fibers[index].state == State::done;
        exchanging += fibers[index].state == State::in_exchange;
    }
    const uint3 block = fibers[0].seen.block;
    fail(KOLO_LAUNCH_FAILED,
         "block (%u, %u, %u) is stuck: %u threads wait at __syncthreads, %u for lanes of their warp, %u have returned",
         block.x, block.y, block.z, at_barrier, exchanging, gone);
}

void Worker::release_barrier() {
    const unsigned site = fibers[0].site;
    for (unsigned index = 0; index < threads; index++) {
        if (fibers[index].site != site) {
            fail(KOLO_LAUNCH_FAILED, "threads of a block wait at different __syncthreads: they have diverged");
        }
    }
    at_barrier = 0;
    for (unsigned index = 0; index < threads; index++) {
        fibers[index].state = State::ready;
    }
}

void barrier(unsigned site) {
    Fiber *const fiber = current->fiber;
    if (fiber == nullptr) {
        fail(KOLO_LAUNCH_FAILED, "the source has a __syncthreads that its PTX has not: make the PTX again");
    }
    Worker *const own = worker;
    fiber->state = State::at_barrier;
    fiber->site = site;
    own->at_barrier++;
    if (own->at_barrier == own->threads) {
        own->release_barrier();
        return;
    }
    stop(own, fiber);
}

void spin() {
    Worker *const own = worker;
    Fiber *const fiber = current->fiber;
    if (fiber != nullptr) {
        fiber->spun = true;
        stop(own, fiber);
        return;
    }
    if (now_ns() - own->began_ns > own->launch->grid->limit_ns) {
        fail(KOLO_LAUNCH_TIMEOUT, "a thread waited in vain, in a kernel whose PTX shows no wait: make the PTX again");
    }
}

// ---- exchanges of a warp ----------------------------------------------------------------------------------------

// The bits of a lane that no exchange has written.
static constexpr uint64_t nothing = 0xa5a5a5a5a5a5a5a5;

// Which lane a lane takes its value from; itself where the rules say so.
static unsigned source(const Fiber &fiber, unsigned lane) {
    const unsigned width = fiber.width, first = lane / width * width;
    switch (fiber.kind) {
    case Exchange::index:
        return first + fiber.by % width;
    case Exchange::exclusive_or: {
        const unsigned from = lane ^ fiber.by;
        // Beyond the lane's own group, only lower groups may be read.
        return from < first + width ? from : lane;
    }
    case Exchange::up:
        return lane - first >= fiber.by ? lane - fiber.by : lane;
    case Exchange::down:
        return lane - first + fiber.by < width ? lane + fiber.by : lane;
    default:
        return lane;
    }
}

// Completes the exchange of a mask if all its lanes are there.
void Worker::meet(unsigned warp, uint32_t mask) {
    Fiber *const lanes = fibers + warp * 32;
    const unsigned count = threads - warp * 32 < 32 ? threads - warp * 32 : 32;
    uint32_t there = 0;
    const Fiber *first = nullptr;
    for (unsigned lane = 0; lane < count; lane++) {
        if ((mask >> lane & 1) == 0 || lanes[lane].state == State::done) {
            continue;
        }
        if (lanes[lane].state != State::in_exchange || lanes[lane].mask != mask) {
            return;
        }
        first = first == nullptr ? &lanes[lane] : first;
        if (lanes[lane].site != first->site) {
            fail(KOLO_LAUNCH_FAILED, "lanes of one mask are in different exchanges: they have diverged");
        }
        there |= 1u << lane;
    }
    uint32_t ballot = 0;
    for (unsigned lane = 0; lane < count; lane++) {
        if ((there >> lane & 1) != 0 && lanes[lane].value != 0) {
            ballot |= 1u << lane;
        }
    }
    for (unsigned lane = 0; lane < count; lane++) {
        if ((there >> lane & 1) == 0) {
            continue;
        }
        Fiber &fiber = lanes[lane];
        switch (fiber.kind) {
        case Exchange::sync:
            fiber.result = 0;
            break;
        case Exchange::ballot:
            fiber.result = ballot;
            break;
        case Exchange::any:
            fiber.result = ballot != 0;
            break;
        case Exchange::all:
            fiber.result = ballot == there;
            break;
        default: {
            const unsigned from = source(fiber, lane);
            fiber.result = from < 32 && (there >> from & 1) != 0 ? lanes[from].value : nothing;
        }
        }
    }
    for (unsigned lane = 0; lane < count; lane++) {
        if ((there >> lane & 1) != 0) {
            lanes[lane].state = State::ready;
        }
    }
}

uint64_t exchange(unsigned site, Exchange kind, uint32_t mask, uint64_t value, unsigned by, unsigned width) {
    Fiber *const fiber = current->fiber;
    if (fiber == nullptr) {
        fail(KOLO_LAUNCH_FAILED, "the source has an exchange of a warp that its PTX has not: make the PTX again");
    }
    Worker *const own = worker;
    const unsigned number = static_cast<unsigned>(fiber - own->fibers);
    if ((mask >> number % 32 & 1) == 0) {
        fail(KOLO_LAUNCH_FAILED, "lane %u takes part in an exchange whose mask 0x%x lacks it", number % 32, mask);
    }
    if (width == 0 || width > 32 || (width & (width - 1)) != 0) {
        fail(KOLO_LAUNCH_FAILED, "the width %u of a shuffle is no power of two up to 32", width);
    }
    fiber->state = State::in_exchange;
    fiber->site = site;
    fiber->kind = kind;
    fiber->mask = mask;
    fiber->value = value;
    fiber->by = by;
    fiber->width = width;
    own->meet(number / 32, mask);
    if (fiber->state != State::ready) {
        stop(own, fiber);
    }
    return fiber->result;
}

} // namespace kolo
