//! Batches: several sends and receives at once, which end whatever the order in which the ranks list them.

#[cfg(all(test, not(kolo_loom)))]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::message::{Arrival, Incoming, Outgoing};
use super::point_to_point::heed;
use crate::communicator::Communicator;
use crate::engine::{Step, block};
use crate::error::{Error, Result};
use crate::event::{Mark, Verb};
use crate::handle::Line;
use crate::tensor::{DType, Element};
use crate::transport::Link;

/// Pieces that one message moves before it is another's turn.
const TURN: usize = 4;
/// Messages that an error lists; more are counted.
const LISTED: usize = 4;

/// One message of a [`Communicator::batch`]: elements that are sent, or room for elements that come.
pub struct Transfer<'a> {
    peer: usize,
    dtype: DType,
    count: usize,
    way: Way<'a>,
}

enum Way<'a> {
    Out(Outgoing<'a>),
    In(Box<dyn Arrival + 'a>),
}

impl<'a> Transfer<'a> {
    /// Sends `data` to rank `to` of the communicator, which may be this rank.
    #[must_use]
    pub fn send<T: Element>(data: &'a [T], to: usize) -> Self {
        Self { peer: to, dtype: T::DTYPE, count: data.len(), way: Way::Out(Outgoing::new(data)) }
    }

    /// Receives from rank `from` of the communicator, which may be this rank, into `data`.
    #[must_use]
    pub fn recv<T: Element>(data: &'a mut [T], from: usize) -> Self {
        Self { peer: from, dtype: T::DTYPE, count: data.len(), way: Way::In(Box::new(Incoming::new(data))) }
    }

    fn verb(&self) -> Verb {
        match self.way {
            Way::Out(_) => Verb::Send,
            Way::In(_) => Verb::Receive,
        }
    }

    fn is_over(&self) -> bool {
        match &self.way {
            Way::Out(outgoing) => outgoing.is_sent(),
            Way::In(incoming) => incoming.is_complete(),
        }
    }

    /// Moves a piece if there is one to move; `global` is the peer's rank in the job.
    fn advance(&mut self, link: &mut dyn Link, scratch: &mut Vec<u8>, global: u32) -> Result<bool> {
        match &mut self.way {
            Way::Out(outgoing) => outgoing.advance(link, self.peer, scratch),
            Way::In(incoming) => {
                let mut taken = Ok(());
                let came = link.try_recv(self.peer, &mut |piece| taken = incoming.take(piece, global))?;
                taken.map(|()| came)
            }
        }
    }
}

impl fmt::Display for Transfer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, word) = if self.verb() == Verb::Send { ("send", "to") } else { ("receive", "from") };
        write!(f, "{what} of {} {} {word} rank {}", self.count, self.dtype, self.peer)
    }
}

impl fmt::Debug for Transfer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transfer({self})")
    }
}

impl Communicator {
    /// Sends and receives several messages at once, and returns when all have been sent and have come.
    ///
    /// The messages may be listed in any order and have any types and lengths, and go to and come from any ranks, this one
    /// included: all of them move at the same time, so ranks that all list their sends first do not wait for each other.
    /// Only the messages of one pair of ranks keep their order, that of the lists.
    ///
    /// ```
    /// use kolo::Transfer;
    ///
    /// # kolo::threads(3, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// let (rank, size) = (world.rank(), world.size());
    /// let (edge, mut left, mut right) = ([rank as f32; 4], [0.0_f32; 4], [0.0_f32; 4]);
    /// let (before, after) = ((rank + size - 1) % size, (rank + 1) % size);
    /// world.batch([
    ///     Transfer::send(&edge, before),
    ///     Transfer::send(&edge, after),
    ///     Transfer::recv(&mut left, before),
    ///     Transfer::recv(&mut right, after),
    /// ])?;
    /// assert_eq!((left[0], right[0]), (before as f32, after as f32));
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Each message has its other half on its other rank, with the same type and length: in a batch, or a
    /// [`send`](Self::send) or [`recv`](Self::recv). Messages to this rank itself have theirs in the same batch. They do not
    /// mix with collectives.
    ///
    /// # Errors
    /// [`Error::Argument`] if a peer is no rank, or what is sent to this rank itself is not received in this batch: nothing
    /// has moved then. [`Error::Mismatch`] if a message has another type or length than what it is received into: the first
    /// such one; its buffer is left as it was, and all other messages have moved. The first failure of the job;
    /// [`Error::Timeout`] at the deadline, with the messages that did not move and the ranks that they wait for.
    pub fn batch<'a>(&mut self, transfers: impl IntoIterator<Item = Transfer<'a>>) -> Result<()> {
        let transfers: Vec<Transfer<'a>> = transfers.into_iter().collect();
        self.check_batch(&transfers)?;
        self.sound_line()?.batch(transfers)
    }

    fn check_batch(&self, transfers: &[Transfer<'_>]) -> Result<()> {
        if let Some(transfer) = transfers.iter().find(|transfer| transfer.peer >= self.size()) {
            return Err(self.no_rank(&format!("{transfer}:"), transfer.peer));
        }
        let own =
            |verb| transfers.iter().filter(|transfer| transfer.peer == self.rank() && transfer.verb() == verb).count();
        let (sent, received) = (own(Verb::Send), own(Verb::Receive));
        if sent != received {
            return Err(Error::argument(format!(
                "a batch of rank {} with {sent} messages to itself that receives {received} of itself; list both halves of \
                 each",
                self.rank()
            )));
        }
        Ok(())
    }
}

impl Line {
    fn batch(&mut self, transfers: Vec<Transfer<'_>>) -> Result<()> {
        let mut batch = Batch { lanes: self.lanes(&transfers), marks: Vec::with_capacity(transfers.len()), transfers };
        for Transfer { peer, dtype, count, way } in &batch.transfers {
            let verb = if matches!(way, Way::Out(_)) { Verb::Send } else { Verb::Receive };
            batch.marks.push(self.report(verb, *dtype, *count, *peer));
        }
        let moved = self.move_batch(&mut batch);
        let me = self.channel.team().global(self.channel.team().rank());
        let mut outcome = moved.clone();
        for (transfer, mark) in batch.transfers.iter().zip(&batch.marks) {
            let own = match &transfer.way {
                _ if !transfer.is_over() => moved.clone(),
                Way::Out(_) => Ok(()),
                Way::In(incoming) => incoming.check(self.channel.team().global(transfer.peer), me),
            };
            self.reported(*mark, &own);
            outcome = outcome.and(own);
        }
        self.settle(outcome)
    }

    /// The lanes of a batch, in the order in which they first come up.
    fn lanes(&self, transfers: &[Transfer<'_>]) -> Vec<Lane> {
        let team = self.channel.team();
        let mut lanes: Vec<Lane> = Vec::new();
        for (at, transfer) in transfers.iter().enumerate() {
            let (peer, verb) = (transfer.peer, transfer.verb());
            match lanes.iter_mut().find(|lane| lane.peer == peer && lane.verb == verb) {
                Some(lane) => lane.queue.push_back(at),
                None => lanes.push(Lane {
                    peer,
                    verb,
                    global: team.global(peer),
                    far: !team.members().contains(&peer),
                    queue: VecDeque::from([at]),
                }),
            }
        }
        lanes
    }

    fn move_batch(&mut self, batch: &mut Batch<'_>) -> Result<()> {
        let team = self.channel.team();
        batch.move_own(team.rank(), team.global(team.rank()))?;
        let Self { channel, user, scratch, .. } = self;
        let port = Arc::clone(channel.port());
        let far = batch.lanes.iter().any(|lane| lane.far);
        let mut warned = false;
        block(
            &port,
            batch,
            |batch| {
                user.progress()?;
                let step = batch.advance(&mut **user, scratch)?;
                if batch.open().next().is_none() && user.idle() {
                    return Ok(Step::Ready(()));
                }
                // A rank that has given up ends the batch, if one of its messages needs that rank.
                let gone = batch.open().find(|lane| channel.abandoned(lane.peer).is_some());
                gone.map_or(Ok(step), |lane| heed(channel, lane.peer, &mut warned, step))
            },
            |_| far,
            |_, _| Ok(()),
            Batch::missing,
        )
    }
}

/// Messages of a batch to one rank or from one: they move one after another.
struct Lane {
    peer: usize,
    /// The peer's rank in the job.
    global: u32,
    verb: Verb,
    /// Whether the peer is on another host.
    far: bool,
    /// Those that are not over.
    queue: VecDeque<usize>,
}

struct Batch<'a> {
    transfers: Vec<Transfer<'a>>,
    marks: Vec<Mark>,
    lanes: Vec<Lane>,
}

impl Batch<'_> {
    /// The lanes with messages that are not over.
    fn open(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(|lane| !lane.queue.is_empty())
    }

    /// Messages of this rank to itself: the n-th that is sent is the n-th that is received.
    fn move_own(&mut self, me: usize, global: u32) -> Result<()> {
        let (own, lanes): (Vec<Lane>, Vec<Lane>) = self.lanes.drain(..).partition(|lane| lane.peer == me);
        self.lanes = lanes;
        let side = |verb| own.iter().filter(move |lane| lane.verb == verb).flat_map(|lane| lane.queue.iter().copied());
        for (sent, received) in side(Verb::Send).zip(side(Verb::Receive)) {
            let [first, second] = [sent.min(received), sent.max(received)];
            let (before, after) = self.transfers.split_at_mut(second);
            match (&mut before[first].way, &mut after[0].way) {
                (Way::Out(outgoing), Way::In(incoming)) | (Way::In(incoming), Way::Out(outgoing)) => {
                    outgoing.hand_over(|piece| incoming.take(piece, global))?;
                }
                // One of the two came from each side.
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves a turn's worth of every lane.
    fn advance(&mut self, link: &mut dyn Link, scratch: &mut Vec<u8>) -> Result<Step> {
        let mut step = Step::Pending;
        for lane in &mut self.lanes {
            for _ in 0..TURN {
                let Some(&at) = lane.queue.front() else { break };
                let transfer = &mut self.transfers[at];
                if !transfer.advance(link, scratch, lane.global)? {
                    break;
                }
                step = Step::Progress;
                if transfer.is_over() {
                    lane.queue.pop_front();
                }
            }
        }
        Ok(step)
    }

    /// The batch in words, and the ranks that it waits for.
    fn missing(&self) -> (String, Vec<u32>) {
        let open: Vec<usize> = self.open().flat_map(|lane| lane.queue.iter().copied()).collect();
        let mut listed: Vec<String> = open.iter().take(LISTED).map(|&at| self.transfers[at].to_string()).collect();
        if open.len() > LISTED {
            listed.push(format!("and {} more", open.len() - LISTED));
        }
        let mut ranks: Vec<u32> = self.open().map(|lane| lane.global).collect();
        if ranks.is_empty() {
            // All is handed to the network, which has not said that it arrived.
            ranks.extend(self.lanes.iter().filter(|lane| lane.far && lane.verb == Verb::Send).map(|lane| lane.global));
            listed.push("the last pieces are on their way".to_owned());
        }
        ranks.sort_unstable();
        ranks.dedup();
        (format!("batch of {} messages ({})", self.transfers.len(), listed.join(", ")), ranks)
    }
}
