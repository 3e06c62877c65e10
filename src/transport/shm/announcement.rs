//! Announcements: what operation a member is at, with up to 48 bytes of its data.
//!
//! Two lines a member, used in turn; README.md, "announcement reuse", says why two suffice.

use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{BLOCK, Cursor, Line, Lines, Memory};

/// Words of data that ride in an announcement.
pub(crate) const PAYLOAD: usize = 6;

/// What an operation is, in two words that are equal on every member or the members disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// seq:32 | kind:8 | dtype:8 | op:8 | flags:8, from the highest bits down. The kind is never zero.
    pub(crate) word0: u64,
    /// count:48 | root:16, from the highest bits down.
    pub(crate) word1: u64,
}

impl Fingerprint {
    /// # Panics
    /// If the kind is zero (which means that nothing was announced), or the count needs more than 48 bits.
    #[inline]
    pub(crate) fn new(seq: u32, kind: u8, dtype: u8, op: u8, flags: u8, count: u64, root: u16) -> Self {
        assert!(kind != 0 && count >> 48 == 0, "kind {kind}, count {count}");
        Self {
            word0: u64::from(seq) << 32
                | u64::from(kind) << 24
                | u64::from(dtype) << 16
                | u64::from(op) << 8
                | u64::from(flags),
            word1: count << 16 | u64::from(root),
        }
    }

    #[inline]
    pub(crate) fn seq(self) -> u32 {
        (self.word0 >> 32) as u32
    }

    pub(crate) fn kind(self) -> u8 {
        (self.word0 >> 24) as u8
    }

    pub(crate) fn dtype(self) -> u8 {
        (self.word0 >> 16) as u8
    }

    pub(crate) fn op(self) -> u8 {
        (self.word0 >> 8) as u8
    }

    pub(crate) fn flags(self) -> u8 {
        self.word0 as u8
    }

    pub(crate) fn count(self) -> u64 {
        self.word1 >> 16
    }

    pub(crate) fn root(self) -> u16 {
        self.word1 as u16
    }
}

#[repr(C, align(64))]
#[derive(Debug, Default)]
struct AnnouncementLine {
    word0: AtomicU64,
    word1: AtomicU64,
    payload: [AtomicU64; PAYLOAD],
}

/// The two lines of a member: a block that it alone writes.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct Pair {
    lines: [AnnouncementLine; 2],
}

#[cfg(not(kolo_loom))]
const _: () = assert!(size_of::<Pair>() == BLOCK);
#[cfg(kolo_loom)]
const _: usize = BLOCK;

// SAFETY: atomics only.
unsafe impl Line for Pair {}

#[derive(Clone, Debug)]
pub(crate) struct Announcements {
    pairs: Lines<Pair>,
}

impl Announcements {
    pub(crate) fn place(cursor: &mut Cursor, members: usize) -> usize {
        cursor.lines::<Pair>(members)
    }

    pub(crate) fn new(memory: &Memory, offset: usize, members: usize) -> Self {
        Self { pairs: memory.lines(offset, members) }
    }

    #[inline]
    fn line(&self, member: usize, seq: u32) -> &AnnouncementLine {
        &self.pairs[member].lines[(seq & 1) as usize]
    }

    /// See [`super::Arena::publish`].
    #[inline]
    pub(crate) fn publish(&self, me: usize, print: Fingerprint, payload: &[u64]) {
        assert!(payload.len() <= PAYLOAD, "{} words do not ride in an announcement", payload.len());
        let line = self.line(me, print.seq());
        for (word, value) in line.payload.iter().zip(payload) {
            word.store(*value, Ordering::Relaxed);
        }
        line.word1.store(print.word1, Ordering::Relaxed);
        line.word0.store(print.word0, Ordering::Release);
    }

    /// See [`super::Arena::announced`].
    #[inline]
    pub(crate) fn announced(&self, member: usize, seq: u32) -> Option<Fingerprint> {
        let line = self.line(member, seq);
        let word0 = line.word0.load(Ordering::Acquire);
        // A line that was never written is zero, and so has no kind.
        if (word0 >> 32) as u32 != seq || word0 as u32 == 0 {
            return None;
        }
        Some(Fingerprint { word0, word1: line.word1.load(Ordering::Relaxed) })
    }

    /// See [`super::Arena::payload`].
    #[inline]
    pub(crate) fn payload(&self, member: usize, seq: u32) -> [u64; PAYLOAD] {
        let line = self.line(member, seq);
        std::array::from_fn(|word| line.payload[word].load(Ordering::Relaxed))
    }
}
