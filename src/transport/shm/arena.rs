//! The arena of a set on one host: what its members announce, their progress, their slots, their mail, and their
//! negotiation.

use std::sync::Arc;

use crate::error::{Error, Result};

use super::announcement::{Announcements, Fingerprint, PAYLOAD};
use super::header::{Header, Stamp, digest};
use super::log::{Log, LogPlace, Shape};
use super::mailbox::{MailPlace, MailReceiver, MailSender};
use super::memory::{Bytes, Cursor, Memory, PAGE};
use super::progress::Progress;
use super::ready::ReadyWords;
use super::reason::{Reasons, ReasonsPlace};
use super::requests::{RING, RequestReader, RequestWriter, RequestsPlace};

/// What an arena holds. All members pass the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ArenaParams {
    /// Ranks of the set on this host.
    pub(crate) members: usize,
    /// Bytes of a slot, rounded up to whole pages.
    pub(crate) slot_bytes: usize,
    /// Slots a member; zero for none.
    pub(crate) slots: usize,
    /// The budget of all mailboxes together ([`ArenaParams::MAIL`]); zero for none.
    pub(crate) mail_bytes: usize,
    /// Whether the set has ready words, request rings and a decision log.
    pub(crate) negotiated: bool,
}

impl ArenaParams {
    /// The usual budget of a set's mailboxes on one host.
    pub(crate) const MAIL: usize = 4 << 20;
}

#[derive(Clone, Copy, Debug)]
struct Negotiation {
    ready: usize,
    requests: RequestsPlace,
    log: LogPlace,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    header: usize,
    announcements: usize,
    asking: usize,
    progress: usize,
    reasons: ReasonsPlace,
    negotiation: Option<Negotiation>,
    mail: Option<MailPlace>,
    slots: usize,
    slot_bytes: usize,
    end: usize,
}

impl Place {
    fn new(params: &ArenaParams) -> Self {
        let members = params.members;
        let mut cursor = Cursor::default();
        let header = Header::place(&mut cursor);
        let announcements = Announcements::place(&mut cursor, members);
        let asking = Announcements::place(&mut cursor, members);
        let progress = Progress::place(&mut cursor, members);
        let reasons = ReasonsPlace::new(&mut cursor, members);
        let negotiation = params.negotiated.then(|| Negotiation {
            ready: ReadyWords::place(&mut cursor, members),
            requests: RequestsPlace::new(&mut cursor, members, RING),
            log: LogPlace::new(&mut cursor, members, Shape::default()),
        });
        let mail = (params.mail_bytes > 0).then(|| MailPlace::new(&mut cursor, members, params.mail_bytes));
        let slot_bytes = params.slot_bytes.next_multiple_of(PAGE);
        let slots = cursor.take(members * params.slots * slot_bytes, PAGE);
        let end = cursor.end();
        Self { header, announcements, asking, progress, reasons, negotiation, mail, slots, slot_bytes, end }
    }
}

/// The arena, as one member sees it. Cloning is cheap.
///
/// Of each member there is one set of writers: its `publish`, `set_*` and the handles that this gives out are used by
/// one thread at a time (the engine's lock sees to it), and by one process.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    me: usize,
    params: ArenaParams,
    place: Place,
    memory: Memory,
    header: Header,
    announcements: Announcements,
    asking: Announcements,
    progress: Progress,
    reasons: Reasons,
    ready: Option<ReadyWords>,
    slots: Vec<Bytes>,
}

impl Arena {
    /// The bytes that the arena needs.
    pub(crate) fn bytes(params: &ArenaParams) -> usize {
        Place::new(params).end
    }

    /// The arena in `memory`, which is zero until the first member uses it, for the member `me`.
    ///
    /// # Errors
    /// When the memory is too small for the parameters.
    pub(crate) fn new(memory: &Memory, params: &ArenaParams, me: usize) -> Result<Self> {
        let members = params.members;
        assert!(me < members, "member {me} of {members}");
        let place = Place::new(params);
        if memory.len() < place.end {
            return Err(Error::argument(format!(
                "{} bytes of shared memory are too few for a set of {members} ranks ({} bytes)",
                memory.len(),
                place.end
            )));
        }
        let shape = digest(&[
            members,
            place.slot_bytes,
            params.slots,
            params.mail_bytes,
            usize::from(params.negotiated),
            place.end,
        ]);
        Ok(Self {
            inner: Arc::new(Inner {
                me,
                params: *params,
                place,
                memory: memory.clone(),
                header: Header::new(memory, place.header, shape),
                announcements: Announcements::new(memory, place.announcements, members),
                asking: Announcements::new(memory, place.asking, members),
                progress: Progress::new(memory, place.progress, members),
                reasons: Reasons::new(memory, place.reasons, members),
                ready: place.negotiation.map(|at| ReadyWords::new(memory, at.ready, members, me)),
                slots: (0..members * params.slots)
                    .map(|slot| memory.bytes(place.slots + slot * place.slot_bytes, place.slot_bytes))
                    .collect(),
            }),
        })
    }

    /// Writes what the arena belongs to: once, by whoever made the memory, before the others learn of it.
    pub(crate) fn stamp(&self, stamp: &Stamp) {
        self.inner.header.stamp(stamp);
    }

    /// Checks that this is the memory of `stamp`'s job, epoch and set, and really shared.
    pub(crate) fn verify(&self, stamp: &Stamp) -> Result<()> {
        self.inner.header.verify(stamp)
    }

    /// Enters the slots of this member into its page table, so that the first operation takes no faults.
    pub(crate) fn populate(&self) -> Result<()> {
        let Inner { me, params, place, memory, .. } = &*self.inner;
        let mine = params.slots * place.slot_bytes;
        memory.populate(place.slots + me * mine, mine)
    }

    #[inline]
    pub(crate) fn me(&self) -> usize {
        self.inner.me
    }

    #[inline]
    pub(crate) fn members(&self) -> usize {
        self.inner.params.members
    }

    /// Slots a member has.
    #[inline]
    pub(crate) fn slots(&self) -> usize {
        self.inner.params.slots
    }

    /// Bytes of a slot: what was asked for, in whole pages.
    #[inline]
    pub(crate) fn slot_bytes(&self) -> usize {
        self.inner.place.slot_bytes
    }

    /// Announces this member's next operation, with up to six words of data. The bells are rung by the caller.
    ///
    /// Before it announces operation s + 1, a member has read every member's announcement (and data) of operation s:
    /// "announcement reuse".
    #[inline]
    pub(crate) fn publish(&self, print: Fingerprint, payload: &[u64]) {
        self.inner.announcements.publish(self.inner.me, print, payload);
    }

    /// What `member` announced as operation `seq`, or `None` while it has not.
    #[inline]
    pub(crate) fn announced(&self, member: usize, seq: u32) -> Option<Fingerprint> {
        self.inner.announcements.announced(member, seq)
    }

    /// Says what operation this member waits in, whether or not it has announced it: once an operation. The bells are rung
    /// by the caller.
    pub(crate) fn ask(&self, print: Fingerprint) {
        self.inner.asking.publish(self.inner.me, print, &[]);
    }

    /// The operation `seq` that `member` says it waits in, if it does.
    pub(crate) fn asked(&self, member: usize, seq: u32) -> Option<Fingerprint> {
        self.inner.asking.announced(member, seq)
    }

    /// The data words that came with the announcement, once [`Arena::announced`] has given it.
    #[inline]
    pub(crate) fn payload(&self, member: usize, seq: u32) -> [u64; PAYLOAD] {
        self.inner.announcements.payload(member, seq)
    }

    /// This member has packed so many chunks since the arena began.
    #[inline]
    pub(crate) fn set_packed(&self, chunks: u64) {
        self.inner.progress.set_packed(self.inner.me, chunks);
    }

    /// This member has reduced its part of so many chunks.
    #[inline]
    pub(crate) fn set_reduced(&self, chunks: u64) {
        self.inner.progress.set_reduced(self.inner.me, chunks);
    }

    /// This member needs nothing more of so many chunks, of any member's slots.
    #[inline]
    pub(crate) fn set_done(&self, chunks: u64) {
        self.inner.progress.set_done(self.inner.me, chunks);
    }

    #[inline]
    pub(crate) fn packed(&self, member: usize) -> u64 {
        self.inner.progress.packed(member)
    }

    #[inline]
    pub(crate) fn reduced(&self, member: usize) -> u64 {
        self.inner.progress.reduced(member)
    }

    #[inline]
    pub(crate) fn done(&self, member: usize) -> u64 {
        self.inner.progress.done(member)
    }

    /// Says why this member is about to give up, for whoever finds that it has. The first reason stays; a long one is cut.
    pub(crate) fn leave_reason(&self, reason: &str) {
        self.inner.reasons.write(self.inner.me, reason);
    }

    /// Why `member` gave up, if it said so.
    pub(crate) fn reason(&self, member: usize) -> Option<String> {
        self.inner.reasons.read(member)
    }

    /// Says that this member has given up all operations from the `operation`th (from one) on, because the global rank
    /// `rank` did. Ring the others' bells afterwards.
    pub(crate) fn poison(&self, operation: u64, rank: u32) {
        self.inner.progress.poison(self.inner.me, operation, rank);
    }

    /// The global rank whose doing it was that a member gave up the `operation`th operation or an earlier one, if one
    /// did: what it has not published will never come.
    pub(crate) fn poisoned(&self, operation: u64) -> Option<u32> {
        self.inner.progress.poisoned(operation)
    }

    /// The first operation that any member gave up, if one did.
    pub(crate) fn first_poisoned(&self) -> Option<u64> {
        self.inner.progress.first_poisoned()
    }

    /// The global rank whose doing it was that `member` gave up, if it did.
    pub(crate) fn poisoned_member(&self, member: usize) -> Option<u32> {
        self.inner.progress.poisoned_member(member)
    }

    /// Whether every member has packed at least so many chunks.
    #[inline]
    pub(crate) fn all_packed(&self, chunks: u64) -> bool {
        self.inner.progress.all_packed(chunks)
    }

    /// Whether every member has reduced at least so many chunks.
    #[inline]
    pub(crate) fn all_reduced(&self, chunks: u64) -> bool {
        self.inner.progress.all_reduced(chunks)
    }

    /// Whether every member is done with at least so many chunks.
    #[inline]
    pub(crate) fn all_done(&self, chunks: u64) -> bool {
        self.inner.progress.all_done(chunks)
    }

    /// The slot of chunk `chunk`, once every member is done with the chunk that was there before: "slot reuse".
    #[inline]
    pub(crate) fn free_slot(&self, chunk: u64) -> Option<usize> {
        let slots = self.slots() as u64;
        let free = chunk < slots || self.all_done(chunk + 1 - slots);
        free.then_some((chunk % slots) as usize)
    }

    /// The first byte of a slot. Its member writes it while it is free; others read it once it is packed or reduced.
    #[inline]
    pub(crate) fn slot_ptr(&self, member: usize, slot: usize) -> *mut u8 {
        self.slot(member, slot).ptr()
    }

    #[inline]
    pub(crate) fn slot(&self, member: usize, slot: usize) -> &Bytes {
        assert!(slot < self.slots(), "slot {slot} of {}", self.slots());
        &self.inner.slots[member * self.slots() + slot]
    }

    fn mail(&self) -> &MailPlace {
        self.inner.place.mail.as_ref().expect("an arena with mail")
    }

    fn negotiation(&self) -> &Negotiation {
        self.inner.place.negotiation.as_ref().expect("an arena of a set that negotiates")
    }

    /// The largest message that the mailboxes carry.
    pub(crate) fn mail_piece(&self) -> usize {
        self.mail().piece()
    }

    /// The sending end of this member's mailbox to `to`.
    pub(crate) fn sender(&self, to: usize) -> MailSender {
        MailSender::new(&self.inner.memory, self.mail(), self.inner.me, to)
    }

    /// The receiving end of the mailbox of `from` to this member.
    pub(crate) fn receiver(&self, from: usize) -> MailReceiver {
        MailReceiver::new(&self.inner.memory, self.mail(), from, self.inner.me)
    }

    /// The phase bits of a set that negotiates.
    pub(crate) fn ready_words(&self) -> &ReadyWords {
        self.inner.ready.as_ref().expect("an arena of a set that negotiates")
    }

    /// The writing end of this member's request ring.
    pub(crate) fn request_writer(&self) -> RequestWriter {
        RequestWriter::new(&self.inner.memory, &self.negotiation().requests, self.inner.me)
    }

    /// This member's reading end of the request ring of `from`.
    pub(crate) fn request_reader(&self, from: usize) -> RequestReader {
        RequestReader::new(&self.inner.memory, &self.negotiation().requests, from, self.inner.me)
    }

    /// The decision log.
    pub(crate) fn log(&self) -> Log {
        Log::new(&self.inner.memory, &self.negotiation().log, self.inner.me)
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::super::log::Install;
    use super::*;

    const PARAMS: ArenaParams = ArenaParams { members: 3, slot_bytes: 5000, slots: 2, mail_bytes: 1, negotiated: true };

    fn arenas(params: &ArenaParams) -> Vec<Arena> {
        let memory = Memory::anonymous(Arena::bytes(params)).expect("memory");
        (0..params.members).map(|me| Arena::new(&memory, params, me).expect("an arena")).collect()
    }

    fn print(seq: u32) -> Fingerprint {
        Fingerprint::new(seq, 1, 2, 3, 4, 1 << 40, 5)
    }

    #[test]
    fn everything_has_its_place() {
        let arenas = arenas(&PARAMS);
        let [a, b, _] = &arenas[..] else { panic!("three members") };
        assert_eq!((b.me(), b.members(), b.slots(), b.slot_bytes()), (1, 3, 2, 8192));
        a.populate().expect("populated");

        // A pattern in every part, then all of them are found unharmed.
        for arena in &arenas {
            let me = arena.me() as u64;
            for slot in 0..2 {
                let byte = (me * 2 + slot) as u8 + 1;
                // SAFETY: one thread.
                unsafe { arena.slot(arena.me(), slot as usize).write(0, &[byte; 8192]) };
            }
            arena.publish(print(1), &[me; PAYLOAD]);
            arena.set_packed(me + 1);
            arena.set_reduced(me + 2);
            arena.set_done(me + 3);
            arena.ready_words().set(63, me);
            assert!(arena.request_writer().try_write(&[me as u8; 100]));
            for to in (0..3).filter(|to| *to != arena.me()) {
                assert!(arena.sender(to).try_send(&vec![me as u8; arena.mail_piece()]));
            }
        }
        let mut log = b.log();
        assert_eq!(log.install(0, &vec![7; log.entry_max()]), Install::Installed);
        let header = Stamp { job: 1, epoch: 2, set: 3 };
        a.stamp(&header);

        for arena in &arenas {
            arena.verify(&header).expect("the same");
            for from in 0..3 {
                assert_eq!(arena.announced(from, 1), Some(print(1)));
                assert_eq!(arena.payload(from, 1), [from as u64; PAYLOAD]);
                let counts = (arena.packed(from), arena.reduced(from), arena.done(from));
                assert_eq!(counts, (from as u64 + 1, from as u64 + 2, from as u64 + 3));
                assert_eq!(arena.ready_words().word(from, 63), from as u64);
                for slot in 0..2 {
                    let whole = [(from * 2 + slot) as u8 + 1; 8192];
                    // SAFETY: one thread.
                    unsafe { arena.slot(from, slot).read(0, 8192, |bytes| assert_eq!(bytes, whole)) };
                    assert!(arena.slot_ptr(from, slot).addr().is_multiple_of(4096));
                }
                if from != arena.me() {
                    assert!(arena.receiver(from).try_recv(|bytes| assert!(bytes.iter().all(|b| *b == from as u8))));
                    assert!(arena.request_reader(from).try_read(|bytes| assert_eq!(bytes, [from as u8; 100])));
                }
            }
            let mut entry = Vec::new();
            assert!(arena.log().read(0, &mut entry));
            assert!(entry.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn too_little_memory_and_other_parameters_are_errors() {
        let memory = Memory::anonymous(Arena::bytes(&PARAMS)).expect("memory");
        let more = ArenaParams { slots: 3, ..PARAMS };
        assert!(Arena::new(&memory, &more, 0).is_err());
        let stamp = Stamp { job: 1, epoch: 2, set: 3 };
        Arena::new(&memory, &PARAMS, 0).expect("an arena").stamp(&stamp);
        let fewer = ArenaParams { slots: 1, ..PARAMS };
        assert!(Arena::new(&memory, &fewer, 1).expect("an arena").verify(&stamp).is_err());
    }

    #[test]
    fn an_arena_may_have_little() {
        let params = ArenaParams { members: 1, slot_bytes: 0, slots: 0, mail_bytes: 0, negotiated: false };
        let arenas = arenas(&params);
        arenas[0].publish(print(0), &[]);
        assert_eq!(arenas[0].announced(0, 0), Some(print(0)));
        arenas[0].populate().expect("nothing to populate");
    }

    #[test]
    fn fingerprints_hold_their_fields() {
        let print = Fingerprint::new(u32::MAX, 1, 2, 3, 4, (1 << 48) - 1, u16::MAX);
        assert_eq!((print.seq(), print.kind(), print.dtype(), print.op()), (u32::MAX, 1, 2, 3));
        assert_eq!((print.flags(), print.count(), print.root()), (4, (1 << 48) - 1, u16::MAX));
        assert!(std::panic::catch_unwind(|| Fingerprint::new(0, 0, 0, 0, 0, 0, 0)).is_err());
        assert!(std::panic::catch_unwind(|| Fingerprint::new(0, 1, 0, 0, 0, 1 << 48, 0)).is_err());
    }

    #[test]
    fn a_line_that_was_never_written_matches_no_number() {
        let arenas = arenas(&PARAMS);
        assert_eq!(arenas[0].announced(1, 0), None);
        arenas[1].publish(print(u32::MAX - 1), &[]);
        assert_eq!(arenas[0].announced(1, 0), None);
        arenas[1].publish(print(0), &[]);
        assert_eq!(arenas[0].announced(1, 0), Some(print(0)));
    }

    #[test]
    fn a_slot_is_free_once_all_are_done_with_it() {
        let arenas = arenas(&PARAMS);
        assert_eq!((arenas[0].free_slot(0), arenas[0].free_slot(1), arenas[0].free_slot(2)), (Some(0), Some(1), None));
        arenas[0].set_done(1);
        arenas[1].set_done(2);
        assert_eq!(arenas[0].free_slot(2), None);
        arenas[2].set_done(1);
        assert_eq!((arenas[0].free_slot(2), arenas[0].free_slot(3)), (Some(0), None));
    }

    fn until(ready: impl Fn() -> bool) {
        while !ready() {
            std::thread::yield_now();
        }
    }

    /// "announcement reuse": members at most one operation apart never miss or mix a line.
    #[test]
    fn announcements_are_read_whole() {
        let arenas = arenas(&PARAMS);
        std::thread::scope(|scope| {
            for arena in &arenas {
                scope.spawn(move || {
                    for seq in (u32::MAX - 500..=u32::MAX).chain(0..1500) {
                        arena.publish(print(seq), &[u64::from(seq) << 8 | arena.me() as u64; PAYLOAD]);
                        for from in 0..3 {
                            until(|| arena.announced(from, seq).is_some());
                            assert_eq!(arena.announced(from, seq), Some(print(seq)));
                            assert_eq!(arena.payload(from, seq), [u64::from(seq) << 8 | from as u64; PAYLOAD]);
                        }
                    }
                });
            }
        });
    }

    /// "slot reuse": a two-shot sum of many chunks through two slots, each member reducing a part.
    #[test]
    fn chunks_go_through_slots_whole() {
        const CHUNKS: u64 = 1000;
        const PART: usize = 16;
        let arenas = arenas(&PARAMS);
        std::thread::scope(|scope| {
            for arena in &arenas {
                scope.spawn(move || {
                    let me = arena.me();
                    for chunk in 0..CHUNKS {
                        until(|| arena.free_slot(chunk).is_some());
                        let slot = arena.free_slot(chunk).expect("it stays free");
                        let value = |member: usize| (chunk as u8).wrapping_mul(3).wrapping_add(member as u8);
                        // SAFETY: the slot is free: nobody reads it.
                        unsafe { arena.slot(me, slot).write(0, &[value(me); 3 * PART]) };
                        arena.set_packed(chunk + 1);
                        until(|| arena.all_packed(chunk + 1));
                        let mut sum = [0_u8; PART];
                        for from in 0..3 {
                            // SAFETY: packed, and only this member writes this part before all have reduced.
                            unsafe {
                                arena.slot(from, slot).read(me * PART, PART, |part| {
                                    sum.iter_mut().zip(part).for_each(|(sum, byte)| *sum = sum.wrapping_add(*byte));
                                });
                            }
                        }
                        // SAFETY: the others read this part of this slot only once it is reduced.
                        unsafe { arena.slot(me, slot).write(me * PART, &sum) };
                        arena.set_reduced(chunk + 1);
                        until(|| arena.all_reduced(chunk + 1));
                        let wanted = [value(0).wrapping_add(value(1)).wrapping_add(value(2)); PART];
                        for from in 0..3 {
                            // SAFETY: reduced, and not written again before this member is done.
                            unsafe {
                                arena.slot(from, slot).read(from * PART, PART, |part| assert_eq!(part, wanted));
                            }
                        }
                        arena.set_done(chunk + 1);
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

    fn two_members(slots: usize, bound: usize, member: fn(Arena)) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(bound);
        model.check(move || {
            let params = ArenaParams { members: 2, slot_bytes: 16, slots, mail_bytes: 0, negotiated: false };
            let memory = Memory::anonymous(Arena::bytes(&params)).expect("memory");
            let other = Arena::new(&memory, &params, 1).expect("an arena");
            let other = thread::spawn(move || member(other));
            member(Arena::new(&memory, &params, 0).expect("an arena"));
            other.join().expect("the other member ends");
        });
    }

    fn until(ready: impl Fn() -> bool) {
        while !ready() {
            thread::yield_now();
        }
    }

    /// "announcement reuse": the third operation overwrites the line of the first.
    #[test]
    fn loom_announcements_are_read_whole() {
        two_members(0, 3, |arena| {
            let peer = 1 - arena.me();
            for seq in 1..=3 {
                let print = |me: usize| Fingerprint::new(seq, 1, me as u8, 0, 0, u64::from(seq), 0);
                arena.publish(print(arena.me()), &[u64::from(seq)]);
                until(|| arena.announced(peer, seq).is_some());
                assert_eq!(arena.announced(peer, seq), Some(print(peer)));
                assert_eq!(arena.payload(peer, seq)[0], u64::from(seq));
            }
        });
    }

    /// "slot reuse": two chunks through one slot, each member reducing a part.
    #[test]
    fn loom_slots_are_handed_over() {
        two_members(1, 3, |arena| {
            let (me, peer) = (arena.me(), 1 - arena.me());
            for chunk in 0..2 {
                until(|| arena.free_slot(chunk).is_some());
                // SAFETY: loom checks what each comment in the stress test above claims.
                unsafe {
                    arena.slot(me, 0).write(0, &[chunk as u8 + 1; 16]);
                    arena.set_packed(chunk + 1);
                    until(|| arena.packed(peer) > chunk);
                    let sum = arena.slot(peer, 0).read(me * 8, 8, |part| part[0]) + chunk as u8 + 1;
                    arena.slot(me, 0).write(me * 8, &[sum; 8]);
                    arena.set_reduced(chunk + 1);
                    until(|| arena.reduced(peer) > chunk);
                    arena.slot(peer, 0).read(peer * 8, 8, |part| assert_eq!(part, [sum; 8]));
                }
                arena.set_done(chunk + 1);
            }
        });
    }
}
