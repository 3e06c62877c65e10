//! A CUDA driver on host memory: the part of the driver API that cudarc and kolo call, and a runner of kolo's kernels,
//! compiled for the host from the very same sources. README.md beside this crate says what it is for, how it is used,
//! and what it cannot prove.
//!
//! Everything here is reached through the C functions of the driver API; this library has no Rust interface.

#![allow(unsafe_code, reason = "a C interface, whose callers hand over pointers")]
#![allow(non_snake_case, reason = "the names of the driver API")]

#[macro_use]
mod entry;

mod codes;
mod context;
mod copy;
mod device;
mod event;
mod faults;
mod graph;
mod handle;
mod host_memory;
mod ipc;
mod launch;
mod library;
mod memory;
mod module;
mod pages;
mod pool;
mod ptx;
mod settings;
mod statistics;
mod stream;
mod trace;
mod work;
