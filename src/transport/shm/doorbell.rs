//! Doorbells: a word and a count of sleepers a member. Ringing costs a fence and a load while nobody sleeps.

use std::time::Duration;

use crate::os::futex::{self, Waited};
use crate::os::sync::{AtomicU32, Ordering, fence};

use super::memory::{Cursor, Line, Lines, Memory};

/// Only written by those who wake somebody, so that it is as quiet as its member is busy.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct Bell {
    rung: AtomicU32,
}

// SAFETY: atomics only.
unsafe impl Line for Bell {}

/// Why [`Bells::sleep`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slept {
    /// `ready()` held before sleeping.
    Ready,
    /// The bell rang, or a signal came: look again.
    Rung,
    /// The timeout passed.
    TimedOut,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct BellsPlace {
    sleepers: usize,
    bells: usize,
}

impl BellsPlace {
    pub(crate) fn new(cursor: &mut Cursor, members: usize) -> Self {
        Self { sleepers: cursor.lines::<AtomicU32>(members), bells: cursor.lines::<Bell>(members) }
    }
}

/// The doorbells of a host's members.
#[derive(Clone, Debug)]
pub(crate) struct Bells {
    me: usize,
    /// Side by side: ringing everyone reads one line on small hosts, and members write there only to sleep.
    sleepers: Lines<AtomicU32>,
    bells: Lines<Bell>,
}

impl Bells {
    pub(crate) fn new(memory: &Memory, place: BellsPlace, members: usize, me: usize) -> Self {
        Self {
            me,
            sleepers: memory.lines(place.sleepers, members),
            bells: memory.lines(place.bells, members),
        }
    }

    /// Wakes `member`, if it sleeps. Call it AFTER publishing what it waits for ("publish, then sleep").
    #[inline]
    pub(crate) fn ring(&self, member: usize) {
        fence(Ordering::SeqCst);
        self.wake_if_asleep(member);
    }

    /// Wakes every other member that sleeps. Call it AFTER publishing.
    #[inline]
    pub(crate) fn ring_others(&self) {
        fence(Ordering::SeqCst);
        for member in 0..self.sleepers.len() {
            if member != self.me {
                self.wake_if_asleep(member);
            }
        }
    }

    /// Wakes every member that sleeps, this one's own threads as well.
    pub(crate) fn ring_all(&self) {
        fence(Ordering::SeqCst);
        for member in 0..self.sleepers.len() {
            self.wake_if_asleep(member);
        }
    }

    #[inline]
    fn wake_if_asleep(&self, member: usize) {
        // Relaxed: the fence before it is what orders it after the publication.
        if self.sleepers[member].load(Ordering::Relaxed) != 0 {
            self.wake(member);
        }
    }

    #[cold]
    fn wake(&self, member: usize) {
        let rung = &self.bells[member].rung;
        // Release: a sleeper that reads the new value also sees what was published before it.
        rung.fetch_add(1, Ordering::Release);
        futex::wake_all(rung);
    }

    /// Sleeps until the bell of `member` (usually this one's own) rings, at most for `timeout`. `ready` is asked once,
    /// after the sleeper is visible: whatever was published before that is seen by it, whatever comes later rings.
    /// The caller looks again in every case; `ready` must also see what ends the wait early, an abort.
    pub(crate) fn sleep(
        &self,
        member: usize,
        timeout: Option<Duration>,
        ready: impl FnOnce() -> bool,
    ) -> Slept {
        let sleepers = &self.sleepers[member];
        let rung = &self.bells[member].rung;
        let _awake = Awake(sleepers);
        sleepers.fetch_add(1, Ordering::Relaxed);
        let seen = rung.load(Ordering::Acquire);
        fence(Ordering::SeqCst);
        if ready() {
            return Slept::Ready;
        }
        match futex::wait(rung, seen, timeout) {
            Waited::Woken | Waited::Changed => Slept::Rung,
            Waited::TimedOut => Slept::TimedOut,
        }
    }
}

/// Takes the sleeper off the count, also when `ready` panics.
struct Awake<'a>(&'a AtomicU32);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
