//! The thread that sees peers end. It sleeps until one does, until a leader of another host speaks, or until it is
//! nudged; it never wakes for nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::hosts::HostState;
use super::nudge::{Doorway, LOOK, send};
use super::{Core, GRACE, Way, panic_text};
use crate::error::{Error, Failure, Result};
use crate::event::tell_warning;
use crate::os::ending;
use crate::os::process::{Identity, PidFd};
use crate::os::time;
use crate::transport::link::{HEARTBEAT, LinkEvent};
use crate::transport::shm::{MemberState, Presence};

/// Where a kernel gives no pidfds, peers are looked at this often.
const WITHOUT_PIDFD: Duration = Duration::from_millis(50);
/// How long the kernel may take from a process's end to telling strangers how it ended.
const TELLING: Duration = Duration::from_millis(50);

/// What the thread is to do.
const GO_ON: u8 = 0;
/// Go on until no rank of the host is left.
const RETIRE: u8 = 1;
const STOP: u8 = 2;

/// How long a broken connection may be followed by the reason, from another host or from ranks of this one.
const REASON: Duration = Duration::from_millis(100);
/// How long a leader waits before it tells of a host that is gone. Other ranks of that host know more and tell first; a
/// launcher may need a second to end the job after that.
const HOST_GONE: Duration = Duration::from_millis(1500);
/// How much later each further leader tells, of a connection that broke for all at once.
const NEXT_LEADER: Duration = Duration::from_millis(100);
/// The same for a host that is cut off, which leaders find between a question and the next.
const NEXT_ASKER: Duration = Duration::from_millis(400);
/// How long a host listens, after a failure of its own, for hosts before it that failed at the same time and tell.
pub(super) const LISTEN: Duration = Duration::from_millis(100);
/// How long they are asked after a summons. Who goes on waiting summons again before that.
const PATROL: Duration = Duration::from_secs(2);
/// A host summons the others at most this often.
const SUMMONS: Duration = Duration::from_millis(500);

/// The running thread. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Watcher {
    stop: Arc<AtomicU8>,
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
        let stop = Arc::new(AtomicU8::new(GO_ON));
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

impl Watcher {
    /// Lets a leader's thread go on without its rank, which has left, for as long as other ranks of the host are there:
    /// they hear of other hosts through it alone.
    pub(super) fn retire(mut self, core: &Core) {
        if core.links.is_some() && !core.control.aborted() && !all_left(core) {
            self.stop.store(RETIRE, Ordering::Release);
            send(&self.wake, LOOK);
            // It ends by itself.
            drop(self.thread.take());
        }
    }
}

/// Whether no rank of this host is in the job any more.
fn all_left(core: &Core) -> bool {
    (0..core.topology.local_size()).all(|local| core.control.state(local) != MemberState::Joined)
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        self.stop.store(STOP, Ordering::Release);
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

/// What a leader has told the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    /// There was nothing to tell.
    Nothing,
    /// It tells then, unless a host before it does.
    At(Instant),
    /// It has told, or leaves it to another.
    Done,
}

/// A host that is gone without a reason. This host's ranks learn of it soon; the user, if nobody else tells.
#[derive(Debug)]
struct Lost {
    fail_at: Instant,
    failed: bool,
    tell_at: Instant,
    failure: Failure,
}

#[derive(Debug)]
struct Watch {
    core: Arc<Core>,
    stop: Arc<AtomicU8>,
    doorway: Doorway,
    peers: Vec<Peer>,
    /// When to end the job if whoever should have done it has not.
    force_at: Option<Instant>,
    /// Until when this host is known to be patient by the others.
    paused_until: Duration,
    /// Where the telling of a failure of this host stands.
    telling: Telling,
    /// The first host that was lost.
    lost: Option<Lost>,
    /// Members of this host that left, as far as the other hosts were told.
    departed: Vec<bool>,
    /// Summonses of this host that were passed on.
    summons: u32,
    /// Until when to ask the other hosts whether they are there, because a rank of this host waits.
    patrol_until: Option<Instant>,
    /// Hosts that are lost, until the roster may say so.
    gone: Vec<usize>,
}

impl Watch {
    fn new(parts: WatchParts, stop: Arc<AtomicU8>) -> Result<Self> {
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
        Ok(Self {
            departed: vec![false; core.topology.local_size()],
            core,
            stop,
            doorway,
            peers,
            force_at: None,
            paused_until: Duration::ZERO,
            telling: Telling::Nothing,
            lost: None,
            summons: 0,
            patrol_until: None,
            gone: Vec::new(),
        })
    }

    fn run(&mut self) {
        // What happened before the descriptors were open is not told by them.
        self.look_at_peers();
        while !self.is_over() {
            self.look_at_job();
            let heard = self.sleep();
            self.drain();
            self.listen(heard);
            self.look_at_peers();
        }
        if self.core.control.aborted() {
            // A leader that has left goes with the failure, before its loop looks at the job again.
            self.core.forward();
        } else if let Some(links) = &self.core.links {
            links.bye();
        }
        // The rank ends; what is to be told must be told.
        self.look_at_telling();
        while let Telling::At(_) = self.telling {
            let heard = self.sleep();
            self.drain();
            self.listen(heard);
            self.look_at_telling();
        }
        // The ranks of this host end because of a host that is gone, and nobody has told why yet. Their ends, which are
        // no news, must not wake the thread all the time.
        self.peers.clear();
        self.force_at = None;
        while self.lost.as_ref().is_some_and(|lost| lost.failed) {
            let heard = self.sleep();
            self.drain();
            self.listen(heard);
            self.look_at_lost();
        }
    }

    fn is_over(&self) -> bool {
        match self.stop.load(Ordering::Acquire) {
            GO_ON => false,
            // After a failure there is nothing to stay for but what is still to be told.
            RETIRE => self.core.control.aborted() || all_left(&self.core),
            _ => true,
        }
    }

    /// Sleeps until there is something to look at. Returns the hosts that said something.
    fn sleep(&self) -> Vec<usize> {
        let interests = self.core.links.as_ref().map(|links| links.interests()).unwrap_or_default();
        let mut fds = vec![PollFd::new(&self.doorway.read, PollFlags::IN)];
        fds.extend(interests.iter().map(|interest| PollFd::from_borrowed_fd(interest.fd, interest.events)));
        let peers = self.peers.iter().filter_map(|peer| peer.fd.as_ref());
        fds.extend(peers.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        let timeout = self.timeout().map(|timeout| Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Vec::new(),
            // No memory for the call: looking once too often harms nobody, looking all the time would.
            Err(_) => std::thread::sleep(WITHOUT_PIDFD),
        }
        let hosts = interests.iter().zip(&fds[1..]);
        hosts.filter(|(_, fd)| !fd.revents().is_empty()).map(|(interest, _)| interest.host).collect()
    }

    /// When to look though nobody said anything.
    fn timeout(&self) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        // Where peers could not open memory through /proc, they could not open this thread's pipe either.
        let deaf = self.core.links.is_some() && self.core.way == Way::Named;
        let blind = (deaf || self.peers.iter().any(|peer| peer.fd.is_none())).then_some(WITHOUT_PIDFD);
        let force = self.force_at.map(until);
        let lost = self.lost.as_ref().map(|lost| until(if lost.failed { lost.tell_at } else { lost.fail_at }));
        let heartbeat = (self.core.links.is_some() && self.patrols()).then_some(HEARTBEAT);
        let telling = if let Telling::At(at) = self.telling { Some(until(at)) } else { None };
        [blind, force, lost, heartbeat, telling].into_iter().flatten().min()
    }

    /// Whether somebody of this host waits, as far as is known.
    fn patrols(&self) -> bool {
        self.core.roster.hosts.awaited() || self.patrol_until.is_some_and(|until| Instant::now() < until)
    }

    /// Passes on what other ranks of this host ask for.
    fn drain(&self) {
        let mut bytes = [0; 512];
        while let Ok(read @ 1..) = rustix::io::read(&self.doorway.read, &mut bytes) {
            let Some(links) = &self.core.links else { continue };
            for word in bytes[..read].as_chunks::<2>().0 {
                let host = u16::from_le_bytes(*word);
                if host != LOOK {
                    links.ring(host.into());
                }
            }
        }
    }

    /// Hears what other hosts say, and asks those that somebody waits for.
    fn listen(&mut self, hosts: Vec<usize>) {
        let Some(links) = self.core.links.clone() else { return };
        let mut heard = Vec::new();
        hosts.into_iter().for_each(|host| links.handle(host, &mut heard));
        if self.patrols() {
            links.heartbeat(Instant::now(), &mut heard);
        }
        for event in heard {
            self.hear(event);
        }
    }

    fn hear(&mut self, event: LinkEvent) {
        let core = &self.core;
        let hosts = &core.roster.hosts;
        let name = |host: usize| &core.topology.hosts()[host].name;
        match event {
            LinkEvent::Rang { .. } => core.control.bells().ring_all(),
            LinkEvent::Aborted { host, failure } => {
                core.fail_elsewhere(&failure);
                self.lost = None;
                if host < core.topology.host_index() {
                    self.telling = Telling::Done;
                }
            }
            LinkEvent::Paused { duration, .. } => {
                core.control.pause_until(time::monotonic().saturating_add(duration));
                // They know.
                self.paused_until = core.control.paused_until();
            }
            LinkEvent::Departed { host, ranks } => {
                for rank in ranks.into_iter().map(|rank| rank as usize) {
                    if core.topology.hosts()[host].ranks.contains(&rank) {
                        core.control.set_presence(rank, Presence::Left);
                    }
                }
                core.control.bells().ring_all();
            }
            LinkEvent::Summoned { host } => {
                core.control.summon_members();
                if let Some(links) = &core.links {
                    links.report(host, core.topology.host().ranks.iter().filter_map(|&rank| core.roster.report(rank)));
                }
            }
            LinkEvent::Reported { host, report } => {
                if core.topology.hosts()[host].ranks.contains(&(report.rank as usize)) {
                    core.roster.take_report(report);
                }
            }
            LinkEvent::Left { host } => {
                hosts.set(host, HostState::Left);
                self.note(host, Presence::Left);
            }
            LinkEvent::Silent { host, since } => {
                hosts.set(host, HostState::Silent);
                self.note(host, Presence::Silent);
                tell_warning(&format!(
                    "{} has not answered for {since:.1?}: its first rank is stopped, or the network is cut",
                    name(host)
                ));
            }
            LinkEvent::Heard { host } => {
                hosts.set(host, HostState::Up);
                self.note(host, Presence::There);
            }
            LinkEvent::Lost { host, cause } => {
                // Nobody else can tell of a host with one rank.
                let alone = core.topology.hosts()[host].ranks.len() == 1;
                let patience = if alone { REASON } else { HOST_GONE };
                let pid = core.topology.place(core.topology.hosts()[host].ranks[0]).pid;
                let cause =
                    format!("its process (pid {pid}) ended, or the network between the hosts was cut ({cause})");
                self.lose(host, cause, REASON, (patience, NEXT_LEADER));
            }
            LinkEvent::Cut { host, since } => {
                let cause = format!(
                    "its host cannot be reached, because the network is cut or the machine is down (nothing that was \
                     sent there for {since:.1?} arrived)"
                );
                // Whoever knows more is cut off.
                self.lose(host, cause, Duration::ZERO, (Duration::ZERO, NEXT_ASKER));
            }
        }
    }

    /// Lets the ranks of this host know what was heard of all ranks of another.
    fn note(&self, host: usize, presence: Presence) {
        for &rank in &self.core.topology.hosts()[host].ranks {
            self.core.control.set_presence(rank, presence);
        }
        self.core.control.bells().ring_all();
    }

    /// Takes a host for gone: its first rank failed by `cause`. This host's ranks hear of it after `reason`, and the user
    /// after a patience that each further leader has for longer, unless somebody has told by then.
    fn lose(&mut self, host: usize, cause: String, reason: Duration, (patience, next): (Duration, Duration)) {
        let (core, hosts) = (&self.core, &self.core.roster.hosts);
        // Not in the roster yet: a rank that found it there before the job has failed would give up by itself, and those
        // who wait for that rank would hear of it and not of the cause.
        self.gone.push(host);
        // Leaders of hosts that are up, before this one.
        let is_up = |host: &usize| hosts.state(*host) == HostState::Up && !self.gone.contains(host);
        let before = (0..core.topology.host_index()).filter(is_up).count();
        let rank = core.topology.hosts()[host].ranks[0];
        let failure = Failure::new(rank as u32, core.topology.host_name(rank), cause);
        let now = Instant::now();
        let tell_at = now + patience + next * before as u32;
        self.lost.get_or_insert(Lost { fail_at: now + reason, failed: false, tell_at, failure });
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
        self.look_at_lost();
        self.look_at_pause();
        self.look_at_departures();
        self.look_at_summons();
        if self.core.control.aborted() {
            self.core.forward();
            self.look_at_telling();
            if !matches!(self.telling, Telling::At(_)) {
                self.core.end_if_winner();
            }
            if self.force_at.take_if(|at| *at <= Instant::now()).is_some() {
                self.core.end_by_force();
            }
        }
    }

    /// Tells of a failure of this host, if this rank leads it and there are others.
    fn look_at_telling(&mut self) {
        let now = Instant::now();
        if self.core.links.is_none() || self.telling == Telling::Done {
            return;
        }
        let Some(failure) = self.core.control.failure().filter(|failure| self.core.is_own(failure)) else { return };
        let before = self.core.topology.host_index() > 0;
        let at = match self.telling {
            Telling::At(at) => at,
            _ if before => now + LISTEN,
            _ => now,
        };
        self.telling = Telling::At(at);
        if at <= now {
            self.telling = Telling::Done;
            self.core.tell_user(&failure);
        }
    }

    fn look_at_lost(&mut self) {
        let now = Instant::now();
        if let Some(lost) = self.lost.as_mut().filter(|lost| !lost.failed && lost.fail_at <= now) {
            lost.failed = self.core.fail_untold(&lost.failure);
            if !lost.failed {
                // Somebody knew the reason.
                self.lost = None;
            }
            for host in std::mem::take(&mut self.gone) {
                self.core.roster.hosts.set(host, HostState::Lost);
                self.note(host, Presence::Lost);
            }
        }
        if let Some(lost) = self.lost.take_if(|lost| lost.failed && lost.tell_at <= now) {
            self.core.tell_user(&lost.failure);
            self.core.take_duty(&lost.failure);
        }
    }

    /// Passes a pause that a rank of this host asked for on to the other hosts, whose clocks are not this one's.
    fn look_at_pause(&mut self) {
        let until = self.core.control.paused_until();
        if let Some(links) = &self.core.links
            && until > self.paused_until
        {
            self.paused_until = until;
            links.pause(until.saturating_sub(time::monotonic()));
        }
    }

    /// Tells the other hosts which ranks of this one have left. That the last has left, they hear by the goodbye.
    fn look_at_departures(&mut self) {
        let core = &self.core;
        let Some(links) = core.links.as_ref().filter(|_| !core.control.aborted()) else { return };
        let left = |local: usize| core.control.state(local) == MemberState::Left;
        let new: Vec<usize> = (0..self.departed.len()).filter(|&local| !self.departed[local] && left(local)).collect();
        if new.is_empty() || all_left(core) {
            return;
        }
        let ranks: Vec<u32> = new.iter().map(|&local| core.topology.host().ranks[local] as u32).collect();
        links.depart(&ranks);
        new.into_iter().for_each(|local| self.departed[local] = true);
    }

    /// Passes a summons of this host on to the others.
    fn look_at_summons(&mut self) {
        let summons = self.core.control.summons();
        if let Some(links) = &self.core.links
            && summons != self.summons
        {
            self.summons = summons;
            let now = Instant::now();
            // Every rank that waits summons; once for all of them is enough.
            if self.patrol_until.is_none_or(|until| until < now + PATROL - SUMMONS) {
                self.patrol_until = Some(now + PATROL);
                links.summon();
            }
        }
    }
}
