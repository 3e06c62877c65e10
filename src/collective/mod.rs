//! The collectives that users call, one file an operation.

mod allgather;
mod allgather_group;
mod allreduce;
mod alltoall;
mod barrier;
mod batch;
mod broadcast;
mod deferred;
mod deferred_messages;
mod deferred_moves;
mod deferred_reductions;
mod gather;
mod group;
mod join;
mod message;
mod object;
mod point_to_point;
mod reduce;
mod reduce_scatter;
mod reduce_scatter_group;
mod scatter;
mod sparse;
#[cfg(all(test, not(kolo_loom)))]
mod tests;
mod uneven;
mod wire;

pub use batch::Transfer;
pub use sparse::Sparse;
