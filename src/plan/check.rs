//! Interpreters that run every rank's steps over symbolic data, under random interleavings, and check the schedules.
//!
//! An element's value is the list of ranks whose contributions went into it, in order: so "complete", "exactly once" and
//! "in rank order" are plain comparisons. Memory that nobody wrote is `None`, and reading it fails. A step runs one action
//! of one rank at a time, chosen by a seeded generator, so any order that the real engine's waits allow can come up.

use super::direct::{ChunkSteps, HostPlan, Own, UnpackAfter};
use super::round::{Combine, LinkPlan, Round, Values};
use super::slot::SlotPlan;
use super::span::Span;
pub(super) use xtask::random::Random;

/// An order in which some ranks are starved: a random rank is preferred for a while.
fn adversary(random: &mut Random, n: usize, favourite: &mut usize) -> usize {
    if random.below(8) == 0 {
        *favourite = random.below(n);
    }
    if random.below(3) > 0 { *favourite } else { random.below(n) }
}

/// One element's value: which element of which block it is, and who contributed, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) index: usize,
    pub(super) ranks: Vec<usize>,
    pub(super) done: bool,
}

impl Element {
    pub(super) fn of(rank: usize, index: usize) -> Self {
        Self { index, ranks: vec![rank], done: false }
    }

    fn join(&mut self, other: &Self) {
        assert_eq!(self.index, other.index, "elements of different places are reduced together");
        assert!(!self.done && !other.done, "a finished element is reduced again");
        self.ranks.extend(&other.ranks);
    }
}

/// Memory of one rank.
pub(super) type Memory = Vec<Option<Element>>;

/// Memory that holds a rank's own contributions.
pub(super) fn contributions(rank: usize, len: usize) -> Memory {
    (0..len).map(|index| Some(Element::of(rank, index))).collect()
}

fn read(memory: &Memory, at: usize, what: &str) -> Element {
    memory[at].clone().unwrap_or_else(|| panic!("{what}: element {at} was never written"))
}

/// One slot of one member. Each cell knows the chunk it was written for.
struct Slot {
    cells: Vec<Option<(usize, Element)>>,
    /// The chunk that is, or was last, packed here.
    chunk: Option<usize>,
}

/// How far a member has come in a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Pack(usize),
    Reduce,
    Unpack(usize),
}

struct Member {
    chunk: usize,
    phase: Phase,
    packed: usize,
    reduced: usize,
    done: usize,
    steps: ChunkSteps,
}

/// What a run of the slot plane moved: elements packed, reduced (read), written by reductions, and unpacked, a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) packed: usize,
    pub(super) reduced: usize,
    pub(super) written: usize,
    pub(super) unpacked: usize,
}

/// [`run_slots`] of direct schedules.
pub(super) fn run_host(
    plans: &[HostPlan],
    slots: usize,
    slot_len: usize,
    inputs: &[Memory],
    outputs: &mut [Memory],
    random: &mut Random,
) -> Vec<Moved> {
    let plans: Vec<SlotPlan> = plans.iter().map(|plan| plan.clone().into()).collect();
    run_slots(&plans, slots, slot_len, inputs, outputs, random)
}

/// Runs one operation on all members of a host; `inputs` and `outputs` are theirs.
pub(super) fn run_slots(
    plans: &[SlotPlan],
    slots: usize,
    slot_len: usize,
    inputs: &[Memory],
    outputs: &mut [Memory],
    random: &mut Random,
) -> Vec<Moved> {
    let n = plans.len();
    let chunks = plans[0].chunks();
    assert!(plans.iter().all(|plan| plan.chunks() == chunks), "members disagree about the number of chunks");
    let mut memory: Vec<Vec<Slot>> =
        (0..n).map(|_| (0..slots).map(|_| Slot { cells: vec![None; slot_len], chunk: None }).collect()).collect();
    let mut members: Vec<Member> = plans
        .iter()
        .map(|plan| {
            let mut steps = ChunkSteps::default();
            plan.steps(0, &mut steps);
            Member { chunk: 0, phase: Phase::Pack(0), packed: 0, reduced: 0, done: 0, steps }
        })
        .collect();
    let mut moved = vec![Moved::default(); n];
    let mut favourite = 0;
    while members.iter().any(|member| member.chunk < chunks) {
        let me = adversary(random, n, &mut favourite);
        if advance(plans, me, &mut members, &mut memory, &inputs[me], &mut outputs[me], &mut moved[me]) {
            continue;
        }
        // The chosen one waits; somebody must be able to go on.
        let able = (0..n).any(|other| {
            advance(plans, other, &mut members, &mut memory, &inputs[other], &mut outputs[other], &mut moved[other])
        });
        assert!(able, "deadlock");
    }
    moved
}

/// One action of member `me`; false if it has to wait.
fn advance(
    plans: &[SlotPlan],
    me: usize,
    members: &mut [Member],
    memory: &mut [Vec<Slot>],
    input: &Memory,
    output: &mut Memory,
    moved: &mut Moved,
) -> bool {
    let (slots, chunks) = (memory[me].len(), plans[me].chunks());
    let chunk = members[me].chunk;
    if chunk >= chunks {
        return false;
    }
    let place = chunk % slots;
    let everyone = |count: fn(&Member) -> usize| members.iter().map(count).min().unwrap_or(0);
    match members[me].phase {
        Phase::Pack(index) => {
            if everyone(|member| member.done) + slots < chunk + 1 {
                return false;
            }
            let slot = &mut memory[me][place];
            if slot.chunk != Some(chunk) {
                // What the slot held before must not be mistaken for this chunk's data.
                slot.cells.fill(None);
                slot.chunk = Some(chunk);
            }
            let Some(&pack) = members[me].steps.pack.get(index) else {
                members[me].packed += 1;
                members[me].phase = Phase::Reduce;
                return true;
            };
            for offset in 0..pack.data.len {
                let cell = &mut slot.cells[pack.slot + offset];
                assert!(cell.is_none(), "member {me} packs an element of its slot twice");
                *cell = Some((chunk, read(input, pack.data.start + offset, "own input")));
            }
            moved.packed += pack.data.len;
            members[me].phase = Phase::Pack(index + 1);
        }
        Phase::Reduce => {
            if let Some(part) = members[me].steps.reduce {
                if everyone(|member| member.packed) < chunk + 1 {
                    return false;
                }
                for offset in 0..part.slot.len {
                    let at = part.slot.start + offset;
                    let mut sum: Option<Element> = None;
                    for (from, slots) in memory.iter().enumerate() {
                        let next = match part.own {
                            Own::Input(start) if from == me => read(input, start + offset, "own input"),
                            _ => cell(&slots[place], at, chunk, from),
                        };
                        match &mut sum {
                            Some(sum) => sum.join(&next),
                            None => sum = Some(next),
                        }
                    }
                    let mut sum = sum.expect("a host has members");
                    sum.done = true;
                    if part.share {
                        memory[me][place].cells[at] = Some((chunk, sum.clone()));
                        moved.written += 1;
                    }
                    if let Some(start) = part.output {
                        output[start + offset] = Some(sum);
                        moved.written += 1;
                    }
                }
                moved.reduced += part.slot.len * memory.len();
            }
            members[me].reduced += 1;
            members[me].phase = Phase::Unpack(0);
        }
        Phase::Unpack(index) => {
            let Some(&unpack) = members[me].steps.unpack.get(index) else {
                // The last thing: say done and go to the next chunk. A plan must not finish before it may: a member
                // whose slot others still read says done too, and must not overwrite it; `done` of the others guards.
                let member = &mut members[me];
                member.done += 1;
                member.chunk += 1;
                member.phase = Phase::Pack(0);
                if member.chunk < chunks {
                    let chunk = member.chunk;
                    plans[me].steps(chunk, &mut member.steps);
                }
                return true;
            };
            let ready = match members[me].steps.after {
                UnpackAfter::Packed => members[unpack.from].packed,
                UnpackAfter::Reduced => members[unpack.from].reduced,
            };
            if ready < chunk + 1 {
                return false;
            }
            for offset in 0..unpack.slot.len {
                let element = cell(&memory[unpack.from][place], unpack.slot.start + offset, chunk, unpack.from);
                let to = &mut output[unpack.output + offset];
                assert!(to.is_none(), "member {me} writes output element {} twice", unpack.output + offset);
                *to = Some(element);
            }
            moved.unpacked += unpack.slot.len;
            members[me].phase = Phase::Unpack(index + 1);
        }
    }
    true
}

fn cell(slot: &Slot, at: usize, chunk: usize, from: usize) -> Element {
    let (written_for, element) =
        slot.cells[at].clone().unwrap_or_else(|| panic!("element {at} of member {from}'s slot was never written"));
    assert_eq!(written_for, chunk, "element {at} of member {from}'s slot is another chunk's");
    element
}

/// A message under way.
struct Message {
    round: usize,
    span: Span,
    values: Values,
    elements: Vec<Element>,
}

/// What a run of the link plane sent, a rank: elements in partial and in final form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) partial: usize,
    pub(super) last: usize,
}

/// One rank of a run of the link plane.
struct Rank {
    index: usize,
    round: Round,
    begun: bool,
    sends: usize,
    receives: usize,
}

/// Runs a schedule on all ranks: `own(rank, element)` is what a rank contributes, in order; returns every rank's work area.
///
/// Sends are synchronous: one completes only when its receiver takes it, which is the least that a transport can offer.
pub(super) fn run_links(
    plans: &[LinkPlan],
    len: usize,
    own: impl Fn(usize, usize) -> Option<Element>,
    random: &mut Random,
) -> (Vec<Memory>, Vec<Sent>) {
    let n = plans.len();
    let rounds = plans[0].rounds();
    assert!(plans.iter().all(|plan| plan.rounds() == rounds), "ranks disagree about the number of rounds");
    let mut work: Vec<Memory> = vec![vec![None; len]; n];
    let mut sent = vec![Sent::default(); n];
    let mut ranks: Vec<Rank> =
        (0..n).map(|_| Rank { index: 0, round: Round::default(), begun: false, sends: 0, receives: 0 }).collect();
    // At most one message is under way between a pair: a second send waits until the first is taken.
    let mut wires: Vec<Vec<Option<Message>>> = (0..n).map(|_| (0..n).map(|_| None).collect()).collect();
    let mut favourite = 0;
    while ranks.iter().any(|rank| rank.index < rounds) || wires.iter().flatten().any(Option::is_some) {
        let first = adversary(random, n, &mut favourite);
        let able = (0..n).any(|far| {
            let me = (first + far) % n;
            exchange(&plans[me], me, rounds, &mut ranks[me], &mut work[me], &mut wires, &mut sent[me], &own)
        });
        assert!(able, "deadlock in rounds {:?}", ranks.iter().map(|rank| rank.index).collect::<Vec<_>>());
    }
    (work, sent)
}

#[allow(clippy::too_many_arguments, reason = "the state of one rank and the wires")]
fn exchange(
    plan: &LinkPlan,
    me: usize,
    rounds: usize,
    rank: &mut Rank,
    work: &mut Memory,
    wires: &mut [Vec<Option<Message>>],
    sent: &mut Sent,
    own: &impl Fn(usize, usize) -> Option<Element>,
) -> bool {
    if rank.index >= rounds {
        return false;
    }
    if !rank.begun {
        plan.round(rank.index, &mut rank.round);
        rank.begun = true;
        check_disjoint(&rank.round);
        if let Some(span) = rank.round.load {
            for (at, cell) in work.iter_mut().enumerate().skip(span.start).take(span.len) {
                assert!(cell.is_none(), "element {at} is loaded over other data");
                *cell = own(me, at);
                assert!(cell.is_some(), "rank {me} has no element {at} to load");
            }
        }
        return true;
    }
    // Send what the wire has room for, in order.
    if let Some(&send) = rank.round.sends.get(rank.sends)
        && wires[me][send.to].is_none()
    {
        let elements: Vec<Element> =
            (send.span.start..send.span.end()).map(|at| read(work, at, "a send's work area")).collect();
        for element in &elements {
            if send.values == Values::Partial {
                assert!(!element.done, "a finished element travels as partial");
            }
        }
        match send.values {
            Values::Partial => sent.partial += send.span.len,
            Values::Final => sent.last += send.span.len,
        }
        wires[me][send.to] = Some(Message { round: rank.index, span: send.span, values: send.values, elements });
        rank.sends += 1;
        return true;
    }
    if let Some(&receive) = rank.round.receives.get(rank.receives)
        && let Some(message) = wires[receive.from][me].take()
    {
        assert_eq!(message.round, rank.index, "a message is received in another round than it was sent in");
        assert_eq!(message.span, receive.span, "a message's span is not the receiver's");
        assert_eq!(message.values, receive.combine.values(), "sender and receiver disagree about what travels");
        for (offset, element) in message.elements.into_iter().enumerate() {
            let at = receive.span.start + offset;
            assert_eq!(element.index, at);
            match receive.combine {
                Combine::Copy => work[at] = Some(element),
                Combine::Reduce => match &mut work[at] {
                    Some(here) => here.join(&element),
                    None => panic!("element {at} is reduced into nothing"),
                },
                Combine::Extend => {
                    assert!(work[at].is_none(), "element {at} is extended over other data");
                    let mut sum = element;
                    sum.join(&own(me, at).expect("own contribution"));
                    work[at] = Some(sum);
                }
            }
        }
        rank.receives += 1;
        return true;
    }
    // A send is complete when its receiver has taken it.
    let taken = rank.round.sends.iter().all(|send| wires[me][send.to].is_none());
    if rank.sends == rank.round.sends.len() && rank.receives == rank.round.receives.len() && taken {
        if let Some(span) = rank.round.finish {
            for (at, element) in work.iter_mut().enumerate().take(span.end()).skip(span.start) {
                let element = element.as_mut().unwrap_or_else(|| panic!("element {at} is finished before it is there"));
                assert!(!element.done, "element {at} is finished twice");
                element.done = true;
            }
        }
        *rank =
            Rank { index: rank.index + 1, round: std::mem::take(&mut rank.round), begun: false, sends: 0, receives: 0 };
        return true;
    }
    false
}

/// No span that a round writes may overlap another that it reads or writes.
fn check_disjoint(round: &Round) {
    let overlap = |a: Span, b: Span| a.start < b.end() && b.start < a.end();
    for (index, receive) in round.receives.iter().enumerate() {
        assert!(round.sends.iter().all(|send| !overlap(send.span, receive.span)), "{round:?}");
        assert!(round.receives[..index].iter().all(|other| !overlap(other.span, receive.span)), "{round:?}");
    }
    let spans = round.sends.iter().map(|send| send.span).chain(round.receives.iter().map(|receive| receive.span));
    assert!(spans.into_iter().all(|span| !span.is_empty()), "an empty span is sent: {round:?}");
}

/// Every contribution exactly once.
pub(super) fn assert_complete(element: &Element, index: usize, ranks: usize) {
    assert_eq!(element.index, index);
    assert!(element.done, "element {index} was never finished");
    let mut sorted = element.ranks.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..ranks), "element {index}: {:?} of {ranks} ranks", element.ranks);
}

/// Every contribution exactly once, in rank order.
pub(super) fn assert_ordered(element: &Element, index: usize, ranks: usize) {
    assert_complete(element, index, ranks);
    assert!(element.ranks.is_sorted(), "element {index}: {:?} is not in rank order", element.ranks);
}

/// The counts at which schedules go wrong, for `n` ranks and pieces of `chunk`.
pub(super) fn counts(n: usize, chunk: usize) -> Vec<usize> {
    let mut counts = vec![0, 1, n - 1, n, n + 1, 7, 13, 31, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk + 5];
    counts.sort_unstable();
    counts.dedup();
    counts
}
