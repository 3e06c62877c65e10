//! One operation of a communicator's queue: how it begins, and how it moves on.

use std::time::Instant;

use super::Uneven;
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
