//! From recordings to the first operation in which the ranks part. Pure.
//!
//! Two orders are compared. Where operations have places (communicators, and named operations once the ranks have agreed), a
//! rank that has nothing at a place, and nothing beyond it, did not come that far. Where they have none yet, a name that some
//! ranks have submitted and others have not is what the former wait for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{End, Operation, Process, Reached, Recording, Set};
use crate::error::{Error, Result};
use crate::event::Verb;
use crate::tensor::{DType, ReduceOp};

/// What the recordings of a job say together.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The job's number.
    pub job: u128,
    /// Ranks of the job.
    pub size: u32,
    /// Each rank whose file was there.
    pub ranks: Vec<Standing>,
    /// Ranks of which there was no file.
    pub absent: Vec<u32>,
    /// Where the ranks part, the first first.
    pub divergences: Vec<Divergence>,
}

/// How one rank stands.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Standing {
    /// The global rank.
    pub rank: u32,
    /// Its host.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// What that does.
    pub process: Process,
    /// How the rank ended.
    pub end: End,
    /// Operations in its file.
    pub recorded: usize,
    /// Those that were in flight at last.
    pub in_flight: usize,
    /// The last one, by when it was last heard of.
    pub last: Option<Operation>,
    /// How long before the last moment of any rank that was.
    pub age: Option<Duration>,
}

/// An operation in which ranks differ.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Divergence {
    /// How they differ.
    pub how: How,
    /// The set or communicator.
    pub set: Set,
    /// The operation in words.
    pub what: String,
    /// When the first of the ranks submitted it, since 1970.
    pub since: Duration,
    /// What each rank of the set, of which there is a file, has to say.
    pub views: Vec<View>,
    /// The global ranks that the others wait for, or that ask for something else. Empty if it cannot be told.
    pub culprits: Vec<u32>,
}

/// What a rank did about an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct View {
    /// The global rank.
    pub rank: u32,
    /// How far it came with it; `None` if it has no record of it.
    pub stage: Option<Reached>,
    /// What it asked for, or did instead.
    pub what: String,
}

/// How ranks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum How {
    /// Some ranks are in the operation, others have not come to it.
    Missing,
    /// They ask for different things.
    Different,
    /// All are in it, and not all have finished it.
    Unfinished,
}

impl How {
    /// It in a few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "not on all ranks",
            Self::Different => "ranks ask for different things",
            Self::Unfinished => "begun on all ranks, and not finished",
        }
    }
}

/// Compares what the ranks of one job recorded.
///
/// # Errors
/// [`Error::Argument`] if there is nothing to compare, or the recordings are of several jobs.
pub fn diagnose(recordings: &[Recording]) -> Result<Diagnosis> {
    let Some(first) = recordings.first() else {
        return Err(Error::argument("there are no flight records to compare; pass the directory of a job"));
    };
    if let Some(other) = recordings.iter().find(|r| (r.job, r.epoch, r.size) != (first.job, first.epoch, first.size)) {
        return Err(Error::argument(format!(
            "rank {}'s file is of job {:016x} and rank {}'s of job {:016x}; pass the files of one job",
            first.rank, first.job as u64, other.rank, other.job as u64
        )));
    }
    let mut ranks = BTreeMap::new();
    for recording in recordings {
        if ranks.insert(recording.rank, recording).is_some() {
            let text = format!("there are two files of rank {}; pass each directory once", recording.rank);
            return Err(Error::argument(text));
        }
    }
    let moment = recordings.iter().flat_map(|r| &r.operations).map(Operation::last).max().unwrap_or_default();
    let standings = ranks.values().map(|recording| standing(recording, moment)).collect();
    // A file that claims to be of a job of billions of ranks must not make us list them.
    let absent = (0..first.size).filter(|rank| !ranks.contains_key(rank)).take(MOST_ABSENT).collect();
    let mut divergences: Vec<Divergence> = teams(&ranks).iter().flat_map(Team::divergences).collect();
    divergences.sort_by(|a, b| a.since.cmp(&b.since).then_with(|| a.what.cmp(&b.what)));
    Ok(Diagnosis { job: first.job, size: first.size, ranks: standings, absent, divergences })
}

/// Absent ranks that are listed.
const MOST_ABSENT: usize = 4096;

fn standing(recording: &Recording, moment: Duration) -> Standing {
    let last = recording.operations.iter().max_by_key(|operation| (operation.last(), operation.number));
    Standing {
        rank: recording.rank,
        host: recording.host.clone(),
        pid: recording.pid,
        process: recording.process,
        end: recording.end.clone(),
        recorded: recording.operations.len(),
        in_flight: recording.operations.iter().filter(|operation| operation.stage.in_flight()).count(),
        last: last.cloned(),
        age: last.map(|operation| moment.saturating_sub(operation.last())),
    }
}

/// A set, and what each of its ranks did in it.
struct Team<'a> {
    set: Set,
    members: BTreeMap<u32, Member<'a>>,
}

struct Member<'a> {
    recording: &'a Recording,
    operations: Vec<&'a Operation>,
}

/// The sets of all ranks. Sets of the same number with other ranks are others.
fn teams<'a>(ranks: &BTreeMap<u32, &'a Recording>) -> Vec<Team<'a>> {
    let mut teams: BTreeMap<Set, BTreeMap<u32, Member<'a>>> = BTreeMap::new();
    for (&rank, recording) in ranks {
        let mut sets: BTreeMap<u32, Set> = recording.sets.iter().map(|set| (set.id, set.clone())).collect();
        let mut own: BTreeMap<u32, Vec<&Operation>> = BTreeMap::new();
        for operation in &recording.operations {
            own.entry(operation.set).or_default().push(operation);
        }
        for &id in own.keys() {
            // A set that found no room in the table: of all ranks that have operations of it.
            sets.entry(id).or_insert_with(|| Set {
                id,
                named: own[&id].iter().any(|operation| operation.hash != 0),
                ranks: users(ranks, id),
            });
        }
        for (id, set) in sets {
            let operations = own.remove(&id).unwrap_or_default();
            teams.entry(set).or_default().insert(rank, Member { recording, operations });
        }
    }
    teams.into_iter().map(|(set, members)| Team { set, members }).collect()
}

fn users(ranks: &BTreeMap<u32, &Recording>, id: u32) -> Vec<u32> {
    let uses = |recording: &&Recording| recording.operations.iter().any(|operation| operation.set == id);
    ranks.iter().filter(|(_, recording)| uses(recording)).map(|(&rank, _)| rank).collect()
}

impl Member<'_> {
    /// Whether an operation that is not in the file may have been done all the same.
    fn forgets(&self) -> bool {
        self.recording.lost > 0 || (self.recording.wrapped && self.operations.is_empty())
    }

    fn went_on_after(&self, failed: &Operation) -> bool {
        self.operations.iter().any(|one| one.number > failed.number && one.stage == Reached::Done)
    }

    /// Whether the rank will do nothing more: its process has ended or is stopped, and it did not leave in order.
    fn is_down(&self) -> bool {
        matches!(self.recording.process, Process::Ended | Process::Stopped) && self.recording.end == End::Open
    }
}

/// The operations of one place, by rank.
type Place<'a> = BTreeMap<u32, Vec<&'a Operation>>;

impl Team<'_> {
    fn divergences(&self) -> Vec<Divergence> {
        let mut found: Vec<Divergence> = self.in_order().into_iter().collect();
        if self.set.named {
            found.extend(self.not_agreed());
        }
        found.extend(self.messages());
        found
    }

    /// The first place in the set's order at which the ranks part.
    fn in_order(&self) -> Option<Divergence> {
        let mut places: BTreeMap<u64, Place<'_>> = BTreeMap::new();
        let mut furthest: HashMap<u32, u64> = HashMap::new();
        for (&rank, member) in &self.members {
            for operation in member.operations.iter().filter(|operation| !is_message(operation)) {
                let Some(place) = operation.place else { continue };
                places.entry(place).or_default().entry(rank).or_default().push(operation);
                let far = furthest.entry(rank).or_default();
                *far = place.max(*far);
            }
        }
        // What somebody finished after it did not keep the ranks apart.
        let done = |operations: &Vec<&Operation>| operations.iter().all(|operation| operation.stage == Reached::Done);
        let everywhere = |place: &&Place<'_>| place.len() == self.members.len() && place.values().all(done);
        let settled = places.iter().rev().find(|(_, place)| everywhere(place)).map(|(&at, _)| at);
        let unsettled = places.range(settled.map_or(0, |at| at.saturating_add(1))..);
        for (&at, place) in unsettled {
            let missing: Vec<u32> =
                self.members.keys().copied().filter(|rank| furthest.get(rank).is_none_or(|far| *far < at)).collect();
            // A rank that is further, and has no record of this place, forgot it.
            if let Some(divergence) = self.compare(place, &missing) {
                return Some(divergence);
            }
        }
        None
    }

    /// What is wrong at a place, where the ranks `missing` have not come yet.
    fn compare(&self, place: &Place<'_>, missing: &[u32]) -> Option<Divergence> {
        let known: Vec<u32> = missing.iter().copied().filter(|rank| !self.members[rank].forgets()).collect();
        let shape = |operations: &Vec<&Operation>| {
            let mut shapes: Vec<_> = operations.iter().map(|operation| shape(operation)).collect();
            shapes.sort();
            shapes
        };
        let mut shapes: BTreeMap<_, Vec<u32>> = BTreeMap::new();
        for (&rank, operations) in place {
            shapes.entry(shape(operations)).or_default().push(rank);
        }
        let open = |operations: &Vec<&Operation>| operations.iter().any(|operation| operation.stage != Reached::Done);
        let (how, culprits) = if !known.is_empty() {
            (How::Missing, known)
        } else if shapes.len() > 1 {
            (How::Different, minority(&shapes))
        } else if missing.is_empty() && place.values().any(open) {
            (How::Unfinished, self.stuck(place))
        } else {
            return None;
        };
        let first = place.values().flatten().min_by_key(|operation| (operation.submitted, operation.number))?;
        let batch = place.values().map(Vec::len).max().unwrap_or(1);
        let more = if batch > 1 { format!(" and {} more", batch - 1) } else { String::new() };
        Some(self.divergence(how, format!("{}{more}", title(first)), first.submitted, culprits, |rank| {
            place.get(&rank).and_then(|operations| operations.iter().min_by_key(|operation| operation.stage)).copied()
        }))
    }

    /// Of ranks that are all in an operation: those that keep it from ending.
    fn stuck(&self, place: &Place<'_>) -> Vec<u32> {
        let running = |rank: &u32| place.get(rank).is_some_and(|all| all.iter().any(|one| one.stage.in_flight()));
        let in_it: Vec<u32> = self.members.keys().copied().filter(running).collect();
        let down: Vec<u32> = in_it.iter().copied().filter(|rank| self.members[rank].is_down()).collect();
        // Whoever saw it fail was still there to see it.
        if in_it.len() < place.len() && !in_it.is_empty() {
            in_it
        } else if down.len() < in_it.len() {
            down
        } else {
            Vec::new()
        }
    }

    /// Names on which the ranks have not agreed, because some have not submitted them.
    fn not_agreed(&self) -> Vec<Divergence> {
        // The latest operation of each name on each rank.
        let mut latest: BTreeMap<u64, BTreeMap<u32, &Operation>> = BTreeMap::new();
        let mut furthest: HashMap<u32, u64> = HashMap::new();
        for (&rank, member) in &self.members {
            for &operation in &member.operations {
                latest.entry(operation.hash).or_default().insert(rank, operation);
                if let Some(place) = operation.place {
                    let far = furthest.entry(rank).or_default();
                    *far = place.max(*far);
                }
            }
        }
        let waits = |operation: &Operation| {
            operation.place.is_none() && matches!(operation.stage, Reached::Submitted | Reached::Failed)
        };
        let mut found = Vec::new();
        for by_rank in latest.values() {
            let waiting: Vec<(u32, &Operation)> = by_rank
                .iter()
                .filter(|(_, operation)| waits(operation))
                .map(|(&rank, operation)| (rank, *operation))
                .collect();
            let Some(&(_, first)) = waiting.iter().min_by_key(|(_, operation)| operation.submitted) else { continue };
            // A mistake that every rank was told of, and went on after.
            let survived = |(rank, operation): &(u32, &Operation)| {
                operation.stage == Reached::Failed && self.members[rank].went_on_after(operation)
            };
            if waiting.iter().all(survived) {
                continue;
            }
            // How far the waiting ranks have read the log: who agreed later did so with them.
            let read = waiting.iter().filter_map(|(rank, _)| furthest.get(rank)).max();
            let came = |rank: u32| {
                by_rank.get(&rank).is_some_and(|operation| {
                    waits(operation) || operation.place.is_some_and(|place| read.is_none_or(|read| place > *read))
                })
            };
            let missing: Vec<u32> = self.members.keys().copied().filter(|&rank| !came(rank)).collect();
            let mut shapes: BTreeMap<_, Vec<u32>> = BTreeMap::new();
            for &(rank, operation) in &waiting {
                shapes.entry(shape(operation)).or_default().push(rank);
            }
            if missing.is_empty() && waiting.len() < self.members.len() {
                // Others have agreed on it already: that is a place in the order.
                continue;
            }
            let (how, culprits) = if !missing.is_empty() {
                (How::Missing, missing.into_iter().filter(|rank| !self.members[rank].forgets()).collect())
            } else if shapes.len() > 1 {
                (How::Different, minority(&shapes))
            } else {
                let place = waiting.iter().map(|&(rank, operation)| (rank, vec![operation])).collect();
                (How::Unfinished, self.stuck(&place))
            };
            found.push(self.divergence(how, title(first), first.submitted, culprits, |rank| {
                by_rank.get(&rank).copied().filter(|_| came(rank))
            }));
        }
        found
    }

    /// The first message that one side waits for and the other does not.
    fn messages(&self) -> Option<Divergence> {
        let unfinished = |operation: &&Operation| is_message(operation) && operation.stage != Reached::Done;
        let mut open = Vec::new();
        for (&rank, member) in &self.members {
            // What came after a failed message went another way.
            if let Some(last) = member.operations.iter().rfind(|operation| is_message(operation)) {
                open.extend(Some((rank, *last)).filter(|(_, operation)| unfinished(operation)));
            }
        }
        let (rank, operation) = open.iter().min_by_key(|(_, operation)| operation.submitted).copied()?;
        let peer = operation.peer?;
        let answers = |&(other, theirs): &(u32, &Operation)| {
            other == peer && theirs.peer == Some(rank) && theirs.kind != operation.kind
        };
        let theirs = open.iter().find(|one| answers(one)).map(|(_, operation)| *operation);
        let culprits = match self.members.get(&peer) {
            Some(member) if theirs.is_none() && !member.forgets() => vec![peer],
            _ => Vec::new(),
        };
        let how = if theirs.is_none() { How::Missing } else { How::Unfinished };
        let pair = [rank, peer];
        let mut divergence =
            self.divergence(how, title(operation), operation.submitted, culprits, |other| match other {
                _ if other == rank => Some(operation),
                _ if other == peer => theirs,
                _ => None,
            });
        divergence.views.retain(|view| pair.contains(&view.rank));
        Some(divergence)
    }

    fn divergence<'b>(
        &self,
        how: How,
        what: String,
        since: Duration,
        culprits: Vec<u32>,
        of: impl Fn(u32) -> Option<&'b Operation>,
    ) -> Divergence {
        let view = |(&rank, member): (&u32, &Member<'_>)| match of(rank) {
            Some(operation) => View { rank, stage: Some(operation.stage), what: request(operation) },
            None => View { rank, stage: None, what: instead(member) },
        };
        Divergence { how, set: self.set.clone(), what, since, views: self.members.iter().map(view).collect(), culprits }
    }
}

/// What must be equal on all ranks. A root stands in it for the kinds that have one.
fn shape(operation: &Operation) -> Shape {
    let Operation { kind, hash, dtype, op, peer, .. } = *operation;
    Shape { kind, hash, dtype, op, bytes: compared_bytes(operation), peer }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    kind: &'static str,
    hash: u64,
    dtype: Option<DType>,
    op: Option<ReduceOp>,
    bytes: u64,
    peer: Option<u32>,
}

/// Ranks may bring tensors of different lengths to these.
fn compared_bytes(operation: &Operation) -> u64 {
    let free = [Verb::Allgather, Verb::Gather, Verb::Scatter, Verb::Alltoall, Verb::Sizes].map(Verb::name);
    if free.contains(&operation.kind) { 0 } else { operation.bytes }
}

fn is_message(operation: &Operation) -> bool {
    operation.kind == Verb::Send.name() || operation.kind == Verb::Receive.name()
}

/// The ranks that ask for what fewest ask for, if that can be told.
fn minority<S: Ord>(shapes: &BTreeMap<S, Vec<u32>>) -> Vec<u32> {
    let most = shapes.values().map(Vec::len).max().unwrap_or(0);
    let common: Vec<_> = shapes.values().filter(|ranks| ranks.len() == most).collect();
    if common.len() != 1 {
        return Vec::new();
    }
    let others: BTreeSet<u32> = shapes.values().filter(|ranks| ranks.len() < most).flatten().copied().collect();
    others.into_iter().collect()
}

/// An operation, as a headline names it.
fn title(operation: &Operation) -> String {
    match (&operation.name, operation.hash, operation.place) {
        (Some(name), ..) => format!("'{name}' ({})", request(operation)),
        (None, 0, Some(place)) => format!("operation {place} ({})", request(operation)),
        (None, 0, None) => request(operation),
        (None, hash, _) => format!("the tensor with hash {hash:016x} ({})", request(operation)),
    }
}

/// What was asked for.
pub(super) fn request(operation: &Operation) -> String {
    let mut text = operation.kind.to_owned();
    if let Some(op) = operation.op {
        text += &format!(" {op}");
    }
    match operation.dtype {
        Some(dtype) => text += &format!(" of {} {dtype}", operation.bytes / dtype.size() as u64),
        None if operation.bytes > 0 => text += &format!(" of {} bytes", operation.bytes),
        None => {}
    }
    if let Some(peer) = operation.peer {
        let word = if operation.kind == Verb::Send.name() { "to" } else { "from" };
        text += &format!(" {word} rank {peer}");
    }
    text
}

/// What a rank that has no record of an operation did last in its set.
fn instead(member: &Member<'_>) -> String {
    match member.operations.last() {
        None => "nothing in this set".to_owned(),
        Some(operation) => format!("last: {}, {}", title(operation), operation.stage.name()),
    }
}
