//! The ranks that MPI knows: started or adopted once, shared by every kolo of the process.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mpi::ffi;

use super::RawComm;
use super::call::{self, Comm, Serial, serial};
use super::exit::{self, LiveGuard};
use super::gather::{Gather, Meanwhile};
use super::leftover;
use crate::error::{Error, Result};
use crate::transport::bootstrap::Bootstrap;
use crate::transport::launcher;

/// The world of this process, once started. Starting takes the lock for as long as it lasts.
static WORLD: Mutex<Option<Arc<MpiWorld>>> = Mutex::new(None);

/// A duplicate of `MPI_COMM_WORLD`, or of a communicator of the application.
///
/// It outlives every kolo of the process: MPI cannot be started again, and freeing a communicator is collective, while
/// the end of a kolo is local.
#[derive(Debug)]
pub(crate) struct MpiWorld {
    pub(super) comm: Comm,
    rank: usize,
    size: usize,
    pub(super) tag_limit: c_int,
    gather: Mutex<Gather>,
    /// How many jobs this rank has taken part in.
    pub(super) jobs: AtomicU32,
}

impl MpiWorld {
    /// Starts MPI, or adopts it where the application has initialised it. Later calls return the same world.
    ///
    /// `adopt` makes a world of a communicator of the application instead: a new one at each call, whose duplicate
    /// lasts until MPI ends.
    ///
    /// # Collective
    ///
    /// Every rank of the communicator, for the first call and for each call with `adopt`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the application's MPI is below `MPI_THREAD_SERIALIZED`, or is finalised already, or the
    /// program was built against another MPI than the one that launched it. [`Error::Timeout`]: a rank did not come.
    pub(crate) fn start(adopt: Option<RawComm>, deadline: Duration) -> Result<Arc<Self>> {
        let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
        if adopt.is_none()
            && let Some(world) = &*world
        {
            return Ok(Arc::clone(world));
        }
        let end = Instant::now() + deadline;
        let parent = start_mpi(adopt, deadline)?;
        let new = Arc::new(Self::duplicate(parent, adopt.is_none(), end, deadline)?);
        if adopt.is_none() {
            *world = Some(Arc::clone(&new));
        }
        Ok(new)
    }

    fn duplicate(parent: Comm, whole: bool, end: Instant, deadline: Duration) -> Result<Self> {
        let mpi = serial();
        let library = call::library();
        log::debug!("MPI: {library}");
        let (rank, size) = (to_usize(mpi.rank(parent)?), to_usize(mpi.size(parent)?));
        if whole && let Some(text) = launcher::launched().and_then(|launcher| launcher.contradicts(size, &library)) {
            return Err(Error::config(text));
        }
        let tag_limit = mpi.tag_limit()?;
        let mut duplicate = mpi.idup(parent)?;
        drop(mpi);
        let mut pace = Pace::new();
        let comm = loop {
            if let Some(comm) = serial().duplicated(&mut duplicate)? {
                break comm;
            }
            if Instant::now() >= end {
                exit::mark_failed("duplicating the communicator took too long");
                return Err(Error::Timeout {
                    what: "duplicating MPI's communicator".into(),
                    waited: deadline,
                    missing: "a rank did not take part; every rank must call kolo::init, and none may fail before it"
                        .into(),
                });
            }
            pace.wait();
        };
        serial().return_errors(comm)?;
        leftover::watch(comm, rank, size);
        Ok(Self { comm, rank, size, tag_limit, gather: Mutex::new(Gather::default()), jobs: AtomicU32::new(0) })
    }

    /// This process's rank.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Gives every rank what every rank passed, by rank.
    ///
    /// # Collective
    ///
    /// Every rank of the world, in the same order.
    ///
    /// # Errors
    ///
    /// A rank that does not come within `deadline`, by name where it is a direct partner. Any error is final: later
    /// calls fail, too, and MPI will not be finalised.
    pub(crate) fn allgather(&self, mine: &[u8], deadline: Duration) -> Result<Vec<Vec<u8>>> {
        self.gather(mine, deadline, &mut || Ok(()))
    }

    /// As [`allgather`](Self::allgather), and does `meanwhile` whenever it has to wait.
    pub(super) fn gather(
        &self,
        mine: &[u8],
        deadline: Duration,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Vec<Vec<u8>>> {
        let mut gather = self.gather.lock().unwrap_or_else(PoisonError::into_inner);
        gather.allgather(self, mine, deadline, meanwhile).inspect_err(|error| exit::mark_failed(&error.to_string()))
    }

    /// Ends every process of the job. Returns only if MPI refuses.
    pub(crate) fn abort(&self, code: i32) -> Error {
        call::abort(self.comm, code)
    }

    /// Says that a kolo runs. If the process exits while the guard exists, `on_exit` is called on the exiting thread
    /// (whose thread-local storage may be gone), and MPI is not finalised.
    pub(crate) fn live_guard(&self, on_exit: impl FnOnce(Option<c_int>) + Send + 'static) -> LiveGuard {
        LiveGuard::new(on_exit)
    }

    /// Says that the job failed, which the user is told otherwise: MPI will not be finalised, and what is in flight is
    /// leaked.
    pub(crate) fn mark_failed(&self, why: &str) {
        exit::mark_failed_told(why);
    }

    /// A number that no earlier job of this rank had.
    pub(super) fn next_job(&self) -> u32 {
        self.jobs.load(Ordering::Relaxed)
    }
}

/// Waits until every rank is about to end, and until nothing is under way any more.
///
/// No rank sits in `MPI_Finalize` while another may still fail: launchers are bad at ending a job that is half finalised
/// (Open MPI 4.1.4 crashes or hangs in one case of ten).
///
/// # Collective
///
/// Every rank of the world that kolo started, as it exits.
///
/// # Errors
///
/// Those of [`leftover::settle`]: then there is no orderly end.
pub(super) fn depart(tell: &mut dyn FnMut(&Error)) -> Result<()> {
    let world = WORLD.try_lock().ok().and_then(|world| world.clone());
    let world = world.ok_or_else(|| Error::config("kolo did not come to start over it"))?;
    leftover::settle(&world, tell)
}

/// Brings MPI to life if it is not, and returns the communicator to duplicate.
fn start_mpi(adopt: Option<RawComm>, deadline: Duration) -> Result<Comm> {
    let mpi = serial();
    if mpi.finalized()? {
        return Err(Error::config(
            "MPI is already finalised and cannot start again in this process; start kolo before MPI_Finalize",
        ));
    }
    if mpi.initialized()? {
        sufficient(mpi.thread_level()?)?;
        exit::watch_exit()?;
        return adopted(&mpi, adopt);
    }
    drop(mpi);
    if adopt.is_some() {
        return Err(Error::config(
            "a communicator was given, but MPI is not initialised; call MPI_Init_thread with MPI_THREAD_SERIALIZED first",
        ));
    }
    let level = exit::start_home(deadline);
    exit::watch_exit()?;
    let level = level?;
    sufficient(level)?;
    let mpi = serial();
    mpi.return_errors(Comm::world())?;
    Ok(Comm::world())
}

fn adopted(mpi: &Serial, adopt: Option<RawComm>) -> Result<Comm> {
    let comm = adopt.map_or_else(Comm::world, Comm::from_raw);
    // Also the first use of a foreign handle: a bad one shows here.
    mpi.size(comm)?;
    Ok(comm)
}

/// Thread levels are ordered by the standard.
fn sufficient(level: c_int) -> Result<()> {
    if level >= ffi::MPI_THREAD_SERIALIZED as c_int {
        return Ok(());
    }
    let name = if level == ffi::MPI_THREAD_FUNNELED as c_int { "MPI_THREAD_FUNNELED" } else { "MPI_THREAD_SINGLE" };
    Err(Error::config(format!(
        "MPI runs at {name}, and kolo calls it from more than one thread (one at a time): request MPI_THREAD_SERIALIZED \
         or MPI_THREAD_MULTIPLE in MPI_Init_thread, or let kolo initialise MPI"
    )))
}

fn to_usize(number: c_int) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Waiting during the start: politely at first, then asleep for longer and longer.
#[derive(Debug)]
pub(super) struct Pace {
    rounds: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { rounds: 0 }
    }

    pub(super) fn wait(&mut self) {
        self.rounds += 1;
        if self.rounds <= 200 {
            std::thread::yield_now();
        } else {
            let micros = (u64::from(self.rounds) / 4).min(10_000);
            std::thread::sleep(Duration::from_micros(micros));
        }
    }
}

/// Sets a job up over a world.
#[derive(Debug)]
pub(crate) struct MpiBootstrap {
    world: Arc<MpiWorld>,
    deadline: Duration,
}

impl MpiBootstrap {
    /// Each allgather waits `deadline` long.
    pub(crate) fn new(world: Arc<MpiWorld>, deadline: Duration) -> Self {
        Self { world, deadline }
    }
}

impl Bootstrap for MpiBootstrap {
    fn rank(&self) -> usize {
        self.world.rank
    }

    fn allgather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.world.allgather(mine, self.deadline)
    }
}
