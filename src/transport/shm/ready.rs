//! Ready words: one phase bit a cached tensor and member, which flips at each submission.

use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{Cursor, Line, Lines, Memory};

/// Words a member has.
pub(crate) const READY_WORDS: usize = 64;

/// Cached tensors that have a bit.
pub(crate) const READY_BITS: usize = READY_WORDS * 64;

/// One member's bits, in blocks that it alone writes.
#[repr(C, align(128))]
#[derive(Debug)]
struct Row {
    /// Grows with every change, so that a reader scans the words only when there is something new.
    version: AtomicU64,
    words: [AtomicU64; READY_WORDS],
}

impl Default for Row {
    fn default() -> Self {
        Self { version: AtomicU64::default(), words: std::array::from_fn(|_| AtomicU64::default()) }
    }
}

// SAFETY: atomics only.
unsafe impl Line for Row {}

/// The ready words of a set's members on this host.
#[derive(Clone, Debug)]
pub(crate) struct ReadyWords {
    me: usize,
    rows: Lines<Row>,
}

impl ReadyWords {
    pub(crate) fn place(cursor: &mut Cursor, members: usize) -> usize {
        cursor.lines::<Row>(members)
    }

    pub(crate) fn new(memory: &Memory, offset: usize, members: usize, me: usize) -> Self {
        Self { me, rows: memory.lines(offset, members) }
    }

    /// Makes `bits` this member's word. Only one thread of the member may do so at a time. Ring the others afterwards.
    pub(crate) fn set(&self, word: usize, bits: u64) {
        let row = &self.rows[self.me];
        row.words[word].store(bits, Ordering::Release);
        let version = row.version.load(Ordering::Relaxed) + 1;
        row.version.store(version, Ordering::Release);
    }

    /// Grows with every change of the member's words: whoever sees a version sees the words it stands for.
    #[inline]
    pub(crate) fn version(&self, member: usize) -> u64 {
        self.rows[member].version.load(Ordering::Acquire)
    }

    /// A member's word.
    #[inline]
    pub(crate) fn word(&self, member: usize, word: usize) -> u64 {
        self.rows[member].words[word].load(Ordering::Acquire)
    }
}
