//! Several hosts: what leaders tell the first leader, and what it tells them (README, section 7).

use std::collections::{BTreeSet, VecDeque};

use super::api::Action;
use super::frame::{Body, Target};
use super::message::{self, Part};
use super::wire::Take;
use super::{Coordinator, NONE};

/// Slots in one `Votes` part: at most three bytes each.
const VOTES_A_PART: usize = 1000;

/// A slot whose pending members the first leader wants to know one by one.
#[derive(Debug)]
struct Watched {
    slot: u32,
    sent: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Hosts {
    count: usize,
    /// At the first leader: slots that a host votes for, `[word * hosts + host]`.
    votes: Vec<u64>,
    /// At the first leader: (slot, rank) with a pending bit on a host that did not vote.
    pub(super) details: BTreeSet<(u32, u32)>,
    /// At the other leaders: slots voted for.
    voted: Vec<u64>,
    watched: Vec<Watched>,
    outbox: Vec<u8>,
    /// Entries to install, in order.
    installs: VecDeque<(u64, Vec<u8>)>,
}

impl Hosts {
    pub(super) fn new(count: usize, words: usize) -> Self {
        let words = if count > 1 { words } else { 0 };
        Self {
            count,
            votes: vec![0; words * count],
            details: BTreeSet::new(),
            voted: vec![0; words],
            watched: Vec::new(),
            outbox: Vec::new(),
            installs: VecDeque::new(),
        }
    }

    pub(super) fn has_vote(&self, host: usize, word: usize, mask: u64) -> bool {
        self.votes.get(word * self.count + host).is_some_and(|votes| votes & mask != 0)
    }

    /// Slots of a word that every host votes for, but for the exempt ones.
    pub(super) fn all_vote(&self, word: usize, exempt: impl Fn(usize) -> bool) -> u64 {
        let votes = self.votes.get(word * self.count..(word + 1) * self.count).unwrap_or_default();
        votes.iter().enumerate().filter(|(host, _)| !exempt(*host)).fold(u64::MAX, |all, (_, votes)| all & votes)
    }

    /// Slots of a word that any other host votes for.
    pub(super) fn any_vote(&self, word: usize) -> u64 {
        self.votes.get(word * self.count..(word + 1) * self.count).unwrap_or_default().iter().fold(0, |any, v| any | v)
    }

    pub(super) fn has_details(&self, slot: u32) -> bool {
        self.details.range((slot, 0)..=(slot, u32::MAX)).next().is_some()
    }

    /// The slot ran, was freed, or got another request: votes and details for it are void.
    pub(super) fn touch(&mut self, slot: u32) {
        if self.count == 1 {
            return;
        }
        let (word, mask) = (slot as usize / 64, 1u64 << (slot % 64));
        for votes in &mut self.votes[word * self.count..(word + 1) * self.count] {
            *votes &= !mask;
        }
        self.voted[word] &= !mask;
        if !self.details.is_empty() {
            self.details.retain(|(of, _)| *of != slot);
        }
        self.watched.retain(|watched| watched.slot != slot);
    }

    /// `rank` of `host` took its bit back; `mine`: it is this rank's host.
    pub(super) fn take_back(&mut self, slot: u32, host: usize, rank: u32, mine: bool) {
        if self.count == 1 {
            return;
        }
        let (word, mask) = (slot as usize / 64, 1u64 << (slot % 64));
        self.votes[word * self.count + host] &= !mask;
        self.details.remove(&(slot, rank));
        if mine {
            self.voted[word] &= !mask;
            for watched in &mut self.watched {
                // Sent anew: a vote that said the same is gone.
                if watched.slot == slot {
                    watched.sent.clear();
                }
            }
        }
    }

    /// Report the slot's members one by one until it is touched.
    pub(super) fn watch(&mut self, slot: u32) {
        if !self.watched.iter().any(|watched| watched.slot == slot) {
            self.watched.push(Watched { slot, sent: Vec::new() });
        }
    }
}

impl Coordinator {
    /// Whether this rank speaks for its host to the first leader.
    pub(super) fn is_other_leader(&self) -> bool {
        self.my_member == 0 && self.my_host != 0
    }

    fn make_room(&mut self, bytes: usize, actions: &mut Vec<Action>) {
        if self.hosts.outbox.len() + bytes > self.params.max_message {
            self.flush(actions);
        }
    }

    fn flush(&mut self, actions: &mut Vec<Action>) {
        if !self.hosts.outbox.is_empty() {
            let empty = self.bytes();
            let bytes = std::mem::replace(&mut self.hosts.outbox, empty);
            actions.push(Action::SendHost { host: 0, bytes });
        }
    }

    /// Passes a frame of this host on to the first leader.
    pub(super) fn forward(&mut self, rank: u32, bytes: &[u8], body: &Body<'_>, actions: &mut Vec<Action>) {
        if !self.is_other_leader() {
            return;
        }
        let cached = match body {
            Body::Submission { name, .. } => self.names.find(name).map(|id| self.names.get(id).slot),
            Body::Expired { target: Target::Slot(slot), .. } => Some(*slot),
            Body::Expired { target: Target::Name(name), .. } => self.names.find(name).map(|id| self.names.get(id).slot),
            Body::Withdraw { .. } | Body::Join => None,
        };
        if let Some(slot) = cached.filter(|slot| *slot != NONE && self.slots.is_assigned(*slot)) {
            self.hosts.watch(slot);
        }
        self.make_room(bytes.len() + 16, actions);
        message::put_frame(&mut self.hosts.outbox, rank, bytes);
    }

    /// At a tick of another leader: votes, details, and everything forwarded since.
    pub(super) fn report_to_first(&mut self, actions: &mut Vec<Action>) {
        if !self.is_other_leader() {
            return;
        }
        // With an install not read back, members may be ahead of this rank's position.
        if self.proposed.is_none() && self.hosts.installs.is_empty() && self.dirty {
            self.dirty = false;
            self.vote(actions);
            if self.census.due().is_some() {
                self.watch_pending();
            }
            self.send_details(actions);
            if let Some(number) = self.census.take_due() {
                self.make_room(16, actions);
                message::put_counted(&mut self.hosts.outbox, number);
            }
        }
        self.flush(actions);
    }

    fn vote(&mut self, actions: &mut Vec<Action>) {
        if self.topology.hosts[self.my_host].iter().all(|rank| self.joins.is_joined(*rank)) {
            return;
        }
        let mut slots = std::mem::take(&mut self.scratch.slots);
        slots.clear();
        for word in 0..self.slots.words_in_use() {
            let mut ready = self.slots.assigned[word] & !self.hosts.voted[word];
            for member in 0..self.members {
                ready &= self.ready_bits(member, word);
            }
            self.hosts.voted[word] |= ready;
            while ready != 0 {
                slots.push(word as u32 * 64 + ready.trailing_zeros());
                ready &= ready - 1;
            }
        }
        for part in slots.chunks(VOTES_A_PART) {
            self.make_room(16 + 3 * part.len(), actions);
            message::put_votes(&mut self.hosts.outbox, self.next, part);
        }
        self.scratch.slots = slots;
    }

    /// Reports from now on who has set the bits that are pending here.
    fn watch_pending(&mut self) {
        for word in 0..self.slots.words_in_use() {
            let mut pending = self.pending_bits(word) & !self.hosts.voted[word];
            while pending != 0 {
                self.hosts.watch(word as u32 * 64 + pending.trailing_zeros());
                pending &= pending - 1;
            }
        }
    }

    fn send_details(&mut self, actions: &mut Vec<Action>) {
        for at in 0..self.hosts.watched.len() {
            let slot = self.hosts.watched[at].slot;
            let mut ranks: Vec<u32> = self.topology.hosts[self.my_host].clone();
            ranks.retain(|rank| !self.hosts.watched[at].sent.contains(rank) && self.has_bit(slot, *rank));
            if ranks.is_empty() {
                continue;
            }
            ranks.sort_unstable();
            let size = self.size();
            self.make_room(32 + size.div_ceil(8), actions);
            message::put_details(&mut self.hosts.outbox, self.next, slot, &ranks, size);
            self.hosts.watched[at].sent.append(&mut ranks);
        }
    }

    pub(super) fn host_message(&mut self, host: usize, bytes: &[u8], actions: &mut Vec<Action>) {
        if self.take_message(host, bytes, actions).is_none() && self.over.is_none() {
            let global = self.topology.hosts.get(host).map(|members| self.topology.global[members[0] as usize]);
            let from = global.map_or_else(|| format!("host {host}"), |rank| format!("rank {rank}"));
            self.poison(
                format!("{from} sent a message that makes no sense; do all ranks run the same build?"),
                actions,
            );
        }
    }

    fn take_message(&mut self, host: usize, bytes: &[u8], actions: &mut Vec<Action>) -> Option<()> {
        let size = self.size();
        let mut take = Take::new(bytes);
        while !take.is_empty() && self.over.is_none() {
            match message::take_part(&mut take, size)? {
                Part::Entry { index, bytes } if self.is_other_leader() && host == 0 => {
                    if index != self.next + self.hosts.installs.len() as u64 {
                        return None;
                    }
                    let mut entry = self.bytes();
                    entry.extend_from_slice(bytes);
                    self.hosts.installs.push_back((index, entry));
                    if self.proposed.is_none() {
                        self.install(actions);
                    }
                }
                Part::Census { number } if self.is_other_leader() && host == 0 => {
                    self.census.ask(number);
                    self.dirty = true;
                }
                Part::Entry { .. } | Part::Census { .. } => return None,
                _ if !self.decides || host == self.my_host || host >= self.hosts.count => return None,
                Part::Frame { rank, bytes } => {
                    if self.host_of[rank as usize] as usize != host {
                        return None;
                    }
                    self.frame(rank, bytes, actions);
                }
                Part::Votes { as_of, count } => {
                    for _ in 0..count {
                        let slot = message::take_slot(&mut take)?;
                        if self.untouched(slot, as_of) {
                            let word = slot as usize / 64;
                            self.hosts.votes[word * self.hosts.count + host] |= 1 << (slot % 64);
                        }
                    }
                    self.dirty = true;
                    self.stall.changed();
                }
                Part::Counted { number } => self.census.count(host, number),
                Part::Details { as_of, slot, ranks } => {
                    if ranks.iter().any(|rank| self.host_of[*rank as usize] as usize != host) {
                        return None;
                    }
                    if self.untouched(slot, as_of) {
                        self.hosts.details.extend(ranks.into_iter().map(|rank| (slot, rank)));
                    }
                    self.dirty = true;
                    self.stall.learned();
                }
            }
        }
        Some(())
    }

    /// Installs the next entry of the first leader in this host's log.
    pub(super) fn install(&mut self, actions: &mut Vec<Action>) {
        if let Some((index, entry)) = self.hosts.installs.front()
            && *index == self.next
        {
            let (index, mut bytes) = (*index, self.spare_bytes.pop().unwrap_or_default());
            bytes.extend_from_slice(entry);
            self.proposed = Some(index);
            actions.push(Action::Propose { index, bytes });
        }
    }

    /// After an entry was read: the first leader passes it on, the others drop what they installed.
    pub(super) fn spread(&mut self, index: u64, entry: &[u8], actions: &mut Vec<Action>) {
        if self.hosts.count == 1 {
            return;
        }
        if self.decides {
            for host in 1..self.hosts.count {
                let mut bytes = self.bytes();
                message::put_entry(&mut bytes, index, entry);
                actions.push(Action::SendHost { host, bytes });
            }
        } else if self.hosts.installs.front().is_some_and(|(front, _)| *front == index)
            && let Some((_, bytes)) = self.hosts.installs.pop_front()
        {
            self.recycle_bytes(bytes);
        }
    }
}
