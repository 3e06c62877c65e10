//! The job as one rank sees it: who belongs to it, who left, what failed first, and the end of it.
//!
//! [`Job`] is what users' handles hold: a `Kolo`, a communicator, a set each keep one `Arc<Job>`, and the drop of the
//! last is this rank leaving. [`Core`] is what kolo's own threads hold, which must not keep a rank in the job.

mod absence;
mod hosts;
mod last_words;
mod nudge;
pub(crate) mod share;
mod standing;
mod watch;
mod world;

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::{Error, Failure, Result};
use crate::event::{self, Event, Sink};
use crate::os::process::{self, State};
use crate::os::time;
use crate::tensor::Reserve;
use crate::topology::Topology;
use crate::transport::bootstrap::Bootstrap;
use crate::transport::link::Links;
use crate::transport::shm::{Control, MemberState};
use crate::transport::{Link, Stamp};

pub(crate) use absence::{Absence, Roster};
pub(crate) use hosts::{Hosts, Waiting};
pub(crate) use last_words::{panic_text, record_panics};
pub(crate) use nudge::{Doorway, Nudge};
pub(crate) use share::Way;
pub use standing::{LastOperation, RankState, RankStatus};
pub(crate) use watch::{WatchParts, Watcher};
pub(crate) use world::World;

/// How long a failed job lives on so that every rank sees why, before it is ended by force.
const GRACE: Duration = Duration::from_millis(300);

/// What everything in a job may look at.
#[derive(Debug)]
pub(crate) struct Core {
    /// Random, equal on every rank.
    pub(crate) id: u128,
    /// The generation of the membership. It grows when members are replaced.
    pub(crate) epoch: u64,
    pub(crate) topology: Arc<Topology>,
    pub(crate) config: Config,
    /// What the ranks of this host share.
    pub(crate) control: Control,
    pub(crate) roster: Roster,
    /// What more shared memory of this job is to be made of.
    pub(crate) way: Way,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) sink: Arc<dyn Sink>,
    /// The process that this belongs to. In a forked child nothing here does anything.
    pub(crate) pid: u32,
    world: Arc<World>,
    /// Of a leader: the connections to the leaders of other hosts.
    links: Option<Arc<Links>>,
    /// Wakes the watcher of this rank, and that of the host's leader.
    nudge: Nudge,
    /// Set when this rank's failure was the first: then ending the job is its duty.
    winner: AtomicBool,
    /// Whether a watcher runs that will end the job when it is nudged.
    watched: bool,
    /// Set when the other hosts have been told of the failure.
    forwarded: AtomicBool,
    /// The thread that ends the job, once one does.
    ending: Mutex<Option<rustix::process::Pid>>,
}

/// A rank's membership. The drop of the last one is the rank leaving.
pub(crate) struct Job {
    core: Arc<Core>,
    /// Always there, until the drop takes it.
    parts: Option<JobParts>,
}

#[cfg(feature = "mpi")]
pub(crate) type Live = Option<crate::transport::mpi::LiveGuard>;
/// Without MPI an exit ends all ranks at once.
#[cfg(not(feature = "mpi"))]
pub(crate) type Live = Option<std::convert::Infallible>;

/// What a rank holds for as long as it belongs to the job.
pub(crate) struct JobParts {
    pub(crate) watcher: Option<Watcher>,
    pub(crate) bootstrap: Mutex<Box<dyn Bootstrap>>,
    /// Makes an exit of the process while the rank belongs to the job a failure.
    pub(crate) live: Live,
}

/// What a [`Core`] is made of.
#[derive(Debug)]
pub(crate) struct CoreParts {
    pub(crate) id: u128,
    pub(crate) epoch: u64,
    pub(crate) topology: Topology,
    pub(crate) config: Config,
    pub(crate) control: Control,
    pub(crate) way: Way,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) world: World,
    pub(crate) links: Option<Links>,
    pub(crate) nudge: Nudge,
    pub(crate) sink: Arc<dyn Sink>,
}

impl Core {
    pub(crate) fn new(parts: CoreParts) -> Self {
        let CoreParts { id, epoch, topology, config, control, way, reserve, world, links, nudge, sink } = parts;
        let (topology, pid) = (Arc::new(topology), std::process::id());
        let hosts = Hosts::new(topology.hosts().len());
        let roster = Roster { topology: Arc::clone(&topology), control: control.clone(), hosts, pid };
        Self {
            id,
            epoch,
            topology,
            config,
            control,
            roster,
            way,
            reserve,
            sink,
            pid,
            world: Arc::new(world),
            links: links.map(Arc::new),
            watched: nudge.own.is_some(),
            nudge,
            winner: AtomicBool::new(false),
            forwarded: AtomicBool::new(false),
            ending: Mutex::new(None),
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.topology.rank()
    }

    pub(crate) fn size(&self) -> usize {
        self.topology.size()
    }

    /// `Err` once the job has failed. One load while it has not: for every loop that waits.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.control.aborted() { Err(self.failed()) } else { Ok(()) }
    }

    #[cold]
    fn failed(&self) -> Error {
        self.world.mark_failed("the job failed");
        let unknown = || Failure::new(self.rank() as u32, self.topology.host().name.as_str(), "the job was aborted");
        Error::Failed(Arc::new(self.control.failure().unwrap_or_else(unknown)))
    }

    /// Says that this rank failed. If nobody failed before, it is the job's failure: every rank of the host learns of
    /// it at once and the other hosts through their leaders, it is printed, and soon the job is ended.
    ///
    /// Returns the first failure of the job, which may be another rank's.
    pub(crate) fn fail(self: &Arc<Self>, cause: impl Into<String>) -> Error {
        self.fail_as(Failure::new(self.rank() as u32, self.topology.host().name.as_str(), cause))
    }

    /// Says that a rank, this one or another, failed.
    pub(crate) fn fail_as(self: &Arc<Self>, failure: Failure) -> Error {
        if self.pid != std::process::id() {
            return Error::Failed(Arc::new(failure));
        }
        if self.fail_untold(&failure) {
            self.tell(&failure);
        }
        self.failed()
    }

    /// Makes `failure` known to this host, if it is the first. Then somebody has to [`tell`](Self::tell) of it.
    fn fail_untold(&self, failure: &Failure) -> bool {
        self.world.mark_failed("the job failed");
        let first = self.control.fail(failure);
        if first {
            self.sink.event(&Event::Failed(failure.clone()));
        }
        first
    }

    /// Sees to it that the user and the other hosts hear of the failure, and takes on the duty to end the job.
    fn tell(self: &Arc<Self>, failure: &Failure) {
        self.winner.store(true, Ordering::Release);
        self.forward();
        if !self.leader_tells() {
            self.tell_user(failure);
        }
        self.nudge.look();
        if !self.watched && self.world.has_processes() {
            // A job of one process: nobody watches, and the program may ignore what it was told.
            let core = Arc::clone(self);
            let ended = thread::Builder::new().name("kolo-end".to_owned()).spawn(move || core.end_if_winner());
            if let Err(error) = ended {
                log::debug!("the job goes on until its program ends: {error}");
            }
        }
    }

    /// Tells the other hosts of a host that is gone, and takes on the duty to end the job.
    fn take_duty(&self, failure: &Failure) {
        self.winner.store(true, Ordering::Release);
        if let Some(links) = &self.links {
            links.abort(failure);
        }
    }

    /// Whether a failure is one of this host, and not one that another host told of.
    fn is_own(&self, failure: &Failure) -> bool {
        self.topology.host().ranks.contains(&(failure.rank as usize))
    }

    fn tell_user(&self, failure: &Failure) {
        if self.world.tells() {
            let more = self.sink.whereabouts().map_or_else(String::new, |more| format!("\n  {more}"));
            event::tell_error(&format!("{failure}{more}"));
        }
    }

    /// Whether this host's leader tells the user, as its thread does even after it has left. It hears from the other
    /// hosts, which may have failed at the same time; one host tells.
    fn leader_tells(&self) -> bool {
        let leader = self.topology.host().ranks[0];
        let runs = || matches!(process::state(self.topology.place(leader).pid), State::Running | State::Sleeping);
        self.topology.hosts().len() > 1 && self.control.state(0) != MemberState::Dead && runs()
    }

    /// Tells the other hosts of the failure, once, if this rank leads its host.
    fn forward(&self) {
        if let (Some(links), Some(failure)) = (&self.links, self.control.failure())
            && self.is_own(&failure)
            && !self.forwarded.swap(true, Ordering::AcqRel)
        {
            links.abort(&failure);
        }
    }

    /// Takes over a failure of another host, which told it already.
    fn fail_elsewhere(&self, failure: &Failure) {
        self.fail_untold(failure);
    }

    /// Ends the job if ending it is this rank's duty: gives the others a moment to see the failure, then ends every
    /// process. Does not return where there are processes to end.
    pub(crate) fn end_if_winner(&self) {
        if self.winner.load(Ordering::Acquire) {
            self.end_by_force();
        }
    }

    /// Gives the others a moment to see the failure, then ends every process.
    pub(crate) fn end_by_force(&self) {
        if !self.world.has_processes() || self.pid != std::process::id() {
            return;
        }
        let me = rustix::thread::gettid();
        {
            let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            match *ending {
                None => *ending = Some(me),
                // Ending the job runs what was registered for the exit, which comes by here.
                Some(thread) if thread == me => return,
                Some(_) => {
                    drop(ending);
                    // The other thread ends this process; an exit must not overtake it.
                    thread::sleep(GRACE * 3);
                    return;
                }
            }
        }
        self.await_witnesses();
        self.world.abort();
    }

    /// Lets the rank that failed be heard: some launchers end all processes as soon as the first one exits.
    fn linger(&self) {
        if self.world.has_processes() && !self.winner.load(Ordering::Acquire) {
            let listens = if self.topology.hosts().len() > 1 { watch::LISTEN } else { Duration::ZERO };
            thread::sleep(listens + Duration::from_millis(50));
        }
    }

    /// Waits until the others of this host are gone, for as long as the grace lasts. Other hosts get all of it.
    fn await_witnesses(&self) {
        let end = Instant::now() + GRACE;
        let host = &self.topology.host().ranks;
        let alone = self.topology.hosts().len() == 1;
        let still_there = |local: usize| {
            let record = self.control.member(local);
            record.process.pid != self.pid && record.state == MemberState::Joined && record.process.is_alive()
        };
        while Instant::now() < end {
            if alone && !(0..host.len()).any(still_there) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether all ranks of this host have left in order. Two that leave at once may both see it; one of them does.
    fn is_closed(&self) -> bool {
        fence(Ordering::SeqCst);
        let left = |local| self.control.state(local) == MemberState::Left;
        (0..self.topology.local_size()).all(left) && self.check().is_ok()
    }

    /// Declares a member of this host dead, and with that the job failed.
    fn found_dead(self: &Arc<Self>, local: usize, how: &str) {
        if !self.control.declare_dead(local) {
            return;
        }
        let rank = self.topology.host().ranks[local];
        let pid = self.topology.place(rank).pid;
        self.fail_as(Failure::new(
            rank as u32,
            self.topology.host_name(rank),
            format!("its process (pid {pid}) {how}"),
        ));
    }

    /// Asks all ranks of the job for patience, for so long from now.
    pub(crate) fn pause(&self, duration: Duration) {
        self.control.pause_until(time::monotonic().saturating_add(duration));
        self.nudge.look();
    }

    /// Wakes the ranks of another host that sleep, by way of the leaders.
    pub(crate) fn ring_host(&self, host: usize) {
        match &self.links {
            Some(links) => links.ring(host),
            None => self.nudge.ring(host),
        }
    }

    /// Asks the ranks that lead sets, on all hosts, to look at them for a while, though they have nothing in flight
    /// themselves: somebody waits, and only they know whom for.
    pub(crate) fn summon(&self) {
        self.control.ask_for_leaders();
        self.nudge.look();
        self.control.summon_members();
    }

    /// Says that this rank waits for other hosts, until the value is dropped. A leader asks them meanwhile whether they
    /// are there; on other ranks it does nothing.
    pub(crate) fn wait_for_hosts(&self) -> Waiting {
        let (waiting, first) = self.roster.hosts.begin_wait();
        if first && self.links.is_some() {
            self.nudge.look();
        }
        waiting
    }
}

impl Core {
    /// A stream of messages between global ranks, in set order, this one among them. `piece` is the largest message in
    /// bytes, on every rank.
    ///
    /// # Errors
    /// A job of one rank, or no room for another stream.
    pub(crate) fn link(&self, set: u32, channel: u8, ranks: &[usize], piece: usize) -> Result<Box<dyn Link>> {
        let stamp = Stamp { job: self.id, epoch: self.epoch, set, channel };
        self.world.link(stamp, ranks.iter().map(|&rank| rank as u32).collect(), self.rank() as u32, piece)
    }
}

impl Job {
    pub(crate) fn new(core: Arc<Core>, parts: JobParts) -> Self {
        core.sink.event(&Event::Joined { rank: core.rank() as u32 });
        Self { core, parts: Some(parts) }
    }

    /// What kolo's own threads may hold without keeping the rank in the job.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Says that this rank failed; see [`Core::fail`].
    pub(crate) fn fail(&self, cause: impl Into<String>) -> Error {
        self.core.fail(cause)
    }

    /// Gives every rank what every rank passed, by rank. Slow: for setting things up.
    ///
    /// # Collective
    /// Every rank of the job, in the same order.
    ///
    /// # Errors
    /// A rank that does not come before the deadline. No later call succeeds then.
    pub(crate) fn allgather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.core.check()?;
        let Some(parts) = &self.parts else { unreachable!("only the drop takes the parts") };
        let mut bootstrap = parts.bootstrap.lock().unwrap_or_else(PoisonError::into_inner);
        bootstrap.allgather(mine).map_err(|error| self.core.check().err().unwrap_or(error))
    }
}

impl Deref for Job {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let parts = self.parts.take();
        // A fork of this process is not the rank: the threads are not there, and the peers are not its.
        if self.core.pid != std::process::id() {
            std::mem::forget(parts);
            return;
        }
        if thread::panicking() {
            self.core.fail(panic_text(None));
        }
        self.core.end_if_winner();
        if self.core.check().is_ok() {
            self.core.sink.event(&Event::Left { rank: self.core.rank() as u32 });
        } else {
            self.core.linger();
        }
        self.core.control.leave();
        if self.core.is_closed() {
            self.core.sink.event(&Event::Closed);
        }
        // A leader that has left before waits for the last rank of its host.
        self.core.nudge.look();
        let Some(JobParts { watcher, bootstrap: _bootstrap, live: _live }) = parts else { return };
        if let Some(watcher) = watcher {
            watcher.retire(&self.core);
        }
    }
}
