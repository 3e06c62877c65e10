// Allreduce over peer memory, one rank a GPU: the blocks of all ranks' kernels meet by flags (include/barrier.cuh),
// and each rank reads the others' memory, or writes it too.
//
// One kernel is launched by every rank, with the same grid of at most BLOCKS blocks, all of which must be resident at
// once. Never for ranks that share a GPU: their kernels may run one after another. Such ranks order kolo_reduce_* by
// events.
#include "barrier.cuh"
#include "reduce.cuh"

// The argument of kolo_allreduce_*.
//
// One-shot: every rank reduces everything into its own output. n times the reading; for small data. `inputs` are the
// data of the ranks, in rank order, as this rank sees them; the only output is this rank's, and no input.
//
// Two-shot: every rank reduces a slice, and writes it into the output of every rank: the least that must be read and
// written. `inputs` and `outputs` begin at this rank's slice, and `count` is its length. Nobody else touches that
// slice, so outputs may be inputs.
struct Peers {
    Team team;
    Reduce reduce;
    // Whether to meet at the end: until all outputs have come, and nobody reads this rank's input any more. Needed in
    // two-shot; in one-shot, where the input is written before the team has met again.
    u32 settle;
    u32 unused;
};
static_assert(sizeof(Peers) == 256, "Rust builds the same");

template <class T>
KOLO_INLINE void allreduce(const Peers &peers, u32 *failed) {
    Meeting meeting = {0, failed};
    if (!meeting.begin(peers.team) || !meeting.meet(peers.team)) {
        return;
    }
    reduce_range<T, Sum, Finished>(peers.reduce, 0, peers.reduce.count, share_of_grid());
    if (peers.settle && !meeting.meet(peers.team)) {
        return;
    }
    meeting.end(peers.team);
}

#define KOLO_PEERS(T)                                                                                                  \
    KOLO_KERNEL kolo_allreduce_sum_##T(const __grid_constant__ Peers peers) {                                          \
        __shared__ u32 failed;                                                                                         \
        allreduce<T>(peers, &failed);                                                                                  \
    }

KOLO_PEERS(f16)
KOLO_PEERS(bf16)
KOLO_PEERS(f32)
KOLO_PEERS(f64)

// The barrier alone, as a kernel between others of the same stream: whatever kernels of any rank wrote before theirs,
// all see after it. Before and after kolo_reduce_*, it serves all types and operations.
KOLO_KERNEL kolo_meet(const __grid_constant__ Team team) {
    __shared__ u32 failed;
    Meeting meeting = {0, &failed};
    if (meeting.begin(team) && meeting.meet(team)) {
        meeting.end(team);
    }
}
