//! Ranks, the glue that a real runtime would be, and a scheduler that picks who does what.

mod stall;

use std::collections::VecDeque;
use std::time::Duration;

use super::Random;
use super::memory::Memory;
use super::oracle::{Oracle, Outcome, Seen, State, What};
use crate::coordinator::request::Request;
use crate::coordinator::{Action, Coordinator, Event, MAX_FRAME, Params, Ticket, Topology};
use crate::error::Error;
use crate::tensor::{DType, ReduceOp};

/// A submission of a rank that has not ended.
#[derive(Clone, Debug)]
struct Flight {
    ticket: Option<Ticket>,
    what: What,
    withdrawn: bool,
}

/// What the glue does next in a round.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Log,
    Rings,
    Words,
    Tick,
}

struct Rank {
    coordinator: Coordinator,
    host: usize,
    member: usize,
    /// Actions not carried out yet: a thread may lose its core between any two.
    actions: VecDeque<Action>,
    /// Frames that wait for room in the ring.
    frames: VecDeque<Vec<u8>>,
    phase: Phase,
    position: u64,
    flights: Vec<Option<Flight>>,
    parked: Vec<Option<Flight>>,
    /// Calls of each name that ended by a run or a failure.
    ended: Vec<usize>,
    batches: Vec<(u64, Vec<usize>)>,
    /// Its join, if it has called for one.
    join: Option<Ticket>,
    /// Joins that ended.
    joined: usize,
    /// Sleeps until then.
    late: usize,
}

pub(super) struct World {
    seed: u64,
    random: Random,
    now: Duration,
    params: Params,
    hosts: Vec<Vec<u32>>,
    memories: Vec<Memory>,
    watchers: Vec<Vec<bool>>,
    /// `[from][to]`
    channels: Vec<Vec<VecDeque<Vec<u8>>>>,
    ranks: Vec<Rank>,
    oracle: Oracle,
    names: Vec<String>,
    calls: usize,
    /// The name of each ticket.
    owners: Vec<usize>,
    ring: usize,
    withdrawals: bool,
    faults: bool,
    /// A rank whose call was refused goes on with its next one, without waiting for the peers to come.
    retries: bool,
    /// Ranks join, now and then, with whatever is in flight.
    joins: bool,
    /// A rank found that it had withdrawn what ran.
    poisoned: bool,
    /// These ranks submit nothing after the chaos; they only look after what others say.
    idle: Vec<bool>,
    /// Nobody submits or withdraws anything any more.
    still: bool,
    warnings: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let host_count = if random.chance(1, 2) { 1 } else { random.between(2, 4) };
        let size = random.between(host_count, 8);
        // Ranks are dealt to hosts at random, each host gets one.
        let mut hosts: Vec<Vec<u32>> = vec![Vec::new(); host_count];
        for rank in 0..size {
            let host = if rank < host_count { rank } else { random.below(host_count) };
            hosts[host].push(rank as u32);
        }
        let long = random.chance(1, 8);
        let count = random.between(1, 9);
        let names: Vec<String> =
            (0..count).map(|n| format!("t{n}{}", if long { "x".repeat(480) } else { String::new() })).collect();
        let params = Params {
            capacity: if random.chance(1, 2) { random.between(1, 4) } else { 64 },
            max_entry: 4096,
            max_message: 4096 + 64,
            fusion_bytes: if random.chance(1, 3) { 40 } else { 1 << 20 },
            evict_after: random.below(6) as u64,
            stall_warn: Duration::from_secs(4),
            stall_deadline: Duration::from_secs(6),
            ..Params::default()
        };
        let stalls = random.chance(1, 6);
        let idle: Vec<bool> = (0..size).map(|_| stalls && random.chance(1, 3)).collect();
        let mut ranks: Vec<Rank> = Vec::new();
        for me in 0..size as u32 {
            let topology =
                Topology { hosts: hosts.clone(), global: (0..size as u32).map(|rank| 100 + rank).collect(), me };
            let host = hosts.iter().position(|members| members.contains(&me)).expect("every rank has a host");
            ranks.push(Rank {
                coordinator: Coordinator::new(params.clone(), topology).expect("a good topology"),
                host,
                member: hosts[host].iter().position(|rank| *rank == me).expect("a member"),
                actions: VecDeque::new(),
                frames: VecDeque::new(),
                phase: Phase::Log,
                position: 0,
                flights: vec![None; count],
                parked: vec![None; count],
                ended: vec![0; count],
                batches: Vec::new(),
                join: None,
                joined: 0,
                late: if random.chance(1, 5) { random.below(400) } else { 0 },
            });
        }
        let watchers = hosts
            .iter()
            .map(|members| members.iter().map(|rank| ranks[*rank as usize].coordinator.watches_peers()).collect())
            .collect();
        Self {
            seed,
            now: Duration::from_secs(1),
            memories: hosts.iter().map(|members| Memory::new(members.len(), 1)).collect(),
            watchers,
            channels: vec![vec![VecDeque::new(); host_count]; host_count],
            oracle: Oracle::new(size, names.clone()),
            names,
            calls: random.between(1, 12),
            owners: Vec::new(),
            ring: random.between(1, 6),
            withdrawals: random.chance(1, 4),
            faults: random.chance(1, 2),
            // Not of the other dice, so that the programs of kept seeds stay what they were.
            retries: Random(!seed).chance(1, 4),
            joins: !idle.contains(&true) && Random(seed ^ 0x6a6f_696e).chance(1, 3),
            poisoned: false,
            idle,
            still: false,
            warnings: Vec::new(),
            hosts,
            params,
            ranks,
            random,
        }
    }

    /// What `rank` submits as the `call`-th of a name: equal for all, but where the seed says otherwise.
    fn plan(&self, name: usize, call: usize, rank: usize) -> What {
        let mut dice = Random(self.seed ^ (name as u64) << 40 ^ (call as u64) << 20);
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

    fn is_done(&self) -> bool {
        self.ranks.iter().all(|rank| {
            rank.ended.iter().all(|ended| *ended >= self.calls)
                && rank.flights.iter().chain(&rank.parked).all(Option::is_none)
                && rank.join.is_none()
        })
    }

    pub(super) fn run(mut self) -> Seen {
        let chaos = self.random.between(500, 6000);
        for pick in 0..chaos {
            let rank = self.random.below(self.ranks.len());
            if self.ranks[rank].late <= pick {
                self.act(rank);
            }
            if self.poisoned || (pick % 16 == 0 && self.is_done()) {
                break;
            }
        }
        for memory in &mut self.memories {
            memory.fair = true;
        }
        if self.idle.contains(&true) && !self.poisoned {
            if self.stall() {
                return self.oracle.seen;
            }
            // Refused calls at most are left, and they end as soon as the others come.
            self.idle.fill(false);
            self.still = false;
        }
        for round in 0.. {
            if self.poisoned || self.is_done() {
                break;
            }
            assert!(round < 4000, "deadlock: {}", self.describe());
            for rank in 0..self.ranks.len() {
                for _ in 0..12 {
                    self.act(rank);
                    if self.poisoned {
                        break;
                    }
                }
            }
        }
        if self.poisoned {
            self.finish_poisoned()
        } else {
            self.finish()
        }
        self.oracle.seen
    }

    fn finish(&mut self) {
        // Everyone catches up with the log, and nothing is left anywhere.
        for _ in 0..200 {
            for rank in 0..self.ranks.len() {
                self.drive(rank);
            }
        }
        for (index, rank) in self.ranks.iter().enumerate() {
            assert_eq!(rank.batches, self.oracle.batches, "batches of rank {index}");
            assert_eq!(rank.coordinator.pending(), 0);
            assert_eq!(rank.coordinator.report(self.now).stalled, [], "rank {index}");
        }
    }

    fn finish_poisoned(&mut self) {
        self.oracle.seen.poisoned += 1;
        let error = Error::Poisoned("a peer poisoned the set".into());
        for rank in 0..self.ranks.len() {
            let mut actions = Vec::new();
            let coordinator = &mut self.ranks[rank].coordinator;
            coordinator.step(self.now, Event::Poisoned(&error), &mut actions);
            assert_eq!(coordinator.pending(), 0);
            let mut failed: Vec<Ticket> = actions
                .into_iter()
                .map(|action| match action {
                    Action::Fail { ticket, error: Error::Poisoned(_) } => ticket,
                    other => panic!("poison on rank {rank} gives {other:?}"),
                })
                .collect();
            let flights = self.ranks[rank].flights.iter().chain(&self.ranks[rank].parked);
            let mut pending: Vec<Ticket> = flights.flatten().filter_map(|flight| flight.ticket).collect();
            pending.extend(self.ranks[rank].join);
            failed.sort_unstable();
            pending.sort_unstable();
            assert_eq!(failed, pending, "rank {rank}");
            let done = &self.oracle.batches[..self.ranks[rank].batches.len()];
            assert_eq!(self.ranks[rank].batches, done, "batches of rank {rank}");
        }
    }

    fn describe(&self) -> String {
        let mut text = format!("log of {}", self.oracle.log.len());
        for (index, rank) in self.ranks.iter().enumerate() {
            text += &format!(
                "\nrank {index}: host {} position {} ended {:?} join {:?} flights {:?} parked {:?}",
                rank.host, rank.position, rank.ended, rank.join, rank.flights, rank.parked
            );
        }
        text
    }

    fn act(&mut self, rank: usize) {
        if self.ranks[rank].late == usize::MAX {
            return;
        }
        self.now += Duration::from_nanos(self.random.next() % 20_000);
        if let Some(action) = self.ranks[rank].actions.pop_front() {
            return self.carry_out(rank, action);
        }
        let silent = self.still || (self.idle[rank] && self.memories[0].fair);
        if !silent && self.random.chance(2, 5) {
            self.program(rank);
        } else {
            self.drive(rank);
        }
    }

    fn ticket(&mut self, name: usize) -> Ticket {
        self.owners.push(name);
        Ticket(self.owners.len() as u64 - 1)
    }

    fn program(&mut self, rank: usize) {
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

    fn submit(&mut self, rank: usize, name: usize, call: usize) -> Flight {
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
    fn program_join(&mut self, rank: usize) -> bool {
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

    fn submit_twice(&mut self, rank: usize, name: usize) {
        let actions = self.submit_refused(rank, name);
        assert!(matches!(&actions[..], [Action::Fail { error: Error::Argument(_), .. }]), "{actions:?}");
    }

    fn submit_refused(&mut self, rank: usize, name: usize) -> Vec<Action> {
        let ticket = self.ticket(name);
        let request = Request::allreduce(self.names[name].as_str(), DType::F32, vec![1], ReduceOp::Sum);
        let event = Event::Submit { ticket, request: &request, urgent: false, deadline: None };
        self.step_for(rank, event)
    }

    fn withdraw(&mut self, rank: usize, name: usize, ticket: Ticket) {
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

    fn step_for(&mut self, rank: usize, event: Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.ranks[rank].coordinator.step(self.now, event, &mut actions);
        actions
    }

    /// Steps where nothing may end.
    fn step(&mut self, rank: usize, event: Event<'_>) {
        let actions = self.step_for(rank, event);
        for action in &actions {
            match action {
                Action::Run(_) | Action::Fail { .. } | Action::Poison(_) => panic!("{event:?} gives {action:?}"),
                _ => {}
            }
        }
        self.ranks[rank].actions.extend(actions);
    }

    fn carry_out(&mut self, rank: usize, action: Action) {
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

    fn publish(&mut self, rank: usize) {
        let (host, member) = (self.ranks[rank].host, self.ranks[rank].member);
        while self.memories[host].unread(member, &self.watchers[host]) < self.ring {
            let Some(frame) = self.ranks[rank].frames.pop_front() else { return };
            self.memories[host].publish(member, frame);
        }
    }

    /// A part of a round of the glue.
    fn drive(&mut self, rank: usize) {
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

    /// An entry comes up at a rank: exactly what the oracle says must end there.
    fn process(&mut self, rank: usize, index: u64, bytes: &[u8]) {
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
    fn process_timeout(&mut self, rank: usize, index: u64, bytes: &[u8], name: usize) {
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

    fn check_poison(&mut self, rank: usize, index: u64, actions: Vec<Action>) {
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
