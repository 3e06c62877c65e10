//! Mailboxes: ordered messages from one member to another, through a ring of pieces.
//!
//! A piece starts with a tag that says which message of the pair it holds, so that a small message costs its receiver
//! one cache line. The receiver's count of taken messages is what frees pieces ("piece reuse").

use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{BLOCK, Bytes, Cursor, Line, Lines, Memory};

/// Messages of a pair that may be under way.
const PIECES: usize = 4;
const SMALLEST: usize = 512;
const LARGEST: usize = 64 << 10;
/// The tag, and what keeps the payload aligned to 16 bytes.
const TAG: usize = 16;
/// Bits of a tag that hold the length; the rest hold the message's number, counted from one.
const LEN_BITS: u32 = 24;

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct CountLine {
    count: AtomicU64,
}

// SAFETY: atomics only.
unsafe impl Line for CountLine {}

/// Where the mailboxes of an arena lie. Pair (from, to) has number `from * members + to`; `from == to` has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MailPlace {
    members: usize,
    /// Payload of a piece.
    piece: usize,
    stride: usize,
    sent: usize,
    taken: usize,
    pieces: usize,
}

impl MailPlace {
    /// Pieces are as large as lets all pairs fit `budget` bytes, within 512 B and 64 KiB.
    pub(crate) fn new(cursor: &mut Cursor, members: usize, budget: usize) -> Self {
        let pairs = members * members;
        let share = budget / (pairs.saturating_sub(members).max(1) * PIECES);
        let stride = (share / BLOCK * BLOCK).clamp((SMALLEST + TAG).next_multiple_of(BLOCK), LARGEST + BLOCK);
        Self {
            members,
            piece: (stride - TAG) / 64 * 64,
            stride,
            sent: cursor.lines::<CountLine>(pairs),
            taken: cursor.lines::<CountLine>(pairs),
            pieces: cursor.bytes(pairs * PIECES * stride),
        }
    }

    /// The largest message.
    pub(crate) fn piece(&self) -> usize {
        self.piece
    }
}

#[derive(Debug)]
struct Piece {
    tag: Lines<AtomicU64>,
    payload: Bytes,
}

/// The pieces and counts of one pair.
#[derive(Debug)]
struct Ring {
    pieces: Vec<Piece>,
    sent: Lines<CountLine>,
    taken: Lines<CountLine>,
}

impl Ring {
    fn new(memory: &Memory, place: &MailPlace, from: usize, to: usize) -> Self {
        assert!(from < place.members && to < place.members && from != to, "mail from {from} to {to}");
        let pair = from * place.members + to;
        let pieces = (0..PIECES)
            .map(|piece| {
                let start = place.pieces + (pair * PIECES + piece) * place.stride;
                Piece { tag: memory.lines(start, 1), payload: memory.bytes(start + TAG, place.piece) }
            })
            .collect();
        let count = |lines| memory.lines(lines + pair * size_of::<CountLine>(), 1);
        Self { pieces, sent: count(place.sent), taken: count(place.taken) }
    }

    fn piece(&self, message: u64) -> &Piece {
        &self.pieces[(message % PIECES as u64) as usize]
    }
}

fn tag(message: u64, len: usize) -> u64 {
    (message + 1) << LEN_BITS | len as u64
}

/// The sending end of a pair. There is one at a time.
#[derive(Debug)]
pub(crate) struct MailSender {
    ring: Ring,
    sent: u64,
    /// The last count of taken messages that was looked up.
    taken: u64,
}

impl MailSender {
    pub(crate) fn new(memory: &Memory, place: &MailPlace, from: usize, to: usize) -> Self {
        let ring = Ring::new(memory, place, from, to);
        // An earlier sender of this member may have left off anywhere.
        let sent = ring.sent[0].count.load(Ordering::Relaxed);
        Self { ring, sent, taken: 0 }
    }

    /// Bytes that a message may have.
    pub(crate) fn piece(&self) -> usize {
        self.ring.pieces[0].payload.len()
    }

    /// Sends a copy of `message`; false while the receiver is too far behind. Ring its bell afterwards.
    ///
    /// # Panics
    /// If the message is longer than a piece.
    pub(crate) fn try_send(&mut self, message: &[u8]) -> bool {
        if self.sent - self.taken >= PIECES as u64 {
            // Acquire: what the receiver took, it has finished reading.
            self.taken = self.ring.taken[0].count.load(Ordering::Acquire);
            if self.sent - self.taken >= PIECES as u64 {
                return false;
            }
        }
        let piece = self.ring.piece(self.sent);
        // SAFETY: the message that lay here was taken, and the receiver reads no piece before its tag says so.
        unsafe { piece.payload.write(0, message) };
        piece.tag[0].store(tag(self.sent, message.len()), Ordering::Release);
        self.sent += 1;
        self.ring.sent[0].count.store(self.sent, Ordering::Relaxed);
        true
    }
}

/// The receiving end of a pair. There is one at a time.
#[derive(Debug)]
pub(crate) struct MailReceiver {
    ring: Ring,
    taken: u64,
}

impl MailReceiver {
    pub(crate) fn new(memory: &Memory, place: &MailPlace, from: usize, to: usize) -> Self {
        let ring = Ring::new(memory, place, from, to);
        let taken = ring.taken[0].count.load(Ordering::Relaxed);
        Self { ring, taken }
    }

    /// Whether a message waits: one load.
    #[inline]
    pub(crate) fn ready(&self) -> bool {
        let tag = self.ring.piece(self.taken).tag[0].load(Ordering::Acquire);
        tag >> LEN_BITS == self.taken + 1
    }

    /// Lends the next message to `take`, and then frees its piece; false if there is none yet. Ring the sender's bell
    /// afterwards. When `take` panics, the message stays.
    ///
    /// # Panics
    /// If the memory holds what no sender writes.
    pub(crate) fn try_recv(&mut self, take: impl FnOnce(&[u8])) -> bool {
        let piece = self.ring.piece(self.taken);
        let tag = piece.tag[0].load(Ordering::Acquire);
        if tag >> LEN_BITS != self.taken + 1 {
            return false;
        }
        let len = (tag & ((1 << LEN_BITS) - 1)) as usize;
        // SAFETY: the tag (acquire) says that the message is complete; its sender reuses the piece only once it is taken.
        unsafe { piece.payload.read(0, len, take) };
        self.taken += 1;
        self.ring.taken[0].count.store(self.taken, Ordering::Release);
        true
    }
}
