//! Moves: blocks of ranks' inputs to places in other ranks' outputs, with nothing reduced on the way.
//!
//! Allgather with uneven blocks, gather, scatter and all-to-all are instances; they differ in who gets what. Every rank
//! has one input, end to end, and one output. Two schedules carry the blocks:
//!
//! * **Slots** ([`SlotMoves`]), on one host: for each chunk of its input a member packs, and everyone unpacks its blocks
//!   from everybody's slots. One wait a chunk; a member writes its input once and reads its output once, so each byte
//!   moves twice however many want it.
//! * **Pairs** ([`PairMoves`]), by messages: in round r a rank sends to the r-th rank after it and receives from the r-th
//!   before it (Bruck et al., "Efficient algorithms for all-to-all communications in multiport message-passing systems",
//!   TPDS 1997, the direct variant). n-1 rounds; each byte crosses once for each rank that wants it.

use std::sync::Arc;

use super::direct::{ChunkSteps, UnpackAfter};
use super::round::{Combine, Round, Values};
use super::span::Span;

/// Blocks that change places, with nothing reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Everybody's block to everybody.
    Allgather,
    /// Everybody's block to the root.
    Gather { root: usize },
    /// Block i of the root to rank i.
    Scatter { root: usize },
    /// Block j of rank i to rank j.
    AllToAll,
}

impl Move {
    /// The root's rank; 0 where there is none.
    pub(crate) fn root(self) -> usize {
        match self {
            Self::Gather { root } | Self::Scatter { root } => root,
            Self::Allgather | Self::AllToAll => 0,
        }
    }
}

/// What one rank gets of another's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    /// Elements of the source's input.
    pub(crate) data: Span,
    /// Where they go in the own output.
    pub(crate) output: usize,
}

/// Who sends and gets what, as one rank sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moves {
    me: usize,
    /// Elements of every rank's input. Equal on all ranks.
    inputs: Vec<usize>,
    /// What this rank gets, by source.
    incoming: Vec<Block>,
    /// What of its input others get, by destination.
    outgoing: Vec<Span>,
    /// Elements of the own output.
    output: usize,
}

impl Moves {
    /// Every rank gets everybody's input (`root` is none), or `root` alone does: one after another, in rank order.
    pub(crate) fn gather(counts: &[usize], me: usize, root: Option<usize>) -> Self {
        let gets = |rank: usize| root.is_none_or(|root| root == rank);
        let mut output = 0;
        let incoming = counts
            .iter()
            .map(|&count| {
                let block = Block { data: Span::new(0, if gets(me) { count } else { 0 }), output };
                output = block.output + block.data.len;
                block
            })
            .collect();
        let sends = |rank| Span::new(0, if gets(rank) { counts[me] } else { 0 });
        let outgoing = (0..counts.len()).map(sends).collect();
        Self { me, inputs: counts.to_vec(), incoming, outgoing, output }
    }

    /// Block i of `root`'s input goes to rank i; `counts` are the blocks' elements.
    ///
    /// Ranks other than the root need to know but their own block: theirs is `mine`, and `total` the root's whole input.
    pub(crate) fn scatter(ranks: usize, me: usize, root: usize, mine: Span, total: usize, counts: &[usize]) -> Self {
        let mut inputs = vec![0; ranks];
        inputs[root] = total;
        let mut incoming = vec![Block::default(); ranks];
        incoming[root] = Block { data: mine, output: 0 };
        let mut start = 0;
        let outgoing = (0..ranks).map(|rank| {
            let len = if me == root { counts[rank] } else { 0 };
            start += len;
            Span::new(start - len, len)
        });
        Self { me, inputs, incoming, outgoing: outgoing.collect(), output: mine.len }
    }

    /// Block j of rank i's input goes to rank j, which lays the blocks end to end in rank order.
    ///
    /// `theirs` are the blocks for this rank in the inputs of all ranks, `inputs` the inputs' elements, and `counts` the
    /// elements that this rank sends to each.
    pub(crate) fn all_to_all(me: usize, inputs: Vec<usize>, theirs: &[Span], counts: &[usize]) -> Self {
        let mut output = 0;
        let incoming = theirs.iter().map(|&data| {
            output += data.len;
            Block { data, output: output - data.len }
        });
        let incoming = incoming.collect();
        let mut start = 0;
        let outgoing = counts.iter().map(|&len| {
            start += len;
            Span::new(start - len, len)
        });
        Self { me, inputs, incoming, outgoing: outgoing.collect(), output }
    }

    /// Elements of this rank's input.
    pub(crate) fn input(&self) -> usize {
        self.inputs[self.me]
    }

    /// Elements of this rank's output.
    pub(crate) fn output(&self) -> usize {
        self.output
    }

    /// What this rank gets of its own input.
    pub(crate) fn own(&self) -> Block {
        self.incoming[self.me]
    }
}

/// The moves through the slots of one host, whose members are the ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotMoves {
    moves: Arc<Moves>,
    /// Elements of a slot, and so of a chunk.
    step: usize,
    longest: usize,
}

impl SlotMoves {
    /// # Panics
    /// If a slot holds nothing.
    pub(crate) fn new(moves: Arc<Moves>, step: usize) -> Self {
        assert!(step > 0, "slots of {step}");
        let longest = moves.inputs.iter().copied().max().unwrap_or(0);
        Self { moves, step, longest }
    }

    /// How many chunks there are: the same on every member.
    pub(crate) fn chunks(&self) -> usize {
        self.longest.div_ceil(self.step)
    }

    /// What this member does for `chunk`, written over `steps`.
    pub(crate) fn steps(&self, chunk: usize, steps: &mut ChunkSteps) {
        steps.clear();
        steps.after = UnpackAfter::Packed;
        let Moves { me, inputs, incoming, .. } = &*self.moves;
        let of = |rank: usize| Span::new(0, inputs[rank]).piece(chunk, self.step);
        steps.pack(of(*me), 0);
        // The next member first: so that not all read the same slot at once.
        for far in 0..inputs.len() {
            let from = (me + far) % inputs.len();
            let (chunk, block) = (of(from), incoming[from]);
            let part = block.data.intersect(chunk);
            let slot = Span::new(part.start.saturating_sub(chunk.start), part.len);
            steps.unpack(from, slot, block.output + part.start.saturating_sub(block.data.start));
        }
    }
}

/// The moves by messages between pairs. The work area is the own input and, behind it, the own output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PairMoves {
    moves: Arc<Moves>,
}

impl PairMoves {
    pub(crate) fn new(moves: Arc<Moves>) -> Self {
        Self { moves }
    }

    /// How many rounds there are: the same on every rank.
    pub(crate) fn rounds(&self) -> usize {
        self.moves.inputs.len() - 1
    }

    /// What this rank does in round `index`, written over `round`.
    pub(crate) fn round(&self, index: usize, round: &mut Round) {
        let Moves { me, inputs, incoming, outgoing, .. } = &*self.moves;
        let n = inputs.len();
        let (to, from) = ((me + index + 1) % n, (me + n - index - 1) % n);
        round.send(to, outgoing[to], Values::Final);
        let block = incoming[from];
        round.receive(from, Span::new(inputs[*me] + block.output, block.data.len), Combine::Copy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::check::{Element, Memory, Random, contributions, run_slots};
    use crate::plan::slot::SlotPlan;

    /// How many elements rank i sends to rank j; what a moves' instance is made of, and what must come of it.
    struct Case {
        all: Vec<Arc<Moves>>,
        /// For each rank, the (source, element) of every element of its output.
        expected: Vec<Vec<(usize, usize)>>,
    }

    fn gather(counts: &[usize], root: Option<usize>) -> Case {
        let n = counts.len();
        let every: Vec<(usize, usize)> = (0..n).flat_map(|from| (0..counts[from]).map(move |at| (from, at))).collect();
        let gets = |me: usize| if root.is_none_or(|root| root == me) { every.clone() } else { Vec::new() };
        Case {
            all: (0..n).map(|me| Arc::new(Moves::gather(counts, me, root))).collect(),
            expected: (0..n).map(gets).collect(),
        }
    }

    fn scatter(counts: &[usize], root: usize) -> Case {
        let (n, total) = (counts.len(), counts.iter().sum());
        let mine = |me: usize| Span::new(counts[..me].iter().sum(), counts[me]);
        let known = |me: usize| if me == root { counts } else { &[] };
        let moves = |me| Arc::new(Moves::scatter(n, me, root, mine(me), total, known(me)));
        let expected = (0..n).map(|me| (mine(me).start..mine(me).end()).map(|at| (root, at)).collect()).collect();
        Case { all: (0..n).map(moves).collect(), expected }
    }

    fn all_to_all(n: usize, random: &mut Random, most: usize) -> Case {
        let counts: Vec<Vec<usize>> = (0..n)
            .map(|_| {
                let nothing = random.below(4) == 0;
                (0..n).map(|_| if nothing || random.below(3) == 0 { 0 } else { random.below(most + 1) }).collect()
            })
            .collect();
        let span = |from: usize, to: usize| Span::new(counts[from][..to].iter().sum(), counts[from][to]);
        let inputs: Vec<usize> = counts.iter().map(|row| row.iter().sum()).collect();
        let moves = |me: usize| {
            let theirs: Vec<Span> = (0..n).map(|from| span(from, me)).collect();
            Arc::new(Moves::all_to_all(me, inputs.clone(), &theirs, &counts[me]))
        };
        let get = |me: usize| {
            (0..n).flat_map(|from| (span(from, me).start..span(from, me).end()).map(move |at| (from, at))).collect()
        };
        Case { all: (0..n).map(moves).collect(), expected: (0..n).map(get).collect() }
    }

    fn check(case: &Case, random: &mut Random) {
        let n = case.all.len();
        for (moves, expected) in case.all.iter().zip(&case.expected) {
            assert_eq!(moves.output(), expected.len());
        }
        slots(case, random, n);
        pairs(case, n);
    }

    fn slots(case: &Case, random: &mut Random, n: usize) {
        let (slots, step) = (1 + random.below(3), 1 + random.below(9));
        let plans: Vec<SlotPlan> =
            case.all.iter().map(|moves| SlotMoves::new(Arc::clone(moves), step).into()).collect();
        let inputs: Vec<Memory> = (0..n).map(|rank| contributions(rank, case.all[rank].input())).collect();
        let mut outputs: Vec<Memory> = case.expected.iter().map(|output| vec![None; output.len()]).collect();
        run_slots(&plans, slots, step, &inputs, &mut outputs, random);
        for (output, expected) in outputs.iter().zip(&case.expected) {
            assert!(output.iter().cloned().eq(expected.iter().map(|&(from, at)| Some(Element::of(from, at)))));
        }
    }

    /// Pairs of a round agree on what travels, and everything arrives where it belongs.
    fn pairs(case: &Case, n: usize) {
        let mut outputs: Vec<Vec<Option<(usize, usize)>>> =
            case.expected.iter().map(|output| vec![None; output.len()]).collect();
        let plans: Vec<PairMoves> = case.all.iter().map(|moves| PairMoves::new(Arc::clone(moves))).collect();
        let mut rounds = vec![Round::default(); n];
        for index in 0..plans[0].rounds() {
            for (plan, round) in plans.iter().zip(&mut rounds) {
                round.clear();
                plan.round(index, round);
            }
            for (me, round) in rounds.iter().enumerate() {
                assert!(round.sends.len() <= 1 && round.receives.len() <= 1);
                for receive in &round.receives {
                    let send = rounds[receive.from].sends.iter().find(|send| send.to == me).expect("it is sent");
                    assert_eq!(send.span.len, receive.span.len);
                    for offset in 0..send.span.len {
                        let at = receive.span.start + offset - case.all[me].input();
                        assert!(outputs[me][at].replace((receive.from, send.span.start + offset)).is_none());
                    }
                }
                for send in &round.sends {
                    assert!(rounds[send.to].receives.iter().any(|receive| receive.from == me), "nobody takes it");
                }
            }
        }
        for (me, moves) in case.all.iter().enumerate() {
            let own = moves.own();
            for offset in 0..own.data.len {
                assert!(outputs[me][own.output + offset].replace((me, own.data.start + offset)).is_none());
            }
            assert!(outputs[me].iter().copied().eq(case.expected[me].iter().copied().map(Some)));
        }
    }

    #[test]
    fn every_block_arrives_once_where_it_belongs() {
        for n in 1..=17 {
            let mut random = Random::new(n as u64);
            for most in [0, 1, 5, 23] {
                let counts: Vec<usize> = (0..n).map(|_| random.below(most + 1)).collect();
                check(&gather(&counts, None), &mut random);
                let root = random.below(n);
                check(&gather(&counts, Some(root)), &mut random);
                check(&scatter(&counts, root), &mut random);
                check(&all_to_all(n, &mut random, most), &mut random);
            }
        }
    }

    #[test]
    fn counts_beyond_32_bits() {
        let big = (1 << 40) + 3;
        let moves = Arc::new(Moves::gather(&[5, big], 0, None));
        let plan = SlotMoves::new(Arc::clone(&moves), 1 << 20);
        let mut steps = ChunkSteps::default();
        plan.steps(plan.chunks() - 1, &mut steps);
        assert!(steps.pack.is_empty(), "the short input is packed long since");
        assert_eq!((steps.unpack[0].slot, steps.unpack[0].output), (Span::new(0, 3), 5 + (1 << 40)));
        assert_eq!(moves.output(), big + 5);
    }
}
