//! An operation of several steps: what comes after each, worked out without a lock and without waiting.
//!
//! README.md, "operations of several steps", says who does so when.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Call, Landing, Memory, Options, Uneven};
use crate::coordinator::{Kind, step_name};
use crate::engine::{Collective, Operation, Pieces};
use crate::error::{Error, Result};
use crate::plan::moves::Move;
use crate::tensor::{Grow, Part, Piece, RawSlice, ReduceOp};

use super::Collectively;

/// What a later step is called, behind the name of its operation.
pub(crate) type Label = &'static str;

/// One step: an operation of its own to all that is below.
pub(crate) struct Step {
    /// `None`: the first one, which bears the operation's own name.
    pub(crate) label: Option<Label>,
    pub(crate) what: What,
}

/// What a step does.
pub(crate) enum What {
    /// The elements of every rank go to all, as many as each likes.
    Gather { mine: Part, result: Arc<dyn Grow> },
    /// The elements of the root, a rank of the set, go to all.
    Spread {
        data: Part,
        root: usize,
        /// Whether the ranks know from an earlier step how many there are.
        all_know: bool,
    },
    /// The elements of all ranks are reduced, in place.
    Combine {
        data: Part,
        op: ReduceOp,
        /// Elements of a row, if the ranks know from an earlier step how many rows there are.
        rows_of: Option<usize>,
    },
}

impl Step {
    /// What it is called in a set.
    pub(super) fn name(&self, of: &str) -> String {
        self.label.map_or_else(|| of.to_owned(), |label| step_name(of, label))
    }

    /// What to submit to a set for it.
    pub(super) fn named(self) -> (Call, Memory) {
        let call = |kind, part: &Part, shape| Call::new(kind, part.dtype, shape, Options::default());
        match self.what {
            What::Gather { mine, result } => {
                let kind = if self.label.is_none() { Kind::Meet } else { Kind::Move(Move::Allgather) };
                let counts = vec![mine.count()];
                let call = call(kind, &mine, counts.clone());
                let pieces = Pieces::One([Piece { input: mine.view, output: RawSlice::of::<u8>(&[]) }]);
                let uneven = Some(Uneven { counts, result: Landing::One(result) });
                (call, Memory { uneven, hold: Some(mine.keep), ..Memory::of(pieces) })
            }
            What::Spread { data, root, all_know } => {
                let root = root as u32;
                let kind = if all_know { Kind::BroadcastRows { root } } else { Kind::Broadcast { root } };
                let call = call(kind, &data, vec![data.count()]);
                (call, in_place(data))
            }
            What::Combine { data, op, rows_of } => {
                let call = match rows_of {
                    Some(row) => call(Kind::AllreduceRows { op }, &data, vec![data.count() / row.max(1), row]),
                    None => call(Kind::Allreduce { op }, &data, vec![data.count()]),
                };
                (call, in_place(data))
            }
        }
    }

    /// What to run on a communicator for it, and what keeps its memory alive.
    pub(super) fn ordered(self) -> (Collectively, Arc<dyn Send + Sync>) {
        let one = |collective, data: Part| {
            let piece = Piece::in_place(data.view);
            let operation = Operation::new(collective, data.dtype, data.count(), Some(piece));
            (Collectively::One(Some(operation)), data.keep)
        };
        match self.what {
            What::Gather { mine, result } => {
                let uneven = Uneven { counts: vec![mine.count()], result: Landing::One(result) };
                let pieces = Pieces::One([Piece { input: mine.view, output: RawSlice::of::<u8>(&[]) }]);
                (Collectively::uneven(Move::Allgather, mine.dtype, 1, uneven, pieces), mine.keep)
            }
            What::Spread { data, root, .. } => one(Collective::Broadcast { root }, data),
            What::Combine { data, op, .. } => one(Collective::Allreduce(op), data),
        }
    }
}

fn in_place(data: Part) -> Memory {
    Memory { hold: Some(data.keep), ..Memory::borrowed(Piece::in_place(data.view)) }
}

/// Where a course says what it wants. Locked for an assignment at a time.
#[derive(Default)]
pub(crate) struct Desk(Mutex<Wants>);

#[derive(Default)]
struct Wants {
    step: Option<Step>,
    declined: Option<Declined>,
}

/// The step that the other ranks go on to, and that this one does not take part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Declined {
    Step(Label),
    /// Which one it is, this rank does not know.
    Unknown,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Wants> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a step; goes on once that has ended well. After any other end nobody asks this future again.
    pub(crate) async fn take(&self, step: Step) {
        self.lock().step = Some(step);
        let mut asked = false;
        poll_fn(|_| if mem::replace(&mut asked, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Says that this rank does not take the next step: the course ends with an error.
    pub(crate) fn decline(&self, next: Declined) {
        self.lock().declined = Some(next);
    }
}

/// What a course comes to next.
pub(crate) enum Next {
    Step(Step),
    Over(End),
}

/// How a course ended by itself.
pub(crate) struct End {
    pub(crate) result: Result<()>,
    pub(crate) declined: Option<Declined>,
}

/// What an operation of several steps does, from one to the next. No user code is in there, and nothing that waits.
pub(crate) struct Course {
    future: Pin<Box<dyn Future<Output = Result<()>> + Send>>,
    desk: Arc<Desk>,
}

impl Course {
    /// One that asks for its steps at `desk`.
    pub(crate) fn new(desk: Arc<Desk>, future: impl Future<Output = Result<()>> + Send + 'static) -> Box<Self> {
        Box::new(Self { future: Box::pin(future), desk })
    }

    /// Goes on: for the first time, or after its step has ended well. Not to be called again once it is over.
    pub(super) fn go_on(&mut self) -> Next {
        let result = match self.future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => match self.desk.lock().step.take() {
                Some(step) => return Next::Step(step),
                None => Err(Error::Poisoned("a step was lost; that is a bug in kolo, please report it".into())),
            },
        };
        Next::Over(End { result, declined: self.desk.lock().declined })
    }

    /// As [`go_on`](Self::go_on), for the first time: there always is a first step, at which the ranks meet.
    ///
    /// # Errors
    /// What ended it before.
    pub(super) fn first(&mut self) -> Result<Step> {
        match self.go_on() {
            Next::Step(step) => Ok(step),
            Next::Over(End { result, .. }) => Err(result.err().unwrap_or_else(|| {
                Error::Poisoned("an operation without a step; that is a bug in kolo, please report it".into())
            })),
        }
    }
}
