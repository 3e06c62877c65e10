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
    /// Once the member has given up an operation that the others count on: the global rank whose doing it was, plus one.
    poisoned: AtomicU64,
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
    pub(crate) fn poison(&self, me: usize, rank: u32) {
        self.lines[me].poisoned.store(u64::from(rank) + 1, Ordering::Release);
    }

    /// The global rank whose doing it was that a member has given up, if one has.
    pub(crate) fn poisoned(&self) -> Option<u32> {
        self.lines.iter().find_map(|line| line.poisoned.load(Ordering::Acquire).checked_sub(1).map(|rank| rank as u32))
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
