// Allreduce over peer memory, one rank a GPU: the blocks of all ranks' kernels meet by flags (include/barrier.cuh),
// and each rank reads the others' memory.
//
// One kernel of each is launched by every rank, with the same grid of at most BLOCKS blocks, all of which must be
// resident at once. Never for ranks that share a GPU: their kernels may run one after another.
#include "barrier.cuh"
#include "reduce.cuh"

// The argument of kolo_one_shot_* and kolo_two_shot_*.
struct Peers {
    Team team;
    // `inputs` are the data of the ranks, in rank order, as this rank sees them; `n` is the number of ranks. `output`
    // is one-shot's: this rank's own, and apart from all inputs.
    Reduce reduce;
    // Two-shot's: where the result goes on each rank. May be the ranks' inputs.
    u64 outputs[RANKS];
    // One-shot's: whether to wait at the end until nobody reads this rank's input any more. Not needed where that is
    // not written before the team has met again.
    u32 settle;
    u32 unused;
};
static_assert(sizeof(Peers) == 264, "src/device/cuda builds the same");

// Slices begin at multiples of so many elements, so that they are aligned like the whole.
constexpr u64 SLICE = 64;

// Everywhere at once.
struct Outputs {
    const Peers &peers;

    __device__ __forceinline__ bool takes_vectors(u64 offset) const {
        bool all = true;
#pragma unroll 1
        for (u32 rank = 0; rank < peers.team.ranks; ++rank) {
            all = all && (peers.outputs[rank] + offset) % VECTOR == 0;
        }
        return all;
    }
    __device__ __forceinline__ void store(u64 offset, const Vector &vector) const {
#pragma unroll 1
        for (u32 rank = 0; rank < peers.team.ranks; ++rank) {
            store_vector(peers.outputs[rank] + offset, vector);
        }
    }
    template <class T>
    __device__ __forceinline__ void store_one(u64 offset, T element) const {
#pragma unroll 1
        for (u32 rank = 0; rank < peers.team.ranks; ++rank) {
            store_element<T>(peers.outputs[rank] + offset, element);
        }
    }
};

// Every rank reduces everything: n times the reading, and nobody waits for a result. For small data.
template <class T>
KOLO_INLINE void one_shot(const Peers &peers, u32 *failed) {
    Meeting meeting = {0, failed};
    if (!meeting.begin(peers.team) || !meeting.meet(peers.team)) {
        return;
    }
    const Reduce &reduce = peers.reduce;
    reduce_range<T, Sum, Finished>(reduce, Output{reduce.output}, 0, reduce.count, share_of_grid());
    if (peers.settle && !meeting.meet(peers.team)) {
        return;
    }
    meeting.end(peers.team);
}

// Every rank reduces its slice, and writes it into the output of every rank: the least that must be read and written.
// Nobody else touches that slice, so outputs may be inputs.
template <class T>
KOLO_INLINE void two_shot(const Peers &peers, u32 *failed) {
    const Team &team = peers.team;
    Meeting meeting = {0, failed};
    if (!meeting.begin(team) || !meeting.meet(team)) {
        return;
    }
    u64 count = peers.reduce.count;
    u64 length = ((count + team.ranks - 1) / team.ranks + SLICE - 1) / SLICE * SLICE;
    u64 begin = length * team.rank < count ? length * team.rank : count;
    u64 own = length < count - begin ? length : count - begin;
    reduce_range<T, Sum, Finished>(peers.reduce, Outputs{peers}, begin * sizeof(T), own, share_of_grid());
    // The others' slices are in this rank's output, and nobody reads its input any more.
    if (meeting.meet(team)) {
        meeting.end(team);
    }
}

#define KOLO_PEERS(T)                                                                                                  \
    KOLO_KERNEL kolo_one_shot_sum_##T(const __grid_constant__ Peers peers) {                                           \
        __shared__ u32 failed;                                                                                         \
        one_shot<T>(peers, &failed);                                                                                   \
    }                                                                                                                  \
    KOLO_KERNEL kolo_two_shot_sum_##T(const __grid_constant__ Peers peers) {                                           \
        __shared__ u32 failed;                                                                                         \
        two_shot<T>(peers, &failed);                                                                                   \
    }

KOLO_PEERS(f16)
KOLO_PEERS(bf16)
KOLO_PEERS(f32)
KOLO_PEERS(f64)

// The barrier alone, as a kernel between others of the same stream: whatever kernels of any rank wrote before theirs,
// all see after it. With kolo_reduce_* before and after, it serves all types and operations.
KOLO_KERNEL kolo_meet(const __grid_constant__ Team team) {
    __shared__ u32 failed;
    Meeting meeting = {0, &failed};
    if (meeting.begin(team) && meeting.meet(team)) {
        meeting.end(team);
    }
}
