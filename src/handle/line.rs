//! What a communicator's operations run on, whoever has it: the caller of a blocking operation, or the queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Built, Channel, Collective, Operation, Step, block};
use crate::error::{Error, Result};
use crate::tensor::DType;
use crate::transport::Link;

/// A communicator's place in shared memory, its messages, and its buffers.
pub(crate) struct Line {
    pub(crate) channel: Channel,
    pub(crate) user: Box<dyn Link>,
    /// Where messages are put together and taken apart.
    pub(crate) scratch: Vec<u8>,
    /// Messages sent and received so far, for what is reported.
    pub(crate) messages: u64,
    /// Whether the operation in flight is the place of a call that was refused.
    pub(super) refused: bool,
}

impl Line {
    pub(crate) fn new(built: Built) -> Self {
        Self { channel: built.channel, user: built.user, scratch: Vec::new(), messages: 0, refused: false }
    }

    /// Runs one operation to its end in the caller's thread.
    #[inline]
    pub(crate) fn run(&mut self, operation: Operation) -> Result<()> {
        if self.refused {
            self.settle_refusal()?;
        }
        if let Err(error) = self.channel.begin(operation) {
            self.take_leave();
            return Err(error);
        }
        self.drive()
    }

    /// Drives the operation in flight to its end.
    #[inline]
    fn drive(&mut self) -> Result<()> {
        let port = Arc::clone(self.channel.port());
        let missing = |channel: &Channel| (channel.describe(), channel.missing());
        let (channel, stalled) = (&mut self.channel, Channel::stalled);
        let result = block(&port, channel, Channel::poll, Channel::expects_messages, stalled, missing);
        // The caller's buffers are theirs again once this returns.
        if let Err(error) = &result {
            self.give_up(error);
            self.take_leave();
        }
        result
    }

    /// Ends the operation in flight because of `error`, if it has not ended by itself: its buffers are not touched again.
    #[cold]
    pub(super) fn give_up(&mut self, error: &Error) {
        if let Error::Failed(failure) = error {
            self.channel.poison(Error::Failed(Arc::clone(failure)));
        } else {
            self.channel.cancel(FAILED, error);
        }
    }

    /// Spends a moment on telling the other hosts, whose messages may have to make room first.
    pub(crate) fn take_leave(&mut self) {
        let begin = Instant::now();
        while !self.channel.take_leave() && begin.elapsed() < LEAVE {
            std::thread::yield_now();
        }
    }

    /// Takes this rank's turn with a call that it cannot make, so that the peers, who make it, hear of it now and not at the
    /// deadline: they get an [`Error::Mismatch`]. Returns `error` at once; the next call waits for the peers to come by.
    #[cold]
    pub(crate) fn refuse<R>(&mut self, error: Error) -> Result<R> {
        self.settle_refusal()?;
        let begun = self.channel.begin(refusal());
        self.refused = begun.is_ok();
        match begun.and_then(|()| self.channel.poll()) {
            Ok(Step::Progress | Step::Pending) => {}
            Err(failed @ Error::Failed(_)) => return Err(failed),
            // What a mismatch is for has happened; of anything else the next call hears as well.
            Ok(Step::Ready(())) | Err(_) => self.refused = false,
        }
        Err(error)
    }

    /// Waits until a refused call has had its turn.
    fn settle_refusal(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.refused) {
            return Ok(());
        }
        match self.drive() {
            // That is what the others were to get.
            Err(Error::Mismatch(_)) => Ok(()),
            outcome => outcome,
        }
    }
}

/// The place of a call that this rank could not make.
pub(super) fn refusal() -> Operation {
    Operation::new(Collective::Refused, DType::U8, 0, None)
}

/// How long a call that failed tries to tell the other hosts.
const LEAVE: Duration = Duration::from_millis(50);

/// What every call says after one that failed.
pub(crate) const FAILED: &str = "an earlier operation of this communicator failed; make a new one on every rank";
