//! Collectives matched by the order of the calls: the fast base, like an MPI or NCCL communicator.

use std::fmt;
use std::sync::Arc;

use crate::config::Config;
use crate::engine::{Built, Collective, Operation, Team, group, wish};
use crate::error::{Error, Result};
use crate::handle::{Line, Queue, Session};
use crate::plan::Algorithm;
use crate::tensor::{Element, NOT_IN_PARTS, Piece, RawSlice, ReduceOp, Reducible};

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
/// Every operation has an asynchronous form, which takes an owned tensor and returns a [`Handle`](crate::Handle) that gives it
/// back. Many may be in flight; they run one after the other, in the order in which they were submitted, together with the
/// blocking ones: a blocking call first waits until all before it have ended. Messages match in the order of their two ranks,
/// beside the collectives. Operations move on while this rank computes. A drop of the communicator waits until all
/// in flight have ended; their handles may be waited for afterwards.
///
/// Calls take `&mut self`; a second thread works on a [`dup`](Self::dup). Every wait has a deadline (`KOLO_DEADLINE`) and
/// ends with an error when the job fails. After any error but a mismatch or a wrong argument the communicator is
/// unusable, here and on every rank that counts on this one ([`Error::Poisoned`] names the rank that gave up), and
/// buffers that were passed in hold unspecified elements. Operations that wait for their turn then get [`Error::Poisoned`], which
/// names that error.
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
    /// What operations run on, while nothing asynchronous is in flight; else the queue has it.
    home: Option<Box<Line>>,
    /// Made with the first asynchronous call.
    queue: Option<Arc<Queue>>,
    team: Arc<Team>,
    /// The last field: a rank leaves the job after its links are gone.
    session: Arc<Session>,
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rank, size) = (self.rank(), self.size());
        f.debug_struct("Communicator").field("rank", &rank).field("size", &size).finish_non_exhaustive()
    }
}

impl Communicator {
    pub(crate) fn new(session: Arc<Session>, built: Built) -> Self {
        let team = Arc::clone(built.channel.team());
        Self { home: Some(Box::new(Line::new(built))), queue: None, team, session }
    }

    /// This rank's index in the communicator.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.team.rank()
    }

    /// How many ranks take part.
    #[must_use]
    pub fn size(&self) -> usize {
        self.team.size()
    }

    /// The settings of the job.
    pub(crate) fn config(&self) -> &Config {
        &self.session.ground.job.config
    }

    /// Its ranks.
    pub(crate) fn team(&self) -> &Team {
        &self.team
    }

    /// Operations that have begun, while a blocking one is under way.
    pub(crate) fn begun(&self) -> u64 {
        self.home.as_ref().map_or(0, |line| line.channel.begun())
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
        let session = Arc::clone(&self.session);
        let ranks = self.team.globals().to_vec();
        let built = session.ground.build(ranks, false, &mut |bytes| self.tell_all(bytes))?;
        Ok(Self::new(session, built))
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
        let session = Arc::clone(&self.session);
        let ranks = group(&self.tell_all(&wish(color, key))?, color);
        if ranks.is_empty() {
            return session.ground.attend(&mut |bytes| self.tell_all(bytes)).map(|()| None);
        }
        let globals = ranks.iter().map(|&rank| self.team.global(rank)).collect();
        let built = session.ground.build(globals, false, &mut |bytes| {
            let all = self.tell_all(bytes)?;
            Ok(ranks.iter().map(|&rank| all[rank].clone()).collect())
        })?;
        Ok(Some(Self::new(session, built)))
    }

    /// One message of every rank, in rank order.
    fn tell_all(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.allgatherv(bytes)?.iter().map(<[u8]>::to_vec).collect())
    }

    /// Makes all later allreduces of this communicator use `algorithm`; `Auto` goes back to the table.
    ///
    /// # Collective
    /// Every rank calls it with the same algorithm, at the same place in its order. It does not communicate, but waits until
    /// all that is in flight has ended.
    ///
    /// # Errors
    /// [`Error::Argument`] if the algorithm cannot serve here (it says why), for example `Ring` when sums must be
    /// deterministic.
    pub fn set_algorithm(&mut self, algorithm: Algorithm) -> Result<()> {
        self.line()?.channel.set_algorithm(algorithm)
    }

    /// What operations run on, once everything asynchronous has ended.
    ///
    /// # Errors
    /// The job's first failure.
    #[inline]
    pub(crate) fn line(&mut self) -> Result<&mut Line> {
        if self.home.is_none() {
            self.fetch()?;
        }
        self.home.as_deref_mut().ok_or_else(lost)
    }

    #[cold]
    fn fetch(&mut self) -> Result<()> {
        let queue = self.queue.as_ref().ok_or_else(lost)?;
        self.home = Some(queue.take_line()?);
        Ok(())
    }

    /// Where asynchronous operations go. Whatever is begun there takes its turn from here on, a refused call as well.
    ///
    /// # Errors
    /// The system has no thread to advance them; the call is refused.
    pub(crate) fn queue(&mut self) -> Result<Arc<Queue>> {
        if let Err(error) = self.session.driver().start() {
            return self.refuse(error);
        }
        let queue = self.queue.get_or_insert_with(|| Queue::new(Arc::clone(self.session.driver())));
        if let Some(line) = self.home.take() {
            queue.admit(line);
        }
        Ok(Arc::clone(queue))
    }

    /// Runs one operation to its end in the caller's thread.
    #[inline]
    pub(crate) fn run(&mut self, operation: Operation) -> Result<()> {
        self.line()?.run(operation)
    }

    /// Runs an operation on one tensor.
    #[inline]
    pub(crate) fn run_on<T: Element>(&mut self, collective: Collective, count: usize, piece: Piece) -> Result<()> {
        self.run(Operation::new(collective, T::DTYPE, count, Some(piece)))
    }

    /// Takes this rank's turn with a call that it cannot make, so that the peers, who make it, hear of it now and not at the
    /// deadline: they get an [`Error::Mismatch`]. Returns `error` at once.
    #[cold]
    pub(crate) fn refuse<R>(&mut self, error: Error) -> Result<R> {
        match (&mut self.home, &self.queue) {
            (Some(line), _) => line.refuse(error),
            (None, Some(queue)) => {
                queue.refuse();
                Err(error)
            }
            (None, None) => Err(lost()),
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

/// Waits until everything asynchronous has ended; a panic does not.
impl Drop for Communicator {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take().filter(|_| !self.session.is_forked()) {
            if std::thread::panicking() { queue.leave() } else { queue.close() }
        }
    }
}

#[cold]
fn lost() -> Error {
    Error::Poisoned("kolo lost this communicator; that is a bug, please report it".into())
}

/// Input and output of an operation that writes elsewhere.
pub(crate) fn apart<T: Element>(input: &[T], output: &mut [T]) -> Piece {
    Piece { input: RawSlice::of(input), output: RawSlice::of_mut(output) }
}
