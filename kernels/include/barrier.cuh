// A barrier between kernels of several ranks, one rank a GPU, by flags in memory that all of them map.
//
// kernels/README.md has the protocol: states, who writes what, the memory ordering and the scenarios.
#pragma once

#include "types.cuh"

// Ranks that meet.
constexpr u32 RANKS = 8;
// Blocks of a grid that may meet their like on the other ranks.
constexpr u32 BLOCKS = 128;

// The flags of one rank, in its own memory; the others map them. All zero before the first kernel.
struct Flags {
    // Barriers that each block of this rank has passed. Only the rank itself looks at it.
    u32 passed[BLOCKS];
    // [number of the barrier % 2][block][rank]: the number of the barrier at which that block of that rank has
    // arrived. Written by that rank alone.
    u32 arrived[2][BLOCKS][RANKS];
};
static_assert(sizeof(Flags) == 4 * BLOCKS * (1 + 2 * RANKS), "Rust allocates as much");

// Who meets whom: a part of the arguments.
struct Team {
    // Of the Flags of each rank, as this rank sees them.
    u64 flags[RANKS];
    // Of this rank's error word, which is 0 as long as all is well: see `meet`.
    u64 error;
    // Nanoseconds that a block waits at one barrier.
    u64 patience;
    // 1 to RANKS of them; the grid is the same on all.
    u32 ranks;
    u32 rank;
};
static_assert(sizeof(Team) == 88, "Rust builds the same");

// What went wrong, in the error word's lowest byte.
constexpr u32 LATE = 1;
constexpr u32 OUT_OF_STEP = 2;

// The barriers of one block: all of its threads make the same calls.
struct Meeting {
    // The barrier that was passed last.
    u32 number;
    // In shared memory: whether one of the block's threads has given up.
    u32 *failed;

    // Whether the kernel may run: nothing has gone wrong before. To be called first, by all threads.
    __device__ __forceinline__ bool begin(const Team &team) {
        if (threadIdx.x == 0) {
            // One thread decides, so that all decide the same.
            *failed = kolo_load_acquire_sys(at<const u32>(team.error)) != 0;
        }
        number = at<Flags>(team.flags[team.rank])->passed[blockIdx.x];
        __syncthreads();
        return *failed == 0;
    }

    // Waits until this block has come here on every rank. What any of them wrote before, all of them see after.
    // Returns false to all threads if that took too long; then the error word says so, and the kernel must end.
    __device__ __forceinline__ bool meet(const Team &team) {
        number += 1;
        u32 peer = threadIdx.x;
        // What the other threads of the block wrote comes before what these announce.
        __syncthreads();
        if (peer < team.ranks) {
            Flags *theirs = at<Flags>(team.flags[peer]), *ours = at<Flags>(team.flags[team.rank]);
            kolo_store_release_sys(&theirs->arrived[number % 2][blockIdx.x][team.rank], number);
            u32 what = wait(team, &ours->arrived[number % 2][blockIdx.x][peer]);
            if (what != 0) {
                // Bits 0 to 7: what went wrong; 8 to 15: the rank that was missed; 16 to 31: the lower half of the
                // barrier's number. Of several that fail at once, one remains.
                kolo_store_release_sys(at<u32>(team.error), what | (peer << 8) | (number << 16));
                *failed = 1;
            }
        }
        __syncthreads();
        return *failed == 0;
    }

    // Remembers how far the block came.
    __device__ __forceinline__ void end(const Team &team) {
        if (threadIdx.x == 0) {
            at<Flags>(team.flags[team.rank])->passed[blockIdx.x] = number;
        }
    }

private:
    // 0 once the flag has the barrier's number; else what went wrong.
    __device__ __forceinline__ u32 wait(const Team &team, const u32 *flag) {
        u64 start = kolo_globaltimer();
        for (;;) {
            u32 seen = kolo_load_acquire_sys(flag);
            if (seen == number) {
                return 0;
            }
            // Until then it holds the barrier before the last, or nothing.
            if (seen != number - 2 && seen != 0) {
                return OUT_OF_STEP;
            }
            if (kolo_globaltimer() - start > team.patience) {
                return LATE;
            }
            kolo_pause();
        }
    }
};
