//! A message between two ranks of a set, on its way while others poll.
//!
//! A message is a header (the elements' type, and how many there are) and the elements, in pieces of the link: what `send` and
//! `recv` of a communicator exchange, whichever of them blocks. Messages of a pair of ranks match by order.

use std::sync::Arc;

use super::{Channel, Port, Step};
use crate::error::{Error, Mismatch, Result};
use crate::event::{Mark, Stage, Verb};
use crate::tensor::{DType, RawSlice};
use crate::transport::Link;

/// Bytes before a message's first elements: type (1), zero (7), count (8).
pub(crate) const HEADER: usize = 16;
/// A poll that has moved so many bytes leaves the rest to the next.
const SHARE: usize = 512 << 10;

/// What the two directions have in common.
struct Way {
    data: RawSlice,
    dtype: DType,
    /// The set rank on the other side.
    peer: usize,
    /// Whether the peer was seen to have given up: what it did before may still come.
    warned: bool,
    /// Once it has begun, how it is reported.
    reported: Option<(Arc<Port>, Mark)>,
}

/// A message on its way out.
pub(crate) struct Sending {
    way: Way,
    /// Bytes of the header and the elements that have been sent.
    sent: usize,
}

/// A message on its way in.
pub(crate) struct Receiving {
    way: Way,
    /// The sender's type code and count, once the header is there.
    theirs: Option<(u8, u64)>,
    /// Bytes of elements taken so far, kept or not.
    taken: u64,
}

impl Way {
    fn count(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    fn begin(&mut self, channel: &Channel, verb: Verb, number: u64) {
        let mark = channel.report(verb, (self.dtype, None), Some(self.peer), self.data.len() as u64, number);
        self.reported = Some((Arc::clone(channel.port()), mark));
    }

    fn ended(&mut self, stage: Stage) {
        if let Some((port, mark)) = self.reported.take() {
            port.sink.reached(mark, stage, None);
        }
    }

    /// Ends a wait for a rank of this host that has given up: at the second look.
    fn heed(&mut self, channel: &Channel, step: Step) -> Result<Step> {
        if step != Step::Pending {
            return Ok(step);
        }
        match channel.abandoned(self.peer) {
            Some(error) if self.warned => Err(error),
            Some(_) => {
                self.warned = true;
                Ok(Step::Progress)
            }
            None => Ok(step),
        }
    }

    fn is_far(&self, channel: &Channel) -> bool {
        !channel.team().members().contains(&self.peer)
    }
}

/// One that is given up has failed.
impl Drop for Way {
    fn drop(&mut self) {
        self.ended(Stage::Failed);
    }
}

impl Sending {
    pub(crate) fn new(data: RawSlice, dtype: DType, to: usize) -> Self {
        Self { way: Way { data, dtype, peer: to, warned: false, reported: None }, sent: 0 }
    }

    /// Its turn has come; `number` counts the messages of this rank.
    pub(crate) fn begin(&mut self, channel: &Channel, number: u64) {
        self.way.begin(channel, Verb::Send, number);
    }

    /// Moves it on; ready once all is copied out and handed to the network. `scratch` is a buffer to reuse.
    pub(crate) fn poll(&mut self, channel: &Channel, link: &mut dyn Link, scratch: &mut Vec<u8>) -> Result<Step> {
        link.progress()?;
        let (total, begin) = (HEADER + self.way.data.len(), self.sent);
        while self.sent < total {
            if self.sent - begin >= SHARE {
                return Ok(Step::Progress);
            }
            let most = link.piece().min(total - self.sent);
            self.piece(most, scratch);
            if !link.try_send(self.way.peer, scratch)? {
                return self.way.heed(channel, if self.sent > begin { Step::Progress } else { Step::Pending });
            }
            self.sent += most;
        }
        if link.idle() {
            self.way.ended(Stage::Done);
            return Ok(Step::Ready(()));
        }
        self.way.heed(channel, if self.sent > begin { Step::Progress } else { Step::Pending })
    }

    /// The next `len` bytes of header and elements.
    fn piece(&self, len: usize, scratch: &mut Vec<u8>) {
        scratch.clear();
        let mut len = len;
        if self.sent == 0 {
            scratch.extend_from_slice(&[self.way.dtype as u8, 0, 0, 0, 0, 0, 0, 0]);
            scratch.extend_from_slice(&(self.way.count() as u64).to_le_bytes());
            len -= HEADER;
        }
        let part = self.way.data.part(self.sent.saturating_sub(HEADER), len);
        // SAFETY: the operation owns its memory until it has ended, and nobody writes it meanwhile.
        scratch.extend_from_slice(unsafe { std::slice::from_raw_parts(part.ptr(), part.len()) });
    }

    /// Whether a message of another host may be what it waits for.
    pub(crate) fn is_far(&self, channel: &Channel) -> bool {
        self.way.is_far(channel)
    }

    /// What it is, and the global rank that it waits for.
    pub(crate) fn waits_for(&self, channel: &Channel) -> (String, Vec<u32>) {
        let Way { dtype, peer, .. } = &self.way;
        (format!("send of {} {dtype} to rank {peer}", self.way.count()), vec![channel.team().global(*peer)])
    }
}

impl Receiving {
    pub(crate) fn new(data: RawSlice, dtype: DType, from: usize) -> Self {
        Self { way: Way { data, dtype, peer: from, warned: false, reported: None }, theirs: None, taken: 0 }
    }

    /// As [`Sending::begin`].
    pub(crate) fn begin(&mut self, channel: &Channel, number: u64) {
        self.way.begin(channel, Verb::Receive, number);
    }

    /// Moves it on; ready once all has come.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if type or length differ, once the message is taken off the link; the memory is as it was then.
    pub(crate) fn poll(&mut self, channel: &Channel, link: &mut dyn Link) -> Result<Step> {
        let (begin, mut step) = (self.taken, Step::Pending);
        while !self.is_complete() {
            if self.taken - begin >= SHARE as u64 {
                return Ok(Step::Progress);
            }
            let (mut taken, peer) = (Ok(()), self.way.peer);
            if !link.try_recv(peer, &mut |piece| taken = self.take(piece, channel.team().global(peer)))? {
                return self.way.heed(channel, step);
            }
            taken?;
            step = Step::Progress;
        }
        if self.fits() {
            self.way.ended(Stage::Done);
            return Ok(Step::Ready(()));
        }
        Err(self.mismatch(channel))
    }

    fn fits(&self) -> bool {
        self.theirs == Some((self.way.dtype as u8, self.way.count() as u64))
    }

    fn is_complete(&self) -> bool {
        self.theirs.is_some_and(|(code, count)| {
            let size = DType::from_code(code).map_or(1, DType::size);
            self.taken >= count.saturating_mul(size as u64)
        })
    }

    fn take(&mut self, piece: &[u8], from: u32) -> Result<()> {
        let mut bytes = piece;
        if self.theirs.is_none() {
            let Some((header, rest)) = piece.split_at_checked(HEADER) else {
                let text = format!("a message of {} bytes from rank {from} has no header", piece.len());
                return Err(Error::Poisoned(text.into()));
            };
            let count = header[8..].try_into().map(u64::from_le_bytes).unwrap_or(0);
            self.theirs = Some((header[0], count));
            bytes = rest;
        }
        if self.fits() {
            let dtype = self.way.dtype;
            if dtype == DType::Bool && bytes.iter().any(|byte| *byte > 1) {
                let text = format!("the message from rank {from} holds bytes that are no {dtype}");
                return Err(Error::Poisoned(text.into()));
            }
            let place = self.way.data.part(self.taken as usize, bytes.len());
            // SAFETY: `part` has checked that the bytes lie inside; the operation owns its memory until it has ended, and of all
            // types but bool, which was looked at, any bits are elements.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.ptr(), bytes.len()) };
        }
        self.taken += bytes.len() as u64;
        Ok(())
    }

    #[cold]
    fn mismatch(&self, channel: &Channel) -> Error {
        let team = channel.team();
        let (from, me) = (team.global(self.way.peer), team.global(team.rank()));
        let (code, count) = self.theirs.unwrap_or((0, 0));
        let theirs = DType::from_code(code).map_or("an unknown type", DType::name);
        let own = format!("receives {} {}", self.way.count(), self.way.dtype);
        let views = vec![(from, format!("sends {count} {theirs}")), (me, own)];
        Error::Mismatch(Arc::new(Mismatch::new(format!("message from rank {from} to rank {me}"), views)))
    }

    /// Whether a message of another host may be what it waits for.
    pub(crate) fn is_far(&self, channel: &Channel) -> bool {
        self.way.is_far(channel)
    }

    /// What it is, and the global rank that it waits for.
    pub(crate) fn waits_for(&self, channel: &Channel) -> (String, Vec<u32>) {
        let Way { dtype, peer, .. } = &self.way;
        (format!("receive of {} {dtype} from rank {peer}", self.way.count()), vec![channel.team().global(*peer)])
    }
}
