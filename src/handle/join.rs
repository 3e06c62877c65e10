//! Joins: a rank that has no more data, and what it puts in the place of tensors that it does not have.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{Entry, Flight, Handle, Landing, NamedSet, Uneven, Way, wait};
use crate::coordinator::{Event, Group, JOIN, Kind, Request, Ticket};
use crate::engine::Pieces;
use crate::error::{Error, Result};
use crate::event::{Begun, Mark, Verb};
use crate::plan::moves::Move;
use crate::tensor::{DType, GiveBack, Grow, Hold, Piece, RawSlice, ReduceOp, room};

/// The global rank that joined last, once all have.
#[derive(Debug, Default)]
pub(crate) struct LastToJoin(OnceLock<usize>);

impl LastToJoin {
    /// All have joined.
    pub(super) fn is(&self, rank: u32) {
        self.0.get_or_init(|| rank as usize);
    }
}

impl GiveBack<usize> for LastToJoin {
    fn take(&self) -> Option<usize> {
        self.0.get().copied()
    }

    fn cancelled(&self) -> Option<usize> {
        None
    }
}

impl NamedSet {
    /// Joins, and waits until all ranks have; the one that joined last.
    pub(crate) fn join(self: &Arc<Self>, deadline: Option<Duration>) -> Result<usize> {
        let (ticket, flight, last) = self.begin_join(deadline, true)?;
        wait(self, ticket, &flight)?;
        last.take().ok_or_else(|| Error::Cancelled(JOIN.into()))
    }

    /// Joins; the handle waits until all ranks have.
    pub(crate) fn join_async(self: &Arc<Self>, deadline: Option<Duration>) -> Result<Handle<usize>> {
        let (ticket, flight, last) = self.begin_join(deadline, false)?;
        Ok(Handle { way: Way::Named(Arc::clone(self), ticket), flight, result: last })
    }

    fn begin_join(
        self: &Arc<Self>,
        deadline: Option<Duration>,
        waits: bool,
    ) -> Result<(Ticket, Arc<Flight>, Arc<LastToJoin>)> {
        if !waits {
            self.driver.start()?;
        }
        let (flight, last) = (Arc::new(Flight::new(JOIN)), Arc::new(LastToJoin::default()));
        let mut entry = Entry::without_memory(Arc::clone(&flight));
        entry.last = Some(Arc::clone(&last));
        let begun = Begun {
            set: self.id(),
            name: JOIN,
            verb: Verb::Join,
            dtype: 0,
            op: 0,
            peer: None,
            bytes: 0,
            place: None,
            at: None,
        };
        let ticket = self.hand_in(entry, begun, waits, |ticket| Event::Join { ticket, deadline })?;
        Ok((ticket, flight, last))
    }
}

impl Entry {
    /// One that moves no tensor.
    fn without_memory(flight: Arc<Flight>) -> Self {
        let (mark, pieces) = (Mark::NONE, Pieces::None);
        Self {
            flight,
            ticket: None,
            mark,
            pieces,
            row: 1,
            uneven: None,
            blocks: None,
            hold: None,
            last: None,
            course: None,
        }
    }

    /// What a rank that has joined contributes to `request` in a set of `ranks`: the identity, or no rows. What it would
    /// get is dropped.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn sat_out(request: &Request, ranks: usize) -> Result<Self> {
        let flight = Flight::new(&request.name);
        // Nobody waits for it.
        flight.finish(Ok(()));
        let mut entry = Self::without_memory(Arc::new(flight));
        let dtype = request.spec.dtype;
        let (op, counts) = match request.spec.kind {
            Kind::Allreduce { op } | Kind::Reduce { op, .. } | Kind::ReduceScatter { op } => (Some(op), None),
            Kind::Broadcast { .. } => (None, None),
            Kind::Meet | Kind::Move(Move::Allgather | Move::Gather { .. }) => (None, Some(vec![0])),
            // The log lets none of them run.
            Kind::AllreduceRows { .. } | Kind::BroadcastRows { .. } => {
                let text = format!("'{}' ran without this rank, which does not know its rows", request.name);
                return Err(Error::Poisoned((text + "; that is a bug in kolo, please report it").into()));
            }
            Kind::Move(Move::AllToAll) => (None, Some(vec![0; ranks])),
            Kind::Move(Move::Scatter { .. }) => (None, Some(Vec::new())),
        };
        match counts {
            Some(counts) => {
                let dropped = || Arc::new(Dropped::of(dtype));
                entry.uneven = Some(match request.group {
                    None => Uneven { counts, result: Landing::One(dropped()) },
                    // No rows of each tensor. The log has compared how long they are.
                    Some(Group { tensors, .. }) => {
                        let results = (0..tensors).map(|_| (dropped() as Arc<dyn Grow>, 1)).collect();
                        Uneven { counts: vec![0; tensors as usize], result: Landing::Group(results) }
                    }
                });
            }
            None => {
                let (hold, view) = identity(op, dtype, request.elements())?;
                entry.pieces = Pieces::One([Piece::in_place(view)]);
                entry.hold = Some(hold);
                // A reduce-scatter of a tensor without a shape has rows of one element.
                entry.row = request.shape.get(1..).unwrap_or_default().iter().product::<usize>().max(1);
            }
        }
        Ok(entry)
    }
}

/// `elements` times what leaves others as they are under `op`; without one, whatever.
fn identity(op: Option<ReduceOp>, dtype: DType, elements: u64) -> Result<(Arc<Hold<Vec<u8>>>, RawSlice)> {
    let bytes = usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(dtype.size());
    let mut data = room::<u8>(bytes, "the place of a rank that has joined")?;
    if let Some(element) = op.and_then(|op| op.identity(dtype)).filter(|element| *element != [0; 8]) {
        for place in data.chunks_exact_mut(dtype.size()) {
            place.copy_from_slice(&element[..dtype.size()]);
        }
    }
    Ok(Hold::new(data))
}

/// Room for blocks that nobody wants.
#[derive(Debug)]
struct Dropped {
    dtype: DType,
    room: OnceLock<Arc<Hold<Vec<u8>>>>,
}

impl Dropped {
    fn of(dtype: DType) -> Self {
        Self { dtype, room: OnceLock::new() }
    }
}

impl Grow for Dropped {
    fn grow(&self, counts: Vec<usize>) -> Result<RawSlice> {
        let elements: usize = counts.iter().sum();
        let data = room::<u8>(elements.saturating_mul(self.dtype.size()), "what a rank that has joined receives")?;
        let (hold, view) = Hold::new(data);
        let first = self.room.set(hold).is_ok();
        assert!(first, "an operation gets room for its result once");
        Ok(view)
    }
}
