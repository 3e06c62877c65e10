//! When to propose: at once, or a moment later with more company (README, section 8).

use std::time::Duration;

/// The fusion window: how long ready names wait for company.
#[derive(Debug)]
pub(super) struct Window {
    /// Smoothed time between submissions while others are in flight, in nanoseconds.
    gap: u64,
    last_submit: Duration,
    opened: Option<Duration>,
    until: Option<Duration>,
}

impl Default for Window {
    fn default() -> Self {
        Self { gap: 20_000, last_submit: Duration::ZERO, opened: None, until: None }
    }
}

impl Window {
    /// Longer gaps say nothing about a burst of submissions.
    const LONGEST_GAP: u64 = 1_000_000;

    pub(super) fn submitted(&mut self, now: Duration, others_in_flight: bool) {
        if others_in_flight {
            let gap = (now.saturating_sub(self.last_submit).as_nanos() as u64).min(Self::LONGEST_GAP);
            self.gap = (3 * self.gap + gap) / 4;
        }
        self.last_submit = now;
    }

    pub(super) fn until(&self) -> Option<Duration> {
        self.until
    }

    pub(super) fn close(&mut self) {
        self.opened = None;
        self.until = None;
    }

    /// Whether to wait longer.
    pub(super) fn holds(&mut self, now: Duration, longest: Duration) -> bool {
        let gap = Duration::from_nanos(self.gap);
        if gap > longest {
            return false;
        }
        let opened = *self.opened.get_or_insert(now);
        let until = (self.last_submit + 2 * gap).min(opened + longest);
        self.until = Some(until);
        now < until
    }
}
