//! Send and receive: elements from one rank to one other, matched by order for each pair of ranks.

use std::sync::Arc;

use crate::communicator::Communicator;
use crate::engine::{Channel, Step, block};
use crate::error::{Error, Mismatch, Result};
use crate::event::{Mark, Stage, Verb};
use crate::handle::{FAILED, Line};
use crate::tensor::{DType, Element, overwrite};

/// Bytes before a message's first elements: type (1), zero (7), count (8).
const HEADER: usize = 16;

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
        let mark = line.report::<T>(Verb::Send, data.len(), to);
        let sent = line.send_to(data, to);
        line.reported(mark, &sent);
        line.settle(sent)
    }
}

impl Line {
    fn send_to<T: Element>(&mut self, data: &[T], to: usize) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let mut header = [0; HEADER];
        header[0] = T::DTYPE as u8;
        header[8..].copy_from_slice(&(data.len() as u64).to_le_bytes());
        let Self { channel, user, scratch, .. } = self;
        let port = Arc::clone(channel.port());
        let peer = channel.team().global(to);
        let far = !channel.team().members().contains(&to);
        let mut warned = false;
        // Bytes of the header and the data, as one message, that have been sent.
        let mut sent = 0;
        let total = HEADER + bytes.len();
        block(
            &port,
            &mut sent,
            |sent: &mut usize| {
                user.progress()?;
                let mut step = Step::Pending;
                while *sent < total {
                    let most = user.piece().min(total - *sent);
                    scratch.clear();
                    if *sent == 0 {
                        scratch.extend_from_slice(&header);
                        scratch.extend_from_slice(&bytes[..most - HEADER]);
                    } else {
                        scratch.extend_from_slice(&bytes[*sent - HEADER..][..most]);
                    }
                    if !user.try_send(to, scratch)? {
                        return heed(channel, to, &mut warned, step);
                    }
                    *sent += most;
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
        let mark = line.report::<T>(Verb::Receive, data.len(), from);
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
        let mut incoming = Incoming { data, theirs: None, taken: 0 };
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

    fn report<T: Element>(&mut self, verb: Verb, count: usize, peer: usize) -> Mark {
        self.messages += 1;
        self.channel.report(verb, (T::DTYPE, None), Some(peer), (count * size_of::<T>()) as u64, self.messages)
    }

    fn reported(&self, mark: Mark, outcome: &Result<()>) {
        let stage = if outcome.is_ok() { Stage::Done } else { Stage::Failed };
        self.channel.port().sink.reached(mark, stage, None);
    }

    /// A message that was not sent or received whole leaves the stream at no boundary: the communicator ends with it.
    fn settle(&mut self, outcome: Result<()>) -> Result<()> {
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
    fn sound_line(&mut self) -> Result<&mut Line> {
        let line = self.line()?;
        line.channel.poisoned().cloned().map_or(Ok(line), Err)
    }
}

/// Ends a wait for a rank of this host that has given up: at the second look, for what it sent before that is there to
/// be taken.
fn heed<T>(channel: &Channel, peer: usize, warned: &mut bool, step: Step<T>) -> Result<Step<T>> {
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

/// A message on its way in.
struct Incoming<'a, T> {
    data: &'a mut [T],
    /// The sender's type code and count, once the header is there.
    theirs: Option<(u8, u64)>,
    /// Bytes of data taken so far, kept or not.
    taken: u64,
}

impl<T: Element> Incoming<'_, T> {
    fn fits(&self) -> bool {
        self.theirs == Some((T::DTYPE as u8, self.data.len() as u64))
    }

    fn expected(&self) -> Option<u64> {
        let (code, count) = self.theirs?;
        let size = DType::from_code(code).map_or(1, DType::size);
        Some(count.saturating_mul(size as u64))
    }

    fn is_complete(&self) -> bool {
        self.expected().is_some_and(|bytes| self.taken >= bytes)
    }

    fn take(&mut self, piece: &[u8], from: u32) -> Result<()> {
        let data = if self.theirs.is_none() {
            let Some((header, data)) = piece.split_at_checked(HEADER) else {
                let text = format!("a message of {} bytes from rank {from} has no header", piece.len());
                return Err(Error::Poisoned(text.into()));
            };
            let count = header[8..].try_into().map(u64::from_le_bytes).unwrap_or(0);
            self.theirs = Some((header[0], count));
            data
        } else {
            piece
        };
        if self.fits() && !overwrite(self.data, self.taken as usize, data) {
            let text = format!("the message from rank {from} holds bytes that are no {}", T::DTYPE);
            return Err(Error::Poisoned(text.into()));
        }
        self.taken += data.len() as u64;
        Ok(())
    }

    fn check(&self, from: u32, me: u32) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        let (code, count) = self.theirs.unwrap_or((0, 0));
        let theirs = DType::from_code(code).map_or("an unknown type", DType::name);
        let name = format!("message from rank {from} to rank {me}");
        let views =
            vec![(from, format!("sends {count} {theirs}")), (me, format!("receives {} {}", self.data.len(), T::DTYPE))];
        Err(Error::Mismatch(Arc::new(Mismatch::new(name, views))))
    }
}
