//! The atomics that the shared-memory protocols are written with: core's, or loom's under `cfg(kolo_loom)`.
//!
//! `transport/shm` uses nothing else, so that the models which loom explores are the code that ships.

#[cfg(not(kolo_loom))]
pub(crate) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(kolo_loom))]
pub(crate) use std::thread::yield_now;

#[cfg(kolo_loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    thread::yield_now,
};
