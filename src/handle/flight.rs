//! The shared state of one named operation in flight: who may touch its buffer, and how it ended.

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::os::sync::{AtomicU32, Ordering};

const PENDING: u32 = 0;
const DONE: u32 = 1;
const FAILED: u32 = 2;

/// One named operation, shared by its handle and its set.
///
/// The set's poll is the only one to touch the operation's memory while the status is `PENDING`; whoever sees another
/// status (an acquire load) sees everything that the poll wrote, and the memory is the owner's again.
#[derive(Debug)]
pub(crate) struct Flight {
    name: Arc<str>,
    status: AtomicU32,
    error: OnceLock<Error>,
}

impl Flight {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into(), status: AtomicU32::new(PENDING), error: OnceLock::new() }
    }

    /// The tensor's name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether the operation has ended, well or not.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.status.load(Ordering::Acquire) != PENDING
    }

    /// How the operation ended; `None` while it is in flight.
    pub(crate) fn outcome(&self) -> Option<Result<()>> {
        match self.status.load(Ordering::Acquire) {
            PENDING => None,
            DONE => Some(Ok(())),
            _ => Some(Err(self.error.get().cloned().unwrap_or_else(|| Error::Cancelled(self.name.clone())))),
        }
    }

    /// Ends the operation. Called once, by the set, after its last access to the operation's memory.
    pub(crate) fn finish(&self, result: Result<()>) {
        let status = match result {
            Ok(()) => DONE,
            Err(error) => {
                self.error.get_or_init(|| error);
                FAILED
            }
        };
        self.status.store(status, Ordering::Release);
    }
}
