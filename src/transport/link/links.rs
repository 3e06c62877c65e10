//! The connections that stand: ringing, asking, aborting, leaving, and what is heard from the others.

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::Card;
use super::frame::{Frame, Parser, RANKS, Report};
use crate::error::{Error, Failure, Result};

/// At most so often a host is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How often [`Links::heartbeat`] is to be called.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
/// A host that has not said anything for so long after a question is silent.
const SILENCE: Duration = Duration::from_secs(1);

/// By then a system that is there has acknowledged a question: twice what it may put that off for.
const ACKNOWLEDGED: Duration = Duration::from_millis(400);

/// What a leader hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// The host rang: there is something to look at.
    Rang { host: usize },
    /// The host reports the job's failure.
    Aborted { host: usize, failure: Failure },
    /// The host asks for so much patience from now.
    Paused { host: usize, duration: Duration },
    /// These global ranks of the host left in good order; others of it are still there.
    Departed { host: usize, ranks: Vec<u32> },
    /// Somebody of the host waits, and wants all ranks that lead sets to look at them.
    Summoned { host: usize },
    /// The host tells what one of its ranks does.
    Reported { host: usize, report: Report },
    /// The host left in good order, with all its ranks. It is not heard of again.
    Left { host: usize },
    /// The connection broke without goodbye: the host's leader died, or the network between. Not heard of again.
    Lost { host: usize, cause: String },
    /// For so long not even the host's system acknowledged what was sent: the network is cut, or the machine is down.
    /// Not heard of again.
    Cut { host: usize, since: Duration },
    /// The host does not answer: its leader is stopped or the network is cut. `Lost` or `Heard` may follow.
    Silent { host: usize, since: Duration },
    /// A silent host has spoken again.
    Heard { host: usize },
}

/// A connection to watch: hand its host to [`Links::handle`] when any of `events`, an error or a hang-up shows.
#[derive(Debug)]
pub(crate) struct Interest<'a> {
    pub(crate) host: usize,
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) events: PollFlags,
}

/// One connection to the leader of every other host.
///
/// All methods may be called from any thread and none waits. Dropping it without [`bye`](Self::bye) tells the others
/// that this leader is lost.
#[derive(Debug)]
pub(crate) struct Links {
    peers: Vec<Option<Peer>>,
    /// How long a question may go unacknowledged.
    patience: Duration,
}

#[derive(Debug)]
struct Peer {
    name: String,
    stream: TcpStream,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    over: bool,
    parser: Parser,
    /// What the socket had no room for.
    unsent: Vec<u8>,
    /// A question that is not answered yet.
    asked: Option<Instant>,
    last_asked: Option<Instant>,
    /// When silence was last looked for.
    last_look: Option<Instant>,
    silent: bool,
    said_bye: bool,
}

impl Links {
    /// Takes over connections that have proved themselves.
    ///
    /// A host that is cut off is lost within `timeout`, if it is waited for all that time: what the next question and
    /// the looks after it may take is taken off.
    pub(super) fn new(cards: &[Card], streams: Vec<Option<TcpStream>>, timeout: Duration) -> Result<Self> {
        let mut peers = Vec::new();
        for (card, stream) in cards.iter().zip(streams) {
            let Some(stream) = stream else {
                peers.push(None);
                continue;
            };
            stream
                .set_nodelay(true)
                .and_then(|()| stream.set_nonblocking(true))
                .map_err(|error| Error::system(format!("setting up the connection to {}", card.name), error))?;
            peers.push(Some(Peer { name: card.name.clone(), stream, state: Mutex::default() }));
        }
        Ok(Self { peers, patience: timeout.saturating_sub(ASK_EVERY + HEARTBEAT * 2).max(ACKNOWLEDGED) })
    }

    /// The connections to watch at the moment. They change only by [`handle`](Self::handle).
    pub(crate) fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = Vec::new();
        for (host, peer) in self.open() {
            let state = peer.lock();
            if !state.over {
                let mut events = PollFlags::IN;
                if !state.unsent.is_empty() {
                    events |= PollFlags::OUT;
                }
                interests.push(Interest { host, fd: peer.stream.as_fd(), events });
            }
        }
        interests
    }

    /// Reads what `host` has sent and sends what was left unsent. Appends what was heard to `events`.
    pub(crate) fn handle(&self, host: usize, events: &mut Vec<LinkEvent>) {
        let Some(Some(peer)) = self.peers.get(host) else { return };
        let mut state = peer.lock();
        if state.over {
            return;
        }
        state.flush(&peer.stream);
        let mut frames = Vec::new();
        let end = state.read(&peer.stream, &mut frames);
        let answer = frames.contains(&Frame::Ask);
        if !frames.is_empty() {
            state.asked = None;
            if std::mem::take(&mut state.silent) {
                events.push(LinkEvent::Heard { host });
            }
        }
        for frame in frames {
            match frame {
                Frame::Doorbell => {
                    let rang = LinkEvent::Rang { host };
                    if !events.contains(&rang) {
                        events.push(rang);
                    }
                }
                Frame::Abort(failure) => events.push(LinkEvent::Aborted { host, failure }),
                Frame::Pause(duration) => events.push(LinkEvent::Paused { host, duration }),
                Frame::Departed(ranks) => events.push(LinkEvent::Departed { host, ranks }),
                Frame::Report(report) => events.push(LinkEvent::Reported { host, report }),
                Frame::Summons => {
                    let summoned = LinkEvent::Summoned { host };
                    if !events.contains(&summoned) {
                        events.push(summoned);
                    }
                }
                Frame::Ask | Frame::Answer => {}
                Frame::Bye => {
                    state.over = true;
                    events.push(LinkEvent::Left { host });
                    return;
                }
            }
        }
        if answer {
            state.say(&peer.stream, &Frame::Answer);
        }
        if let Err(cause) = end {
            state.over = true;
            events.push(LinkEvent::Lost { host, cause: format!("{}: {cause}", peer.name) });
        }
    }

    /// Wakes the leader of `host`. A host that has left or is lost is not rung.
    pub(crate) fn ring(&self, host: usize) {
        if let Some(Some(peer)) = self.peers.get(host) {
            let mut state = peer.lock();
            // What waits for room wakes it just as well, and a host that reads nothing must not cost memory.
            if state.unsent.is_empty() {
                state.say(&peer.stream, &Frame::Doorbell);
            }
        }
    }

    /// Wakes every other leader.
    #[cfg(test)]
    pub(crate) fn ring_all(&self) {
        (0..self.peers.len()).for_each(|host| self.ring(host));
    }

    /// Tells every other leader that the job failed.
    pub(crate) fn abort(&self, failure: &Failure) {
        for (_, peer) in self.open() {
            peer.lock().say(&peer.stream, &Frame::Abort(failure.clone()));
        }
    }

    /// Asks every other host for patience, for so long from now.
    pub(crate) fn pause(&self, duration: Duration) {
        for (_, peer) in self.open() {
            peer.lock().say(&peer.stream, &Frame::Pause(duration));
        }
    }

    /// Tells every other leader that these global ranks of this host left in good order.
    pub(crate) fn depart(&self, ranks: &[u32]) {
        for part in ranks.chunks(RANKS) {
            for (_, peer) in self.open() {
                peer.lock().say(&peer.stream, &Frame::Departed(part.to_vec()));
            }
        }
    }

    /// Asks every other leader to let the ranks of its host that lead sets look at them.
    pub(crate) fn summon(&self) {
        for (_, peer) in self.open() {
            let mut state = peer.lock();
            // A host that reads nothing must not cost memory.
            if state.unsent.is_empty() {
                state.say(&peer.stream, &Frame::Summons);
            }
        }
    }

    /// Tells `host` what ranks of this host do.
    pub(crate) fn report(&self, host: usize, reports: impl IntoIterator<Item = Report>) {
        if let Some(Some(peer)) = self.peers.get(host) {
            let mut state = peer.lock();
            // As with a summons: what is not read yet says as much.
            if state.unsent.is_empty() {
                reports.into_iter().for_each(|report| state.say(&peer.stream, &Frame::Report(report)));
            }
        }
    }

    /// To be called every [`HEARTBEAT`] while something from another host is pending, and not otherwise: asks the hosts
    /// whether they are there, and appends those that do not answer to `events`.
    pub(crate) fn heartbeat(&self, now: Instant, events: &mut Vec<LinkEvent>) {
        for (host, peer) in self.open() {
            let mut state = peer.lock();
            if state.over {
                continue;
            }
            let looked = state.last_look.replace(now);
            match state.asked {
                Some(asked) => {
                    // Time in which nobody looked, because nothing was pending or this process was stopped, is no
                    // silence of theirs: the answer may lie in the socket.
                    if looked.is_none_or(|looked| now.duration_since(looked) >= SILENCE / 2) {
                        state.asked = Some(now);
                    } else if let Some(since) = unacknowledged(&peer.stream)
                        && since.min(now.duration_since(asked)) >= self.patience
                    {
                        state.over = true;
                        events.push(LinkEvent::Cut { host, since });
                    } else if now.duration_since(asked) >= SILENCE && !state.silent {
                        state.silent = true;
                        events.push(LinkEvent::Silent { host, since: now.duration_since(asked) });
                    }
                }
                None if state.last_asked.is_none_or(|last| now.duration_since(last) >= ASK_EVERY) => {
                    state.asked = Some(now);
                    state.last_asked = Some(now);
                    state.say(&peer.stream, &Frame::Ask);
                }
                None => {}
            }
        }
    }

    /// Leaves in good order: the others hear [`LinkEvent::Left`]. Nothing can be said afterwards.
    pub(crate) fn bye(&self) {
        for (_, peer) in self.open() {
            let mut state = peer.lock();
            if !state.said_bye {
                state.say(&peer.stream, &Frame::Bye);
                state.said_bye = true;
                // An error means that the other end is gone already.
                let _ = peer.stream.shutdown(Shutdown::Write);
            }
        }
    }

    fn open(&self) -> impl Iterator<Item = (usize, &Peer)> {
        self.peers.iter().enumerate().filter_map(|(host, peer)| Some((host, peer.as_ref()?)))
    }
}

impl Peer {
    // A panic between two statements of a step can cost a frame, not more; the link then ends as lost.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sends a frame, after what is still unsent.
    ///
    /// Errors are left to [`read`](Self::read): the other end may have said why before it went.
    fn say(&mut self, stream: &TcpStream, frame: &Frame) {
        if self.over || self.said_bye {
            return;
        }
        frame.encode(&mut self.unsent);
        self.flush(stream);
    }

    fn flush(&mut self, mut stream: &TcpStream) {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match stream.write(&self.unsent[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => sent = self.unsent.len(),
            }
        }
        self.unsent.drain(..sent);
    }

    /// Reads all there is. `Err` says how the connection ended; frames before that are in `frames`.
    fn read(&mut self, mut stream: &TcpStream, frames: &mut Vec<Frame>) -> Result<(), String> {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Err("the connection was closed without goodbye".to_owned()),
                Ok(count) => {
                    self.parser.feed(&buffer[..count], frames).map_err(|what| format!("it sent {what}"))?;
                    // What follows a goodbye or a flood is for the next call.
                    if frames.last() == Some(&Frame::Bye) || frames.len() > 4096 {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// How long the other end's system has acknowledged nothing, if something that was sent is under way.
///
/// A system acknowledges for a process that is stopped or busy as well. So this tells a network that is cut from a peer
/// that does not answer.
fn unacknowledged(stream: &TcpStream) -> Option<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, and all-zero bytes are a tcp_info: it holds plain numbers.
    let info = unsafe {
        let to = info.as_mut_ptr().cast();
        if libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut len) != 0 {
            return None;
        }
        info.assume_init()
    };
    (info.tcpi_unacked > 0).then(|| Duration::from_millis(info.tcpi_last_ack_recv.into()))
}
