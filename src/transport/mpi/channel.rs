//! [`Link`] over MPI: one stream of a set, in pieces copied through kolo's own memory.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use super::call::{Received, Serial, serial};
use super::exit;
use super::job::MpiJob;
use super::leftover::{self, Transfers};
use super::staging::{Buffer, Progress, Transfer};
use crate::error::{Error, Result};
use crate::transport::stamp::{HEADER, Header};
use crate::transport::{Link, Stamp, check_call};

/// Sends in flight to one peer.
const SENDS: usize = 4;
/// Receives posted for one peer, from the first time that it is asked for a piece.
const RECEIVES: usize = 4;

/// One stream between the ranks of a set.
#[derive(Debug)]
pub(crate) struct MpiChannel {
    job: Arc<MpiJob>,
    stamp: Stamp,
    tag: i32,
    /// The members' ranks in the world.
    ranks: Vec<u32>,
    me: usize,
    piece: usize,
    peers: Vec<Peer>,
    /// Buffers that wait to be sent again.
    spare: Vec<Buffer>,
    broken: Option<Error>,
}

#[derive(Debug, Default)]
struct Peer {
    /// In the order in which they were started.
    sends: VecDeque<Transfer>,
    sent: u64,
    /// In the order in which they were posted, which is the order in which messages match them.
    receives: VecDeque<Transfer>,
    received: u64,
}

impl MpiChannel {
    /// The stream `channel` of set `set`, whose members are the ranks `ranks` of the job's world, in set order.
    ///
    /// Members agree on `piece`, the largest payload in bytes.
    ///
    /// # Errors
    ///
    /// This process is not among `ranks`, one is named twice or is out of range, or there is no tag left for the set.
    pub(crate) fn new(job: &Arc<MpiJob>, set: u32, channel: u8, ranks: Vec<u32>, piece: usize) -> Result<Self> {
        let world = job.world();
        let mut sorted = ranks.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let me = ranks.iter().position(|&rank| rank as usize == world.rank());
        let in_range = sorted.last().is_some_and(|&last| (last as usize) < world.size());
        let (Some(me), true, true) = (me, in_range, sorted.len() == ranks.len()) else {
            return Err(Error::argument(format!(
                "a channel between the ranks {ranks:?} on rank {} of {}: name each rank once, and this one among them",
                world.rank(),
                world.size()
            )));
        };
        // MPI counts with 31 bits.
        if piece > i32::MAX as usize - HEADER {
            return Err(Error::argument(format!("a piece of {piece} bytes; stay below 2 GiB")));
        }
        leftover::tidy().inspect_err(|error| exit::mark_failed(&error.to_string()))?;
        Ok(Self {
            stamp: Stamp { job: job.id(), epoch: job.epoch(), set, channel },
            tag: job.tag(set, channel)?,
            job: Arc::clone(job),
            peers: ranks.iter().map(|_| Peer::default()).collect(),
            ranks,
            me,
            piece,
            spare: Vec::new(),
            broken: None,
        })
    }

    /// Sends as a member of another generation would.
    #[cfg(test)]
    pub(super) fn pretend_epoch(&mut self, epoch: u64) {
        self.stamp.epoch = epoch;
    }

    fn check(&self, peer: usize, bytes: usize) -> Result<()> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        check_call(self.me, self.ranks.len(), self.piece, peer, bytes)
    }

    /// Remembers a final error. One of MPI itself keeps it from being finalised.
    fn broken(&mut self, error: Error) -> Error {
        if matches!(error, Error::Mpi { .. }) {
            exit::mark_failed(&error.to_string());
        }
        self.broken = Some(error.clone());
        error
    }

    fn buffer(&mut self) -> Buffer {
        self.spare.pop().unwrap_or_else(|| Buffer::new(HEADER + self.piece))
    }

    fn header(&self, from: usize, to: usize, seq: u64) -> Header {
        Header { stamp: self.stamp, from: self.ranks[from], to: self.ranks[to], seq }
    }

    /// Takes back the buffers of the sends to `to` that are over.
    fn reap(&mut self, mpi: &Serial, to: usize) -> Result<()> {
        while let Some(first) = self.peers[to].sends.pop_front() {
            match first.sent(mpi)? {
                Progress::Over(buffer) => self.spare.push(buffer),
                Progress::Pending(first) => {
                    self.peers[to].sends.push_front(first);
                    break;
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, to: usize, payload: &[u8]) -> Result<bool> {
        // The lock is not held while bytes are copied.
        self.reap(&serial(), to)?;
        if self.peers[to].sends.len() >= SENDS {
            return Ok(false);
        }
        let mut buffer = self.buffer();
        self.header(self.me, to, self.peers[to].sent).write(buffer.bytes_mut());
        buffer.bytes_mut()[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        let (comm, rank) = (self.job.world().comm, self.ranks[to] as i32);
        let transfer = Transfer::send(&serial(), comm, buffer, HEADER + payload.len(), rank, self.tag)?;
        let peer = &mut self.peers[to];
        peer.sends.push_back(transfer);
        peer.sent += 1;
        Ok(true)
    }

    fn post(&mut self, mpi: &Serial, from: usize, buffer: Buffer) -> Result<()> {
        let (comm, rank) = (self.job.world().comm, self.ranks[from] as i32);
        let transfer = Transfer::receive(mpi, comm, buffer, rank, self.tag)?;
        self.peers[from].receives.push_back(transfer);
        Ok(())
    }

    /// The next message from `from`, if it is here.
    fn arrived(&mut self, from: usize) -> Result<Option<(Buffer, usize)>> {
        let mpi = serial();
        while self.peers[from].receives.len() < RECEIVES {
            let buffer = Buffer::new(HEADER + self.piece);
            self.post(&mpi, from, buffer)?;
        }
        let Some(first) = self.peers[from].receives.pop_front() else { return Ok(None) };
        match first.received(&mpi)? {
            Progress::Pending(first) => {
                self.peers[from].receives.push_front(first);
                Ok(None)
            }
            Progress::Over((buffer, Received::Bytes(bytes))) => Ok(Some((buffer, bytes))),
            Progress::Over((_, Received::Nothing)) => {
                Err(Error::Poisoned(format!("a receive from rank {} was withdrawn by MPI", self.ranks[from]).into()))
            }
        }
    }

    fn receive(&mut self, from: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let Some((buffer, bytes)) = self.arrived(from)? else { return Ok(false) };
        let expected = self.header(from, self.me, self.peers[from].received);
        match expected.check(&buffer.bytes()[..bytes]) {
            Ok(payload) => take(payload),
            Err(what) => {
                return Err(Error::Poisoned(
                    format!(
                        "a piece from rank {} is not the one that rank {} waits for: {what}; all ranks must run the same \
                         program and make their collective calls in the same order",
                        self.ranks[from], self.ranks[self.me]
                    )
                    .into(),
                ));
            }
        }
        self.peers[from].received += 1;
        // The piece has been handed over, so trouble with the next one is reported by the next call.
        let posted = self.post(&serial(), from, buffer);
        if let Err(error) = posted {
            self.broken(error);
        }
        Ok(true)
    }
}

impl Link for MpiChannel {
    fn piece(&self) -> usize {
        self.piece
    }

    fn try_send(&mut self, to: usize, payload: &[u8]) -> Result<bool> {
        self.check(to, payload.len())?;
        self.send(to, payload).map_err(|error| self.broken(error))
    }

    fn try_recv(&mut self, from: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.check(from, 0)?;
        self.receive(from, take).map_err(|error| self.broken(error))
    }

    fn progress(&mut self) -> Result<()> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if self.idle() {
            return Ok(());
        }
        let mpi = serial();
        for to in 0..self.peers.len() {
            if let Err(error) = self.reap(&mpi, to) {
                return Err(self.broken(error));
            }
        }
        Ok(())
    }

    fn idle(&self) -> bool {
        self.peers.iter().all(|peer| peer.sends.is_empty())
    }
}

/// Gets kolo's memory back from MPI, or leaves it to be got back later: see `leftover`.
impl Drop for MpiChannel {
    fn drop(&mut self) {
        // A transfer that is dropped leaks its buffer. Nothing is asked of MPI in a forked child or after a failure.
        if !exit::is_owner() || exit::failed() {
            return;
        }
        let mut transfers = Transfers::default();
        for peer in &mut self.peers {
            transfers.sends.extend(mem::take(&mut peer.sends));
            transfers.receives.extend(mem::take(&mut peer.receives));
        }
        if transfers.sends.is_empty() && transfers.receives.is_empty() {
            return;
        }
        if let Err(error) = leftover::withdraw(transfers) {
            exit::mark_failed(&error.to_string());
        }
    }
}
