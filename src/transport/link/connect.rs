//! Connecting the leaders: each dials those with a lower index and waits for those with a higher one.
//!
//! All attempts advance side by side, so one bad address or one slow host holds up nobody else. Whoever else finds the
//! open port is turned away by the handshake and costs a place among a bounded number of guests.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::handshake::{self, CHALLENGE, Greeting, HELLO, Nonce, PROOF};
use super::links::Links;
use super::{Card, JobKey, Listener};
use crate::error::{Error, Result};
use crate::os::random;

/// How long one address is tried before the next one.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long a dialer pauses when it has tried all addresses of a host.
const PAUSE: Duration = Duration::from_millis(20);
/// Accepted connections that have not proved themselves; one more turns the oldest away.
const GUESTS: usize = 256;
/// Different reasons for turning guests away that an error lists.
const REASONS: usize = 4;
/// What is said of an end that hangs up during the handshake.
const CLOSED: &str = "closed the connection";

/// The leaders that connect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Party<'a> {
    /// The index of the caller's host.
    pub(crate) me: usize,
    /// The leaders' cards, by host.
    pub(crate) hosts: &'a [Card],
    /// The job's key, random id, and the generation of its membership.
    pub(crate) key: &'a JobKey,
    pub(crate) job: u128,
    pub(crate) epoch: u64,
    /// How long a host may be cut off before it is lost.
    pub(crate) timeout: Duration,
}

/// Connects the caller with the leader of every other host.
///
/// # Collective
///
/// Every leader, with equal cards.
///
/// # Errors
///
/// At the deadline: which hosts are missing, and what happened at each of their addresses.
pub(crate) fn connect(listener: Listener, party: &Party<'_>, deadline: Duration) -> Result<Links> {
    let start = Instant::now();
    let mut setup = Setup {
        party,
        listener,
        joined: party.hosts.iter().map(|_| None).collect(),
        dials: (0..party.me).map(|host| Dial::new(host, start)).collect(),
        guests: Vec::new(),
        turned_away: Vec::new(),
    };
    loop {
        let now = Instant::now();
        setup.advance(now)?;
        if setup.missing().next().is_none() {
            return Links::new(party.hosts, setup.joined, party.timeout);
        }
        let left = (start + deadline).saturating_duration_since(now);
        if left.is_zero() {
            return Err(setup.give_up(deadline));
        }
        setup.sleep(left.min(PAUSE))?;
    }
}

struct Setup<'a> {
    party: &'a Party<'a>,
    listener: Listener,
    joined: Vec<Option<TcpStream>>,
    dials: Vec<Dial>,
    guests: Vec<Guest>,
    /// Why guests were turned away: the first few different reasons.
    turned_away: Vec<String>,
}

/// The attempts to reach one host.
struct Dial {
    host: usize,
    /// The address whose turn is next.
    turn: usize,
    attempt: Option<Attempt>,
    not_before: Instant,
    /// What came of each address that was tried.
    failures: Vec<(SocketAddr, String)>,
}

struct Attempt {
    address: SocketAddr,
    stream: TcpStream,
    since: Instant,
    /// Empty until the connection stands and the hello is sent.
    hello: Option<[u8; HELLO]>,
    got: Vec<u8>,
}

struct Guest {
    stream: TcpStream,
    address: SocketAddr,
    /// Set when the hello has been read and answered.
    challenged: Option<([u8; HELLO], Nonce, usize)>,
    got: Vec<u8>,
}

impl Setup<'_> {
    fn missing(&self) -> impl Iterator<Item = usize> {
        (0..self.joined.len()).filter(|&host| host != self.party.me && self.joined[host].is_none())
    }

    fn advance(&mut self, now: Instant) -> Result<()> {
        for index in 0..self.dials.len() {
            if self.joined[self.dials[index].host].is_none() {
                let stream = self.dials[index].advance(self.party, now)?;
                self.joined[self.dials[index].host] = stream;
            }
        }
        self.accept()?;
        for mut guest in std::mem::take(&mut self.guests) {
            match guest.advance(self.party) {
                Ok(None) => self.guests.push(guest),
                Ok(Some(host)) if self.joined[host].is_none() => self.joined[host] = Some(guest.stream),
                Ok(Some(host)) => self.turn_away(&guest, &format!("host {host} dialed twice")),
                // A guest that goes by itself may be a leader that tries another address.
                Err(why) if why == CLOSED => {}
                Err(why) => self.turn_away(&guest, &why),
            }
        }
        Ok(())
    }

    fn turn_away(&mut self, guest: &Guest, why: &str) {
        if self.turned_away.len() < REASONS && !self.turned_away.iter().any(|known| known.ends_with(why)) {
            self.turned_away.push(format!("{}: {why}", guest.address));
        }
    }

    fn accept(&mut self) -> Result<()> {
        for socket in &self.listener.sockets {
            loop {
                match socket.accept() {
                    Ok((stream, address)) => {
                        if self.guests.len() >= GUESTS {
                            self.guests.remove(0);
                        }
                        if stream.set_nonblocking(true).is_ok() {
                            self.guests.push(Guest { stream, address, challenged: None, got: Vec::new() });
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // The guest has gone again, or a signal came: no reason to stop listening.
                    Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                    Err(error) => {
                        return Err(Error::system("accepting the leader of another host; raise `ulimit -n`", error));
                    }
                }
            }
        }
        Ok(())
    }

    /// Until something is ready, or `limit`.
    fn sleep(&self, limit: Duration) -> Result<()> {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        fds.extend(self.listener.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
        fds.extend(self.guests.iter().map(|guest| PollFd::new(&guest.stream, PollFlags::IN)));
        for attempt in self.dials.iter().filter_map(|dial| dial.attempt.as_ref()) {
            let wanted = if attempt.hello.is_some() { PollFlags::IN } else { PollFlags::OUT };
            fds.push(PollFd::new(&attempt.stream, wanted));
        }
        let limit = limit.try_into().expect("a pause fits a timespec");
        match poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(Error::system("waiting for the leaders of other hosts", error)),
        }
    }

    fn give_up(&self, deadline: Duration) -> Error {
        let mut missing = String::new();
        for host in self.missing() {
            let card = &self.party.hosts[host];
            // Writing to a String cannot fail.
            let _ = write!(missing, "host {host} ({}): ", card.name);
            let Some(dial) = self.dials.get(host) else {
                let _ = write!(missing, "it has not connected to this one; ");
                continue;
            };
            for address in &card.addresses {
                let what =
                    dial.failures.iter().find(|(tried, _)| tried == address).map_or("no answer", |(_, what)| what);
                let _ = write!(missing, "{address} {what}; ");
            }
            if card.addresses.is_empty() {
                let _ = write!(missing, "it advertises no address; ");
            }
        }
        for why in &self.turned_away {
            let _ = write!(missing, "turned away {why}; ");
        }
        Error::Timeout {
            what: format!("connecting the leaders of {} hosts", self.joined.len()).into(),
            waited: deadline,
            missing: format!(
                "{missing}let TCP through between the hosts on all ports, or see why a host's leader stopped"
            )
            .into(),
        }
    }
}

impl Dial {
    fn new(host: usize, now: Instant) -> Self {
        Self { host, turn: 0, attempt: None, not_before: now, failures: Vec::new() }
    }

    /// One step; the connection once it is proved.
    fn advance(&mut self, party: &Party<'_>, now: Instant) -> Result<Option<TcpStream>> {
        let Some(mut attempt) = self.attempt.take() else {
            self.start(party, now)?;
            return Ok(None);
        };
        match attempt.advance(party, self.host) {
            Ok(true) => return Ok(Some(attempt.stream)),
            Ok(false) if now.duration_since(attempt.since) < ATTEMPT => self.attempt = Some(attempt),
            Ok(false) => self.failed(attempt.address, "does not answer".to_owned()),
            Err(why) => self.failed(attempt.address, why),
        }
        Ok(None)
    }

    fn start(&mut self, party: &Party<'_>, now: Instant) -> Result<()> {
        let addresses = &party.hosts[self.host].addresses;
        if now < self.not_before || addresses.is_empty() {
            return Ok(());
        }
        let address = addresses[self.turn % addresses.len()];
        self.turn += 1;
        if self.turn.is_multiple_of(addresses.len()) {
            self.not_before = now + PAUSE;
        }
        match dial(address) {
            Ok(stream) => {
                self.attempt = Some(Attempt { address, stream, since: now, hello: None, got: Vec::new() });
            }
            Err(error) => self.failed(address, error.to_string()),
        }
        Ok(())
    }

    fn failed(&mut self, address: SocketAddr, why: String) {
        self.failures.retain(|(tried, _)| *tried != address);
        self.failures.push((address, why));
    }
}

/// Starts to connect.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

impl Attempt {
    /// One step; true once the host has proved itself and got this end's proof.
    fn advance(&mut self, party: &Party<'_>, host: usize) -> Result<bool, String> {
        let Some(hello) = self.hello else {
            if !is_connected(&self.stream)? {
                return Ok(false);
            }
            let nonce: Nonce = random::bytes().map_err(|error| error.to_string())?;
            let greeting = Greeting { job: party.job, epoch: party.epoch, from: party.me as u32, to: host as u32 };
            let hello = handshake::hello(&greeting, &nonce);
            say(&mut self.stream, &hello)?;
            self.hello = Some(hello);
            return Ok(false);
        };
        let Some(challenge) = hear::<CHALLENGE>(&mut self.stream, &mut self.got)? else { return Ok(false) };
        let proof = handshake::proof(party.key, &hello, &challenge)
            .ok_or("does not know the job's key; another job or another program listens there")?;
        say(&mut self.stream, &proof)?;
        Ok(true)
    }
}

fn is_connected(stream: &TcpStream) -> Result<bool, String> {
    let mut fds = [PollFd::new(stream, PollFlags::OUT)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
        Ok(_) => {}
        Err(error) => return Err(io::Error::from(error).to_string()),
    }
    match sockopt::socket_error(stream.as_fd()) {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) | Err(error) => Err(io::Error::from(error).to_string()),
    }
}

impl Guest {
    /// One step; the host once it has proved that it is that host's leader.
    fn advance(&mut self, party: &Party<'_>) -> Result<Option<usize>, String> {
        let Some((hello, nonce, host)) = self.challenged else {
            let Some(hello) = hear::<HELLO>(&mut self.stream, &mut self.got)? else { return Ok(None) };
            let theirs = handshake::read_hello(&hello)?;
            let expected = Greeting { job: party.job, epoch: party.epoch, from: theirs.from, to: party.me as u32 };
            let host = theirs.from as usize;
            if theirs != expected || host <= party.me || host >= party.hosts.len() {
                return Err(format!(
                    "host {} of job {:#x} epoch {} looked for host {}; this is host {} of job {:#x} epoch {}",
                    theirs.from, theirs.job, theirs.epoch, theirs.to, party.me, party.job, party.epoch
                ));
            }
            let nonce: Nonce = random::bytes().map_err(|error| error.to_string())?;
            say(&mut self.stream, &handshake::challenge(party.key, &hello, &nonce))?;
            self.challenged = Some((hello, nonce, host));
            return Ok(None);
        };
        let Some(proof) = hear::<PROOF>(&mut self.stream, &mut self.got)? else { return Ok(None) };
        if handshake::is_proved(party.key, &hello, &nonce, &proof) {
            Ok(Some(host))
        } else {
            Err("it does not know the job's key".to_owned())
        }
    }
}

/// Sends a message of the handshake whole. A fresh connection has room for it; one that has not is given up.
fn say(stream: &mut TcpStream, message: &[u8]) -> Result<(), String> {
    stream.write_all(message).map_err(|error| error.to_string())
}

/// The next `N` bytes once they are all there, and not a byte more: what follows belongs to the frames.
fn hear<const N: usize>(stream: &mut TcpStream, got: &mut Vec<u8>) -> Result<Option<[u8; N]>, String> {
    let mut buffer = [0; N];
    while got.len() < N {
        match stream.read(&mut buffer[..N - got.len()]) {
            Ok(0) => return Err(CLOSED.to_owned()),
            Ok(count) => got.extend(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    let message = got.as_slice().try_into().map_err(|_| "a message of impossible length")?;
    got.clear();
    Ok(Some(message))
}
