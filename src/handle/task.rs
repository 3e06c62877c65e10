//! One operation of a communicator's queue: how it begins, and how it moves on.

use std::sync::Arc;
use std::time::Instant;

use super::Uneven;
use super::course::{self, Course, End, Next};
use super::line::Line;
use crate::engine::{Channel, Operation, Pieces, Receiving, Sending, Sizing, Step};
use crate::error::Result;
use crate::plan::moves::Move;
use crate::tensor::DType;

/// An operation that a queue runs. Everything here is called under the queue's lock, and waits for nobody.
pub(crate) trait Task: Send {
    /// Its turn has come.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    fn begin(&mut self, line: &mut Line) -> Result<()>;

    /// Moves it on by at most a chunk of work. Its memory is not touched after it was ready, or failed.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) ends this operation alone; any other the communicator.
    fn poll(&mut self, line: &mut Line) -> Result<Step>;

    /// Whether a message of another host may be what it waits for.
    fn expects_messages(&self, line: &Line) -> bool;

    /// It has not moved for long.
    ///
    /// # Errors
    /// What that came from.
    fn stalled(&mut self, line: &mut Line, now: Instant) -> Result<()>;

    /// What it is, in words, and the global ranks that it waits for.
    fn waits_for(&self, line: &Line) -> (String, Vec<u32>);

    /// Of several steps: takes out what somebody must work out, outside the lock, before it moves on.
    fn take_due(&mut self) -> Option<Box<Course>> {
        None
    }

    /// Gives that back, with what follows.
    fn resume(&mut self, _: Box<Course>, _: Next) {}

    /// How it ended once it was ready, for itself alone; and whether this rank does not take a step that the others go on to.
    fn outcome(&mut self) -> (Result<()>, bool) {
        (Ok(()), false)
    }
}

/// A collective: an operation of the channel, or two where blocks differ in size by rank.
pub(crate) enum Collectively {
    /// Until it has begun, the operation.
    One(Option<Operation>),
    Two {
        of: Move,
        dtype: DType,
        /// Elements of a row, equal on all ranks.
        row: usize,
        uneven: Uneven,
        inputs: Pieces,
        /// The sizes of the blocks, while the ranks tell each other.
        sizing: Option<Sizing>,
    },
}

impl Collectively {
    /// An operation on blocks whose sizes each rank decides for itself.
    pub(crate) fn uneven(of: Move, dtype: DType, row: usize, uneven: Uneven, inputs: Pieces) -> Self {
        Self::Two { of, dtype, row, uneven, inputs, sizing: None }
    }
}

impl Task for Collectively {
    fn begin(&mut self, line: &mut Line) -> Result<()> {
        match self {
            Self::One(operation) => operation.take().map_or(Ok(()), |operation| line.channel.begin(operation)),
            Self::Two { of, dtype, row, uneven, sizing, .. } => {
                let team = line.channel.team();
                let sizing = sizing.insert(uneven.sizing(*of, team.size(), team.rank()));
                line.channel.begin(sizing.operation(*dtype, *row))
            }
        }
    }

    fn poll(&mut self, line: &mut Line) -> Result<Step> {
        let step = line.channel.poll()?;
        let (Self::Two { of, dtype, uneven, inputs, sizing, .. }, Step::Ready(())) = (self, step) else {
            return Ok(step);
        };
        let Some(sizing) = sizing.take() else { return Ok(step) };
        match sizing.finish().and_then(|told| uneven.land(&told, *of, *dtype, inputs)) {
            Ok(operation) => line.channel.begin(operation).map(|()| Step::Progress),
            // The others have begun already.
            Err(error) => Err(line.channel.give_up(error)),
        }
    }

    fn expects_messages(&self, line: &Line) -> bool {
        line.channel.expects_messages()
    }

    fn stalled(&mut self, line: &mut Line, now: Instant) -> Result<()> {
        line.channel.stalled(now)
    }

    fn waits_for(&self, line: &Line) -> (String, Vec<u32>) {
        (Channel::describe(&line.channel), line.channel.missing())
    }
}

/// An operation of several steps, each of which is a collective.
pub(super) struct Several {
    state: State,
    /// Keeps the memory of its step alive.
    keep: Arc<dyn Send + Sync>,
    /// Absent while a thread works out what follows.
    course: Option<Box<Course>>,
}

enum State {
    /// A step that has yet to begin.
    Next(Collectively),
    Step(Collectively),
    /// A step has ended; what follows has to be worked out.
    Between,
    Over(End),
}

impl Several {
    pub(super) fn new(course: Box<Course>, first: course::Step) -> Self {
        let (first, keep) = first.ordered();
        Self { state: State::Next(first), keep, course: Some(course) }
    }
}

impl Task for Several {
    fn begin(&mut self, _: &mut Line) -> Result<()> {
        Ok(())
    }

    fn poll(&mut self, line: &mut Line) -> Result<Step> {
        let (mut step, begins) = match std::mem::replace(&mut self.state, State::Between) {
            State::Next(step) => (step, true),
            State::Step(step) => (step, false),
            State::Between => return Ok(Step::Pending),
            State::Over(end) => {
                self.state = State::Over(end);
                return Ok(Step::Ready(()));
            }
        };
        if begins {
            step.begin(line)?;
        }
        let came_to = step.poll(line)?;
        if came_to == Step::Ready(()) {
            // What follows has to be worked out.
            return Ok(Step::Progress);
        }
        self.state = State::Step(step);
        Ok(if begins { Step::Progress } else { came_to })
    }

    fn expects_messages(&self, line: &Line) -> bool {
        matches!(self.state, State::Step(_)) && line.channel.expects_messages()
    }

    fn stalled(&mut self, line: &mut Line, now: Instant) -> Result<()> {
        if matches!(self.state, State::Step(_)) { line.channel.stalled(now) } else { Ok(()) }
    }

    fn waits_for(&self, line: &Line) -> (String, Vec<u32>) {
        let team = line.channel.team();
        match self.state {
            State::Step(_) => (Channel::describe(&line.channel), line.channel.missing()),
            // Nobody but this rank.
            _ => ("what follows a step".to_owned(), vec![team.global(team.rank())]),
        }
    }

    fn take_due(&mut self) -> Option<Box<Course>> {
        self.course.take_if(|_| matches!(self.state, State::Between))
    }

    fn resume(&mut self, course: Box<Course>, next: Next) {
        self.state = match next {
            Next::Step(step) => {
                let (step, keep) = step.ordered();
                self.keep = keep;
                State::Next(step)
            }
            Next::Over(end) => State::Over(end),
        };
        self.course = Some(course);
    }

    fn outcome(&mut self) -> (Result<()>, bool) {
        match std::mem::replace(&mut self.state, State::Between) {
            State::Over(End { result, declined }) => (result, declined.is_some()),
            _ => (Ok(()), false),
        }
    }
}

/// A message to a rank.
impl Task for Sending {
    fn begin(&mut self, line: &mut Line) -> Result<()> {
        line.messages += 1;
        Self::begin(self, &line.channel, line.messages);
        Ok(())
    }

    fn poll(&mut self, line: &mut Line) -> Result<Step> {
        Self::poll(self, &line.channel, &mut *line.user, &mut line.scratch)
    }

    fn expects_messages(&self, line: &Line) -> bool {
        self.is_far(&line.channel)
    }

    /// Nobody compares what ranks do for each other alone.
    fn stalled(&mut self, _: &mut Line, _: Instant) -> Result<()> {
        Ok(())
    }

    fn waits_for(&self, line: &Line) -> (String, Vec<u32>) {
        Self::waits_for(self, &line.channel)
    }
}

/// A message from a rank.
impl Task for Receiving {
    fn begin(&mut self, line: &mut Line) -> Result<()> {
        line.messages += 1;
        Self::begin(self, &line.channel, line.messages);
        Ok(())
    }

    fn poll(&mut self, line: &mut Line) -> Result<Step> {
        Self::poll(self, &line.channel, &mut *line.user)
    }

    fn expects_messages(&self, line: &Line) -> bool {
        self.is_far(&line.channel)
    }

    fn stalled(&mut self, _: &mut Line, _: Instant) -> Result<()> {
        Ok(())
    }

    fn waits_for(&self, line: &Line) -> (String, Vec<u32>) {
        Self::waits_for(self, &line.channel)
    }
}
