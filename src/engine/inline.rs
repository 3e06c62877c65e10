//! Tiny allreduces, reductions to a root and barriers: the payload rides in the announcement, in one cache line a rank.
//!
//! Steps: one. Bytes moved: one line written by each rank and read by each other. Every rank reduces all payloads in
//! rank order, so all get the same bits.

use super::fold::Fold;
use super::operation::{Collective, Operation};
use super::{Channel, Step};
use crate::device::host::{Sink, Source, copy_scaled};
use crate::error::Result;
use crate::transport::shm::Fingerprint;

/// 64-bit words of payload in an announcement line: its 64 bytes less the two words of the print.
const WORDS: usize = 6;

/// An allreduce or reduction of at most 48 bytes, or a barrier, on one host.
#[derive(Debug)]
pub(super) struct InlineRun {
    operation: Operation,
    print: Fingerprint,
    announced: bool,
    /// Members `0..seen` are known to have announced the same.
    seen: usize,
}

impl InlineRun {
    /// Whether the operation's bytes fit beside its print.
    pub(super) fn fits(operation: &Operation) -> bool {
        match operation.collective {
            Collective::Barrier | Collective::Refused => true,
            Collective::Allreduce(_) | Collective::Reduce { .. } => {
                operation.count <= WORDS * 8 / operation.dtype.size()
            }
            _ => false,
        }
    }

    pub(super) fn new(operation: Operation, print: Fingerprint) -> Self {
        Self { operation, print, announced: false, seen: 0 }
    }

    pub(super) fn print(&self) -> Fingerprint {
        self.print
    }

    #[inline]
    pub(super) fn poll(&mut self, channel: &Channel) -> Result<Step> {
        if !self.announced {
            let payload = self.payload();
            channel.announce(self.print, &payload[..self.words()]);
            self.announced = true;
        }
        while self.seen < channel.team.members().len() {
            match channel.announced(self.seen, self.print) {
                None => return Ok(Step::Pending),
                Some(theirs) if theirs == self.print => self.seen += 1,
                Some(_) if channel.agreed(self.print)? => self.seen += 1,
                Some(_) => return Ok(Step::Pending),
            }
        }
        if let Some(op) = self.operation.reduce_op().filter(|_| self.wants_result(channel)) {
            self.reduce(channel, self.operation.fold(op, channel.team.size()));
        }
        Ok(Step::Ready(()))
    }

    fn wants_result(&self, channel: &Channel) -> bool {
        !matches!(self.operation.collective, Collective::Reduce { root, .. } if root != channel.team.rank())
    }

    /// This rank's elements, scaled, end to end.
    fn payload(&self) -> [u64; WORDS] {
        let mut payload = [0_u64; WORDS];
        let mut at = payload.as_mut_ptr().cast::<u8>();
        for (index, piece) in self.operation.pieces.iter().enumerate() {
            let (dtype, bytes) = (self.operation.dtype, piece.input.len());
            // SAFETY: `fits` bounds the sum of the pieces' bytes by the payload's; the operation owns its buffers.
            unsafe {
                copy_scaled(dtype, piece.input.ptr(), at, bytes / dtype.size(), self.operation.prescale.of(index));
                at = at.add(bytes);
            }
        }
        payload
    }
}

/// Members up to this many have their payloads gathered on the stack.
const FEW: usize = 16;

impl InlineRun {
    /// Reduces every member's payload in rank order into the outputs.
    fn reduce(&self, channel: &Channel, fold: Fold) {
        let members = channel.team.members().len();
        let mut few = [[0_u64; WORDS]; FEW];
        let mut many = Vec::new();
        let payloads = if members <= FEW {
            &mut few[..members]
        } else {
            many.resize(members, [0; WORDS]);
            &mut many[..]
        };
        for (member, payload) in payloads.iter_mut().enumerate() {
            *payload = channel.arena.payload(member, self.print.seq());
        }
        let mut start = 0;
        for piece in self.operation.pieces.iter() {
            let source = |member: usize| Source::Elements(payloads[member].as_ptr().cast::<u8>().wrapping_add(start));
            let count = piece.output.len() / fold.dtype.size();
            let sinks = [Sink::Elements(piece.output.ptr())];
            // SAFETY: the payloads are local copies, at least `start + piece.output.len()` bytes long (`fits`), and the
            // operation owns its outputs.
            unsafe { fold.members(None, members, source, count, &sinks, fold.finish) };
            start += piece.output.len();
        }
    }

    /// Words of payload.
    fn words(&self) -> usize {
        match self.operation.collective {
            Collective::Barrier | Collective::Refused => 0,
            _ => (self.operation.count * self.operation.dtype.size()).div_ceil(8),
        }
    }
}
