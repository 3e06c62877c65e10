//! The operations in flight of one set, by ticket.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::course::Course;
use super::courses::{CourseId, Courses, of_the_whole};
use super::flight::Flight;
use super::join::LastToJoin;
use crate::coordinator::Ticket;
use crate::engine::{Operation, Pieces, Sizing, Told};
use crate::error::{Error, Result};
use crate::event::{Begun, Mark, Sink, Stage};
use crate::plan::Span;
use crate::plan::moves::Move;
use crate::tensor::{DType, Grow, RawSlice};

/// One operation in flight: its shared state, its memory, and what keeps that memory alive.
pub(crate) struct Entry {
    pub(crate) flight: Arc<Flight>,
    /// Set when the entry is handed in; `None` for what stands in for a tensor that a joined rank does not have.
    pub(crate) ticket: Option<Ticket>,
    /// Stands for it in what is reported.
    pub(crate) mark: Mark,
    pub(crate) pieces: Pieces,
    /// Elements of a row, for operations that keep rows whole.
    pub(crate) row: usize,
    /// What only operations on blocks that differ in size by rank have.
    pub(crate) uneven: Option<Uneven>,
    /// The blocks of a reduce-scatter by rank, end to end, if they are not cut by rows.
    pub(crate) blocks: Option<Arc<[Span]>>,
    /// The owned tensor; absent when the caller's borrow outlives the operation.
    pub(crate) hold: Option<Arc<dyn Send + Sync>>,
    /// Where a join says who was the last.
    pub(crate) last: Option<Arc<LastToJoin>>,
    /// Of which operation of several it is a step.
    pub(crate) course: Option<CourseId>,
}

impl Entry {
    /// Bytes that it reads.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.input.len() as u64).sum()
    }
}

/// Blocks of whole rows, as many as each rank likes.
pub(crate) struct Uneven {
    /// Elements of the blocks that this rank sends: to all (one count, of a group one a tensor), to each, or none.
    pub(crate) counts: Vec<usize>,
    /// Where the blocks go that it gets.
    pub(crate) result: Landing,
}

/// Where blocks go whose sizes the ranks have yet to tell each other.
pub(crate) enum Landing {
    One(Arc<dyn Grow>),
    /// Of a group: of each tensor, with the elements of a row of it.
    Group(Vec<(Arc<dyn Grow>, usize)>),
}

impl Uneven {
    /// The sizes, to be told.
    pub(crate) fn sizing(&self, of: Move, ranks: usize, me: usize) -> Sizing {
        match &self.result {
            Landing::One(_) => Sizing::new(of, ranks, me, self.counts.clone()),
            Landing::Group(tensors) => {
                Sizing::group(ranks, me, self.counts.clone(), tensors.iter().map(|(_, row)| *row))
            }
        }
    }

    /// Makes room for what everybody told; the operation that moves the blocks there from `pieces`.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn land(&self, told: &Told, of: Move, dtype: DType, pieces: &Pieces) -> Result<Operation> {
        match &self.result {
            Landing::One(result) => {
                let input = pieces.first().map_or_else(|| RawSlice::of::<u8>(&[]), |piece| piece.input);
                Ok(told.operation(of, dtype, input, result.grow(told.received.clone())?))
            }
            Landing::Group(tensors) => {
                let inputs: Vec<RawSlice> = pieces.iter().map(|piece| piece.input).collect();
                let grow = |(tensor, (result, _)): (usize, &(Arc<dyn Grow>, usize))| {
                    result.grow(told.of_tensor(tensor, tensors.len()))
                };
                let outputs = tensors.iter().enumerate().map(grow).collect::<Result<Vec<_>>>()?;
                Ok(told.operation_of_group(dtype, &inputs, &outputs))
            }
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("flight", &self.flight).finish_non_exhaustive()
    }
}

/// However an entry ends, its flight does: nobody waits for what does not exist any more.
impl Drop for Entry {
    fn drop(&mut self) {
        if !self.flight.is_over() {
            let error = "kolo lost this operation; that is a bug, please report it";
            self.flight.finish(Err(Error::Poisoned(error.into())));
        }
    }
}

/// A slab: a ticket is a place (low half) and how often it was used (high half), so an old ticket finds nothing.
pub(super) struct Tickets {
    /// Hears of every operation.
    sink: Arc<dyn Sink>,
    /// When the clock of negotiation began, by the monotonic clock.
    born: Duration,
    places: Vec<Place>,
    free: Vec<u32>,
    /// The names of the operations that have not ended. The coordinator knows them only until the ranks have agreed. Of an
    /// operation of several steps, its own alone.
    names: HashSet<Arc<str>>,
    /// The operations of several steps.
    pub(super) courses: Courses,
    ended: usize,
    /// Operations of several steps that have ended.
    arrived: usize,
    /// What kept the memory of ended operations alive: dropped outside the set's lock, for that is user code.
    spent: Spent,
}

/// What is to be dropped for operations that have ended.
#[derive(Default)]
pub(super) struct Spent {
    holds: Vec<Arc<dyn Send + Sync>>,
    courses: Vec<Course>,
}

/// What has ended since somebody last asked.
pub(super) struct Ended {
    /// Operations, and steps of operations.
    pub(super) operations: usize,
    /// Operations of several steps.
    pub(super) courses: usize,
    pub(super) spent: Spent,
}

#[derive(Debug, Default)]
struct Place {
    uses: u32,
    entry: Option<Entry>,
}

impl Tickets {
    pub(super) fn new(sink: Arc<dyn Sink>, born: Duration) -> Self {
        Self {
            sink,
            born,
            places: Vec::new(),
            free: Vec::new(),
            names: HashSet::new(),
            courses: Courses::default(),
            ended: 0,
            arrived: 0,
            spent: Spent::default(),
        }
    }

    /// Reports that an operation that is still in here reached a stage.
    pub(super) fn reached(&self, ticket: Ticket, stage: Stage, now: Duration) {
        let place = self.places.get(ticket.0 as u32 as usize).filter(|place| place.uses == (ticket.0 >> 32) as u32);
        if let Some(entry) = place.and_then(|place| place.entry.as_ref()) {
            self.sink.reached(entry.mark, stage, Some(self.born + now));
        }
    }

    /// Keeps a name for an operation of several steps, unless one of that name has not ended.
    pub(super) fn reserve(&mut self, name: &Arc<str>) -> bool {
        self.names.insert(Arc::clone(name))
    }

    /// Takes an operation in, unless one of the same name has not ended. A step is no other than its operation.
    pub(super) fn insert(&mut self, mut entry: Entry, begun: Begun<'_>, now: Duration) -> Option<Ticket> {
        if entry.course.is_none() && !self.reserve(entry.flight.name()) {
            return None;
        }
        entry.mark = self.sink.begun(&Begun { at: Some(self.born + now), ..begun });
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.uses = place.uses.wrapping_add(1);
        let ticket = Ticket(u64::from(place.uses) << 32 | u64::from(index));
        entry.ticket = Some(ticket);
        place.entry = Some(entry);
        Some(ticket)
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        let index = ticket.0 as u32;
        let place = self.places.get_mut(index as usize).filter(|place| place.uses == (ticket.0 >> 32) as u32)?;
        let entry = place.entry.take()?;
        self.free.push(index);
        Some(entry)
    }

    /// Takes all operations out.
    pub(super) fn drain(&mut self) -> Vec<Entry> {
        let Self { places, free, .. } = self;
        let take = |(index, place): (usize, &mut Place)| {
            let entry = place.entry.take()?;
            free.push(index as u32);
            Some(entry)
        };
        places.iter_mut().enumerate().filter_map(take).collect()
    }

    /// Ends an operation that was taken out. Nothing touches its memory any more.
    pub(super) fn end(&mut self, mut entry: Entry, result: Result<()>, now: Duration) {
        if entry.ticket.is_none() {
            // Nobody's.
            return;
        }
        let stage = match &result {
            Ok(()) => Stage::Done,
            Err(Error::Cancelled(_)) => Stage::Cancelled,
            Err(_) => Stage::Failed,
        };
        self.sink.reached(entry.mark, stage, Some(self.born + now));
        entry.flight.finish(result.clone());
        self.ended += 1;
        self.spent.holds.extend(entry.hold.take());
        match (entry.course, result) {
            (None, _) => drop(self.names.take(entry.flight.name())),
            (Some(course), Ok(())) => self.courses.step_ended(course),
            (Some(course), Err(error)) => self.end_course(course, Err(error)),
        }
    }

    /// Ends an operation of several steps, unless it has ended. None of its steps is in flight.
    pub(super) fn end_course(&mut self, id: CourseId, result: Result<()>) {
        let Some((flight, course)) = self.courses.end(id) else { return };
        self.names.remove(flight.name());
        flight.finish(result.map_err(|error| of_the_whole(error, flight.name())));
        self.arrived += 1;
        self.spent.courses.extend(course.map(|course| *course));
    }

    /// What has ended since this was last asked.
    pub(super) fn take_ended(&mut self) -> Ended {
        let take = std::mem::take::<usize>;
        let (operations, courses) = (take(&mut self.ended), take(&mut self.arrived));
        Ended { operations, courses, spent: std::mem::take(&mut self.spent) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len() && self.courses.is_empty()
    }
}
