//! What operations that are made of others need: a communicator, or a set and a name. And how the ranks agree, before data
//! moves, that they all do the same and can.

use std::convert::Infallible;

use crate::communicator::Communicator;
use crate::error::{Error, Mismatch, Result};
use crate::object::Notice;
use crate::process_set::ProcessSet;
use crate::tensor::{Blocks, Element, ReduceOp, Reducible};

/// The steps of an operation, each of which all its ranks take.
pub(super) trait Wire {
    /// Whether a rank that brings nothing to a gather may have [joined](ProcessSet::join).
    const JOINS: bool;

    /// This rank's index, as roots are given.
    fn me(&self) -> usize;

    /// How many ranks take part.
    fn ranks(&self) -> usize;

    /// The global rank of an index.
    fn global(&self, rank: usize) -> u32;

    /// What the operation is called in errors.
    fn title(&self) -> String;

    /// Elements of every rank, by rank.
    fn gather<T: Element>(&mut self, mine: &[T]) -> Result<Blocks<T>>;

    /// Copies the root's elements to all.
    fn spread<T: Element>(&mut self, data: &mut [T], root: usize) -> Result<()>;

    /// Reduces the elements of all ranks, in place.
    fn combine<T: Reducible>(&mut self, data: &mut [T], op: ReduceOp) -> Result<()>;

    /// This rank cannot take the next step, because of `error`: the others, who do, hear of it at once. Returns what to
    /// return.
    fn decline(&mut self, error: Error) -> Error;
}

/// Every rank says what it calls, and what the others need to know or why it cannot go on. Returns what each said, by rank;
/// one that has joined said nothing.
///
/// # Errors
/// On every rank alike: [`Error::Argument`] on one that cannot go on, and [`Error::Mismatch`] on the others, or where the
/// calls differ, or `root` has joined. [`Error::Object`] where what a rank says cannot be read.
pub(super) fn meet<W: Wire>(
    wire: &mut W,
    call: String,
    root: Option<usize>,
    said: Result<Vec<u8>, String>,
) -> Result<Vec<Option<Vec<u8>>>> {
    let refusal = said.as_ref().err().map(|reason| Error::argument(format!("{}: {reason}", wire.title())));
    let all = wire.gather(&Notice { call, said }.encode())?;
    let mut notices = Vec::with_capacity(all.counts().len());
    for (rank, bytes) in all.iter().enumerate() {
        match Notice::decode(bytes) {
            Ok(notice) => notices.push(Some(notice)),
            Err(_) if W::JOINS && bytes.is_empty() => notices.push(None),
            // Who has read it goes on, and must not wait for this rank.
            Err(reason) => return Err(unreadable(wire, rank, reason)),
        }
    }
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let first = notices.iter().flatten().map(|notice| &notice.call).next();
    let joined = |rank| notices.get(rank).is_some_and(Option::is_none);
    let ready = |notice: &Notice| notice.said.is_ok() && Some(&notice.call) == first;
    if notices.iter().flatten().all(ready) && !root.is_some_and(joined) {
        return Ok(notices.into_iter().map(|notice| notice.and_then(|notice| notice.said.ok())).collect());
    }
    let view = |notice: &Option<Notice>| notice.as_ref().map_or_else(|| "has joined".to_owned(), Notice::view);
    let views = (0..).map(|rank| wire.global(rank)).zip(notices.iter().map(view)).collect();
    Err(Error::Mismatch(Mismatch::new(wire.title(), views).into()))
}

/// What came from a rank cannot be read, and the operation does not go on here.
pub(super) fn unreadable<W: Wire>(wire: &mut W, rank: usize, reason: &str) -> Error {
    let error = damaged(wire, rank, reason);
    wire.decline(error)
}

/// What came from a rank cannot be read.
pub(super) fn damaged<W: Wire>(wire: &W, rank: usize, reason: &str) -> Error {
    Error::Object { what: wire.title().into(), rank: wire.global(rank), reason: reason.into() }
}

impl Wire for Communicator {
    const JOINS: bool = false;

    fn me(&self) -> usize {
        self.rank()
    }

    fn ranks(&self) -> usize {
        self.size()
    }

    fn global(&self, rank: usize) -> u32 {
        self.team().global(rank)
    }

    fn title(&self) -> String {
        format!("communicator operation {}", self.begun())
    }

    fn gather<T: Element>(&mut self, mine: &[T]) -> Result<Blocks<T>> {
        self.allgatherv(mine)
    }

    fn spread<T: Element>(&mut self, data: &mut [T], root: usize) -> Result<()> {
        self.broadcast(data, root)
    }

    fn combine<T: Reducible>(&mut self, data: &mut [T], op: ReduceOp) -> Result<()> {
        self.allreduce(data, op)
    }

    fn decline(&mut self, error: Error) -> Error {
        match self.refuse::<Infallible>(error) {
            Err(error) => error,
        }
    }
}

/// The operation `name` of a set.
pub(super) struct Named<'a> {
    pub(super) set: &'a ProcessSet,
    pub(super) name: &'a str,
}

impl Wire for Named<'_> {
    const JOINS: bool = true;

    fn me(&self) -> usize {
        self.set.rank()
    }

    fn ranks(&self) -> usize {
        self.set.size()
    }

    fn global(&self, rank: usize) -> u32 {
        self.set.set.team().global(rank)
    }

    fn title(&self) -> String {
        self.name.to_owned()
    }

    fn gather<T: Element>(&mut self, mine: &[T]) -> Result<Blocks<T>> {
        self.set.allgather(self.name, mine)
    }

    fn spread<T: Element>(&mut self, data: &mut [T], root: usize) -> Result<()> {
        self.set.broadcast(self.name, data, self.global(root) as usize)
    }

    fn combine<T: Reducible>(&mut self, data: &mut [T], op: ReduceOp) -> Result<()> {
        self.set.allreduce(self.name, data, op)
    }

    fn decline(&mut self, error: Error) -> Error {
        self.set.set.refuse(self.name, &error.to_string());
        error
    }
}
