//! Who may write which record. README.md, "States of a record, and who owns it".

use super::layout::{RECORD, state, word};
use crate::os::sync::{Ordering, fence};

/// How many lines a claim looks at before it gives up. (Loom tries every outcome of each look.)
const TRIES: usize = if cfg!(kolo_loom) { 3 } else { 64 };

/// Bits of the state in a record's first word; the number stands above.
const STATE: u64 = 0xff;
const NUMBER_SHIFT: u32 = 8;

/// A word that other processes may read at any time: core's atomic, or loom's in models of this file.
pub(super) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn swap_if(&self, from: u64, to: u64) -> bool;
}

macro_rules! word {
    ($t:ty) => {
        impl Word for $t {
            #[inline]
            fn load(&self, order: Ordering) -> u64 {
                <$t>::load(self, order)
            }

            #[inline]
            fn store(&self, value: u64, order: Ordering) {
                <$t>::store(self, value, order);
            }

            #[inline]
            fn swap_if(&self, from: u64, to: u64) -> bool {
                self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }
        }
    };
}

word!(core::sync::atomic::AtomicU64);
#[cfg(kolo_loom)]
word!(crate::os::sync::AtomicU64);

/// A record's first word.
pub(super) const fn state_word(number: u64, state: u64) -> u64 {
    number << NUMBER_SHIFT | state
}

/// Number and state of a record's first word.
pub(super) const fn number_and_state(word: u64) -> (u64, u64) {
    (word >> NUMBER_SHIFT, word & STATE)
}

const fn is_free(state: u64) -> bool {
    !matches!(state, state::CLAIMED | state::SUBMITTED | state::AGREED | state::STARTED)
}

/// The lines of a file, as those who write them see them.
#[derive(Debug)]
pub(super) struct Ring<'a, W> {
    /// A power of two of them.
    lines: &'a [[W; RECORD]],
    /// The number to try first.
    next: &'a W,
}

impl<'a, W: Word> Ring<'a, W> {
    pub(super) fn new(lines: &'a [[W; RECORD]], next: &'a W) -> Self {
        debug_assert!(lines.len().is_power_of_two());
        Self { lines, next }
    }

    /// The line of record `number`.
    #[inline]
    pub(super) fn line(&self, number: u64) -> &'a [W; RECORD] {
        &self.lines[number as usize & (self.lines.len() - 1)]
    }

    /// Makes a free line the caller's, until its state is one of an end. `None` if no line near is free.
    #[inline]
    pub(super) fn claim(&self) -> Option<u64> {
        let mut number = self.next.load(Ordering::Relaxed).max(1);
        for _ in 0..TRIES {
            let first = &self.line(number)[word::STATE];
            let seen = first.load(Ordering::Acquire);
            let (held, state) = number_and_state(seen);
            if held >= number {
                // The hint is behind.
                number = held + 1;
            } else if is_free(state) && first.swap_if(seen, state_word(number, state::CLAIMED)) {
                // Whoever sees what is stored from here on, sees that the line is claimed.
                fence(Ordering::Release);
                self.advance(number + 1);
                return Some(number);
            } else {
                number += 1;
            }
        }
        // The next claim looks further on.
        self.advance(number);
        None
    }

    /// Moves the hint on. That another thread moves it at the same time costs steps, and nothing else.
    fn advance(&self, number: u64) {
        if self.next.load(Ordering::Relaxed) < number {
            self.next.store(number, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn lines(records: usize) -> Vec<[AtomicU64; RECORD]> {
        (0..records).map(|_| Default::default()).collect()
    }

    fn set(ring: &Ring<'_, AtomicU64>, number: u64, state: u64) {
        ring.line(number)[word::STATE].store(state_word(number, state), Ordering::Release);
    }

    #[test]
    fn numbers_grow_and_lines_are_used_in_turn() {
        let (lines, next) = (lines(4), AtomicU64::new(0));
        let ring = Ring::new(&lines, &next);
        for number in 1..=20 {
            assert_eq!(ring.claim(), Some(number));
            set(&ring, number, state::DONE);
        }
        assert_eq!(number_and_state(ring.line(20)[word::STATE].load(Ordering::Relaxed)), (20, state::DONE));
    }

    #[test]
    fn an_operation_in_flight_keeps_its_line() {
        let (lines, next) = (lines(4), AtomicU64::new(0));
        let ring = Ring::new(&lines, &next);
        let stuck = ring.claim().expect("free");
        for state in [state::CLAIMED, state::SUBMITTED, state::AGREED, state::STARTED] {
            set(&ring, stuck, state);
            for _ in 0..9 {
                let number = ring.claim().expect("three are free");
                assert_ne!(number % 4, stuck % 4);
                set(&ring, number, state::FAILED);
            }
            assert_eq!(number_and_state(ring.line(stuck)[word::STATE].load(Ordering::Relaxed)), (stuck, state));
        }
    }

    #[test]
    fn without_a_free_line_nothing_is_claimed_until_one_is_over() {
        let (lines, next) = (lines(4), AtomicU64::new(0));
        let ring = Ring::new(&lines, &next);
        let all: Vec<u64> = (0..4).map(|_| ring.claim().expect("free")).collect();
        assert_eq!((ring.claim(), ring.claim()), (None, None));
        set(&ring, all[2], state::CANCELLED);
        let number = ring.claim().expect("one is free");
        assert_eq!(number % 4, all[2] % 4);
        assert!(number > all[3]);
    }

    #[test]
    fn a_hint_that_is_behind_or_ahead_costs_steps_only() {
        let (lines, next) = (lines(8), AtomicU64::new(0));
        let ring = Ring::new(&lines, &next);
        let mut given = std::collections::HashSet::new();
        for hint in [0, 1, 5, 1000, 3, 1004, 7, 2000, 0] {
            next.store(hint, Ordering::Relaxed);
            let number = ring.claim().expect("free");
            assert!(given.insert(number) && number >= hint, "{number} from {hint}");
            set(&ring, number, state::DONE);
        }
    }

    #[test]
    fn threads_never_share_a_line() {
        const EACH: usize = 20_000;
        let (lines, next) = (lines(64), AtomicU64::new(0));
        let mut numbers: Vec<u64> = std::thread::scope(|scope| {
            let work = || {
                let ring = Ring::new(&lines, &next);
                let mut numbers = Vec::new();
                while numbers.len() < EACH {
                    let Some(number) = ring.claim() else { continue };
                    let line = ring.line(number);
                    for word in &line[1..] {
                        word.store(number, Ordering::Relaxed);
                    }
                    // Somebody else's would show here.
                    assert!(line[1..].iter().all(|word| word.load(Ordering::Relaxed) == number));
                    set(&ring, number, state::DONE);
                    numbers.push(number);
                }
                numbers
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 4 * EACH, "a number is given once");
    }
}

#[cfg(all(test, kolo_loom))]
mod models {
    use super::*;
    use crate::os::sync::AtomicU64;
    use loom::sync::Arc;
    use loom::thread;

    /// One record, written by two threads again and again; words 1 and 2 stand for its content.
    #[test]
    fn loom_a_line_has_one_owner_and_what_a_state_says_is_there() {
        loom::model(|| {
            let lines: Arc<[[AtomicU64; RECORD]; 1]> = Arc::new([std::array::from_fn(|_| AtomicU64::new(0))]);
            let next = Arc::new(AtomicU64::new(0));
            let write = |lines: &[[AtomicU64; RECORD]; 1], next: &AtomicU64| {
                let ring = Ring::new(lines, next);
                let Some(number) = ring.claim() else { return };
                let line = ring.line(number);
                for word in &line[1..3] {
                    word.store(number, Ordering::Relaxed);
                }
                assert!(line[1..3].iter().all(|word| word.load(Ordering::Relaxed) == number), "another wrote here");
                line[0].store(state_word(number, state::DONE), Ordering::Release);
            };
            let other = {
                let (lines, next) = (Arc::clone(&lines), Arc::clone(&next));
                thread::spawn(move || write(&lines, &next))
            };
            write(&lines, &next);
            // A reader, as an in-process one would read.
            let line = &lines[0];
            let before = line[0].load(Ordering::Acquire);
            let content = [line[1].load(Ordering::Relaxed), line[2].load(Ordering::Relaxed)];
            fence(Ordering::Acquire);
            let after = line[0].load(Ordering::Relaxed);
            if before == after && number_and_state(before).1 == state::DONE {
                assert_eq!(content, [number_and_state(before).0; 2]);
            }
            other.join().unwrap();
        });
    }
}
