//! Collectives matched by the order of the calls: the fast base, like an MPI or NCCL communicator.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Built, Channel, Collective, Ground, Operation, block};
use crate::error::{Error, Result};
use crate::plan::Algorithm;
use crate::tensor::{Element, Piece, RawSlice};
use crate::transport::Link;

/// A group of ranks that call the same collectives in the same order.
///
/// No names and no negotiation: a call starts moving data at once. The operation's kind, type, count and root travel with
/// its first flag, so ranks that disagree get [`Error::Mismatch`] with every rank's view, before data moves, and the
/// communicator stays usable. Between hosts a mismatch ends the communicator with [`Error::Poisoned`], naming both
/// views; where ranks then wait for messages that nobody means to send, as for two broadcasts with different roots, it
/// takes until the deadline.
///
/// Calls take `&mut self`; a second thread works on a [`dup`](Self::dup). Every wait has a deadline (`KOLO_DEADLINE`) and
/// ends with an error when the job fails. After any error but a mismatch or a wrong argument the communicator is
/// unusable, here and on every rank that counts on this one ([`Error::Poisoned`] names the rank that gave up), and
/// buffers that were passed in hold unspecified elements.
///
/// ```
/// # kolo::threads(2, |kolo| -> kolo::Result<()> {
/// let mut world = kolo.communicator()?;
/// let mut sums = [kolo.rank() as f32, 1.0];
/// world.allreduce(&mut sums, kolo::ReduceOp::Sum)?;
/// assert_eq!(sums, [1.0, 2.0]);
/// # Ok(())
/// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
/// # Ok::<(), kolo::Error>(())
/// ```
pub struct Communicator {
    ground: Arc<Ground>,
    pub(crate) channel: Channel,
    pub(crate) user: Box<dyn Link>,
    /// Where messages are put together and taken apart.
    pub(crate) scratch: Vec<u8>,
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rank, size) = (self.rank(), self.size());
        f.debug_struct("Communicator").field("rank", &rank).field("size", &size).finish_non_exhaustive()
    }
}

impl Communicator {
    pub(crate) fn new(ground: Arc<Ground>, built: Built) -> Self {
        Self { ground, channel: built.channel, user: built.user, scratch: Vec::new() }
    }

    /// This rank's index in the communicator.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.channel.team().rank()
    }

    /// How many ranks take part.
    #[must_use]
    pub fn size(&self) -> usize {
        self.channel.team().size()
    }

    /// A communicator of the same ranks with an order of its own, for another thread.
    ///
    /// # Collective
    /// Every rank of this communicator calls it, at the same place in its order.
    ///
    /// # Errors
    /// Those of any collective, and [`Error::System`] or [`Error::Config`] on every rank if a host has no shared memory
    /// left for it.
    pub fn dup(&mut self) -> Result<Self> {
        let ground = Arc::clone(&self.ground);
        let ranks = self.channel.team().globals().to_vec();
        let built = ground.build(ranks, false, &mut |bytes| self.gather(bytes))?;
        Ok(Self::new(ground, built))
    }

    /// Makes all later allreduces of this communicator use `algorithm`; `Auto` goes back to the table.
    ///
    /// # Collective
    /// Every rank calls it with the same algorithm, at the same place in its order. It does not communicate.
    ///
    /// # Errors
    /// [`Error::Argument`] if the algorithm cannot serve here (it says why), for example `Ring` when sums must be
    /// deterministic.
    pub fn set_algorithm(&mut self, algorithm: Algorithm) -> Result<()> {
        self.channel.set_algorithm(algorithm)
    }

    /// Runs one operation to its end in the caller's thread.
    #[inline]
    pub(crate) fn run(&mut self, operation: Operation) -> Result<()> {
        self.channel.begin(operation)?;
        let port = Arc::clone(self.channel.port());
        let missing = |channel: &Channel| (channel.describe(), channel.missing());
        let result = block(&port, &mut self.channel, Channel::poll, Channel::expects_messages, missing);
        if result.is_err() {
            // The caller's buffers are theirs again once this returns.
            self.channel.cancel(FAILED);
            self.take_leave();
        }
        result
    }

    /// Spends a moment on telling the other hosts, whose messages may have to make room first.
    pub(crate) fn take_leave(&mut self) {
        let begin = Instant::now();
        while !self.channel.take_leave() && begin.elapsed() < LEAVE {
            std::thread::yield_now();
        }
    }

    /// One message of every rank, in rank order.
    pub(crate) fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut lengths = vec![0_u64; self.size()];
        self.allgather(&[bytes.len() as u64], &mut lengths)?;
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let mut all = vec![0_u8; longest * self.size()];
        self.allgather(&padded, &mut all)?;
        let parts = lengths.iter().enumerate();
        Ok(parts.map(|(rank, &len)| all[rank * longest..][..len as usize].to_vec()).collect())
    }

    /// Runs an operation on one tensor.
    #[inline]
    pub(crate) fn run_on<T: Element>(&mut self, collective: Collective, count: usize, piece: Piece) -> Result<()> {
        self.run(Operation::new(collective, T::DTYPE, count, Some(piece)))
    }

    /// A rank of this communicator, or the error that says which there are.
    pub(crate) fn check_rank(&self, what: &str, rank: usize) -> Result<()> {
        if rank < self.size() {
            return Ok(());
        }
        let last = self.size() - 1;
        Err(Error::argument(format!("{what} {rank} is not a rank of this communicator; its ranks are 0 to {last}")))
    }
}

/// How long a call that failed tries to tell the other hosts.
const LEAVE: Duration = Duration::from_millis(50);

/// What every call says after one that failed.
pub(crate) const FAILED: &str = "an earlier operation of this communicator failed; make a new one on every rank";

/// Input and output of an operation that writes elsewhere.
pub(crate) fn apart<T: Element>(input: &[T], output: &mut [T]) -> Piece {
    Piece { input: RawSlice::of(input), output: RawSlice::of_mut(output) }
}
