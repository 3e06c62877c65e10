//! One test a rule, on a small network whose memory is immediate; `sim` covers the orders in which things can be seen.

mod fuzz;
mod hostile;
mod hosts;
mod join;
mod rules;
mod stalls;

use std::collections::VecDeque;
use std::time::Duration;

use super::{Action, Batch, Coordinator, Event, Params, Request, Ticket, Topology};
use crate::error::Error;
use crate::tensor::{DType, ReduceOp};

/// Ranks with their hosts' memory. Global ranks are set ranks plus 10.
struct Net {
    ranks: Vec<Coordinator>,
    hosts: Vec<Vec<u32>>,
    now: Duration,
    words: Vec<Vec<u64>>,
    rings: Vec<Vec<Vec<u8>>>,
    /// `[reader][writer]`
    read: Vec<Vec<usize>>,
    logs: Vec<Vec<Vec<u8>>>,
    position: Vec<usize>,
    channels: Vec<Vec<VecDeque<Vec<u8>>>>,
    batches: Vec<Vec<Batch>>,
    failed: Vec<Vec<(Ticket, Error)>>,
    poisons: Vec<Vec<Error>>,
    warnings: Vec<Vec<String>>,
    /// Joins that ended: the ticket, and the last rank to join.
    joins: Vec<Vec<(u64, u32)>>,
    summons: Vec<usize>,
    /// These ranks do nothing in `settle`.
    asleep: Vec<bool>,
    /// Messages between hosts stay where they are.
    held: bool,
}

fn f32s(name: &str, n: usize) -> Request {
    Request::allreduce(name, DType::F32, vec![n], ReduceOp::Sum)
}

impl Net {
    fn new(layout: &[usize], params: Params) -> Self {
        let size: usize = layout.iter().sum();
        let mut next = 0;
        let hosts: Vec<Vec<u32>> = layout
            .iter()
            .map(|n| {
                next += *n as u32;
                (next - *n as u32..next).collect()
            })
            .collect();
        let ranks = (0..size as u32)
            .map(|me| {
                let global = (10..10 + size as u32).collect();
                Coordinator::new(params.clone(), Topology { hosts: hosts.clone(), global, me }).unwrap()
            })
            .collect();
        Self {
            ranks,
            now: Duration::from_secs(1),
            words: vec![vec![0; params.capacity.div_ceil(64)]; size],
            rings: vec![Vec::new(); size],
            read: vec![vec![0; size]; size],
            logs: vec![Vec::new(); hosts.len()],
            position: vec![0; size],
            channels: vec![vec![VecDeque::new(); hosts.len()]; hosts.len()],
            batches: vec![Vec::new(); size],
            failed: vec![Vec::new(); size],
            poisons: vec![Vec::new(); size],
            warnings: vec![Vec::new(); size],
            joins: vec![Vec::new(); size],
            summons: vec![0; size],
            asleep: vec![false; size],
            held: false,
            hosts,
        }
    }

    fn one_host(size: usize) -> Self {
        Self::new(&[size], Params { window: Duration::ZERO, ..Params::default() })
    }

    fn size(&self) -> usize {
        self.ranks.len()
    }

    fn host(&self, rank: usize) -> usize {
        self.hosts.iter().position(|members| members.contains(&(rank as u32))).unwrap()
    }

    fn step(&mut self, rank: usize, event: Event<'_>) -> usize {
        let mut actions = Vec::new();
        self.ranks[rank].step(self.now, event, &mut actions);
        let count = actions.iter().filter(|action| !matches!(action, Action::WakeAt(_))).count();
        let host = self.host(rank);
        for action in actions {
            match action {
                Action::PublishRequest(bytes) => self.rings[rank].push(bytes),
                Action::SetBits { word, bits } => self.words[rank][word] = bits,
                Action::Propose { index, bytes } => {
                    if self.logs[host].len() as u64 == index {
                        self.logs[host].push(bytes);
                    }
                }
                Action::Run(batch) => self.batches[rank].push(batch),
                Action::Joined { ticket, last, .. } => self.joins[rank].push((ticket.0, last)),
                Action::Fail { ticket, error } => self.failed[rank].push((ticket, error)),
                Action::Poison(error) => self.poisons[rank].push(error),
                Action::Warn { text, news, .. } => self.warnings[rank].extend(news.then_some(text)),
                Action::SendHost { host: to, bytes } => self.channels[host][to].push_back(bytes),
                Action::Summon => self.summons[rank] += 1,
                Action::Executed(_) | Action::WakeAt(_) => {}
            }
        }
        count
    }

    fn submit(&mut self, rank: usize, ticket: u64, request: &Request) {
        self.step(rank, Event::Submit { ticket: Ticket(ticket), request, urgent: false, deadline: None });
    }

    /// The same submission on every rank, ticket as given.
    fn submit_all(&mut self, ticket: u64, request: &Request) {
        for rank in 0..self.size() {
            self.submit(rank, ticket, request);
        }
    }

    fn round(&mut self, rank: usize) -> usize {
        let host = self.host(rank);
        let mut done = 0;
        while let Some(bytes) = self.logs[host].get(self.position[rank]).cloned() {
            self.position[rank] += 1;
            done += 1 + self.step(rank, Event::Entry { index: self.position[rank] as u64 - 1, bytes: &bytes });
        }
        let members = self.hosts[host].clone();
        let me = members.iter().position(|member| *member as usize == rank).unwrap();
        if self.ranks[rank].watches_peers() {
            for (member, writer) in members.iter().enumerate().filter(|(member, _)| *member != me) {
                let writer = *writer as usize;
                while let Some(bytes) = self.rings[writer].get(self.read[rank][writer]).cloned() {
                    self.read[rank][writer] += 1;
                    done += 1 + self.step(rank, Event::PeerRequest { member, bytes: &bytes });
                }
            }
            for (member, writer) in members.iter().enumerate() {
                for word in 0..self.ranks[rank].words_in_use() {
                    let bits = self.words[*writer as usize][word];
                    self.step(rank, Event::PeerBits { member, word, bits });
                }
            }
        }
        if me == 0 && !self.held {
            for from in 0..self.hosts.len() {
                while let Some(bytes) = self.channels[from][host].pop_front() {
                    done += 1 + self.step(rank, Event::HostMessage { host: from, bytes: &bytes });
                }
            }
        }
        done + self.step(rank, Event::Tick)
    }

    /// Rounds until nothing happens any more.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let awake: Vec<usize> = (0..self.size()).filter(|rank| !self.asleep[*rank]).collect();
            if awake.into_iter().map(|rank| self.round(rank)).sum::<usize>() == 0 {
                return;
            }
        }
        panic!("the network does not come to rest");
    }

    fn later(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    /// Lets time pass in the steps of the scan.
    fn pass(&mut self, millis: u64) {
        for _ in 0..millis.div_ceil(50) {
            self.later(50);
            self.settle();
        }
    }

    /// Tickets that ran, batch by batch.
    fn ran(&self, rank: usize) -> Vec<Vec<u64>> {
        self.batches[rank].iter().map(|batch| batch.items.iter().map(|item| item.ticket.0).collect()).collect()
    }

    /// How the tickets failed, in words.
    fn failures(&self, rank: usize) -> Vec<(u64, String)> {
        self.failed[rank].iter().map(|(ticket, error)| (ticket.0, error.to_string())).collect()
    }

    fn all_ran(&self, expected: &[&[u64]]) {
        for rank in 0..self.size() {
            assert_eq!(self.ran(rank), expected, "rank {rank}");
            assert!(self.failed[rank].is_empty(), "rank {rank}: {:?}", self.failed[rank]);
        }
    }
}
