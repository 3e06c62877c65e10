//! The batch in a set's channel: one operation, or two where blocks differ in size by rank.

use std::sync::Arc;
use std::time::Duration;

use super::tickets::Entry;
use crate::coordinator::{Batch, Kind, Spec};
use crate::engine::{Channel, Collective, Operation, Pieces, Prescale, Sizing};
use crate::error::{Error, Result};
use crate::event;
use crate::plan::Span;
use crate::plan::moves::Move;

/// Tensors named in a message.
pub(super) const LISTED: usize = 4;

/// The batch in the channel.
pub(super) struct Running {
    pub(super) entries: Vec<Entry>,
    /// When it last moved.
    pub(super) moved: Duration,
    spec: Spec,
    /// How many ranks have not joined.
    contributors: usize,
    /// Whether this one has.
    sat_out: bool,
    /// The log entry that names it.
    index: u64,
    warned: bool,
    /// The sizes of the blocks, while the ranks tell each other.
    sizing: Option<Sizing>,
}

impl Running {
    pub(super) fn new(entries: Vec<Entry>, batch: &Batch, now: Duration) -> Self {
        let (spec, index, contributors) = (batch.spec, batch.index, batch.contributors as usize);
        let sat_out = !batch.sat_out.is_empty();
        Self { entries, moved: now, spec, contributors, sat_out, index, warned: false, sizing: None }
    }

    /// Hands the first operation to the channel.
    pub(super) fn begin(&mut self, channel: &mut Channel) -> Result<()> {
        let Spec { kind, dtype, prescale, postscale, .. } = self.spec;
        let collective = match kind {
            Kind::Allreduce { op } | Kind::AllreduceRows { op } => Collective::Allreduce(op),
            Kind::Broadcast { root } | Kind::BroadcastRows { root } => Collective::Broadcast { root: root as usize },
            Kind::Reduce { op, root } => Collective::Reduce { op, root: root as usize },
            Kind::ReduceScatter { op } => match self.blocks() {
                None => Collective::ReduceScatter { op, row: self.row() },
                // The log has compared the shapes.
                Some(_) => Collective::ReduceScatterGroup { op, digest: 0 },
            },
            Kind::Move(of) => return self.tell_sizes(of, channel),
            Kind::Meet => return self.tell_sizes(Move::Allgather, channel),
        };
        let pieces = match self.entries.as_slice() {
            [entry] => entry.pieces.clone(),
            entries => Pieces::Many(entries.iter().flat_map(|entry| entry.pieces.iter().copied()).collect()),
        };
        let bytes: usize = pieces.iter().map(|piece| piece.input.len()).sum();
        let operation = Operation::new(collective, dtype, bytes / dtype.size(), None);
        channel.begin(Operation {
            // The identity is that of unscaled elements.
            prescale: Prescale::All(if self.sat_out { 1.0 } else { prescale }),
            postscale,
            pieces,
            logged: Some(self.index),
            contributors: Some(self.contributors),
            blocks: self.blocks(),
            ..operation
        })
    }

    fn blocks(&self) -> Option<Arc<[Span]>> {
        self.entries.first().and_then(|entry| entry.blocks.clone())
    }

    fn row(&self) -> usize {
        self.entries.first().map_or(1, |entry| entry.row.max(1))
    }

    fn tell_sizes(&mut self, of: Move, channel: &mut Channel) -> Result<()> {
        let (ranks, me) = (channel.team().size(), channel.team().rank());
        let uneven = self.entries.first().and_then(|entry| entry.uneven.as_ref());
        let sizing =
            uneven.map_or_else(|| Sizing::new(of, ranks, me, Vec::new()), |uneven| uneven.sizing(of, ranks, me));
        let sizing = self.sizing.insert(sizing);
        let operation = sizing.operation(self.spec.dtype, 1);
        channel.begin(Operation { logged: Some(self.index), ..operation })
    }

    /// After the end of an operation in the channel: begins the next one, if there is one.
    pub(super) fn go_on(&mut self, channel: &mut Channel) -> Result<bool> {
        let (Some(sizing), Some(of)) = (self.sizing.take(), self.spec.kind.moves()) else { return Ok(false) };
        let told = sizing.finish()?;
        let Some(entry) = self.entries.first() else { return Ok(false) };
        let Some(uneven) = &entry.uneven else { return Ok(false) };
        let operation = uneven.land(&told, of, self.spec.dtype, &entry.pieces)?;
        channel.begin(Operation { logged: Some(self.index), ..operation })?;
        Ok(true)
    }

    /// Warns once, then fails, when the batch has not moved for long.
    pub(super) fn check(&mut self, now: Duration, channel: &Channel) -> Result<()> {
        let port = channel.port();
        let waited = now.saturating_sub(self.moved);
        if waited < port.warning.min(port.deadline) || port.is_paused() {
            return Ok(());
        }
        let what = self.describe();
        let missing = port.blame(&channel.missing());
        if waited >= port.deadline {
            return Err(Error::Timeout { what: what.into(), waited, missing: missing.into() });
        }
        if !self.warned {
            self.warned = true;
            event::tell_warning(&format!("{what}: nothing moved for {waited:.0?}; {missing}"));
        }
        Ok(())
    }

    pub(super) fn describe(&self) -> String {
        let names: Vec<&str> = self.entries.iter().take(LISTED).map(|entry| &**entry.flight.name()).collect();
        format!("{} of {}", self.spec.kind, list(&names, self.entries.len()))
    }
}

/// The first names of `count`, in words.
pub(super) fn list(names: &[&str], count: usize) -> String {
    let more = count.saturating_sub(names.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("'{}'{more}", names.join("', '"))
}
