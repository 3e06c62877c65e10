//! What the coordinator makes of an entry, held against the oracle.

use super::super::oracle::{Outcome, State};
use super::World;
use crate::coordinator::request::Request;
use crate::coordinator::{Action, Event, Ticket};
use crate::error::Error;

impl World {
    /// An entry comes up at a rank: exactly what the oracle says must end there.
    pub(super) fn process(&mut self, rank: usize, index: u64, bytes: &[u8]) {
        if !self.oracle.counts(index) {
            // The rank waits for the poison.
            self.ranks[rank].late = usize::MAX;
            return;
        }
        if let Some((_, name)) = self.oracle.timed_out.filter(|(at, _)| *at == index) {
            return self.process_timeout(rank, index, bytes, name);
        }
        let mut expected: Vec<(Ticket, Outcome)> = Vec::new();
        let mut poison = false;
        for name in 0..self.names.len() {
            let State::Taken(at, outcome) = self.oracle.state[rank][name].clone() else { continue };
            if at != index {
                continue;
            }
            let flight = self.ranks[rank].flights[name].clone().expect("what ended was in flight");
            let outcome = match outcome {
                Outcome::Ran if flight.withdrawn => {
                    poison = true;
                    continue;
                }
                Outcome::Failed(_) if flight.withdrawn => {
                    self.ranks[rank].ended[name] += 1;
                    Outcome::Cancelled
                }
                Outcome::Cancelled => Outcome::Cancelled,
                other => {
                    self.ranks[rank].ended[name] += 1;
                    other
                }
            };
            expected.extend(flight.ticket.map(|ticket| (ticket, outcome)));
            let parked = self.ranks[rank].parked[name].take();
            self.oracle.state[rank][name] = State::Idle;
            if let Some(parked) = &parked {
                self.oracle.submit(rank, name, parked.what.clone());
            }
            self.ranks[rank].flights[name] = parked;
        }
        let sat_out = std::mem::take(&mut self.oracle.joins.sat_out[rank]);
        let (here, later): (Vec<_>, Vec<_>) = sat_out.into_iter().partition(|(at, _)| *at == index);
        self.oracle.joins.sat_out[rank] = later;
        here.iter().for_each(|(_, name)| self.ranks[rank].ended[*name] += 1);
        let ends = self.oracle.joins.ended.iter().find(|(at, _)| *at == index).map(|(_, last)| *last);
        let mut ended = None;
        let actions = self.step_for(rank, Event::Entry { index, bytes });
        if poison {
            assert!(actions.iter().any(|action| matches!(action, Action::Poison(_))), "rank {rank} must poison");
            self.check_poison(rank, index, actions);
            return;
        }
        let mut got: Vec<(Ticket, Outcome)> = Vec::new();
        for action in actions {
            match action {
                Action::Run(batch) => {
                    assert_eq!(batch.index, index);
                    assert!(batch.items.len() + batch.sat_out.len() == 1 || batch.bytes <= self.params.fusion_bytes);
                    got.extend(batch.items.iter().map(|item| (item.ticket, Outcome::Ran)));
                    let mine = batch.items.iter().map(|item| self.owners[item.ticket.0 as usize]);
                    let place = |request: &Request| self.names.iter().position(|name| **name == *request.name);
                    let others = batch.sat_out.iter().filter_map(|request| place(request));
                    let names = mine.chain(others).collect();
                    let batches = &mut self.ranks[rank].batches;
                    assert_eq!(batch.contributors, self.oracle.joins.contributors[batches.len()], "entry {index}");
                    batches.push((index, names));
                }
                Action::Fail { ticket, error: Error::Mismatch(mismatch) } => {
                    got.push((ticket, Outcome::Failed(mismatch.views.clone())));
                }
                Action::Fail { ticket, error: Error::Cancelled(_) } => got.push((ticket, Outcome::Cancelled)),
                Action::Joined { ticket, index: at, last } => {
                    assert_eq!((Some(ticket), at), (self.ranks[rank].join.take(), index));
                    ended = Some(last);
                    self.ranks[rank].joined += 1;
                }
                Action::Fail { .. } | Action::Poison(_) => panic!("rank {rank}, entry {index}: {action:?}"),
                other => self.ranks[rank].actions.push_back(other),
            }
        }
        assert_eq!(ended, ends, "rank {rank}, entry {index}");
        expected.sort_by_key(|(ticket, _)| *ticket);
        got.sort_by_key(|(ticket, _)| *ticket);
        assert_eq!(got, expected, "rank {rank}, entry {index}");
    }

    /// The entry gives up on `name`: its submission gets an error that says so, all others one that says why.
    pub(super) fn process_timeout(&mut self, rank: usize, index: u64, bytes: &[u8], name: usize) {
        self.ranks[rank].late = usize::MAX;
        let actions = self.step_for(rank, Event::Entry { index, bytes });
        let mut poisons = 0;
        for action in actions {
            match action {
                Action::Fail { ticket, error } => {
                    let own = self.owners[ticket.0 as usize] == name;
                    let fits =
                        if own { matches!(error, Error::Timeout { .. }) } else { matches!(error, Error::Poisoned(_)) };
                    assert!(fits, "rank {rank}, entry {index}: {error}");
                    assert!(error.to_string().contains(&format!("tensor '{}'", self.names[name])), "{error}");
                    let rank = &mut self.ranks[rank];
                    let flights = rank.flights.iter_mut().chain(&mut rank.parked);
                    let flight = flights.flatten().find(|flight| flight.ticket == Some(ticket)).expect("in flight");
                    flight.ticket = None;
                }
                Action::Poison(_) => poisons += 1,
                other => self.ranks[rank].actions.push_back(other),
            }
        }
        assert_eq!((poisons, self.ranks[rank].coordinator.pending()), (1, 0), "rank {rank}, entry {index}");
    }

    pub(super) fn check_poison(&mut self, rank: usize, index: u64, actions: Vec<Action>) {
        self.poisoned = true;
        assert_eq!(self.ranks[rank].coordinator.pending(), 0, "entry {index}");
        for action in actions {
            let ended = match action {
                Action::Run(batch) => batch.items.iter().map(|item| item.ticket).collect(),
                Action::Fail { ticket, .. } => vec![ticket],
                _ => vec![],
            };
            let rank = &mut self.ranks[rank];
            rank.join = rank.join.filter(|ticket| !ended.contains(ticket));
            for flight in rank.flights.iter_mut().chain(&mut rank.parked) {
                if flight.as_ref().is_some_and(|flight| flight.ticket.is_some_and(|t| ended.contains(&t))) {
                    *flight = None;
                }
            }
        }
        let left = self.ranks[rank].flights.iter().chain(&self.ranks[rank].parked).flatten();
        assert!(left.filter_map(|flight| flight.ticket).next().is_none(), "a ticket of rank {rank} got nothing");
    }
}
