//! The collectives that users call, one file an operation.

mod allgather;
mod allreduce;
mod barrier;
mod broadcast;
mod point_to_point;
mod reduce_scatter;
