//! A rank's sets and communicators, and what advances them, for as long as somebody holds on to the rank.

use std::fmt;
use std::sync::Arc;

use super::{Driver, NamedSet};
use crate::coordinator::Params;
use crate::engine::{Built, Ground};
use crate::error::{Error, Result};
use crate::transport::shm::{ENTRY, READY_BITS};

/// Held by everything through which users submit. The drop of the last one ends the rank's operations in flight.
pub(crate) struct Session {
    pub(crate) ground: Arc<Ground>,
    driver: Arc<Driver>,
    /// The process that joined: a forked child has this memory, but neither the threads nor a say.
    pid: u32,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("ground", &self.ground).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(ground: Arc<Ground>) -> Arc<Self> {
        let job = Arc::downgrade(&ground.job);
        let on_panic = move |cause: &str| {
            if let Some(job) = job.upgrade() {
                job.fail(cause);
            }
        };
        let driver = Driver::new(Arc::clone(ground.port()), Box::new(on_panic));
        Arc::new(Self { ground, driver, pid: std::process::id() })
    }

    /// What advances the operations of this rank.
    pub(crate) fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// Whether this is a child that the process forked: nothing of the rank is its own.
    pub(crate) fn is_forked(&self) -> bool {
        self.pid != std::process::id()
    }

    /// Named operations over a set that was built for negotiation.
    pub(crate) fn named(&self, built: Built) -> Result<Arc<NamedSet>> {
        let config = &self.ground.job.config;
        let default = Params::default();
        let params = Params {
            fusion_bytes: config.fusion_bytes.0 as u64,
            window: config.fusion_window.0.unwrap_or(default.window),
            stall_warn: self.ground.port().warning,
            stall_deadline: config.deadline,
            max_entry: ENTRY,
            // Beyond the most, names go uncached in turn; one remembered name is as good as none.
            capacity: config.cache_capacity.clamp(1, READY_BITS),
            evict_after: 4 * config.cache_capacity as u64,
            ..default
        };
        NamedSet::new(Arc::clone(&self.driver), built, params)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_forked() {
            return;
        }
        // Communicators hold on to this: none is left.
        let error = "the last Kolo of this rank was dropped while the operation was in flight; wait for it first";
        self.driver.shut_down(&Error::Poisoned(error.into()));
    }
}
