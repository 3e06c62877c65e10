//! The control connections between the leaders of hosts: a doorbell, liveness, and abort. No tensor travels here.
//!
//! There is one TCP connection for each pair of hosts; the one with the higher index dials. Both ends prove that they
//! know the job's key before anything else is said ([`handshake`]). A connection belongs to one job and one epoch.
//!
//! Nothing here has a thread, and nothing waits once [`connect`] is done: the owner of a poll loop asks [`Links`] which
//! descriptors to watch and hands over those that are ready. Ringing, asking and aborting work from any thread.

mod address;
mod connect;
mod frame;
#[cfg(all(test, not(kolo_loom)))]
mod fuzz;
mod handshake;
mod links;
#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use address::{Card, Listener, Reach};
pub(crate) use connect::{Party, connect};
pub(crate) use frame::Report;
pub(crate) use links::{HEARTBEAT, LinkEvent, Links};

use crate::error::Result;
use crate::os::random;

/// The secret of a job, known to its ranks alone. It reaches them through the bootstrap.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct JobKey([u8; 32]);

impl JobKey {
    /// A fresh key.
    pub(crate) fn generate() -> Result<Self> {
        random::bytes().map(Self)
    }

    /// The key that another rank has generated.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes to hand to the other ranks.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobKey(..)")
    }
}
