//! What operations of several steps need: a communicator, whose steps are done as they are asked for, or a desk, from which
//! those of a set and those that nobody waits for are taken. And how the ranks agree, before data moves, that they all do the
//! same and can.

use std::future::{Future, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::communicator::Communicator;
use crate::engine::{Collective, Operation};
use crate::error::{Error, Mismatch, Result};
use crate::handle::{Declined, Desk, Label, Step, What};
use crate::object::Notice;
use crate::plan::moves::Move;
use crate::process_set::ProcessSet;
use crate::tensor::{Blocks, Element, GiveBack, Lent, Part, Piece, Received, ReduceOp};

/// The steps of an operation, each of which all its ranks take. A step has a label, but the first; which is the ranks'
/// [`meet`]ing.
pub(super) trait Wire: Send {
    /// Whether a rank that brings nothing to a gather may have [joined](ProcessSet::join).
    fn joins(&self) -> bool;

    /// This rank's index, as roots are given.
    fn me(&self) -> usize;

    /// How many ranks take part.
    fn ranks(&self) -> usize;

    /// The global rank of an index.
    fn global(&self, rank: usize) -> u32;

    /// What the operation is called in errors.
    fn title(&self) -> String;

    /// Elements of every rank, by rank.
    fn gather<T: Element>(
        &mut self,
        label: Option<Label>,
        mine: Part,
    ) -> impl Future<Output = Result<Blocks<T>>> + Send;

    /// Copies the root's elements to all. `all_know`: whether all ranks know how many there are, and none has joined.
    fn spread(
        &mut self,
        label: Label,
        data: Part,
        root: usize,
        all_know: bool,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Reduces the elements of all ranks, in place. `rows_of`: the elements of a row, where all ranks know how many rows there
    /// are, and none has joined.
    fn combine(
        &mut self,
        label: Label,
        data: Part,
        op: ReduceOp,
        rows_of: Option<usize>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// This rank cannot take the next step, because of `error`: the others, who do, hear of it at once. Returns what to
    /// return.
    fn decline(&mut self, next: Declined, error: Error) -> Error;
}

/// Every rank says what it calls, and what the others need to know or why it cannot go on. Returns what each said, by rank;
/// one that has joined said nothing.
///
/// # Errors
/// On every rank alike: [`Error::Argument`] on one that cannot go on, and [`Error::Mismatch`] on the others, or where the
/// calls differ, or `root` has joined. [`Error::Object`] where what a rank says cannot be read.
pub(super) async fn meet<W: Wire>(
    wire: &mut W,
    call: String,
    root: Option<usize>,
    said: Result<Vec<u8>, String>,
) -> Result<Vec<Option<Vec<u8>>>> {
    let refusal = said.as_ref().err().cloned();
    let notice = Lent::new(Notice { call, said }.encode());
    let all = wire.gather::<u8>(None, notice.all()).await?;
    let mut notices = Vec::with_capacity(all.counts().len());
    for (rank, bytes) in all.iter().enumerate() {
        match Notice::decode(bytes) {
            Ok(notice) => notices.push(Some(notice)),
            Err(_) if wire.joins() && bytes.is_empty() => notices.push(None),
            // Who has read it goes on, and must not wait for this rank.
            Err(reason) => return Err(unreadable(wire, Declined::Unknown, rank, reason)),
        }
    }
    if let Some(reason) = refusal {
        return Err(Error::argument(format!("{}: {reason}", wire.title())));
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
pub(super) fn unreadable<W: Wire>(wire: &mut W, next: Declined, rank: usize, reason: &str) -> Error {
    let error = damaged(wire.title(), wire.global(rank), reason);
    wire.decline(next, error)
}

/// What came from a global rank cannot be read.
pub(super) fn damaged(what: impl Into<Arc<str>>, rank: u32, reason: &str) -> Error {
    Error::Object { what: what.into(), rank, reason: reason.into() }
}

/// The outcome of an operation whose steps are done as they are asked for.
pub(super) fn at_once<R>(operation: impl Future<Output = R>) -> R {
    match pin!(operation).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => unreachable!("a communicator's step has ended when it returns"),
    }
}

impl Wire for Communicator {
    fn joins(&self) -> bool {
        false
    }

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

    fn gather<T: Element>(&mut self, _: Option<Label>, mine: Part) -> impl Future<Output = Result<Blocks<T>>> + Send {
        ready(self.uneven_of(Move::Allgather, vec![mine.count()], mine.view))
    }

    fn spread(&mut self, _: Label, data: Part, root: usize, _: bool) -> impl Future<Output = Result<()>> + Send {
        ready(self.run_part(Collective::Broadcast { root }, &data))
    }

    fn combine(
        &mut self,
        _: Label,
        data: Part,
        op: ReduceOp,
        _: Option<usize>,
    ) -> impl Future<Output = Result<()>> + Send {
        ready(self.run_part(Collective::Allreduce(op), &data))
    }

    fn decline(&mut self, _: Declined, error: Error) -> Error {
        self.refuse(error).map_or_else(|error| error, |none: std::convert::Infallible| match none {})
    }
}

impl Communicator {
    /// Runs a step in place.
    fn run_part(&mut self, collective: Collective, data: &Part) -> Result<()> {
        self.run(Operation::new(collective, data.dtype, data.count(), Some(Piece::in_place(data.view))))
    }
}

/// Asks for steps at a desk, and goes on when they have ended.
pub(super) struct Deferred {
    pub(super) desk: Arc<Desk>,
    me: usize,
    globals: Arc<[u32]>,
    title: String,
    joins: bool,
}

impl Deferred {
    /// Of the operation `name` of a set.
    pub(super) fn named(set: &ProcessSet, name: &str) -> Self {
        let team = set.set.team();
        Self {
            desk: Arc::default(),
            me: team.rank(),
            globals: team.globals().into(),
            title: name.to_owned(),
            joins: true,
        }
    }

    /// Of an operation of a communicator's queue.
    pub(super) fn ordered(communicator: &Communicator, title: String) -> Self {
        let team = communicator.team();
        Self { desk: Arc::default(), me: team.rank(), globals: team.globals().into(), title, joins: false }
    }
}

impl Wire for Deferred {
    fn joins(&self) -> bool {
        self.joins
    }

    fn me(&self) -> usize {
        self.me
    }

    fn ranks(&self) -> usize {
        self.globals.len()
    }

    fn global(&self, rank: usize) -> u32 {
        self.globals[rank]
    }

    fn title(&self) -> String {
        self.title.clone()
    }

    fn gather<T: Element>(
        &mut self,
        label: Option<Label>,
        mine: Part,
    ) -> impl Future<Output = Result<Blocks<T>>> + Send {
        let result = Received::<T>::new();
        async move {
            self.desk.take(Step { label, what: What::Gather { mine, result: Arc::clone(&result) as _ } }).await;
            let lost = || Error::Poisoned("kolo lost what a step brought; that is a bug, please report it".into());
            GiveBack::<Blocks<T>>::take(&*result).ok_or_else(lost)
        }
    }

    async fn spread(&mut self, label: Label, data: Part, root: usize, all_know: bool) -> Result<()> {
        self.desk.take(Step { label: Some(label), what: What::Spread { data, root, all_know } }).await;
        Ok(())
    }

    async fn combine(&mut self, label: Label, data: Part, op: ReduceOp, rows_of: Option<usize>) -> Result<()> {
        self.desk.take(Step { label: Some(label), what: What::Combine { data, op, rows_of } }).await;
        Ok(())
    }

    fn decline(&mut self, next: Declined, error: Error) -> Error {
        self.desk.decline(next);
        error
    }
}
