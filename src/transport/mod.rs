//! Moving bytes between members.

#![allow(unsafe_code, reason = "shared memory and foreign functions")]

pub(crate) mod shm;
