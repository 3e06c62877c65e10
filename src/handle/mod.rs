//! Operations in flight: handles, scopes, and who advances them.

mod call;
mod core;
mod course;
mod courses;
mod driver;
mod flight;
mod join;
mod line;
mod queue;
mod running;
mod scope;
mod session;
mod set;
mod status;
mod task;
#[cfg(test)]
mod tests;
mod tickets;
mod warning;
mod wires;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use call::Options;
pub(crate) use call::{Call, FIT, Memory, misfit, row_of};
pub(crate) use course::{Course, Declined, Desk, Label, Step, What};
pub(crate) use courses::CourseId;
pub(crate) use driver::Driver;
pub(crate) use flight::Flight;
pub(crate) use line::{FAILED, Line};
pub(crate) use queue::{LaneOf, Queue};
pub use scope::{Scope, ScopedHandle};
pub(crate) use session::Session;
pub(crate) use set::NamedSet;
pub use status::{PendingTensor, Status};
pub(crate) use task::Collectively;
pub(crate) use tickets::{Entry, Landing, Uneven};

use courses::wait_for_course;

use crate::coordinator::Ticket;
use crate::error::{Error, Result};
use crate::tensor::GiveBack;

/// An operation in flight that owns its tensor, and gives it, or what it made of it, back when it has ended.
///
/// The tensor cannot be touched meanwhile: the handle has it. It may be waited for on any thread, and after the set or
/// communicator of the operation was dropped.
///
/// Dropping a handle does not stop the operation: the other ranks count on it. It runs to its end, and the tensor is
/// dropped then. A leaked handle leaks nothing but itself and its tensor.
///
/// ```compile_fail
/// # kolo::threads(1, |kolo| -> kolo::Result<()> {
/// let gradient = vec![1.0_f32; 4];
/// let handle = kolo.allreduce_async("gradient", gradient, kolo::ReduceOp::Sum)?;
/// println!("{gradient:?}"); // in flight: moved into the operation
/// let gradient = handle.wait()?;
/// # Ok(())
/// # });
/// ```
///
/// The same program without the offending line:
///
/// ```
/// # kolo::threads(1, |kolo| -> kolo::Result<()> {
/// let gradient = vec![1.0_f32; 4];
/// let handle = kolo.allreduce_async("gradient", gradient, kolo::ReduceOp::Sum)?;
/// let gradient = handle.wait()?;
/// # assert_eq!(gradient, [1.0; 4]);
/// # Ok(())
/// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
/// # Ok::<(), kolo::Error>(())
/// ```
#[must_use = "the result comes from `wait`"]
pub struct Handle<B> {
    pub(crate) way: Way,
    pub(crate) flight: Arc<Flight>,
    pub(crate) result: Arc<dyn GiveBack<B>>,
}

/// Whose operation it is.
pub(crate) enum Way {
    /// Agreed on by name.
    Named(Arc<NamedSet>, Ticket),
    /// The same in several steps.
    Course(Arc<NamedSet>, CourseId),
    /// Of a communicator: it has its place in the order.
    Ordered(Arc<Queue>),
}

impl Way {
    fn driver(&self) -> &Arc<Driver> {
        match self {
            Self::Named(set, _) | Self::Course(set, _) => &set.driver,
            Self::Ordered(queue) => queue.driver(),
        }
    }

    /// Somebody begins to wait, and drives from here on.
    fn urge(&self) {
        match self {
            Self::Named(set, ticket) => set.urge(*ticket),
            Self::Course(set, course) => set.urge_course(*course),
            // In its turn, as always.
            Self::Ordered(_) => {}
        }
    }
}

/// What [`Handle::wait_timeout`] came to.
#[derive(Debug)]
pub enum Waited<B> {
    /// The operation has ended well; here is its tensor.
    Done(B),
    /// It has not ended yet; here is its handle.
    Pending(Handle<B>),
}

impl<B> fmt::Debug for Handle<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, over) = (self.flight.name(), self.flight.is_over());
        f.debug_struct("Handle").field("name", name).field("over", &over).finish_non_exhaustive()
    }
}

impl<B> Handle<B> {
    /// The tensor's name; of a communicator's operation, what it does and its number among the asynchronous ones.
    #[must_use]
    pub fn name(&self) -> &str {
        self.flight.name()
    }

    /// Whether the operation has ended, well or not. Never blocks, and advances nothing.
    #[must_use]
    pub fn poll(&self) -> bool {
        self.flight.is_over()
    }

    /// Waits until the operation has ended, and gives the tensor back.
    ///
    /// The waiting thread advances the operations of this rank itself.
    ///
    /// # Errors
    /// What the operation ended with: [`Error::Mismatch`] if the ranks asked for different things,
    /// [`Error::Timeout`] at the deadline, the first failure of the job. The tensor is dropped then; its elements
    /// would be unspecified.
    pub fn wait(self) -> Result<B> {
        match &self.way {
            Way::Named(set, ticket) => wait(set, *ticket, &self.flight)?,
            Way::Course(set, course) => wait_for_course(set, *course, &self.flight)?,
            Way::Ordered(queue) => loop {
                if let Some(outcome) = self.flight.outcome() {
                    break outcome?;
                }
                queue.driver().wait(|| self.flight.is_over(), Duration::MAX)?;
            },
        }
        self.take()
    }

    /// As [`wait`](Self::wait), but gives the handle back if the operation has not ended after `timeout`.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(self, timeout: Duration) -> Result<Waited<B>> {
        if !self.flight.is_over() {
            self.way.urge();
        }
        self.way.driver().wait(|| self.flight.is_over(), timeout)?;
        match self.flight.outcome() {
            None => Ok(Waited::Pending(self)),
            Some(outcome) => outcome.and_then(|()| self.take()).map(Waited::Done),
        }
    }

    /// Gives the operation up and takes the tensor back, with unspecified elements. Operations that make a new result,
    /// such as an allgather, have nothing to give back.
    ///
    /// If the ranks have not agreed to run it yet, the name is withdrawn: the peers go on to wait for this rank to submit
    /// it again. After that it is too late, and the set is poisoned: every later operation of it fails, on every rank. An
    /// operation of a communicator has its place in the order from the start: it is always too late, and the communicator
    /// ends with it. Objects and sparse rows move in several steps: with the first of them the ranks agree on all.
    pub fn cancel(self) -> Option<B> {
        if !self.flight.is_over() {
            match &self.way {
                Way::Named(set, ticket) => set.cancel(*ticket),
                Way::Course(set, course) => set.cancel_course(*course),
                Way::Ordered(queue) => queue.cancel(&self.flight),
            }
        }
        if matches!(self.flight.outcome(), Some(Ok(()))) { self.result.take() } else { self.result.cancelled() }
    }

    fn take(self) -> Result<B> {
        self.result.read().unwrap_or_else(|| Err(Error::Cancelled(Arc::clone(self.flight.name()))))
    }
}

/// Waits for an operation's end, however long: its own deadline ends it.
pub(crate) fn wait(set: &NamedSet, ticket: Ticket, flight: &Flight) -> Result<()> {
    loop {
        if let Some(outcome) = flight.outcome() {
            return outcome;
        }
        set.urge(ticket);
        set.driver.wait(|| flight.is_over(), Duration::MAX)?;
    }
}
