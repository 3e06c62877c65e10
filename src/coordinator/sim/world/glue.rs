//! What a runtime does between the coordinator and the memory of its host, one part at a time.

use super::{Phase, World};
use crate::coordinator::{Action, Event, MAX_FRAME};

impl World {
    pub(super) fn step_for(&mut self, rank: usize, event: Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.ranks[rank].coordinator.step(self.now, event, &mut actions);
        actions
    }

    /// Steps where nothing may end.
    pub(super) fn step(&mut self, rank: usize, event: Event<'_>) {
        let actions = self.step_for(rank, event);
        for action in &actions {
            match action {
                Action::Run(_) | Action::Fail { .. } | Action::Poison(_) => panic!("{event:?} gives {action:?}"),
                _ => {}
            }
        }
        self.ranks[rank].actions.extend(actions);
    }

    pub(super) fn carry_out(&mut self, rank: usize, action: Action) {
        let (host, member) = (self.ranks[rank].host, self.ranks[rank].member);
        match action {
            Action::PublishRequest(frame) => {
                assert!(frame.len() <= MAX_FRAME);
                self.ranks[rank].frames.push_back(frame);
                self.publish(rank);
            }
            Action::SetBits { word, bits } => self.memories[host].set_word(member, word, bits),
            Action::Propose { index, bytes } => {
                if self.random.chance(1, 10) && !self.memories[host].fair {
                    return self.step(rank, Event::ProposeFailed { index });
                }
                if !self.memories[host].install(member, index, bytes.clone()) {
                    self.oracle.seen.lost += 1;
                } else if host == 0 {
                    self.oracle.install(index, &bytes, self.ranks.len(), self.params.max_entry);
                } else {
                    assert_eq!(self.oracle.log[index as usize], bytes, "entry {index} on host {host}");
                }
            }
            Action::SendHost { host: to, bytes } => {
                assert!(bytes.len() <= self.params.max_message);
                self.channels[host][to].push_back(bytes);
            }
            Action::Warn { text, news, .. } => self.warnings.extend(news.then_some(text)),
            Action::Executed(_) | Action::WakeAt(_) | Action::Summon => {}
            other => panic!("{other:?} is not carried out here"),
        }
    }

    pub(super) fn publish(&mut self, rank: usize) {
        let (host, member) = (self.ranks[rank].host, self.ranks[rank].member);
        while self.memories[host].unread(member, &self.watchers[host]) < self.ring {
            let Some(frame) = self.ranks[rank].frames.pop_front() else { return };
            self.memories[host].publish(member, frame);
        }
    }

    /// A part of a round of the glue.
    pub(super) fn drive(&mut self, rank: usize) {
        while let Some(action) = self.ranks[rank].actions.pop_front() {
            self.carry_out(rank, action);
        }
        let (host, member) = (self.ranks[rank].host, self.ranks[rank].member);
        self.publish(rank);
        if member == 0 && self.random.chance(1, 2) {
            let from = self.random.below(self.hosts.len());
            if let Some(bytes) = self.channels[from][host].pop_front() {
                self.step(rank, Event::HostMessage { host: from, bytes: &bytes });
            }
        }
        let watches = self.ranks[rank].coordinator.watches_peers();
        match self.ranks[rank].phase {
            Phase::Log => {
                let position = self.ranks[rank].position;
                match self.memories[host].entry(&mut self.random, member, position) {
                    Some(bytes) => {
                        self.ranks[rank].position += 1;
                        self.process(rank, position, &bytes);
                    }
                    None => self.ranks[rank].phase = if watches { Phase::Rings } else { Phase::Tick },
                }
            }
            Phase::Rings => {
                for writer in (0..self.hosts[host].len()).filter(|writer| *writer != member) {
                    for bytes in self.memories[host].frames(&mut self.random, member, writer) {
                        self.step(rank, Event::PeerRequest { member: writer, bytes: &bytes });
                    }
                }
                self.ranks[rank].phase = Phase::Words;
            }
            Phase::Words => {
                for word in 0..self.memories[host].words().min(self.ranks[rank].coordinator.words_in_use()) {
                    for writer in 0..self.hosts[host].len() {
                        let bits = self.memories[host].word(&mut self.random, member, writer, word);
                        self.step(rank, Event::PeerBits { member: writer, word, bits });
                    }
                }
                self.ranks[rank].phase = Phase::Tick;
            }
            Phase::Tick => {
                self.step(rank, Event::Tick);
                self.ranks[rank].phase = Phase::Log;
            }
        }
    }
}
