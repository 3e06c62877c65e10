//! Devices compute on bytes. Today the host's cores.
#![allow(unsafe_code, reason = "kernels read and write raw memory that peers share")]

pub(crate) mod host;
