//! The only place that speaks to the kernel: memory maps, futexes, processes, processors, the host's identity.
//!
//! Everything here is a thin, typed cover over a system call or a file of `/proc` or `/sys`. What is wrong with an answer
//! is said here, with what the reader can do about it, because only here is it known what was asked.

#![allow(unsafe_code, reason = "system calls and memory maps")]

#[cfg(test)]
pub(crate) mod counting;
pub(crate) mod cpu;
pub(crate) mod ending;
pub(crate) mod folder;
pub(crate) mod futex;
pub(crate) mod host;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod random;
#[cfg(all(test, not(kolo_loom)))]
pub(crate) mod rerun;
pub(crate) mod sync;
pub(crate) mod time;
