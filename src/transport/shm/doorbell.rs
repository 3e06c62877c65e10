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
        Self { me, sleepers: memory.lines(place.sleepers, members), bells: memory.lines(place.bells, members) }
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
    pub(crate) fn sleep(&self, member: usize, timeout: Option<Duration>, ready: impl FnOnce() -> bool) -> Slept {
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

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;
    use crate::os::sync::AtomicU64;

    fn bells(members: usize) -> Vec<Bells> {
        let mut cursor = Cursor::default();
        let place = BellsPlace::new(&mut cursor, members);
        let memory = Memory::anonymous(cursor.end()).expect("memory");
        (0..members).map(|me| Bells::new(&memory, place, members, me)).collect()
    }

    #[test]
    fn who_is_ready_does_not_sleep_and_who_is_alone_times_out() {
        let bells = bells(1);
        assert_eq!(bells[0].sleep(0, None, || true), Slept::Ready);
        while bells[0].sleep(0, Some(Duration::from_millis(1)), || false) != Slept::TimedOut {}
        assert_eq!(bells[0].sleepers[0].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_panic_in_ready_takes_the_sleeper_off() {
        let bells = bells(1);
        let sleep = || bells[0].sleep(0, None, || panic!("on purpose"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(sleep)).is_err());
        assert_eq!(bells[0].sleepers[0].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nobody_rings_while_nobody_sleeps() {
        let bells = bells(3);
        bells[0].ring(1);
        bells[0].ring_others();
        bells[0].ring_all();
        assert!(bells[0].bells.iter().all(|bell| bell.rung.load(Ordering::Relaxed) == 0));
    }

    /// Members pass a number around, each asleep (without a timeout) until it is its turn: a lost wake-up hangs.
    #[test]
    fn a_number_goes_round_sleepers() {
        const MEMBERS: usize = 3;
        const ROUNDS: u64 = 500;
        let turn = AtomicU64::new(0);
        let bells = bells(MEMBERS);
        std::thread::scope(|scope| {
            for (me, bells) in bells.iter().enumerate() {
                let turn = &turn;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let mine = round * MEMBERS as u64 + me as u64;
                        let my_turn = || turn.load(Ordering::Acquire) == mine;
                        while !my_turn() {
                            bells.sleep(me, None, my_turn);
                        }
                        turn.store(mine + 1, Ordering::Release);
                        if round % 2 == 0 { bells.ring_others() } else { bells.ring((me + 1) % MEMBERS) }
                    }
                });
            }
        });
        assert_eq!(turn.load(Ordering::Relaxed), ROUNDS * MEMBERS as u64);
    }
}

#[cfg(all(test, kolo_loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// "publish, then sleep": the futex of the model never times out, so that a lost wake-up is a deadlock.
    fn no_wake_up_is_lost(ringers: usize, bound: Option<usize>) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = bound;
        model.check(move || {
            let mut cursor = Cursor::default();
            let place = BellsPlace::new(&mut cursor, 2);
            let memory = Memory::anonymous(cursor.end() + 4096).expect("memory");
            let at = cursor.end();
            // Everything is made before it is shared, as memory is zeroed before it is.
            let published = memory.lines::<AtomicU32>(at, 2);
            let bells = Bells::new(&memory, place, 2, 1);
            let ringing: Vec<_> = (0..ringers)
                .map(|ringer| {
                    let published = published.clone();
                    let bells = Bells::new(&memory, place, 2, 0);
                    thread::spawn(move || {
                        published[ringer].store(1, Ordering::Release);
                        bells.ring(1);
                    })
                })
                .collect();
            let ready = || (0..ringers).all(|ringer| published[ringer].load(Ordering::Acquire) == 1);
            while !ready() {
                bells.sleep(1, None, ready);
            }
            for thread in ringing {
                thread.join().expect("the ringer ends");
            }
        });
    }

    #[test]
    fn loom_no_wake_up_is_lost() {
        no_wake_up_is_lost(1, None);
    }

    #[test]
    fn loom_no_wake_up_of_two_is_lost() {
        no_wake_up_is_lost(2, Some(2));
    }
}
