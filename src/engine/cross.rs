//! What crosses hosts in the middle of a two-level allreduce: one exchange for each chunk, several under way at once.
//!
//! The exchanges of an operation share one link, whose messages match by order for each pair of ranks. So all owners of
//! the same slice keep one order of *turns*: round r of chunk c comes at time `c * stride + r`, and at equal times the
//! older chunk comes first. A rank sends in this order, and it takes in this order. With `stride` at least rounds / slots,
//! chunk c + slots has its first turn after the last of chunk c: an exchange never waits for a chunk that still waits for
//! its slot, so the order cannot lock up, and as many chunks are under way as there are slots.

use std::collections::VecDeque;

use super::exchange::{Exchange, Greetings};
use super::fold::Fold;
use super::host::align;
use super::regions::Regions;
use super::slice::Slice;
use super::{Channel, Step};
use crate::error::Result;
use crate::plan::{ChunkSteps, Cross, ReducePart, SlotPlan, TwoLevel};
use crate::transport::Link as _;
use crate::transport::shm::Fingerprint;

/// The part between hosts of a two-level allreduce.
#[derive(Debug)]
pub(super) struct CrossRun {
    two_level: TwoLevel,
    cross: Cross,
    fold: Fold,
    greetings: Greetings,
    turns: Turns,
    /// The exchanges under way, oldest chunk first.
    flights: VecDeque<Flight>,
    /// How far each of them is, while they are polled.
    reached: Vec<(usize, usize)>,
    /// Work areas that wait to be used again.
    spare: Vec<Vec<u64>>,
}

/// The exchange of one chunk.
#[derive(Debug)]
struct Flight {
    chunk: usize,
    slot: usize,
    /// `None` for whoever owns no slice of the chunk.
    exchange: Option<(ReducePart, Exchange)>,
    /// Partial values.
    work: Vec<u64>,
}

/// The order of the rounds of an operation's exchanges.
#[derive(Clone, Copy, Debug)]
struct Turns {
    chunks: usize,
    /// Rounds of each chunk but the last, and of the last.
    rounds: [usize; 2],
    stride: usize,
}

impl Turns {
    fn new(chunks: usize, rounds: [usize; 2], slots: usize) -> Self {
        let most = rounds[0].max(rounds[1]);
        Self { chunks, rounds, stride: most.div_ceil(slots).max(1) }
    }

    fn rounds(&self, chunk: usize) -> usize {
        self.rounds[usize::from(chunk + 1 == self.chunks)]
    }

    /// Whether all that comes before round `round` of `chunk` is done. `reached` counts rounds done, from chunk `first`
    /// on; chunks before that are over, chunks beyond it have not begun.
    fn has_come(&self, chunk: usize, round: usize, first: usize, reached: impl Fn(usize) -> Option<usize>) -> bool {
        let time = chunk * self.stride + round;
        let older = (first..chunk).all(|other| {
            let due = (time - other * self.stride + 1).min(self.rounds(other));
            reached(other - first).is_some_and(|done| done >= due)
        });
        let mut newer = (chunk + 1..self.chunks).take_while(|other| other * self.stride < time);
        older
            && newer.all(|other| {
                let due = (time - other * self.stride).min(self.rounds(other));
                reached(other - first).unwrap_or(0) >= due
            })
    }
}

impl CrossRun {
    pub(super) fn new(
        print: Fingerprint,
        two_level: TwoLevel,
        cross: Cross,
        fold: Fold,
        plan: &SlotPlan,
        slots: usize,
    ) -> Self {
        let chunks = plan.chunks();
        let mut steps = ChunkSteps::default();
        let mut rounds = |chunk: usize| {
            plan.steps(chunk, &mut steps);
            let part = steps.reduce.and_then(|part| two_level.cross(cross, part.slot.len, align(fold.dtype)));
            part.map_or(0, |plan| plan.rounds())
        };
        let rounds = [rounds(0), rounds(chunks.saturating_sub(1))];
        Self {
            turns: Turns::new(chunks, rounds, slots),
            two_level,
            cross,
            fold,
            greetings: Greetings::new(print),
            flights: VecDeque::new(),
            reached: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// How many chunks are under way.
    pub(super) fn len(&self) -> usize {
        self.flights.len()
    }

    /// Begins with a chunk that every member has packed into slot `slot`. Chunks come in order.
    pub(super) fn begin(&mut self, chunk: usize, slot: usize, part: Option<ReducePart>) {
        let exchange = part.and_then(|part| {
            let plan = self.two_level.cross(self.cross, part.slot.len, align(self.fold.dtype))?;
            Some((part, Exchange::new(plan)))
        });
        let work = self.spare.pop().unwrap_or_default();
        self.flights.push_back(Flight { chunk, slot, exchange, work });
    }

    /// Moves all exchanges on as far as messages allow. Returns whether anything moved.
    pub(super) fn poll(&mut self, channel: &mut Channel, regions: &Regions) -> Result<bool> {
        let Some(first) = self.flights.front().map(|flight| flight.chunk) else { return Ok(false) };
        channel.link.progress()?;
        let Self { two_level, fold, greetings, turns, flights, reached, .. } = self;
        let rounds = |flight: &Flight| flight.exchange.as_ref().map_or((0, 0), |(_, exchange)| exchange.reached());
        reached.clear();
        reached.extend(flights.iter().map(rounds));
        let name = |host| two_level.peer(host);
        let mut moved = false;
        for (index, flight) in flights.iter_mut().enumerate() {
            let Some((part, exchange)) = &mut flight.exchange else { continue };
            let chunk = flight.chunk;
            let gate = |round: usize| {
                let sends = turns.has_come(chunk, round, first, |at| reached.get(at).map(|reached| reached.0));
                let receives = turns.has_come(chunk, round, first, |at| reached.get(at).map(|reached| reached.1));
                (sends, receives)
            };
            let mut slice = Slice {
                fold: *fold,
                arena: &channel.arena,
                slot: flight.slot,
                part: *part,
                regions,
                work: &mut flight.work,
            };
            slice.prepare();
            let step = exchange.poll(&mut channel.link, &name, greetings, &mut slice, &gate)?;
            moved |= step != Step::Pending;
            reached[index] = exchange.reached();
        }
        Ok(moved)
    }

    /// Takes the oldest chunk off if its exchange is over.
    pub(super) fn finish(&mut self) -> bool {
        let over = |flight: &Flight| flight.exchange.as_ref().is_none_or(|(_, exchange)| exchange.is_over());
        if !self.flights.front().is_some_and(over) {
            return false;
        }
        self.spare.extend(self.flights.pop_front().map(|flight| flight.work));
        true
    }

    /// The set ranks that the oldest exchange waits for.
    pub(super) fn missing(&self) -> Vec<usize> {
        let exchanges = self.flights.iter().filter_map(|flight| flight.exchange.as_ref());
        exchanges.map(|(_, exchange)| exchange.missing()).find(|missing| !missing.is_empty()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rank meets all turns in one order, with no more than `slots` chunks under way at any time.
    #[test]
    fn turns_are_a_total_order_that_fits_the_slots() {
        for (chunks, rounds, slots) in [(1, [2, 2], 4), (9, [2, 2], 4), (7, [6, 5], 4), (5, [9, 0], 2), (4, [3, 3], 1)]
        {
            let turns = Turns::new(chunks, rounds, slots);
            let mut done = vec![0_usize; chunks];
            let mut first = 0;
            loop {
                while first < chunks && done[first] == turns.rounds(first) {
                    first += 1;
                }
                let window = chunks.min(first + slots);
                let ready: Vec<usize> = (first..window)
                    .filter(|&chunk| done[chunk] < turns.rounds(chunk))
                    .filter(|&chunk| {
                        turns.has_come(chunk, done[chunk], first, |at| (first + at < window).then(|| done[first + at]))
                    })
                    .collect();
                if first == chunks {
                    break;
                }
                assert_eq!(ready.len(), 1, "{turns:?} at {done:?}");
                done[ready[0]] += 1;
            }
        }
    }
}
