//! Ranks that have no more data: the others' operations run without their submissions (README, section 10).

use std::time::Duration;

use super::api::{Action, Ticket};
use super::frame;
use super::kind::Kind;
use super::locals::Form;
use super::request::Request;
use super::{Coordinator, NONE, poisoned};
use crate::error::{Error, ranks_in_words};
use crate::tensor::ReduceOp;

/// The name under which a join is shown among the tensors.
pub(crate) const JOIN: &str = "kolo.join";

/// Who has joined.
#[derive(Debug)]
pub(super) struct Joins {
    /// Agreed: set rank -> it is joined.
    joined: Vec<bool>,
    count: usize,
    /// Agreed: of a rank that has sat out runs, the parity of how many, a bit a slot. Empty for one that has not.
    sat_out: Vec<Vec<u64>>,
    /// At deciders: `Join` frames read of each rank, less its `Joined` items. Negative where an item came first.
    frames: Vec<i64>,
    mine: Option<Mine>,
    /// This rank waited for the others for too long, and ended the set.
    gave_up: bool,
}

/// This rank's join.
#[derive(Debug)]
struct Mine {
    ticket: Ticket,
    since: Duration,
    deadline: Duration,
    published: bool,
}

impl Joins {
    pub(super) fn new(size: usize) -> Self {
        Self {
            joined: vec![false; size],
            count: 0,
            sat_out: vec![Vec::new(); size],
            frames: vec![0; size],
            mine: None,
            gave_up: false,
        }
    }

    #[inline]
    pub(super) fn any(&self) -> bool {
        self.count > 0
    }

    pub(super) fn is_joined(&self, rank: u32) -> bool {
        self.joined[rank as usize]
    }

    /// How many ranks are joined.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The parities of the runs of a word's slots that `rank` sat out.
    #[inline]
    pub(super) fn sat_out(&self, rank: u32, word: usize) -> u64 {
        self.sat_out[rank as usize].get(word).copied().unwrap_or(0)
    }

    /// A slot runs, without those that are joined.
    pub(super) fn run(&mut self, slot: u32) {
        if self.count == 0 {
            return;
        }
        let word = slot as usize / 64;
        for (of_rank, _) in self.sat_out.iter_mut().zip(&self.joined).filter(|(_, joined)| **joined) {
            if of_rank.len() <= word {
                of_rank.resize(word + 1, 0);
            }
            of_rank[word] ^= 1 << (slot % 64);
        }
    }

    /// A `Join` frame was read.
    pub(super) fn arrive(&mut self, rank: u32) {
        self.frames[rank as usize] += 1;
    }

    /// Ranks whose join waits for the log.
    pub(super) fn due(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.frames).filter(|(_, frames)| **frames > 0).map(|(rank, _)| rank)
    }

    /// This rank's join, if it has called for one that has not ended.
    pub(super) fn ticket(&self) -> Option<Ticket> {
        self.mine.as_ref().map(|mine| mine.ticket)
    }

    /// Takes this rank's join out.
    pub(super) fn take(&mut self) -> Option<Ticket> {
        self.mine.take().map(|mine| mine.ticket)
    }
}

impl Coordinator {
    /// A local thread calls for a join.
    pub(super) fn join(
        &mut self,
        now: Duration,
        ticket: Ticket,
        deadline: Option<Duration>,
        actions: &mut Vec<Action>,
    ) {
        if self.joins.mine.is_some() {
            let error = Error::argument("this rank has joined already; one join at a time");
            return actions.push(Action::Fail { ticket, error });
        }
        let deadline = deadline.unwrap_or(self.params.stall_deadline);
        self.joins.mine = Some(Mine { ticket, since: now, deadline, published: false });
        self.stall.pending(now, deadline);
        self.publish_join(actions);
    }

    /// Why a submission of this rank is refused, if it has joined.
    pub(super) fn refusal(&self, name: &str) -> Option<Error> {
        self.joins.mine.as_ref()?;
        Some(has_joined(name))
    }

    /// Says that this rank has joined, once nothing of it is in flight any more.
    pub(super) fn publish_join(&mut self, actions: &mut Vec<Action>) {
        let refused = |index: u32| matches!(self.locals.get(index).form, Form::Invalid);
        let ready = self.joins.mine.as_ref().is_some_and(|mine| !mine.published) && self.locals.iter().all(refused);
        if let Some(mine) = self.joins.mine.as_mut().filter(|_| ready) {
            mine.published = true;
            let mut bytes = self.bytes();
            frame::put_join(&mut bytes, self.next);
            self.publish(bytes, actions);
        }
    }

    /// Takes back a join; false if `ticket` is not one.
    pub(super) fn withdraw_join(&mut self, ticket: Ticket, actions: &mut Vec<Action>) -> bool {
        let Some(mine) = self.joins.mine.as_ref().filter(|mine| mine.ticket == ticket) else { return false };
        if mine.published {
            let me = self.topology.global[self.topology.me as usize];
            let text = format!("the join of rank {me} was given up after it had been announced; wait for joins");
            self.poison(text, actions);
        } else {
            self.joins.mine = None;
            actions.push(Action::Fail { ticket, error: Error::Cancelled(JOIN.into()) });
        }
        true
    }

    /// An entry says that `rank` has joined; false if that makes no sense.
    pub(super) fn joined(&mut self, rank: u32, actions: &mut Vec<Action>) -> bool {
        let mine = rank == self.topology.me;
        if self.joins.is_joined(rank) || (mine && self.joins.mine.as_ref().is_none_or(|mine| !mine.published)) {
            return false;
        }
        self.joins.joined[rank as usize] = true;
        self.joins.count += 1;
        if self.decides {
            self.joins.frames[rank as usize] -= 1;
        }
        if self.joins.count == self.size() {
            self.joins.joined.fill(false);
            self.joins.count = 0;
            let index = self.next - 1;
            let last = self.topology.global[rank as usize];
            actions.extend(self.joins.take().map(|ticket| Action::Joined { ticket, index, last }));
        }
        true
    }

    /// The slots of a word that `member` of this host does not hold up: its bit is pending, or it has joined.
    #[inline]
    pub(super) fn ready_bits(&self, member: usize, word: usize) -> u64 {
        if self.joins.any() && self.joins.is_joined(self.topology.hosts[self.my_host][member]) {
            return u64::MAX;
        }
        self.bits_of(member, word)
    }

    /// The slots of a word whose bit is pending at `member` of this host.
    #[inline]
    pub(super) fn bits_of(&self, member: usize, word: usize) -> u64 {
        let rank = self.topology.hosts[self.my_host][member];
        self.bits[word * self.members + member] ^ self.slots.consumed[word] ^ self.joins.sat_out(rank, word)
    }

    /// Whether a joined rank leaves the request without an answer.
    pub(super) fn needs_joined(&self, request: &Request) -> bool {
        let root = request.spec.kind.root().is_some_and(|root| self.joins.is_joined(root));
        // How these go depends on each tensor's shape, of which a request has but a digest.
        let by_shape =
            matches!(request.spec.kind, Kind::Allreduce { op: ReduceOp::Adasum } | Kind::ReduceScatter { .. });
        // Who has joined does not know how many rows there are.
        let rows = request.spec.kind.knows_rows();
        self.joins.any() && (root || rows || (by_shape && request.group.is_some()))
    }

    /// Whether every rank that takes part is pending on the name, in whatever form.
    pub(super) fn all_present(&self, id: u32) -> bool {
        (0..self.size() as u32).all(|rank| self.joins.is_joined(rank) || self.is_present(id, rank))
    }

    /// Whether every host's members have joined, or the host votes for what is left of `ready`.
    pub(super) fn voted_by_all(&self, word: usize) -> u64 {
        if !self.joins.any() {
            return self.hosts.all_vote(word, |host| host == self.my_host);
        }
        let joined = |host: usize| self.topology.hosts[host].iter().all(|rank| self.joins.is_joined(*rank));
        self.hosts.all_vote(word, |host| host == self.my_host || joined(host))
    }

    /// The ranks whose join is known, those that have not joined, and those of which that is not known; none if nobody
    /// has.
    pub(super) fn join_attendance(&self) -> Option<(Vec<u32>, Vec<u32>, Vec<u32>)> {
        let announced = self.joins.mine.as_ref().is_some_and(|mine| mine.published);
        let (mut present, mut missing, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for rank in 0..self.size() as u32 {
            let own = announced && rank == self.topology.me;
            if own || self.joins.is_joined(rank) || self.joins.frames[rank as usize] > 0 {
                present.push(rank);
            } else if self.is_known(rank) {
                missing.push(rank);
            } else {
                unknown.push(rank);
            }
        }
        (!present.is_empty()).then_some((present, missing, unknown))
    }

    /// The global rank because of which the set ended, if it is another: nobody else knows that a join waits for too long.
    pub(crate) fn culprit(&self) -> Option<u32> {
        self.late().first().filter(|_| !self.joins.gave_up).copied()
    }

    /// Ends the set if this rank has waited for too long for the others to join.
    pub(super) fn check_join(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Some(mine) = &self.joins.mine else { return };
        let since = mine.since.max(self.stall.quiet_since());
        let due = since.saturating_add(mine.deadline);
        if now < due {
            return self.stall.scan_soon(due);
        }
        let Some((_, missing, unknown)) = self.join_attendance() else { return };
        let late: Vec<u32> = missing.iter().chain(&unknown).copied().collect();
        let global: Vec<u32> = late.iter().map(|rank| self.topology.global[*rank as usize]).collect();
        let waits = self.locals.iter().next().map(|index| self.locals.get(index).name).filter(|name| *name != NONE);
        let text = match waits {
            // Its own deadline is at least as long, or the caller's own.
            Some(id) if !self.joins.mine.as_ref().is_some_and(|mine| mine.published) => {
                format!("'{}' is still in flight on this rank", self.names.get(id).name)
            }
            _ => format!("{} did not join, and nothing moved meanwhile", ranks_in_words(&global)),
        };
        self.note_late(&missing, &unknown);
        self.joins.gave_up = true;
        let text = format!("{text}; check that every rank reaches its join, or raise the deadline (KOLO_DEADLINE)");
        let waited = now.saturating_sub(since);
        let error = Error::Timeout { what: format!("tensor '{JOIN}'").into(), waited, missing: text.into() };
        actions.extend(self.joins.take().map(|ticket| Action::Fail { ticket, error: error.clone() }));
        actions.push(Action::Poison(error.clone()));
        self.end(poisoned(&error), actions);
    }
}

/// Why a submission of a rank that has joined is refused.
pub(crate) fn has_joined(name: &str) -> Error {
    Error::argument(format!(
        "'{name}': this rank has joined, and submits nothing until all ranks have; wait for join to return"
    ))
}
