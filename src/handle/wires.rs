//! Carries the coordinator's events and actions between a rank and its host's shared memory, and between host leaders.
//!
//! What the coordinator asks of this file is listed in `coordinator/README.md`, section 12: above all, a round reads the
//! log until it is empty, then the rings, then the words, and then says `Tick`.
//!
//! Between leaders travel the coordinator's messages, which never begin with a zero byte, and farewells, which do: a
//! zero, the global rank because of which the sender's host gave up, how many log entries it had read by then, and the
//! first operation of which one of its ranks has not done its part. A farewell follows whatever its sender's coordinator had to say, but not what the first leader sent: it counts once as
//! many entries have been read here.

use std::collections::VecDeque;
use std::time::Duration;

use crate::coordinator::{Action, Coordinator, Event};
use crate::engine::Team;
use crate::error::Result;
use crate::os::time;
use crate::transport::Link;
use crate::transport::shm::{Arena, Install, Log, RequestReader, RequestWriter};

/// Frames of so many bytes read in one round may have been a full ring, whose writer sleeps until there is room.
const NEWS: usize = 16 << 10;
/// How a farewell begins.
const FAREWELL: u8 = 0;
/// Looks at which nothing moved, after which entries that a farewell speaks of will not come any more.
const PATIENCE: u32 = 10;

/// The coordinator's view of the outside.
pub(super) struct Wires {
    arena: Arena,
    log: Log,
    writer: RequestWriter,
    /// The rings of the other members.
    readers: Vec<(usize, RequestReader)>,
    me: usize,
    /// The version of each member's ready words when they were last read, and the words.
    versions: Vec<u64>,
    words: Vec<Vec<u64>>,
    /// The next index of the log.
    position: u64,
    /// Frames that wait for room in the ring.
    frames: VecDeque<Vec<u8>>,
    leaders: Option<Leaders>,
    /// Until when `kolo.pause` asked for patience, as the coordinator was last told, in the control area's clock.
    paused_until: Duration,
    bytes: Vec<u8>,
    /// Something happened since the last `Tick`.
    dirty: bool,
    tick_at: Option<Duration>,
    /// Frames handed to the ring so far: none while all that is submitted is cached.
    #[cfg(test)]
    pub(super) published: usize,
}

/// The channel between the leaders of a set's hosts.
struct Leaders {
    link: Box<dyn Link>,
    /// The leader of each host, as a set rank; this rank is that of `host`.
    ranks: Vec<usize>,
    host: usize,
    /// Messages to each host: one that takes nothing holds up no other.
    outgoing: Vec<VecDeque<Vec<u8>>>,
    /// Who gave up, if another host's leader said so.
    farewell: Option<Farewell>,
}

/// What another host's leader said last.
#[derive(Clone, Copy)]
struct Farewell {
    /// The global rank whose doing it was.
    rank: u32,
    /// Log entries that its host had read: one of them may say more.
    position: u64,
    /// The first operation, counted from one, that its host does not take part in.
    undone: u64,
    /// Looks at which those entries had not come.
    looks: u32,
}

impl Farewell {
    fn parse(bytes: &[u8]) -> Self {
        let (rank, rest) =
            bytes.split_first_chunk().map_or((0, bytes), |(rank, rest)| (u32::from_le_bytes(*rank), rest));
        let (numbers, _) = rest.as_chunks();
        let number = |at: usize| numbers.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self { rank, position: number(0), undone: number(1), looks: 0 }
    }
}

impl std::fmt::Debug for Wires {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wires").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Wires {
    pub(super) fn new(arena: &Arena, team: &Team, link: Option<Box<dyn Link>>) -> Self {
        let members = team.members().len();
        let leads = team.member() == 0;
        let leaders = link.filter(|_| leads).map(|link| Leaders {
            link,
            ranks: team.hosts().iter().map(|members| members[0]).collect(),
            host: team.host(),
            outgoing: team.hosts().iter().map(|_| VecDeque::new()).collect(),
            farewell: None,
        });
        Self {
            arena: arena.clone(),
            log: arena.log(),
            writer: arena.request_writer(),
            readers: (0..members)
                .filter(|&member| member != team.member())
                .map(|member| (member, arena.request_reader(member)))
                .collect(),
            me: team.member(),
            versions: vec![0; members],
            words: vec![Vec::new(); members],
            position: 0,
            frames: VecDeque::new(),
            leaders,
            paused_until: Duration::ZERO,
            bytes: Vec::new(),
            dirty: false,
            tick_at: None,
            #[cfg(test)]
            published: 0,
        }
    }

    /// Asks for a `Tick` in the next round: an event went to the coordinator from elsewhere.
    pub(super) fn touch(&mut self) {
        self.dirty = true;
    }

    /// When the next round is due at the latest, if nothing happens before.
    pub(super) fn tick_at(&self) -> Option<Duration> {
        self.tick_at
    }

    /// Whether nothing waits to be handed to a peer.
    pub(super) fn is_flushed(&self) -> bool {
        let sent = |leaders: &Leaders| leaders.outgoing.iter().all(VecDeque::is_empty) && leaders.link.idle();
        self.frames.is_empty() && self.leaders.as_ref().is_none_or(sent)
    }

    /// One round: everything that can be read, then `Tick` if there was anything or it is time.
    ///
    /// Returns whether there was. The actions are appended to `actions`; `rang` is set if peers must be woken.
    pub(super) fn round(
        &mut self,
        now: Duration,
        coordinator: &mut Coordinator,
        actions: &mut Vec<Action>,
        rang: &mut bool,
    ) -> Result<bool> {
        self.dirty |= self.hear(now, coordinator, actions)?;
        while self.log.read(self.position, &mut self.bytes) {
            coordinator.step(now, Event::Entry { index: self.position, bytes: &self.bytes }, actions);
            self.position += 1;
            self.dirty = true;
        }
        // Every member empties the rings, or their writers would run out of room; who does not watch hears in vain.
        for (member, reader) in &mut self.readers {
            let (member, mut read) = (*member, 0);
            while reader.try_read(|bytes| {
                read += bytes.len();
                coordinator.step(now, Event::PeerRequest { member, bytes }, actions);
            }) {}
            self.dirty |= read > 0;
            *rang |= read >= NEWS;
        }
        if coordinator.watches_peers() {
            for member in 0..self.versions.len() {
                if member != self.me {
                    self.dirty |= self.read_words(member, now, coordinator, actions);
                }
            }
        }
        let due = self.tick_at.is_some_and(|at| at <= now);
        if !self.dirty && !due {
            return Ok(false);
        }
        let moved = std::mem::take(&mut self.dirty);
        // A tick that comes early leaves the coordinator's wish as it is: it is not told again.
        if due {
            self.tick_at = None;
        }
        coordinator.step(now, Event::Tick, actions);
        Ok(moved)
    }

    /// Tells the coordinator if somebody asked for patience since the last round. `until` is a time of the clock of
    /// `kolo.pause`.
    pub(super) fn pause(
        &mut self,
        until: Duration,
        now: Duration,
        coordinator: &mut Coordinator,
        actions: &mut Vec<Action>,
    ) {
        if until > self.paused_until {
            self.paused_until = until;
            let until = now.saturating_add(until.saturating_sub(time::monotonic()));
            coordinator.step(now, Event::Pause { until }, actions);
        }
    }

    fn read_words(
        &mut self,
        member: usize,
        now: Duration,
        coordinator: &mut Coordinator,
        actions: &mut Vec<Action>,
    ) -> bool {
        let version = self.arena.ready_words().version(member);
        let seen = &mut self.words[member];
        // A member that is ahead may have set bits of a word that this rank did not know to be in use.
        let in_use = coordinator.words_in_use().max(seen.len());
        if version == self.versions[member] && in_use == seen.len() {
            return false;
        }
        self.versions[member] = version;
        seen.resize(in_use, 0);
        for (word, seen) in seen.iter_mut().enumerate() {
            let bits = self.arena.ready_words().word(member, word);
            if bits != *seen {
                *seen = bits;
                coordinator.step(now, Event::PeerBits { member, word, bits }, actions);
            }
        }
        true
    }

    /// Takes in what other leaders sent.
    fn hear(&mut self, now: Duration, coordinator: &mut Coordinator, actions: &mut Vec<Action>) -> Result<bool> {
        let Some(leaders) = &mut self.leaders else { return Ok(false) };
        let mut heard = false;
        for (host, &rank) in leaders.ranks.iter().enumerate() {
            if host == leaders.host {
                continue;
            }
            let farewell = &mut leaders.farewell;
            let mut take = |bytes: &[u8]| match bytes.split_first() {
                Some((&FAREWELL, bytes)) => {
                    farewell.get_or_insert(Farewell::parse(bytes));
                }
                _ => coordinator.step(now, Event::HostMessage { host, bytes }, actions),
            };
            while leaders.link.try_recv(rank, &mut take)? {
                heard = true;
            }
        }
        Ok(heard)
    }

    /// Does one of the actions that concern the outside; gives the others back.
    ///
    /// Sets `rang` if peers must be woken.
    pub(super) fn act(
        &mut self,
        now: Duration,
        action: Action,
        coordinator: &mut Coordinator,
        actions: &mut Vec<Action>,
        rang: &mut bool,
    ) -> Option<Action> {
        match action {
            Action::PublishRequest(frame) => {
                self.frames.push_back(frame);
                *rang |= self.publish_frames(coordinator);
            }
            Action::SetBits { word, bits } => {
                self.arena.ready_words().set(word, bits);
                *rang = true;
            }
            Action::Propose { index, bytes } => {
                match self.log.install(index, &bytes) {
                    Install::Installed => *rang = true,
                    Install::Lost => {}
                    Install::NoBuffer => coordinator.step(now, Event::ProposeFailed { index }, actions),
                }
                coordinator.recycle_bytes(bytes);
                // Whoever won, there is an entry to read, or a proposal to make again.
                self.dirty = true;
            }
            Action::Executed(index) => self.log.set_executed(index),
            Action::SendHost { host, bytes } => {
                if let Some(leaders) = &mut self.leaders {
                    leaders.outgoing[host].push_back(bytes);
                }
            }
            Action::WakeAt(at) => self.tick_at = Some(at),
            other => return Some(other),
        }
        None
    }

    /// Hands on what had to wait for room. Returns whether peers must be woken.
    pub(super) fn flush(&mut self, coordinator: &mut Coordinator) -> Result<bool> {
        let rang = self.publish_frames(coordinator);
        if let Some(leaders) = &mut self.leaders {
            leaders.link.progress()?;
            for (host, outgoing) in leaders.outgoing.iter_mut().enumerate() {
                while let Some(bytes) = outgoing.front() {
                    if !leaders.link.try_send(leaders.ranks[host], bytes)? {
                        break;
                    }
                    if let Some(bytes) = outgoing.pop_front() {
                        coordinator.recycle_bytes(bytes);
                    }
                }
            }
        }
        Ok(rang)
    }

    /// Tells the other hosts that `rank` gave up the operation `undone` and all later ones, unless this host knows it from
    /// one of them.
    pub(super) fn say_farewell(&mut self, rank: u32, undone: u64) {
        let Some(leaders) = &mut self.leaders else { return };
        if leaders.farewell.is_some() {
            return;
        }
        let message =
            [&[FAREWELL][..], &rank.to_le_bytes(), &self.position.to_le_bytes(), &undone.to_le_bytes()].concat();
        for (host, outgoing) in leaders.outgoing.iter_mut().enumerate() {
            if host != leaders.host {
                outgoing.push_back(message.clone());
            }
        }
    }

    /// The global rank that gave up the operation or an earlier one, if another host said so, and what it had read is read
    /// here.
    pub(super) fn farewell(&self, operation: u64) -> Option<u32> {
        let farewell = self.leaders.as_ref()?.farewell.filter(|farewell| farewell.undone <= operation)?;
        (self.position >= farewell.position || farewell.looks >= PATIENCE).then_some(farewell.rank)
    }

    /// Nothing has moved since the last such look.
    pub(super) fn lose_patience(&mut self) {
        if let Some(farewell) = self.leaders.as_mut().and_then(|leaders| leaders.farewell.as_mut()) {
            farewell.looks += 1;
        }
    }

    /// After the end of the set: what the other leaders still send is dropped, so that they get rid of it.
    pub(super) fn ignore_leaders(&mut self) -> Result<()> {
        let Some(leaders) = &mut self.leaders else { return Ok(()) };
        for (host, &rank) in leaders.ranks.iter().enumerate() {
            while host != leaders.host && leaders.link.try_recv(rank, &mut |_| ())? {}
        }
        Ok(())
    }

    fn publish_frames(&mut self, coordinator: &mut Coordinator) -> bool {
        let mut published = false;
        while self.frames.front().is_some_and(|frame| self.writer.try_write(frame)) {
            if let Some(frame) = self.frames.pop_front() {
                coordinator.recycle_bytes(frame);
            }
            published = true;
            self.dirty = true;
            #[cfg(test)]
            {
                self.published += 1;
            }
        }
        published
    }
}
