//! What `cargo xtask` and the tests of the workspace share: which MPI launcher is installed and how it must be called
//! ([`mpi`]), processes that end by a deadline ([`process`]), and tests that start themselves under `mpirun`
//! ([`harness`]).
//!
//! Nothing here links an MPI: this crate builds on a bare machine, because it is what installs one.

pub mod harness;
pub mod mpi;
pub mod process;
