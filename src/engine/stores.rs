//! How a rank stores into its slots what peers read: through its cache, or past it.
//!
//! Through the cache is faster where the cores of a host share one: a peer finds the lines there. Where they do not, each
//! line that a peer reads is fetched out of another core complex, and each that is written again is taken back from it;
//! memory is nearer than that then. Which is true is nobody's to know in advance, and virtual processors move. So it is
//! measured while long operations run: all members store the same way for a trial of some chunks, in one way and in the
//! other, and each takes what was faster until the next trials. Which chunks are trials follows from their number alone,
//! which all members count alike. How a member stores changes no result and no protocol, so members may well differ.

use std::time::{Duration, Instant};

/// How a slot is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stores {
    /// Like any memory.
    Cached,
    /// Past the caches.
    Streaming,
}

/// Chunks between two looks at the clock.
const WINDOW: u64 = 32;
/// Windows from one pair of trials to the next.
const PERIOD: u64 = 32;
/// Trials come after as many windows: jobs that never last so long never try.
const FIRST: u64 = 2;
/// What the other way must gain to be worth a change.
const GAIN: f64 = 0.9;

/// One member's choice for one arena.
#[derive(Debug)]
pub(super) struct Choice {
    able: bool,
    best: Stores,
    /// What the last trial of storing through the cache took.
    cached: Option<Duration>,
    /// The last border between windows that was crossed, and when.
    border: Option<(u64, Instant)>,
}

/// The way that all members try in a window, if it is a trial.
fn trial(window: u64) -> Option<Stores> {
    match window % PERIOD {
        FIRST => Some(Stores::Cached),
        place if place == FIRST + 1 => Some(Stores::Streaming),
        _ => None,
    }
}

impl Choice {
    /// `able`: the processor can, and every rank has a core. Ranks that take turns on one share its cache, and their
    /// times say more about turns than about stores.
    pub(super) fn new(able: bool) -> Self {
        Self { able, best: Stores::Cached, cached: None, border: None }
    }

    /// How the chunk with this number is written.
    pub(super) fn of(&self, chunk: u64) -> Stores {
        if self.able { trial(chunk / WINDOW).unwrap_or(self.best) } else { Stores::Cached }
    }

    /// A wait for something else than chunks lies behind: the time since the last border says nothing.
    pub(super) fn pause(&mut self) {
        self.border = None;
    }

    /// This member has so many chunks behind it, of which the last one just now.
    pub(super) fn passed(&mut self, chunks: u64, now: impl FnOnce() -> Instant) {
        if !self.able || !chunks.is_multiple_of(WINDOW) {
            return;
        }
        let (window, now) = (chunks / WINDOW, now());
        let before = self.border.replace((window, now));
        let Some((_, since)) = before.filter(|(border, _)| border + 1 == window) else { return };
        self.judge(trial(window - 1), now.duration_since(since));
    }

    fn judge(&mut self, tried: Option<Stores>, took: Duration) {
        match tried {
            None => {}
            Some(Stores::Cached) => self.cached = Some(took),
            Some(Stores::Streaming) => {
                let Some(cached) = self.cached.take() else { return };
                let other_is_better = |other: Duration, own: Duration| other.as_secs_f64() < own.as_secs_f64() * GAIN;
                self.best = match self.best {
                    Stores::Cached if other_is_better(took, cached) => Stores::Streaming,
                    Stores::Streaming if other_is_better(cached, took) => Stores::Cached,
                    best => best,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes chunks one by one, each taking what `cost` says of how it is written.
    fn pass(choice: &mut Choice, chunks: std::ops::Range<u64>, cost: impl Fn(Stores) -> u64) {
        let mut now = Instant::now();
        for chunk in chunks {
            now += Duration::from_micros(cost(choice.of(chunk)));
            choice.passed(chunk + 1, || now);
        }
    }

    #[test]
    fn the_faster_way_is_taken_and_left_again() {
        let mut choice = Choice::new(true);
        let far = |stores| if stores == Stores::Streaming { 70 } else { 100 };
        let near = |stores| if stores == Stores::Streaming { 100 } else { 50 };
        pass(&mut choice, 0..200, far);
        assert_eq!(choice.of(200), Stores::Streaming);
        pass(&mut choice, 200..WINDOW * (PERIOD + 5), near);
        assert_eq!(choice.of(WINDOW * (PERIOD + 5)), Stores::Cached);
        assert_eq!(choice.of(WINDOW * FIRST), Stores::Cached);
        assert_eq!(choice.of(WINDOW * (FIRST + 1)), Stores::Streaming);
    }

    #[test]
    fn a_small_gain_changes_nothing() {
        let mut choice = Choice::new(true);
        pass(&mut choice, 0..200, |stores| if stores == Stores::Streaming { 95 } else { 100 });
        assert_eq!(choice.of(200), Stores::Cached);
    }

    #[test]
    fn a_pause_spoils_a_trial() {
        let mut choice = Choice::new(true);
        let far = |stores| if stores == Stores::Streaming { 70 } else { 100 };
        pass(&mut choice, 0..WINDOW * 3 + 5, far);
        choice.pause();
        pass(&mut choice, WINDOW * 3 + 5..200, far);
        assert_eq!(choice.of(200), Stores::Cached);
    }

    #[test]
    fn who_cannot_stream_never_does() {
        let mut choice = Choice::new(false);
        pass(&mut choice, 0..200, |_| 1);
        assert!((0..4000).all(|chunk| choice.of(chunk) == Stores::Cached));
    }
}
