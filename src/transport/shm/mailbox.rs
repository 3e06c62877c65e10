//! Mailboxes: ordered messages from one member to another, through a ring of pieces.
//!
//! A piece starts with a tag that says which message of the pair it holds, so that a small message costs its receiver
//! one cache line. The receiver's count of taken messages is what frees pieces ("piece reuse").

use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{BLOCK, Bytes, Cursor, Line, Lines, Memory};

/// Messages of a pair that may be under way. (Fewer under loom, so that its models reach the reuse of a piece.)
const PIECES: usize = if cfg!(kolo_loom) { 2 } else { 4 };
const SMALLEST: usize = if cfg!(kolo_loom) { 64 } else { 512 };
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
    #[cfg(test)]
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

    #[cfg(test)]
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

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    fn mail(members: usize, budget: usize) -> (Memory, MailPlace) {
        let mut cursor = Cursor::default();
        let place = MailPlace::new(&mut cursor, members, budget);
        (Memory::anonymous(cursor.end()).expect("memory"), place)
    }

    #[test]
    fn pieces_share_the_budget_within_limits() {
        for members in 1..=64 {
            let mut cursor = Cursor::default();
            let place = MailPlace::new(&mut cursor, members, 4 << 20);
            assert!((SMALLEST..=LARGEST + BLOCK).contains(&place.piece()), "{members}: {}", place.piece());
            assert_eq!(place.piece() % 64, 0);
            assert!(place.piece() + TAG <= place.stride);
        }
        assert!(mail(2, 4 << 20).1.piece() >= 64 << 10);
        assert!(mail(17, 1).1.piece() >= 512);
    }

    #[test]
    fn messages_arrive_in_order_and_a_full_box_says_so() {
        let (memory, place) = mail(2, 1);
        let mut sender = MailSender::new(&memory, &place, 0, 1);
        let mut receiver = MailReceiver::new(&memory, &place, 0, 1);
        assert!(!receiver.ready() && !receiver.try_recv(|_| panic!("nothing was sent")));
        for lap in 0..3_u8 {
            for message in 0..PIECES as u8 {
                assert!(sender.try_send(&vec![lap; usize::from(message)]));
            }
            assert!(!sender.try_send(&[]));
            // New handles go on where the old ones stopped.
            sender = MailSender::new(&memory, &place, 0, 1);
            assert!(!sender.try_send(&[]));
            for message in 0..PIECES {
                assert!(receiver.ready());
                assert!(receiver.try_recv(|bytes| assert_eq!(bytes, vec![lap; message])));
            }
            receiver = MailReceiver::new(&memory, &place, 0, 1);
            assert!(!receiver.ready());
        }
        let whole = vec![9; sender.piece()];
        assert!(sender.try_send(&whole));
        assert!(receiver.try_recv(|bytes| assert_eq!(bytes, whole)));
    }

    #[test]
    fn a_message_stays_when_its_receiver_panics() {
        let (memory, place) = mail(2, 1);
        assert!(MailSender::new(&memory, &place, 0, 1).try_send(&[1]));
        let mut receiver = MailReceiver::new(&memory, &place, 0, 1);
        let take = std::panic::AssertUnwindSafe(|| receiver.try_recv(|_| panic!("on purpose")));
        assert!(std::panic::catch_unwind(take).is_err());
        assert!(receiver.try_recv(|bytes| assert_eq!(bytes, [1])));
    }

    #[test]
    #[should_panic(expected = "mail from 1 to 1")]
    fn nobody_mails_himself() {
        let (memory, place) = mail(2, 1);
        drop(MailSender::new(&memory, &place, 1, 1));
    }

    /// Every member sends numbered messages of changing length to every other, at once.
    #[test]
    fn all_pairs_at_once() {
        const MEMBERS: usize = 3;
        const MESSAGES: usize = 2000;
        let (memory, place) = mail(MEMBERS, 1);
        let expected = |from: usize, to: usize, message: usize| {
            let len = (message * 7919 + from * 31 + to) % (place.piece() + 1);
            vec![(message + from * 3 + to * 5) as u8; len]
        };
        std::thread::scope(|scope| {
            for me in 0..MEMBERS {
                let memory = &memory;
                scope.spawn(move || {
                    let peers = || (0..MEMBERS).filter(|peer| *peer != me);
                    let mut out: Vec<_> = peers().map(|to| (to, 0, MailSender::new(memory, &place, me, to))).collect();
                    let mut inbox: Vec<_> =
                        peers().map(|from| (from, 0, MailReceiver::new(memory, &place, from, me))).collect();
                    loop {
                        let mut moved = false;
                        for (to, sent, sender) in &mut out {
                            if *sent < MESSAGES && sender.try_send(&expected(me, *to, *sent)) {
                                *sent += 1;
                                moved = true;
                            }
                        }
                        for (from, taken, receiver) in &mut inbox {
                            let wanted = expected(*from, me, *taken);
                            if receiver.try_recv(|bytes| assert_eq!(bytes, wanted)) {
                                *taken += 1;
                                moved = true;
                            }
                        }
                        let all =
                            out.iter().all(|out| out.1 == MESSAGES) && inbox.iter().all(|inbox| inbox.1 == MESSAGES);
                        if all {
                            break;
                        }
                        if !moved {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
    }
}

#[cfg(all(test, kolo_loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// "piece reuse": one message more than there are pieces.
    #[test]
    fn loom_mail_arrives_whole() {
        loom::model(|| {
            let mut cursor = Cursor::default();
            let place = MailPlace::new(&mut cursor, 2, 1);
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let mut sender = MailSender::new(&memory, &place, 0, 1);
            let sending = thread::spawn(move || {
                for message in 0..=PIECES as u8 {
                    while !sender.try_send(&[message]) {
                        thread::yield_now();
                    }
                }
            });
            let mut receiver = MailReceiver::new(&memory, &place, 0, 1);
            for message in 0..=PIECES as u8 {
                while !receiver.try_recv(|bytes| assert_eq!(bytes, [message])) {
                    thread::yield_now();
                }
            }
            sending.join().expect("the sender ends");
        });
    }
}
