//! Send and receive: elements from one rank to one other, matched by order for each pair of ranks.

use std::sync::Arc;

use super::message::{Arrival, Incoming, Outgoing};
use crate::communicator::Communicator;
use crate::engine::{Channel, Step, block};
use crate::error::{Error, Result};
use crate::event::{Mark, Stage, Verb};
use crate::handle::{FAILED, Line};
use crate::tensor::{DType, Element};

impl Communicator {
    /// Sends `data` to rank `to`. Returns once the data is copied out, which may be before the receiver takes it.
    ///
    /// # Collective
    /// Rank `to` calls [`recv`](Self::recv) with the same type and length. Messages of one pair of ranks arrive in the
    /// order in which they were sent; they do not mix with collectives.
    ///
    /// # Errors
    /// [`Error::Argument`] if `to` is this rank or no rank; the first failure of the job; [`Error::Timeout`] if the
    /// receiver does not take it before the deadline.
    pub fn send<T: Element>(&mut self, data: &[T], to: usize) -> Result<()> {
        self.check_peer("send to rank", to)?;
        let line = self.sound_line()?;
        let mark = line.report(Verb::Send, T::DTYPE, data.len(), to);
        let sent = line.send_to(data, to);
        line.reported(mark, &sent);
        line.settle(sent)
    }
}

impl Line {
    fn send_to<T: Element>(&mut self, data: &[T], to: usize) -> Result<()> {
        let Self { channel, user, scratch, .. } = self;
        let port = Arc::clone(channel.port());
        let peer = channel.team().global(to);
        let far = !channel.team().members().contains(&to);
        let mut warned = false;
        let mut outgoing = Outgoing::new(data);
        block(
            &port,
            &mut outgoing,
            |outgoing| {
                user.progress()?;
                let mut step = Step::Pending;
                while !outgoing.is_sent() {
                    if !outgoing.advance(&mut **user, to, scratch)? {
                        return heed(channel, to, &mut warned, step);
                    }
                    step = Step::Progress;
                }
                if user.idle() { Ok(Step::Ready(())) } else { heed(channel, to, &mut warned, step) }
            },
            |_| far,
            |_, _| Ok(()),
            |_| (format!("send of {} {} to rank {to}", data.len(), T::DTYPE), vec![peer]),
        )
    }
}

impl Communicator {
    /// Receives the next message of rank `from` into `data`.
    ///
    /// # Collective
    /// Rank `from` calls [`send`](Self::send) with the same type and length.
    ///
    /// # Errors
    /// [`Error::Argument`] if `from` is this rank or no rank; [`Error::Mismatch`] if type or length differ (the message
    /// is taken and dropped, `data` is left as it was); the first failure of the job; [`Error::Timeout`] at the deadline.
    pub fn recv<T: Element>(&mut self, data: &mut [T], from: usize) -> Result<()> {
        self.check_peer("receive from rank", from)?;
        let line = self.sound_line()?;
        let mark = line.report(Verb::Receive, T::DTYPE, data.len(), from);
        let received = line.recv_from(data, from);
        line.reported(mark, &received);
        line.settle(received)
    }
}

impl Line {
    fn recv_from<T: Element>(&mut self, data: &mut [T], from: usize) -> Result<()> {
        let wanted = data.len();
        let Self { channel, user, .. } = self;
        let port = Arc::clone(channel.port());
        let peer = channel.team().global(from);
        let far = !channel.team().members().contains(&from);
        let mut warned = false;
        let mut incoming = Incoming::new(data);
        block(
            &port,
            &mut incoming,
            |incoming| {
                let mut step = Step::Pending;
                while !incoming.is_complete() {
                    let mut taken = Ok(());
                    if !user.try_recv(from, &mut |piece| taken = incoming.take(piece, peer))? {
                        return heed(channel, from, &mut warned, step);
                    }
                    taken?;
                    step = Step::Progress;
                }
                Ok(Step::Ready(()))
            },
            |_| far,
            |_, _| Ok(()),
            |_| (format!("receive of {wanted} {} from rank {from}", T::DTYPE), vec![peer]),
        )?;
        incoming.check(peer, channel.team().global(channel.team().rank()))
    }

    pub(super) fn report(&mut self, verb: Verb, dtype: DType, count: usize, peer: usize) -> Mark {
        self.messages += 1;
        self.channel.report(verb, (dtype, None), Some(peer), (count * dtype.size()) as u64, self.messages)
    }

    pub(super) fn reported(&self, mark: Mark, outcome: &Result<()>) {
        let stage = if outcome.is_ok() { Stage::Done } else { Stage::Failed };
        self.channel.port().sink.reached(mark, stage, None);
    }

    /// A message that was not sent or received whole leaves the stream at no boundary: the communicator ends with it.
    pub(super) fn settle(&mut self, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) | Err(Error::Mismatch(_)) => outcome,
            Err(error) => {
                self.channel.give_up(Error::Poisoned(FAILED.into()));
                self.take_leave();
                Err(error)
            }
        }
    }
}

impl Communicator {
    pub(super) fn check_peer(&self, what: &str, peer: usize) -> Result<()> {
        if peer >= self.size() {
            return Err(self.no_rank(what, peer));
        }
        if peer == self.rank() {
            return Err(Error::argument(format!("{what} {peer}: that is this rank itself; copy the data instead")));
        }
        Ok(())
    }
}

impl Communicator {
    /// What messages run on, unless an error has ended the communicator.
    pub(super) fn sound_line(&mut self) -> Result<&mut Line> {
        let line = self.line()?;
        line.channel.poisoned().cloned().map_or(Ok(line), Err)
    }
}

/// Ends a wait for a rank of this host that has given up: at the second look, for what it sent before that is there to
/// be taken.
pub(super) fn heed<T>(channel: &Channel, peer: usize, warned: &mut bool, step: Step<T>) -> Result<Step<T>> {
    if !matches!(step, Step::Pending) {
        return Ok(step);
    }
    match channel.abandoned(peer) {
        Some(error) if *warned => Err(error),
        Some(_) => {
            *warned = true;
            Ok(Step::Progress)
        }
        None => Ok(step),
    }
}
