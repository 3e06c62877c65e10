//! Ranks, the glue that a real runtime would be, and a scheduler that picks who does what.

mod entry;
mod glue;
mod program;
mod stall;

use std::collections::VecDeque;
use std::time::Duration;

use super::Random;
use super::memory::Memory;
use super::oracle::{Oracle, Seen, What};
use crate::coordinator::{Action, Coordinator, Event, Params, Ticket, Topology};
use crate::error::Error;

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
        let mut random = Random::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
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
            retries: Random::new(!seed).chance(1, 4),
            joins: !idle.contains(&true) && Random::new(seed ^ 0x6a6f_696e).chance(1, 3),
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
        self.now += Duration::from_nanos(self.random.any() % 20_000);
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
}
