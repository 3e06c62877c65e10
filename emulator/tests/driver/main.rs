//! The emulator as cudarc sees it, which knows of no emulator.

#![allow(unsafe_code, reason = "launches and raw calls of the driver API")]

#[macro_use]
mod common;

mod devices;
mod elements;
mod faults;
mod graphs;
mod ipc;
mod kernels;
mod kolo_kernels;
mod memory;
mod misuse;
mod streams;
