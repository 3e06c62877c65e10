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
    // `inputs` are the data of the ranks, in rank order, as this rank sees them; `n` is the number of ranks; `output`
    // is this rank's own. All are multiples of VECTOR, and the inputs have nothing in common.
    Reduce reduce;
    // Two-shot only: where each rank leaves its slice for the others, `count` elements long, a multiple of VECTOR.
    // May be the rank's input.
    u64 slices[RANKS];
    // Whether to wait at the end until nobody reads this rank's memory any more. Not needed where that is not written
    // before the team has met again.
    u32 settle;
    u32 unused;
};
static_assert(sizeof(Peers) == 264, "src/device/cuda builds the same");

// Slices begin at multiples of so many elements, so that they are aligned like the whole.
constexpr u64 SLICE = 64;

// The elements that a rank reduces in two-shot.
struct Slice {
    u64 begin, end;
};

KOLO_INLINE Slice slice_of(u64 count, u32 ranks, u32 rank) {
    u64 length = ((count + ranks - 1) / ranks + SLICE - 1) / SLICE * SLICE;
    u64 begin = length * rank < count ? length * rank : count;
    u64 end = length * (rank + 1) < count ? length * (rank + 1) : count;
    return {begin, end};
}

// Copies elements; which of them are the caller's is as in reduce_range, so that it reads what the same threads of
// another rank have written.
template <class T>
KOLO_INLINE void copy_range(u64 from, u64 to, Slice slice, Share share) {
    u64 vectors = (slice.end - slice.begin) / PER_VECTOR<T>, offset = slice.begin * sizeof(T);
    u64 i = share.first;
    for (; i + share.step < vectors; i += 2 * share.step) {
        Vector first = load_vector(from + offset + i * VECTOR);
        Vector second = load_vector(from + offset + (i + share.step) * VECTOR);
        store_vector(to + offset + i * VECTOR, first);
        store_vector(to + offset + (i + share.step) * VECTOR, second);
    }
    if (i < vectors) {
        store_vector(to + offset + i * VECTOR, load_vector(from + offset + i * VECTOR));
    }
    u64 rest = slice.begin + vectors * PER_VECTOR<T>;
    for (u64 i = rest + share.first; i < slice.end; i += share.step) {
        store_element<T>(to + i * sizeof(T), load_element<T>(from + i * sizeof(T)));
    }
}

// Every rank reduces everything: one trip, n times the reading. For small data.
template <class T>
KOLO_INLINE void one_shot(const Peers &peers, u32 *failed) {
    Meeting meeting = {0, failed};
    if (!meeting.begin(peers.team) || !meeting.meet(peers.team)) {
        return;
    }
    reduce_range<T, Sum, Finished>(peers.reduce, peers.reduce.output, 0, peers.reduce.count, share_of_grid());
    if (peers.settle && !meeting.meet(peers.team)) {
        return;
    }
    meeting.end(peers.team);
}

// Every rank reduces its slice, then fetches the others': two trips, and every element crosses twice only.
template <class T>
KOLO_INLINE void two_shot(const Peers &peers, u32 *failed) {
    const Team &team = peers.team;
    Meeting meeting = {0, failed};
    if (!meeting.begin(team) || !meeting.meet(team)) {
        return;
    }
    Slice own = slice_of(peers.reduce.count, team.ranks, team.rank);
    reduce_range<T, Sum, Finished>(peers.reduce, peers.slices[team.rank], own.begin * sizeof(T), own.end - own.begin,
                                   share_of_grid());
    if (!meeting.meet(team)) {
        return;
    }
#pragma unroll 1
    for (u32 k = 0; k < team.ranks; ++k) {
        // Not all from the same rank at once.
        u32 rank = (team.rank + k) % team.ranks;
        u64 from = peers.slices[rank];
        if (from != peers.reduce.output) {
            copy_range<T>(from, peers.reduce.output, slice_of(peers.reduce.count, team.ranks, rank), share_of_grid());
        }
    }
    if (peers.settle && !meeting.meet(team)) {
        return;
    }
    meeting.end(team);
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
