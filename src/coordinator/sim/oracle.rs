//! Knows everything: checks each entry against what the ranks really want at the moment it is installed.

use std::collections::BTreeMap;

use crate::coordinator::entry::{self, Item, RunItem};
use crate::coordinator::frame::{self, Body, Target};
use crate::coordinator::request::Request;
use crate::coordinator::wire::Take;

/// What a rank submitted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    Request(Request),
    Invalid(String),
}

impl What {
    pub(super) fn view(&self) -> String {
        match self {
            Self::Request(request) => request.describe(),
            Self::Invalid(reason) => format!("refused there: {reason}"),
        }
    }
}

/// How an entry ended a submission.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Ran,
    Failed(Vec<(u32, String)>),
    Cancelled,
}

/// The joins of the ranks.
#[derive(Debug, Default)]
pub(super) struct Joins {
    /// Called for, with no submission left but refused ones.
    pub(super) called: Vec<bool>,
    /// As the log says.
    joined: Vec<bool>,
    /// Entries that ended all joins, with the rank that was the last.
    pub(super) ended: Vec<(u64, u32)>,
    /// `[rank]`: entries that ran a name without it.
    pub(super) sat_out: Vec<Vec<(u64, usize)>>,
    /// Of each batch.
    pub(super) contributors: Vec<u32>,
}

/// One rank's submission of one name.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    Idle,
    Live(What),
    /// Withdrawn; the slot if it was a bit.
    Withdrawing(What, Option<u32>),
    /// Ended by the entry of this index, which the rank has not processed.
    Taken(u64, Outcome),
}

#[derive(Debug)]
pub(super) struct Oracle {
    names: Vec<String>,
    /// `[rank][name]`
    pub(super) state: Vec<Vec<State>>,
    slots: BTreeMap<u32, (usize, Request)>,
    pub(super) log: Vec<Vec<u8>>,
    /// Names of each batch in log order.
    pub(super) batches: Vec<(u64, Vec<usize>)>,
    /// Entries that held each kind of item, to see that the runs get everywhere.
    pub(super) seen: Seen,
    /// An entry runs what a rank has withdrawn: that rank poisons the set when it gets there, and later entries count no more.
    doomed: bool,
    /// The entry that gave up on a name: the set ends there.
    pub(super) timed_out: Option<(u64, usize)>,
    checked: u64,
    evictions: Vec<(u64, u32)>,
    pub(super) joins: Joins,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) cached: u64,
    pub(super) assigned: u64,
    pub(super) reassigned: u64,
    pub(super) uncached: u64,
    pub(super) evicted: u64,
    pub(super) failed: u64,
    pub(super) withdrawn: u64,
    pub(super) poisoned: u64,
    pub(super) lost: u64,
    pub(super) timed_out: u64,
    pub(super) retried: u64,
    pub(super) joined: u64,
    pub(super) sat_out: u64,
    pub(super) rootless: u64,
}

impl Oracle {
    pub(super) fn new(ranks: usize, names: Vec<String>) -> Self {
        Self {
            state: vec![vec![State::Idle; names.len()]; ranks],
            names,
            slots: BTreeMap::new(),
            log: Vec::new(),
            batches: Vec::new(),
            seen: Seen::default(),
            doomed: false,
            timed_out: None,
            checked: 0,
            evictions: Vec::new(),
            joins: Joins {
                called: vec![false; ranks],
                joined: vec![false; ranks],
                sat_out: vec![Vec::new(); ranks],
                ..Joins::default()
            },
        }
    }

    /// Whether the entry was checked, and ranks can be held to it.
    pub(super) fn counts(&self, index: u64) -> bool {
        index < self.checked
    }

    fn name(&self, name: &str) -> usize {
        self.names.iter().position(|n| n == name).unwrap_or_else(|| panic!("an entry names '{name}'"))
    }

    pub(super) fn submit(&mut self, rank: usize, name: usize, what: What) {
        assert_eq!(self.state[rank][name], State::Idle, "rank {rank} submits {name} again");
        assert!(!self.joins.joined[rank], "rank {rank} has joined");
        self.state[rank][name] = State::Live(what);
    }

    /// `frame` is what the rank published to take its submission back.
    pub(super) fn withdraw(&mut self, rank: usize, name: usize, frame: &[u8]) {
        let Some(frame::Frame { body: Body::Withdraw { target, .. }, as_of }) = frame::parse(frame) else {
            panic!("a withdrawal publishes another frame")
        };
        let slot = match target {
            Target::Slot(slot) => Some(slot),
            Target::Name(_) => None,
        };
        match &self.state[rank][name] {
            State::Live(what) => {
                // An eviction that is on its way to the rank confirms it.
                let evicted = self.evictions.iter().find(|(index, of)| Some(*of) == slot && *index >= as_of);
                self.state[rank][name] = match evicted {
                    Some((index, _)) => State::Taken(*index, Outcome::Cancelled),
                    None => State::Withdrawing(what.clone(), slot),
                };
            }
            State::Taken(_, Outcome::Ran) => self.doomed = true,
            _ => {}
        }
    }

    pub(super) fn install(&mut self, index: u64, bytes: &[u8], size: usize, max_entry: usize) {
        assert_eq!(index, self.log.len() as u64);
        assert!(bytes.len() <= max_entry, "entry {index} has {} bytes", bytes.len());
        self.log.push(bytes.to_vec());
        if self.doomed {
            return;
        }
        self.checked = index + 1;
        let mut take = Take::new(bytes);
        assert_eq!(take.u8(), Some(entry::VERSION));
        assert!(!take.is_empty(), "entry {index} is empty");
        while !take.is_empty() {
            match entry::take_item(&mut take, size).expect("an entry that can be read") {
                Item::Run { count } => {
                    assert!(count > 0);
                    let mut names = Vec::new();
                    for _ in 0..count {
                        let item = entry::take_run_item(&mut take).expect("an item that can be read");
                        names.push(self.run(index, item));
                    }
                    self.batches.push((index, names));
                    let contributors = self.joins.joined.iter().filter(|joined| !**joined).count();
                    self.joins.contributors.push(contributors as u32);
                }
                Item::Evict { slot } => {
                    self.seen.evicted += 1;
                    let (name, _) = self.slots.remove(&slot).expect("an evicted slot is taken");
                    self.evictions.push((index, slot));
                    self.cancel_bits(index, name, slot);
                }
                Item::Withdraw { rank, target, .. } => {
                    self.seen.withdrawn += 1;
                    let (name, form) = match target {
                        Target::Slot(slot) => (self.slots[&slot].0, Some(slot)),
                        Target::Name(name) => (self.name(name), None),
                    };
                    let state = &mut self.state[rank as usize][name];
                    assert!(
                        matches!(state, State::Withdrawing(_, slot) if *slot == form),
                        "entry {index} withdraws {name} of rank {rank}, which is {state:?}"
                    );
                    *state = State::Taken(index, Outcome::Cancelled);
                }
                Item::Fail { name, .. } => self.fail(index, name),
                Item::Joined { rank } => self.join(index, rank as usize),
                Item::Timeout { name, missing, silent, .. } => {
                    let name = self.name(name);
                    let (present, late) = self.attendance(name);
                    assert!(!present.is_empty() && !late.is_empty(), "entry {index} gives up on {name} for no reason");
                    assert_eq!(missing, late, "entry {index} gives up on {name}");
                    assert_eq!(silent, [], "everybody answers");
                    self.timed_out.get_or_insert((index, name));
                    self.seen.timed_out += 1;
                }
            }
        }
    }

    /// The ranks that submitted a name, and those that did not.
    fn attendance(&self, name: usize) -> (Vec<u32>, Vec<u32>) {
        let live = |rank: &u32| matches!(self.state[*rank as usize][name], State::Live(_));
        (0..self.state.len() as u32).filter(|rank| !self.joins.joined[*rank as usize]).partition(live)
    }

    /// Names that wait for ranks, each as a warning must list it.
    pub(super) fn stalled(&self) -> Vec<String> {
        let words = |ranks: &[u32]| {
            let runs = ranks.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
                [one] => format!("{}", 100 + one),
                run => format!("{}-{}", 100 + run[0], 100 + run[run.len() - 1]),
            });
            let plural = if ranks.len() == 1 { "" } else { "s" };
            format!("rank{plural} {}", runs.collect::<Vec<_>>().join(", "))
        };
        let line = |name: usize| {
            let (present, late) = self.attendance(name);
            let stalls = !present.is_empty() && !late.is_empty();
            stalls.then(|| format!("'{}': submitted by {}; not by {}", self.names[name], words(&present), words(&late)))
        };
        (0..self.names.len()).filter_map(line).collect()
    }

    fn cancel_bits(&mut self, index: u64, name: usize, slot: u32) {
        for rank in &mut self.state {
            if matches!(&rank[name], State::Withdrawing(_, Some(bit)) if *bit == slot) {
                rank[name] = State::Taken(index, Outcome::Cancelled);
            }
        }
    }

    fn run(&mut self, index: u64, item: RunItem) -> usize {
        let (name, request) = match item {
            RunItem::Cached { slot } => {
                self.seen.cached += 1;
                self.slots.get(&slot).expect("a cached slot is taken").clone()
            }
            RunItem::New { request, slot } => {
                let name = self.name(&request.name);
                match slot {
                    Some(slot) => match self.slots.insert(slot, (name, request.clone())) {
                        Some((old, _)) => {
                            assert_eq!(old, name, "entry {index} gives slot {slot} away twice");
                            self.seen.reassigned += 1;
                        }
                        None => self.seen.assigned += 1,
                    },
                    None => self.seen.uncached += 1,
                }
                (name, request)
            }
        };
        let root = request.spec.kind.root();
        assert!(
            root.is_none_or(|root| !self.joins.joined[root as usize]),
            "entry {index} runs {name} without its root"
        );
        let wanted = What::Request(request);
        for (rank, state) in self.state.iter_mut().enumerate() {
            if self.joins.joined[rank] {
                assert!(matches!(state[name], State::Idle | State::Taken(..)), "entry {index}: rank {rank} {state:?}");
                self.joins.sat_out[rank].push((index, name));
                self.seen.sat_out += 1;
                continue;
            }
            match &state[name] {
                State::Live(what) | State::Withdrawing(what, _) => {
                    assert_eq!(*what, wanted, "entry {index} runs {name} on rank {rank}");
                    self.doomed |= matches!(state[name], State::Withdrawing(..));
                }
                other => panic!("entry {index} runs {name}, but rank {rank} is {other:?}"),
            }
            state[name] = State::Taken(index, Outcome::Ran);
        }
        name
    }

    fn join(&mut self, index: u64, rank: usize) {
        let idle = |state: &State| matches!(state, State::Idle | State::Live(What::Invalid(_)) | State::Taken(..));
        assert!(self.joins.called[rank] && !self.joins.joined[rank], "entry {index}: rank {rank} did not join");
        assert!(self.state[rank].iter().all(idle), "entry {index}: rank {rank} joins with {:?}", self.state[rank]);
        self.joins.joined[rank] = true;
        self.seen.joined += 1;
        if self.joins.joined.iter().all(|joined| *joined) {
            self.joins.joined.fill(false);
            self.joins.called.fill(false);
            self.joins.ended.push((index, 100 + rank as u32));
        }
    }

    fn fail(&mut self, index: u64, name: &str) {
        self.seen.failed += 1;
        let name = self.name(name);
        let whats: Vec<Option<What>> = self
            .state
            .iter()
            .zip(&self.joins.joined)
            .map(|(rank, joined)| match &rank[name] {
                State::Live(what) | State::Withdrawing(what, _) => Some(what.clone()),
                _ if *joined => None,
                other => panic!("entry {index} fails {name}, but a rank is {other:?}"),
            })
            .collect();
        let said: Vec<&What> = whats.iter().flatten().collect();
        let rootless = said.iter().any(|what| match what {
            What::Request(request) => request.spec.kind.root().is_some_and(|root| self.joins.joined[root as usize]),
            What::Invalid(_) => false,
        });
        self.seen.rootless += u64::from(rootless);
        assert!(
            rootless || said.iter().any(|what| *what != said[0] || matches!(what, What::Invalid(_))),
            "entry {index} fails {name}, but all agree on {whats:?}"
        );
        let view = |what: &Option<What>| what.as_ref().map_or("has joined: it has no more data".to_owned(), What::view);
        let views: Vec<_> = whats.iter().enumerate().map(|(rank, what)| (100 + rank as u32, view(what))).collect();
        for (rank, what) in self.state.iter_mut().zip(&whats) {
            if what.is_some() {
                rank[name] = State::Taken(index, Outcome::Failed(views.clone()));
            }
        }
        // A joined rank has no part in it, but counts it.
        for (rank, _) in whats.iter().enumerate().filter(|(_, what)| what.is_none()) {
            self.joins.sat_out[rank].push((index, name));
        }
        self.slots.retain(|_, (held, _)| *held != name);
    }
}
