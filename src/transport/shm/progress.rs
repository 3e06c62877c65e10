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
    /// The first operation that the member gave up, counted from one; zero while there is none.
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
    pub(crate) fn poison(&self, me: usize, operation: u64) {
        self.lines[me].poisoned.store(operation.max(1), Ordering::Release);
    }

    /// A member that gave up `operation` or an earlier one, if there is one.
    pub(crate) fn poisoned(&self, operation: u64) -> Option<usize> {
        self.lines.iter().position(|line| (1..=operation).contains(&line.poisoned.load(Ordering::Acquire)))
    }

    /// Whether `member` gave up an operation.
    pub(crate) fn is_poisoned(&self, member: usize) -> bool {
        self.lines[member].poisoned.load(Ordering::Acquire) != 0
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
