//! What `cargo xtask` and the tests of the workspace share: which MPI launcher is installed and how it must be called
//! ([`mpi`]), processes that end by a deadline ([`process`]), tests that start themselves under `mpirun` ([`harness`]),
//! hosts made out of namespaces ([`network`]), what ranks note for the test that started them ([`record`]), random
//! numbers from a seed ([`random`]), and inputs that are made to break parsers ([`fuzz`]).
//!
//! Nothing here links an MPI: this crate builds on a bare machine, because it is what installs one.

pub mod fuzz;
pub mod harness;
pub mod mpi;
pub mod network;
pub mod process;
pub mod random;
pub mod record;
