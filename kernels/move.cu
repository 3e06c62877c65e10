// Pack and unpack. The argument is `Move`; a grid of any size, blocks of THREADS threads.
//
// kolo_move_bytes moves elements of any type as they are: counts are bytes, and scales are not looked at.
// kolo_move_S_D has elements of S in the tensors, of D in the fused buffer.
#include "tiles.cuh"

KOLO_KERNEL kolo_move_bytes(Move move) {
    for (u32 i = blockIdx.x; i < move.tile_count; i += gridDim.x) {
        Placed tile = place(move, i);
        copy_bytes(move.unpack ? tile.fused : tile.tensor, move.unpack ? tile.tensor : tile.fused, tile.count);
    }
}

// One direction of types that differ; both of types that do not.
#define KOLO_MOVE(S, D)                                                                                                \
    KOLO_KERNEL kolo_move_##S##_##D(Move move) {                                                                       \
        for (u32 i = blockIdx.x; i < move.tile_count; i += gridDim.x) {                                                \
            Placed tile = place(move, i);                                                                              \
            if (move.unpack) {                                                                                         \
                convert<D, S>(tile.fused, tile.tensor, tile.count, tile.scale);                                        \
            } else {                                                                                                   \
                convert<S, D>(tile.tensor, tile.fused, tile.count, tile.scale);                                        \
            }                                                                                                          \
        }                                                                                                              \
    }
#define KOLO_SCALE(T)                                                                                                  \
    KOLO_KERNEL kolo_move_##T##_##T(Move move) {                                                                       \
        for (u32 i = blockIdx.x; i < move.tile_count; i += gridDim.x) {                                                \
            Placed tile = place(move, i);                                                                              \
            convert<T, T>(move.unpack ? tile.fused : tile.tensor, move.unpack ? tile.tensor : tile.fused, tile.count,  \
                          tile.scale);                                                                                 \
        }                                                                                                              \
    }

KOLO_MOVE(f32, f16)
KOLO_MOVE(f32, bf16)
KOLO_MOVE(f64, f32)
KOLO_SCALE(f16)
KOLO_SCALE(bf16)
KOLO_SCALE(f32)
KOLO_SCALE(f64)
KOLO_SCALE(i8)
KOLO_SCALE(i16)
KOLO_SCALE(i32)
KOLO_SCALE(i64)
KOLO_SCALE(u8)
KOLO_SCALE(u16)
KOLO_SCALE(u32)
KOLO_SCALE(u64)
