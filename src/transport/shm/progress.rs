//! Progress: how many chunks a member has packed, reduced and finished since the arena began.

use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{Cursor, Line, Lines, Memory};

/// Written by its member alone; every count only grows.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct ProgressLine {
    packed: AtomicU64,
    reduced: AtomicU64,
    done: AtomicU64,
    /// Zero until the member has given up. Then the first operation that it gave up, counted from one (40 bits), and
    /// above that the global rank whose doing it was, plus one (24 bits).
    poisoned: AtomicU64,
}

const OPERATION_BITS: u32 = 40;
const OPERATION_MASK: u64 = (1 << OPERATION_BITS) - 1;

fn rank_of(word: u64) -> u32 {
    ((word >> OPERATION_BITS) - 1) as u32
}

// SAFETY: atomics only.
unsafe impl Line for ProgressLine {}

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    lines: Lines<ProgressLine>,
}

impl Progress {
    pub(crate) fn place(cursor: &mut Cursor, members: usize) -> usize {
        cursor.lines::<ProgressLine>(members)
    }

    pub(crate) fn new(memory: &Memory, offset: usize, members: usize) -> Self {
        Self { lines: memory.lines(offset, members) }
    }

    /// Release: whoever sees the count sees the bytes that were packed.
    #[inline]
    pub(crate) fn set_packed(&self, me: usize, chunks: u64) {
        self.lines[me].packed.store(chunks, Ordering::Release);
    }

    /// Release: whoever sees the count sees the bytes that were reduced.
    #[inline]
    pub(crate) fn set_reduced(&self, me: usize, chunks: u64) {
        self.lines[me].reduced.store(chunks, Ordering::Release);
    }

    /// Release: whoever sees the count may overwrite what was read ("slot reuse").
    #[inline]
    pub(crate) fn set_done(&self, me: usize, chunks: u64) {
        self.lines[me].done.store(chunks, Ordering::Release);
    }

    /// Release: what the member did before it gave up is seen by whoever learns of it.
    pub(crate) fn poison(&self, me: usize, operation: u64, rank: u32) {
        let word = (u64::from(rank) + 1) << OPERATION_BITS | operation.clamp(1, OPERATION_MASK);
        self.lines[me].poisoned.store(word, Ordering::Release);
    }

    /// The rank whose doing it was that a member gave up `operation` or an earlier one, if one did.
    pub(crate) fn poisoned(&self, operation: u64) -> Option<u32> {
        self.lines.iter().find_map(|line| {
            let word = line.poisoned.load(Ordering::Acquire);
            (word != 0 && word & OPERATION_MASK <= operation).then(|| rank_of(word))
        })
    }

    /// The first operation that any member gave up, if one did.
    pub(crate) fn first_poisoned(&self) -> Option<u64> {
        let words = self.lines.iter().map(|line| line.poisoned.load(Ordering::Acquire));
        words.filter(|word| *word != 0).map(|word| word & OPERATION_MASK).min()
    }

    /// The rank whose doing it was that `member` gave up, if it did.
    pub(crate) fn poisoned_member(&self, member: usize) -> Option<u32> {
        let word = self.lines[member].poisoned.load(Ordering::Acquire);
        (word != 0).then(|| rank_of(word))
    }

    #[inline]
    pub(crate) fn packed(&self, member: usize) -> u64 {
        self.lines[member].packed.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn reduced(&self, member: usize) -> u64 {
        self.lines[member].reduced.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn done(&self, member: usize) -> u64 {
        self.lines[member].done.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn all_packed(&self, chunks: u64) -> bool {
        self.lines.iter().all(|line| line.packed.load(Ordering::Acquire) >= chunks)
    }

    #[inline]
    pub(crate) fn all_reduced(&self, chunks: u64) -> bool {
        self.lines.iter().all(|line| line.reduced.load(Ordering::Acquire) >= chunks)
    }

    #[inline]
    pub(crate) fn all_done(&self, chunks: u64) -> bool {
        self.lines.iter().all(|line| line.done.load(Ordering::Acquire) >= chunks)
    }
}
