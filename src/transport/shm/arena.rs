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
    progress: usize,
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
        let progress = Progress::place(&mut cursor, members);
        let negotiation = params.negotiated.then(|| Negotiation {
            ready: ReadyWords::place(&mut cursor, members),
            requests: RequestsPlace::new(&mut cursor, members, RING),
            log: LogPlace::new(&mut cursor, members, Shape::default()),
        });
        let mail = (params.mail_bytes > 0).then(|| MailPlace::new(&mut cursor, members, params.mail_bytes));
        let slot_bytes = params.slot_bytes.next_multiple_of(PAGE);
        let slots = cursor.take(members * params.slots * slot_bytes, PAGE);
        let end = cursor.end();
        Self { header, announcements, progress, negotiation, mail, slots, slot_bytes, end }
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
    progress: Progress,
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
                progress: Progress::new(memory, place.progress, members),
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
