//! What ranks call: submissions, withdrawals and joins, all drawn by the seed.

use super::super::Random;
use super::super::oracle::What;
use super::{Flight, Rank, World};
use crate::coordinator::request::Request;
use crate::coordinator::{Action, Event, Ticket};
use crate::error::Error;
use crate::tensor::{DType, ReduceOp};

impl World {
    /// What `rank` submits as the `call`-th of a name: equal for all, but where the seed says otherwise.
    pub(super) fn plan(&self, name: usize, call: usize, rank: usize) -> What {
        let mut dice = Random::new(self.seed ^ (name as u64) << 40 ^ (call as u64) << 20);
        // Most calls repeat the first, so that bits are used.
        let mut variant = if dice.chance(1, 6) { dice.below(4) } else { 0 };
        let odd = dice.below(self.ranks.len());
        let trouble = dice.below(24);
        if self.faults && rank == odd && trouble == 0 {
            return What::Invalid(format!("no call {call}"));
        }
        if self.faults && rank == odd && trouble == 1 {
            variant += 1;
        }
        if self.faults && trouble == 2 {
            return What::Invalid(format!("rank {rank} does not know how"));
        }
        let shape = vec![name + 1, variant % 3];
        let text = self.names[name].as_str();
        What::Request(match (variant, name % 3) {
            (4, _) => Request::broadcast(text, DType::F32, shape, 0),
            (1 | 2, _) if self.joins => Request::broadcast(text, DType::F32, shape, (name % self.ranks.len()) as u32),
            (3, _) => Request::allreduce(text, DType::F64, shape, ReduceOp::Max),
            (_, 0) => Request::allreduce(text, DType::F16, shape, ReduceOp::Sum),
            _ => Request::allreduce(text, DType::F32, shape, ReduceOp::Sum),
        })
    }

    pub(super) fn ticket(&mut self, name: usize) -> Ticket {
        self.owners.push(name);
        Ticket(self.owners.len() as u64 - 1)
    }

    pub(super) fn program(&mut self, rank: usize) {
        let name = self.random.below(self.names.len());
        if self.joins && self.program_join(rank) {
            return;
        }
        let state = &self.ranks[rank];
        match state.flights[name].clone() {
            None if state.join.is_some() => {
                let actions = self.submit_refused(rank, name);
                assert!(matches!(&actions[..], [Action::Fail { error: Error::Argument(_), .. }]), "{actions:?}");
            }
            None if state.ended[name] < self.calls => {
                let flight = self.submit(rank, name, state.ended[name]);
                self.oracle.submit(rank, name, flight.what.clone());
                self.ranks[rank].flights[name] = Some(flight);
            }
            None => {}
            Some(flight) => {
                let parked = state.parked[name].clone();
                let dice = self.random.below(40);
                let blocked = flight.withdrawn || flight.ticket.is_none();
                match flight.ticket {
                    _ if dice == 0 && (!blocked || parked.is_some()) => self.submit_twice(rank, name),
                    Some(ticket) if dice == 1 => self.step(rank, Event::Urgent { ticket }),
                    Some(ticket) if dice == 2 && self.withdrawals && !blocked => self.withdraw(rank, name, ticket),
                    _ if dice < 8
                        && state.join.is_none()
                        && blocked
                        && parked.is_none()
                        && state.ended[name] + 1 < self.calls =>
                    {
                        // A refusal behind a refusal is dropped: the peers meet the first.
                        let refused = flight.ticket.is_none();
                        let call = state.ended[name] + usize::from(refused && self.retries);
                        let flight = self.submit(rank, name, call);
                        self.ranks[rank].parked[name] =
                            Some(flight).filter(|flight| flight.ticket.is_some() || !refused);
                        self.oracle.seen.retried += u64::from(refused && self.ranks[rank].parked[name].is_some());
                    }
                    _ if dice == 9 && self.withdrawals => {
                        if let Some(ticket) = parked.and_then(|flight| flight.ticket) {
                            self.ranks[rank].parked[name] = None;
                            let mut actions = self.step_for(rank, Event::Withdraw { ticket });
                            assert!(
                                matches!(&actions[..], [Action::Fail { ticket: t, error: Error::Cancelled(_) }, ..] if *t == ticket)
                            );
                            // It may have been the last that a join waited for.
                            let announced = actions.split_off(1);
                            let frame = |action: &Action| matches!(action, Action::PublishRequest(_));
                            assert!(
                                announced.iter().all(frame) && (announced.is_empty() || self.joins),
                                "{announced:?}"
                            );
                            self.ranks[rank].actions.extend(announced);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    pub(super) fn submit(&mut self, rank: usize, name: usize, call: usize) -> Flight {
        let what = self.plan(name, call, rank);
        let (request, reason) = match &what {
            What::Request(request) => (request.clone(), None),
            What::Invalid(reason) => (Request::allreduce("", DType::F32, vec![], ReduceOp::Sum), Some(reason.clone())),
        };
        let ticket = reason.is_none().then(|| self.ticket(name));
        let text = self.names[name].clone();
        match (ticket, &reason) {
            (Some(ticket), _) => {
                let urgent = self.random.chance(1, 3);
                self.step(rank, Event::Submit { ticket, request: &request, urgent, deadline: None });
            }
            (None, Some(reason)) => self.step(rank, Event::SubmitFailed { name: &text, reason }),
            (None, None) => {}
        }
        Flight { ticket, what, withdrawn: false }
    }

    /// Joins now and then, and in the end if others wait for it.
    pub(super) fn program_join(&mut self, rank: usize) -> bool {
        let state = &self.ranks[rank];
        let done = state.ended.iter().all(|ended| *ended >= self.calls) && state.flights.iter().all(Option::is_none);
        let awaited = done && self.ranks.iter().any(|rank| rank.join.is_some() && rank.joined >= state.joined);
        // Two ranks that join with different names in flight would wait for each other.
        let closing = |rank: &Rank| rank.join.is_some() && rank.flights.iter().flatten().any(|f| f.ticket.is_some());
        let busy = state.flights.iter().any(Option::is_some) && self.ranks.iter().any(closing);
        if state.join.is_some() || busy || !(awaited || self.random.chance(1, 40)) {
            return false;
        }
        let ticket = self.ticket(usize::MAX);
        self.ranks[rank].join = Some(ticket);
        self.oracle.joins.called[rank] = true;
        self.step(rank, Event::Join { ticket, deadline: None });
        true
    }

    pub(super) fn submit_twice(&mut self, rank: usize, name: usize) {
        let actions = self.submit_refused(rank, name);
        assert!(matches!(&actions[..], [Action::Fail { error: Error::Argument(_), .. }]), "{actions:?}");
    }

    pub(super) fn submit_refused(&mut self, rank: usize, name: usize) -> Vec<Action> {
        let ticket = self.ticket(name);
        let request = Request::allreduce(self.names[name].as_str(), DType::F32, vec![1], ReduceOp::Sum);
        let event = Event::Submit { ticket, request: &request, urgent: false, deadline: None };
        self.step_for(rank, event)
    }

    pub(super) fn withdraw(&mut self, rank: usize, name: usize, ticket: Ticket) {
        if let Some(flight) = &mut self.ranks[rank].flights[name] {
            flight.withdrawn = true;
        }
        let actions = self.step_for(rank, Event::Withdraw { ticket });
        let frame = actions.iter().find_map(|action| match action {
            Action::PublishRequest(frame) => Some(frame.clone()),
            _ => None,
        });
        self.oracle.withdraw(rank, name, &frame.expect("a withdrawal is published"));
        self.ranks[rank].actions.extend(actions);
    }
}
