//! A collective through the slots of one host, chunk by chunk, with an exchange between hosts in the middle if there are
//! several.
//!
//! For each chunk a member packs its input into its own slot, reduces its slice over every member's slot, and unpacks
//! what the others reduced. Packing *is* the communication: nothing is staged elsewhere. What is packed, reduced and
//! unpacked where is the plan's business ([`SlotPlan`]); this file only keeps the order that `transport/shm/README.md`
//! demands: a slot is packed again when every member is done with it, the first chunk is packed before the announcement
//! that publishes it, and a slot is read after its writer has said so.

use std::time::Instant;

use super::cross::CrossRun;
use super::fold::Fold;
use super::operation::{Prescale, unsound};
use super::regions::{Regions, Side};
use super::rounds::RoundRun;
use super::stores::Stores;
use super::{Channel, Step};
use crate::device::host::{Sink, Source, copy_checked, copy_scaled, copy_streaming};
use crate::error::Result;
use crate::plan::{ChunkSteps, Cross, Own, ReducePart, SlotPlan, TwoLevel, UnpackAfter};
use crate::tensor::DType;
use crate::transport::shm::Fingerprint;

/// Elements that are reduced before they are stored past the caches: they fit the first-level cache.
const BLOCK: usize = 2048;

/// The state of one collective in the slots.
#[derive(Debug)]
pub(super) struct HostRun {
    pub(super) print: Fingerprint,
    dtype: DType,
    fold: Option<Fold>,
    prescale: Prescale,
    regions: Regions,
    plan: SlotPlan,
    cross: Option<CrossRun>,
    /// A broadcast's way from the root's host to this one, for the member that packs what arrives.
    relay: Option<Box<RoundRun>>,
    steps: ChunkSteps,
    /// Chunks that went through the arena before this operation.
    base: u64,
    announced: bool,
    agreed: bool,
    /// Chunks that this member has packed, reduced and unpacked.
    packed: usize,
    reduced: usize,
    unpacked: usize,
}

/// Slices start at multiples of 64 bytes' worth of elements: no two members write one cache line.
pub(super) fn align(dtype: DType) -> usize {
    64 / dtype.size()
}

impl HostRun {
    pub(super) fn new(
        channel: &Channel,
        print: Fingerprint,
        plan: SlotPlan,
        fold: Option<Fold>,
        operation: super::Operation,
        cross: Option<(TwoLevel, Cross)>,
        relay: Option<RoundRun>,
    ) -> Self {
        let slots = channel.arena.slots();
        let cross =
            cross.zip(fold).map(|((levels, cross), fold)| CrossRun::new(print, levels, cross, fold, &plan, slots));
        Self {
            print,
            dtype: operation.dtype,
            fold,
            prescale: operation.prescale,
            regions: Regions::new(operation.pieces, operation.dtype.size()),
            plan,
            cross,
            relay: relay.map(Box::new),
            steps: ChunkSteps::default(),
            base: channel.chunks,
            announced: false,
            agreed: false,
            packed: 0,
            reduced: 0,
            unpacked: 0,
        }
    }

    /// Does what peers allow, but at most a chunk of work: all stages of an only chunk, else the next stage of one.
    pub(super) fn poll(&mut self, channel: &mut Channel) -> Result<Step> {
        let short = self.plan.chunks() <= 1 && self.cross.is_none();
        loop {
            match self.stage(channel)? {
                Step::Progress if short => {}
                step => return Ok(step),
            }
        }
    }

    fn stage(&mut self, channel: &mut Channel) -> Result<Step> {
        if let Some(relay) = &mut self.relay {
            match relay.poll(channel)? {
                Step::Ready(()) => self.relay = None,
                waits => return Ok(waits),
            }
        }
        if !self.announced {
            if self.plan.chunks() > 0 {
                if !self.may_pack(channel) {
                    return Ok(Step::Pending);
                }
                self.pack(channel);
            }
            channel.announce(self.print, &[]);
            channel.stores.pause();
            self.announced = true;
            return Ok(Step::Progress);
        }
        if !self.agreed {
            if !channel.agreed(self.print)? {
                return Ok(Step::Pending);
            }
            self.agreed = true;
        }
        if self.unpacked == self.plan.chunks() {
            channel.chunks = self.base + self.unpacked as u64;
            return Ok(Step::Ready(()));
        }
        if self.unpacked < self.reduced && self.may_unpack(channel) {
            self.unpack(channel)?;
            return Ok(Step::Progress);
        }
        let mut moved = false;
        if self.cross.is_some() {
            moved = self.reduce_across(channel)?;
        } else if self.reduced < self.packed && self.all_packed(channel, self.reduced) {
            self.reduce(channel);
            return Ok(Step::Progress);
        }
        if self.packed < self.plan.chunks() && self.may_pack(channel) {
            self.pack(channel);
            channel.arena.set_packed(self.count(self.packed));
            channel.port.ring();
            moved = true;
        }
        Ok(if moved { Step::Progress } else { Step::Pending })
    }

    /// Whether messages of other hosts may be what it waits for.
    pub(super) fn exchanges(&self) -> bool {
        self.relay.is_some() || self.cross.as_ref().is_some_and(|cross| cross.len() > 0)
    }

    /// The arena's count of chunks once `chunks` of this operation are done.
    fn count(&self, chunks: usize) -> u64 {
        self.base + chunks as u64
    }

    fn slot(&self, channel: &Channel, member: usize, chunk: usize) -> *mut u8 {
        channel.arena.slot_ptr(member, self.slot_index(channel, chunk))
    }

    /// Which slot holds `chunk`.
    fn slot_index(&self, channel: &Channel, chunk: usize) -> usize {
        (self.count(chunk) % channel.arena.slots() as u64) as usize
    }

    /// "Slot reuse": every member is done with the chunk that last used the slot of the next chunk to pack.
    fn may_pack(&self, channel: &Channel) -> bool {
        channel.arena.free_slot(self.count(self.packed)).is_some()
    }

    fn pack(&mut self, channel: &Channel) {
        self.plan.steps(self.packed, &mut self.steps);
        let slot = self.slot(channel, channel.team.member(), self.packed);
        let size = self.dtype.size();
        let stores = channel.stores.of(self.count(self.packed));
        for pack in &self.steps.pack {
            self.regions.each_of(Side::Input, pack.data.start, pack.data.len, |piece, memory, offset| {
                // SAFETY: the slot is this member's until it publishes ("slot reuse"), the plan keeps within it, and
                // the operation owns its input.
                unsafe {
                    let at = slot.add((pack.slot + offset) * size);
                    match self.prescale.of(piece) {
                        1.0 if stores == Stores::Streaming => copy_streaming(memory.ptr(), at, memory.len()),
                        scale => copy_scaled(self.dtype, memory.ptr(), at, memory.len() / size, scale),
                    }
                }
            });
        }
        self.packed += 1;
    }

    /// Whether every member has packed `chunk`; the announcement says it for the first.
    fn all_packed(&self, channel: &Channel, chunk: usize) -> bool {
        chunk == 0 || channel.arena.all_packed(self.count(chunk + 1))
    }

    /// Reduces this member's part of the next chunk.
    fn reduce(&mut self, channel: &Channel) {
        self.plan.steps(self.reduced, &mut self.steps);
        if let (Some(part), Some(fold)) = (self.steps.reduce, self.fold) {
            self.reduce_here(channel, part, fold);
        }
        self.finish_reduction(channel);
    }

    /// Says that this member's part of the oldest chunk that is not reduced holds the result.
    fn finish_reduction(&mut self, channel: &Channel) {
        self.reduced += 1;
        if self.plan.shares() {
            channel.arena.set_reduced(self.count(self.reduced));
            channel.port.ring();
        }
    }

    fn reduce_here(&self, channel: &Channel, part: ReducePart, fold: Fold) {
        let (members, me) = (channel.team.members().len(), channel.team.member());
        let size = self.dtype.size();
        let stores = channel.stores.of(self.count(self.reduced));
        let reduce = |start: usize, count: usize, output: Option<*mut u8>| {
            let at = (part.slot.start + start) * size;
            let slot = |member| self.slot(channel, member, self.reduced).wrapping_add(at);
            let source = |member| match part.own {
                Own::Input(input) if member == me => Source::Elements(self.input(input + start)),
                _ => Source::Elements(slot(member)),
            };
            let own = slot(me);
            // SAFETY: every member has packed this chunk and none packs it again before this member is done; this span
            // of this member's slot is read by others only after `reduced` is published; outputs are ours.
            unsafe {
                let reduce = |at: usize, count: usize, sinks: &[Sink]| {
                    let source = |member| source(member).advance(at * size);
                    fold.members(None, members, source, count, sinks, fold.finish);
                };
                match output.filter(|_| part.share) {
                    None => reduce(0, count, &[Sink::Elements(output.unwrap_or(own))]),
                    Some(output) if stores == Stores::Cached => {
                        reduce(0, count, &[Sink::Elements(output), Sink::Elements(own)]);
                    }
                    Some(output) => {
                        for at in (0..count).step_by(BLOCK) {
                            let (len, to) = (BLOCK.min(count - at), output.wrapping_add(at * size));
                            reduce(at, len, &[Sink::Elements(to)]);
                            copy_streaming(to, own.wrapping_add(at * size), len * size);
                        }
                    }
                }
            }
        };
        // Which place in the lists of tensors to follow: sources and sinks are contiguous within a tensor.
        let (side, start) = match (part.output, part.own) {
            (Some(output), _) => (Side::Output, output),
            (None, Own::Input(input)) => (Side::Input, input),
            (None, Own::Slot) => return reduce(0, part.slot.len, None),
        };
        self.regions.each(side, start, part.slot.len, |memory, offset| {
            reduce(offset, memory.len() / size, part.output.map(|_| memory.ptr()));
        });
    }

    /// The address of an element of the input.
    fn input(&self, element: usize) -> *const u8 {
        let place = self.regions.contiguous(Side::Input, element, 1);
        place.map_or(std::ptr::null(), |memory| memory.ptr().cast_const())
    }

    /// Begins with the slice of the next chunk, if it is packed, and moves the slices under way on between hosts.
    ///
    /// Returns whether anything moved.
    fn reduce_across(&mut self, channel: &mut Channel) -> Result<bool> {
        let Some(mut cross) = self.cross.take() else { return Ok(false) };
        let next = self.reduced + cross.len();
        let mut moved = false;
        if next < self.packed && self.all_packed(channel, next) {
            self.plan.steps(next, &mut self.steps);
            cross.begin(next, self.slot_index(channel, next), self.steps.reduce);
            moved = true;
        }
        moved |= cross.poll(channel, &self.regions)?;
        while cross.finish() {
            self.finish_reduction(channel);
            moved = true;
        }
        self.cross = Some(cross);
        Ok(moved)
    }

    /// Whether the members that the oldest reduced chunk is unpacked from are ready for it.
    fn may_unpack(&mut self, channel: &Channel) -> bool {
        self.plan.steps(self.unpacked, &mut self.steps);
        let needed = self.count(self.unpacked + 1);
        match self.steps.after {
            UnpackAfter::Packed => self.all_packed(channel, self.unpacked),
            UnpackAfter::Reduced => channel.arena.all_reduced(needed),
        }
    }

    /// Copies what the others share of the oldest reduced chunk; `may_unpack` has just filled `steps`.
    ///
    /// # Errors
    /// If a member shares bytes that are no elements of the type.
    fn unpack(&mut self, channel: &mut Channel) -> Result<()> {
        let size = self.dtype.size();
        for unpack in &self.steps.unpack {
            let mut sound = true;
            let slot = self.slot(channel, unpack.from, self.unpacked);
            self.regions.each(Side::Output, unpack.output, unpack.slot.len, |memory, offset| {
                // SAFETY: the member has published this span and leaves it alone until every member is done with the
                // chunk; the operation owns its output.
                unsafe {
                    let at = slot.add((unpack.slot.start + offset) * size).cast_const();
                    sound &= copy_checked(self.dtype, at, memory.ptr(), memory.len() / size);
                }
            });
            if !sound {
                return Err(unsound(self.dtype, Some(channel.global(unpack.from))));
            }
        }
        self.finish_chunk(channel);
        Ok(())
    }

    /// Says that this member reads nothing more of the oldest unfinished chunk.
    fn finish_chunk(&mut self, channel: &mut Channel) {
        self.unpacked += 1;
        channel.stores.passed(self.count(self.unpacked), Instant::now);
        channel.arena.set_done(self.count(self.unpacked));
        channel.port.ring();
    }

    /// The global ranks that hold the operation up.
    pub(super) fn missing(&self, channel: &Channel) -> Vec<u32> {
        if let Some(relay) = &self.relay {
            return relay.missing(channel);
        }
        if !self.agreed {
            return channel.unannounced(self.print);
        }
        let far = self.cross.as_ref().map_or_else(Vec::new, CrossRun::missing);
        if !far.is_empty() {
            return far.into_iter().map(|rank| channel.team.global(rank)).collect();
        }
        let behind = |member: &usize| {
            let (packed, reduced) = (channel.arena.packed(*member), channel.arena.reduced(*member));
            // The first chunk is published by the announcement alone.
            (self.reduced > 0 && packed < self.count(self.reduced + 1).min(self.count(self.plan.chunks())))
                || (self.unpacked < self.reduced && reduced < self.count(self.unpacked + 1))
                || channel.arena.done(*member) + (channel.arena.slots() as u64) < self.count(self.packed) + 1
        };
        let members = (0..channel.team.members().len()).filter(|&member| member != channel.team.member());
        members.filter(behind).map(|member| channel.global(member)).collect()
    }
}
