//! The thread that sees peers end. It sleeps until one does, until a leader of another host speaks, or until it is
//! nudged; it never wakes for nothing.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Core, GRACE, panic_text};
use crate::error::{Error, Result};
use crate::os::ending;
use crate::os::process::{Identity, PidFd};
use crate::transport::shm::MemberState;

/// Where a kernel gives no pidfds, peers are looked at this often.
const WITHOUT_PIDFD: Duration = Duration::from_millis(50);
/// How long the kernel may take from a process's end to telling strangers how it ended.
const TELLING: Duration = Duration::from_millis(50);

/// Means "look at the state of the job" where a host's number would stand.
const LOOK: u16 = u16::MAX;

/// Wakes watchers: that of this rank, and that of the host's leader, who speaks with other hosts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nudge {
    pub(crate) own: Option<Arc<OwnedFd>>,
    pub(crate) leader: Option<Arc<OwnedFd>>,
}

impl Nudge {
    /// Lets both look at the state of the job.
    pub(super) fn look(&self) {
        for pipe in [&self.own, &self.leader].into_iter().flatten() {
            send(pipe, LOOK);
        }
    }

    /// Lets the leader wake the ranks of another host.
    pub(super) fn ring(&self, host: usize) {
        if let (Some(pipe), Ok(host)) = (&self.leader, u16::try_from(host)) {
            send(pipe, host);
        }
    }
}

/// Two bytes go into a pipe whole or not at all.
fn send(pipe: &OwnedFd, word: u16) {
    loop {
        match rustix::io::write(pipe, &word.to_le_bytes()) {
            Err(Errno::INTR) => {}
            // Full: thousands of nudges wait, and the watcher is awake. Gone: nobody is there to wake.
            _ => return,
        }
    }
}

/// The pipe of a watcher that is to be.
#[derive(Debug)]
pub(crate) struct Doorway {
    read: OwnedFd,
    pub(crate) write: Arc<OwnedFd>,
}

impl Doorway {
    pub(crate) fn new() -> Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|e| {
            Error::system("making a pipe for the thread that watches peers; raise the limit on open files", e)
        })?;
        Ok(Self { read, write: Arc::new(write) })
    }

    /// What a peer needs to [`open`](Self::open_peer) it.
    pub(crate) fn address(&self) -> (u32, RawFd) {
        (std::process::id(), self.write.as_raw_fd())
    }

    /// The writing end of a peer's pipe.
    pub(crate) fn open_peer((pid, fd): (u32, RawFd)) -> Result<OwnedFd> {
        // Open for reading as well: then a leader that went away is no SIGPIPE.
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(format!("/proc/{pid}/fd/{fd}"))
            .map(OwnedFd::from)
            .map_err(|e| {
                let text = format!(
                    "opening the pipe of the host's leader (/proc/{pid}/fd/{fd}); the ranks of a host must run as one \
                     user and be allowed to look into each other's /proc"
                );
                Error::system(text, e)
            })
    }
}

/// The running thread. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread looks at.
#[derive(Debug)]
pub(crate) struct WatchParts {
    pub(crate) core: Arc<Core>,
    pub(crate) doorway: Doorway,
}

impl Watcher {
    pub(crate) fn start(parts: WatchParts) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let wake = Arc::clone(&parts.doorway.write);
        let mut watch = Watch::new(parts, Arc::clone(&stop))?;
        let body = move || {
            let core = Arc::clone(&watch.core);
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| watch.run())) {
                core.fail(format!("the thread that watches peers {}", panic_text(Some(&*payload))));
                core.end_if_winner();
            }
        };
        let thread = std::thread::Builder::new()
            .name("kolo-watch".to_owned())
            .stack_size(256 << 10)
            .spawn(body)
            .map_err(|e| Error::system("starting the thread that watches peers; raise the limit of threads", e))?;
        Ok(Self { stop, wake, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        send(&self.wake, LOOK);
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and reported.
            let _ = thread.join();
        }
    }
}

/// A peer of this host in another process.
#[derive(Debug)]
struct Peer {
    local: usize,
    process: Identity,
    /// None where the kernel gives none.
    fd: Option<PidFd>,
}

impl Peer {
    fn ended(&self) -> bool {
        self.fd.as_ref().map_or_else(|| !self.process.is_alive(), PidFd::ended)
    }

    /// How it ended, as the end of a sentence about its process.
    fn how(&self) -> String {
        let end = Instant::now() + TELLING;
        while let Some(fd) = &self.fd {
            if let Some(ending) = ending::ending(fd, self.process.pid) {
                return match ending {
                    ending::Ending::Exited(_) => format!("{ending} without leaving the job"),
                    ending::Ending::Killed(_) => ending.to_string(),
                };
            }
            if Instant::now() >= end {
                break;
            }
            // Between the death and the reaping by the parent nobody tells on some kernels.
            std::thread::sleep(Duration::from_millis(1));
        }
        "ended without leaving the job".to_owned()
    }
}

#[derive(Debug)]
struct Watch {
    core: Arc<Core>,
    stop: Arc<AtomicBool>,
    doorway: Doorway,
    peers: Vec<Peer>,
    /// When to end the job if whoever should have done it has not.
    force_at: Option<Instant>,
}

impl Watch {
    fn new(parts: WatchParts, stop: Arc<AtomicBool>) -> Result<Self> {
        let WatchParts { core, doorway } = parts;
        let mut peers = Vec::new();
        for (local, &rank) in core.topology.host().ranks.iter().enumerate() {
            let place = core.topology.place(rank);
            if place.pid == core.pid {
                continue;
            }
            let process = Identity { pid: place.pid, start_time: place.start_time };
            // `None`: it has ended already, which the first look will find.
            let fd = PidFd::open_identity(&process).unwrap_or(None);
            peers.push(Peer { local, process, fd });
        }
        Ok(Self { core, stop, doorway, peers, force_at: None })
    }

    fn run(&mut self) {
        // What happened before the descriptors were open is not told by them.
        self.look_at_peers();
        while !self.stop.load(Ordering::Acquire) {
            self.look_at_job();
            self.sleep();
            self.drain();
            self.look_at_peers();
        }
    }

    /// Sleeps until there is something to look at.
    fn sleep(&self) {
        let mut fds = vec![PollFd::new(&self.doorway.read, PollFlags::IN)];
        let peers = self.peers.iter().filter_map(|peer| peer.fd.as_ref());
        fds.extend(peers.map(|fd| PollFd::from_borrowed_fd(borrow(fd), PollFlags::IN)));
        let blind = self.peers.iter().any(|peer| peer.fd.is_none()).then_some(WITHOUT_PIDFD);
        let force = self.force_at.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = blind.into_iter().chain(force).min().map(|timeout| Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // No memory for the call: looking once too often harms nobody, looking all the time would.
            Err(_) => std::thread::sleep(WITHOUT_PIDFD),
        }
    }

    fn drain(&self) {
        let mut words = [0; 512];
        while matches!(rustix::io::read(&self.doorway.read, &mut words), Ok(1..)) {}
    }

    fn look_at_peers(&mut self) {
        let mut peers = std::mem::take(&mut self.peers);
        peers.retain(|peer| {
            match self.core.control.state(peer.local) {
                // Whether the process lives on is its own affair.
                MemberState::Left => return false,
                MemberState::Absent | MemberState::Joined | MemberState::Dead => {}
            }
            if !peer.ended() {
                return true;
            }
            // It left, and then its process ended, since the state was read.
            if self.core.control.state(peer.local) == MemberState::Left {
                return false;
            }
            if self.core.control.aborted() {
                // It saw the failure, or was it. Whoever is left makes sure that the job ends.
                let turn = GRACE + Duration::from_millis(100) * (1 + self.core.topology.local_rank() as u32).min(5);
                self.force_at.get_or_insert_with(|| Instant::now() + turn);
            } else {
                self.core.found_dead(peer.local, &peer.how());
            }
            false
        });
        self.peers = peers;
    }

    fn look_at_job(&mut self) {
        if self.core.control.aborted() {
            self.core.end_if_winner();
            if self.force_at.is_some_and(|at| Instant::now() >= at) {
                self.force_at = None;
                self.core.end_by_force();
            }
        }
    }
}

fn borrow(fd: &PidFd) -> BorrowedFd<'_> {
    fd.as_fd()
}
