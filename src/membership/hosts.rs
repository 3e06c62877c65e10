//! The other hosts as this one's leader hears of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// What is known of another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum HostState {
    Up = 0,
    /// All of its ranks left the job in order.
    Left = 1,
    /// Its leader does not answer: it is stopped, or the network is cut.
    Silent = 2,
    /// The connection to its leader broke.
    Lost = 3,
}

/// The state of every host of the job, in a leader's process. What it hears of ranks, it passes on to its host by the
/// control area; on other ranks all hosts stand as up here.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    states: Arc<[AtomicU8]>,
    /// How many waits for other hosts are under way in this process.
    waits: Arc<AtomicUsize>,
}

impl Hosts {
    pub(crate) fn new(count: usize) -> Self {
        Self { states: (0..count).map(|_| AtomicU8::new(0)).collect(), waits: Arc::default() }
    }

    pub(super) fn state(&self, host: usize) -> HostState {
        match self.states[host].load(Ordering::Relaxed) {
            0 => HostState::Up,
            1 => HostState::Left,
            2 => HostState::Silent,
            _ => HostState::Lost,
        }
    }

    pub(super) fn set(&self, host: usize, state: HostState) {
        self.states[host].store(state as u8, Ordering::Relaxed);
    }

    /// Whether heartbeats are worth their cost.
    pub(super) fn awaited(&self) -> bool {
        self.waits.load(Ordering::Acquire) > 0
    }

    /// Counts a wait. True for the first of several.
    pub(super) fn begin_wait(&self) -> (Waiting, bool) {
        let before = self.waits.fetch_add(1, Ordering::AcqRel);
        (Waiting(Arc::clone(&self.waits)), before == 0)
    }
}

/// A wait for other hosts. While one exists on a leader, it asks the others whether they are there.
#[must_use = "the wait ends when this is dropped"]
pub(crate) struct Waiting(Arc<AtomicUsize>);

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiting")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
