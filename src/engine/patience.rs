//! How long an operation that others poll may wait: what [`block`](super::block) does for one that its caller drives.

use std::time::Duration;

use super::inquiry::STALLED;
use super::wait::{Doubt, LONGEST_SLEEP, Port};
use crate::error::{Error, Result};

/// The patience with one operation. Times are of whatever clock the polls use.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// When it last moved, or began.
    moved: Duration,
    look_at: Duration,
    doubt: Doubt,
    warned: bool,
}

impl Patience {
    /// It has moved.
    pub(crate) fn renew(&mut self, now: Duration) {
        let warned = self.warned;
        *self = Self { moved: now, look_at: now + LONGEST_SLEEP, doubt: Doubt::default(), warned };
    }

    /// Whether it is time to ask why it does not move.
    pub(crate) fn is_stalled(&self, now: Duration) -> bool {
        now.saturating_sub(self.moved) >= STALLED
    }

    /// To be asked whenever it does not move. `missing` names the operation and the global ranks that it waits for; it is
    /// asked only when something must be said.
    ///
    /// # Errors
    /// A rank will not come, or the deadline has passed.
    pub(crate) fn check(
        &mut self,
        port: &Port,
        now: Duration,
        missing: impl FnOnce() -> (String, Vec<u32>),
    ) -> Result<()> {
        let waited = now.saturating_sub(self.moved);
        if now < self.look_at {
            return Ok(());
        }
        self.look_at = now + LONGEST_SLEEP;
        let (what, ranks) = missing();
        port.expect(&what, &ranks, &mut self.doubt)?;
        if waited >= port.deadline && !port.is_paused() {
            return Err(Error::Timeout { what: what.into(), waited, missing: port.blame(&ranks).into() });
        }
        if waited >= port.warning && !self.warned && !port.is_paused() {
            self.warned = true;
            crate::event::tell_warning(&format!("{what}: waiting for {waited:.0?}; {}", port.blame(&ranks)));
        }
        Ok(())
    }
}
