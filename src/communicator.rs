//! Collectives matched by the order of the calls: the fast base, like an MPI or NCCL communicator.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Built, Channel, Collective, Ground, Operation, Step, block, group, wish};
use crate::error::{Error, Result};
use crate::plan::Algorithm;
use crate::tensor::{DType, Element, NOT_IN_PARTS, Piece, RawSlice, ReduceOp, Reducible};
use crate::transport::Link;

/// A group of ranks that call the same collectives in the same order.
///
/// No names and no negotiation: a call starts moving data at once. The operation's kind, type, count and root travel with
/// its first flag, so ranks that disagree get [`Error::Mismatch`] with every rank's view, before data moves, and the
/// communicator stays usable. A call with a wrong argument is an error on its rank at once, and takes its turn in the order:
/// the ranks that make the call get the same [`Error::Mismatch`]. Between hosts a mismatch ends the communicator with
/// [`Error::Poisoned`], on every rank, naming what ranks asked for: at once where a message tells, else when the ranks have
/// waited some 200 ms and their hosts have compared what they wait in. Some ranks may have ended their operation by then;
/// they learn of it in a later one.
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
    pub(crate) channel: Channel,
    pub(crate) user: Box<dyn Link>,
    /// Where messages are put together and taken apart.
    pub(crate) scratch: Vec<u8>,
    /// Whether the operation in flight is the place of a call that was refused.
    refused: bool,
    /// Messages sent and received so far, for what is reported.
    pub(crate) messages: u64,
    /// The last field: a rank leaves the job after its links are gone.
    ground: Arc<Ground>,
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rank, size) = (self.rank(), self.size());
        f.debug_struct("Communicator").field("rank", &rank).field("size", &size).finish_non_exhaustive()
    }
}

impl Communicator {
    pub(crate) fn new(ground: Arc<Ground>, built: Built) -> Self {
        Self { channel: built.channel, user: built.user, scratch: Vec::new(), messages: 0, refused: false, ground }
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
        let built = ground.build(ranks, false, &mut |bytes| self.tell_all(bytes))?;
        Ok(Self::new(ground, built))
    }

    /// Cuts the ranks of this communicator into disjoint ones, one for each colour: a rank is with those of its `color`, in
    /// the order of `key`, then of rank. A rank without a colour gets none.
    ///
    /// # Collective
    /// Every rank of this communicator calls it, at the same place in its order.
    ///
    /// # Errors
    /// As [`dup`](Self::dup).
    pub fn split(&mut self, color: Option<u32>, key: i64) -> Result<Option<Self>> {
        let ground = Arc::clone(&self.ground);
        let ranks = group(&self.tell_all(&wish(color, key))?, color);
        if ranks.is_empty() {
            return ground.attend(&mut |bytes| self.tell_all(bytes)).map(|()| None);
        }
        let globals = ranks.iter().map(|&rank| self.channel.team().global(rank)).collect();
        let built = ground.build(globals, false, &mut |bytes| {
            let all = self.tell_all(bytes)?;
            Ok(ranks.iter().map(|&rank| all[rank].clone()).collect())
        })?;
        Ok(Some(Self::new(ground, built)))
    }

    /// One message of every rank, in rank order.
    fn tell_all(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.allgatherv(bytes)?.iter().map(<[u8]>::to_vec).collect())
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
        if let Err(Error::Failed(failure)) = &result {
            self.channel.poison(Error::Failed(Arc::clone(failure)));
        } else if let Err(error) = &result {
            self.channel.cancel(FAILED, error);
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

    /// Runs an operation on one tensor.
    #[inline]
    pub(crate) fn run_on<T: Element>(&mut self, collective: Collective, count: usize, piece: Piece) -> Result<()> {
        self.run(Operation::new(collective, T::DTYPE, count, Some(piece)))
    }

    /// Takes this rank's turn with a call that it cannot make, so that the peers, who make it, hear of it now and not at the
    /// deadline: they get an [`Error::Mismatch`]. Returns `error` at once; the next call waits for the peers to come by.
    #[cold]
    pub(crate) fn refuse<R>(&mut self, error: Error) -> Result<R> {
        self.settle_refusal()?;
        let begun = self.channel.begin(Operation::new(Collective::Refused, DType::U8, 0, None));
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

    /// The operation takes the type, or the call is refused.
    #[inline]
    pub(crate) fn check_op<T: Reducible>(&mut self, op: ReduceOp) -> Result<()> {
        if op.takes(T::DTYPE) { Ok(()) } else { self.refuse_op(op.refusal(T::DTYPE)) }
    }

    /// The same where ranks get parts of the result, or not all of them get it.
    pub(crate) fn check_part<T: Reducible>(&mut self, op: ReduceOp) -> Result<()> {
        if op == ReduceOp::Adasum {
            return self.refuse_op(Some(NOT_IN_PARTS.to_owned()));
        }
        self.check_op::<T>(op)
    }

    #[cold]
    fn refuse_op(&mut self, reason: Option<String>) -> Result<()> {
        self.refuse(Error::argument(reason.unwrap_or_default()))
    }

    /// The root of a collective is a rank of this communicator, or the call is refused.
    pub(crate) fn check_root(&mut self, what: &str, root: usize) -> Result<()> {
        if root < self.size() { Ok(()) } else { self.refuse(self.no_rank(what, root)) }
    }

    /// What is wrong with `rank`.
    pub(crate) fn no_rank(&self, what: &str, rank: usize) -> Error {
        let last = self.size() - 1;
        Error::argument(format!("{what} {rank} is not a rank of this communicator; its ranks are 0 to {last}"))
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
