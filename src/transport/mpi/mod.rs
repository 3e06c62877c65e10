//! MPI moves bytes between hosts, and does nothing else here.
//!
//! # Required
//!
//! What this module keeps, and the rest of kolo relies on:
//!
//! 1. Each MPI function is called under one process-wide lock, at `MPI_THREAD_SERIALIZED` or above, and its return code
//!    becomes a [`Result`](crate::Result). `call` is the only file that names MPI functions.
//! 2. After the start only `MPI_Isend`, `MPI_Irecv`, `MPI_Test` and `MPI_Cancel` of a receive are called, and
//!    `MPI_Iprobe`, and `MPI_Abort` or `MPI_Finalize`, at the end. Nothing waits inside MPI, so no thread holds the lock
//!    for long.
//! 3. MPI only ever sees memory of `staging`. It is leaked, never freed, while MPI may still use it.
//! 4. All traffic uses a duplicate communicator. An application's own messages cannot be taken for kolo's.
//! 5. An MPI that the application initialised is adopted, and never finalised.
//! 6. Nothing is called in a forked child.
//!
//! An application that initialised MPI itself at `MPI_THREAD_SERIALIZED` has to keep its own calls and kolo's apart;
//! `MPI_THREAD_MULTIPLE` relieves it of that.

mod call;
mod channel;
mod exit;
mod gather;
mod job;
mod leftover;
mod staging;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod world;

pub(crate) use channel::MpiChannel;
pub(crate) use exit::LiveGuard;
pub(crate) use job::MpiJob;
pub(crate) use world::{MpiBootstrap, MpiWorld};

/// A communicator of the application, as the bindings of the `mpi` crate have it.
pub(crate) use mpi::ffi::MPI_Comm as RawComm;
