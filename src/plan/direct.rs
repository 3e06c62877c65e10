//! Direct schedules of the slot plane: members of one host read each other's slots, without going through a third.
//!
//! Source: the shared-memory reduce of Jain et al., "Framework for scalable intra-node collective operations using
//! shared memory", SC 2018, and the one-shot and two-shot allreduce of GPU libraries, on a host's slots.
//!
//! Work is cut into chunks that fit a slot. For each chunk a member: packs own input into its slot; says *packed*; waits
//! until every member has; reduces its part; says *reduced*; in two-shot waits until every member has; unpacks from the
//! others' slots; says *done*. Chunk c uses slot c mod slots, once every member has done chunk c - slots; who has nothing
//! to do in a phase says so all the same.
//!
//! With n members, w owners and m bytes (of the tensor; for allgather of a block), a member reads and writes, the reads of
//! a pack or copy counted like its writes:
//!
//! | operation | waits | everything packed | own part read from own input |
//! |---|---|---|---|
//! | one-shot allreduce | 1 | (n + 3) m | the same, from warmer memory or not |
//! | two-shot allreduce, owner | 2 | 2m + (n+2) m/w + 2m (w-1)/w; 5m for w = n | 2m/w less; (5 - 2/n) m for w = n |
//! | two-shot allreduce, no owner | 2 | 4m | |
//! | broadcast | 1 | 2m | |
//! | allgather | 1 | 2m + 2nm | |
//! | reduce-scatter | 1 | 3m + m/n | 2m/n less |
//! | reduce, root | 2 | 2m + (n+2) m/n + 2m (n-1)/n | 2m/n less |
//! | reduce, others | 2 | 2m + (n+1) m/n | 2m/n less |
//!
//! Every reduction takes the members in order, so the bits are those of a sum in rank order, on every member.

use std::sync::Arc;

use super::span::Span;

/// What the members of a host do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostOp {
    /// Allreduce in which every member reduces everything.
    OneShot,
    /// Allreduce in which the first `owners` members reduce a slice each and share it.
    TwoShot { owners: usize },
    /// `root`'s elements to everyone.
    Broadcast { root: usize },
    /// Everyone's block of `count` elements to everyone.
    Allgather,
    /// Block i of everyone's `count` elements, reduced, to member i. Blocks hold whole rows of `row` elements, as many each
    /// as can be; the first ones have one more if they do not come out even.
    ReduceScatter { row: usize },
    /// The reduction of everyone's elements to `root`: the first `owners` members reduce a slice each, and the root, if it is
    /// on this host, collects them.
    Reduce { owners: usize, root: Option<usize> },
}

/// What one member does for each chunk of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPlan {
    op: HostOp,
    members: usize,
    me: usize,
    count: usize,
    /// Elements of `count` that one chunk covers.
    step: usize,
    align: usize,
    own: bool,
    /// The blocks of a reduce-scatter by member, end to end, where they are not cut by rows.
    blocks: Option<Arc<[Span]>>,
}

/// What a member does for one chunk. Spans of `slot` count from the start of a slot, all others from the start of the
/// operation's input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkSteps {
    /// Own input to own slot.
    pub(crate) pack: Vec<Pack>,
    /// After every member has packed.
    pub(crate) reduce: Option<ReducePart>,
    /// After the member unpacked from has done what `after` says.
    pub(crate) unpack: Vec<Unpack>,
    pub(crate) after: UnpackAfter,
}

/// Copy own input elements `data` to own slot from `slot` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pack {
    pub(crate) data: Span,
    pub(crate) slot: usize,
}

/// Reduce `slot` of every member's slot, in order of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReducePart {
    pub(crate) slot: Span,
    /// Where own contribution lies.
    pub(crate) own: Own,
    /// Write the result to own output from here on.
    pub(crate) output: Option<usize>,
    /// Write the result to own slot too, over the same span: others unpack it.
    pub(crate) share: bool,
}

/// Where a member's own contribution to its reduction lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// In its slot, packed like everyone's.
    Slot,
    /// In its input from this element on; it was not packed, nobody else needs it.
    Input(usize),
}

/// Copy `slot` of member `from`'s slot to own output from `output` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unpack {
    pub(crate) from: usize,
    pub(crate) slot: Span,
    pub(crate) output: usize,
}

/// What the member unpacked from must have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UnpackAfter {
    #[default]
    Packed,
    Reduced,
}

impl Default for ChunkSteps {
    fn default() -> Self {
        Self { pack: Vec::new(), reduce: None, unpack: Vec::new(), after: UnpackAfter::Packed }
    }
}

impl ChunkSteps {
    pub(super) fn clear(&mut self) {
        self.pack.clear();
        self.reduce = None;
        self.unpack.clear();
        self.after = UnpackAfter::Packed;
    }

    pub(super) fn pack(&mut self, data: Span, slot: usize) {
        if !data.is_empty() {
            self.pack.push(Pack { data, slot });
        }
    }

    pub(super) fn unpack(&mut self, from: usize, slot: Span, output: usize) {
        if !slot.is_empty() {
            self.unpack.push(Unpack { from, slot, output });
        }
    }
}

impl HostPlan {
    /// The plan of member `me` of `members`, for `count` elements (allgather and reduce-scatter: a block of `count`),
    /// where a slot holds `chunk` elements and slices start at multiples of `align` elements (64 bytes' worth).
    ///
    /// Every argument but `me` must be equal on all members.
    ///
    /// # Panics
    /// If `me`, the root or the owners are not among the members, or `chunk` is zero or, for reduce-scatter, less
    /// than one element for each member. The configuration rules that out.
    pub(crate) fn new(op: HostOp, members: usize, me: usize, count: usize, chunk: usize, align: usize) -> Self {
        assert!(me < members && chunk > 0 && align > 0, "member {me} of {members}, slots of {chunk}, align {align}");
        let mut step = chunk;
        match op {
            HostOp::TwoShot { owners } => assert!((1..=members).contains(&owners), "{owners} owners of {members}"),
            HostOp::Broadcast { root } => assert!(root < members, "root {root} of {members}"),
            HostOp::Reduce { owners, root } => {
                assert!((1..=members).contains(&owners), "{owners} owners of {members}");
                assert!(root.is_none_or(|root| root < members), "root {root:?} of {members}");
            }
            HostOp::ReduceScatter { row } => {
                assert!(row > 0 && count.is_multiple_of(row), "{count} elements in rows of {row}");
                assert!(chunk >= members, "a slot of {chunk} elements for {members} blocks");
                // A slot holds a sub-block for each member; keep them aligned if they are long enough.
                step = chunk / members;
                step -= if step >= align { step % align } else { 0 };
            }
            HostOp::OneShot | HostOp::Allgather => {}
        }
        Self { op, members, me, count, step, align, own: false, blocks: None }
    }

    /// The same plan, but what only the member itself reduces is read from its input instead of being packed.
    ///
    /// For an engine that packs without changing values (no prescale). Members may differ in this.
    #[must_use]
    pub(crate) fn read_own_input(self) -> Self {
        Self { own: true, ..self }
    }

    /// The same plan of a reduce-scatter, but its blocks are these, one for each member, end to end.
    ///
    /// # Panics
    /// If there is not one for each member, or they do not add up to all elements.
    #[must_use]
    pub(crate) fn cut(self, blocks: Arc<[Span]>) -> Self {
        let ends = blocks.last().map_or(0, |last| last.end());
        assert!(blocks.len() == self.members && ends == self.count, "{blocks:?} of {} elements", self.count);
        Self { blocks: Some(blocks), ..self }
    }

    /// How many chunks there are: the same on every member.
    pub(crate) fn chunks(&self) -> usize {
        match self.op {
            HostOp::ReduceScatter { row } => {
                let longest = match &self.blocks {
                    Some(blocks) => blocks.iter().map(|block| block.len).max().unwrap_or(0),
                    // The first block is the longest.
                    None => self.block(0, row).len,
                };
                longest.div_ceil(self.step)
            }
            _ => self.count.div_ceil(self.step),
        }
    }

    /// Member `index`'s block of a reduce-scatter.
    fn block(&self, index: usize, row: usize) -> Span {
        match &self.blocks {
            Some(blocks) => blocks[index],
            None => Span::new(0, self.count).part(index, self.members, row),
        }
    }

    /// Whether members read what others reduced: then each says when it has.
    pub(crate) fn shares(&self) -> bool {
        matches!(self.op, HostOp::TwoShot { .. } | HostOp::Reduce { .. })
    }

    /// The elements of `0..count` that a chunk covers.
    pub(crate) fn span(&self, chunk: usize) -> Span {
        Span::new(0, self.count).piece(chunk, self.step)
    }

    /// Owner `index`'s slice of a chunk of `len` elements, in the slot. Empty for whoever owns nothing.
    fn slice(&self, index: usize, len: usize) -> Span {
        let owners = match self.op {
            HostOp::TwoShot { owners } | HostOp::Reduce { owners, .. } => owners,
            _ => 0,
        };
        if index < owners { Span::new(0, len).part(index, owners, self.align) } else { Span::default() }
    }

    /// The other members, each once, the next one first: so that not all read the same slot at once.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (me, members) = (self.me, self.members);
        (1..members).map(move |far| (me + far) % members)
    }

    /// What this member does for `chunk`, written over `steps`.
    pub(crate) fn steps(&self, chunk: usize, steps: &mut ChunkSteps) {
        steps.clear();
        if let HostOp::ReduceScatter { row } = self.op {
            return self.reduce_scatter(chunk, row, steps);
        }
        let data = self.span(chunk);
        if data.is_empty() {
            return;
        }
        let whole = Span::new(0, data.len);
        match self.op {
            HostOp::OneShot => {
                let alone = self.own && self.members == 1;
                if !alone {
                    steps.pack(data, 0);
                }
                let own = if self.own { Own::Input(data.start) } else { Own::Slot };
                steps.reduce = Some(ReducePart { slot: whole, own, output: Some(data.start), share: false });
            }
            HostOp::TwoShot { .. } => {
                self.pack_and_reduce(data, true, steps);
                self.collect(data, steps);
            }
            HostOp::Broadcast { root } if root == self.me => {
                if self.members > 1 {
                    steps.pack(data, 0);
                }
            }
            HostOp::Broadcast { root } => steps.unpack(root, whole, data.start),
            HostOp::Allgather => {
                steps.pack(data, 0);
                steps.unpack(self.me, whole, self.me * self.count + data.start);
                for from in self.others() {
                    steps.unpack(from, whole, from * self.count + data.start);
                }
            }
            HostOp::Reduce { root, .. } => self.reduce(data, root == Some(self.me), steps),
            HostOp::ReduceScatter { .. } => unreachable!("its chunks are cut from each block"),
        }
    }

    fn reduce(&self, data: Span, is_root: bool, steps: &mut ChunkSteps) {
        self.pack_and_reduce(data, is_root, steps);
        if is_root {
            self.collect(data, steps);
        }
    }

    /// Packs what others reduce, and reduces the own slice: into the own slot, and into the output if it is wanted.
    fn pack_and_reduce(&self, data: Span, output: bool, steps: &mut ChunkSteps) {
        steps.after = UnpackAfter::Reduced;
        let slice = self.slice(self.me, data.len);
        if self.own && !slice.is_empty() {
            steps.pack(Span::new(data.start, slice.start), 0);
            steps.pack(Span::new(data.start + slice.end(), data.len - slice.end()), slice.end());
        } else {
            steps.pack(data, 0);
        }
        if !slice.is_empty() {
            let at = data.start + slice.start;
            let own = if self.own { Own::Input(at) } else { Own::Slot };
            let share = self.members > 1 || !output;
            steps.reduce = Some(ReducePart { slot: slice, own, output: output.then_some(at), share });
        }
    }

    /// Unpacks the slices that the others have reduced.
    fn collect(&self, data: Span, steps: &mut ChunkSteps) {
        for from in self.others() {
            let slice = self.slice(from, data.len);
            steps.unpack(from, slice, data.start + slice.start);
        }
    }

    fn reduce_scatter(&self, chunk: usize, row: usize, steps: &mut ChunkSteps) {
        for index in 0..self.members {
            if !(self.own && index == self.me) {
                steps.pack(self.block(index, row).piece(chunk, self.step), index * self.step);
            }
        }
        let block = self.block(self.me, row);
        let data = block.piece(chunk, self.step);
        if !data.is_empty() {
            let own = if self.own { Own::Input(data.start) } else { Own::Slot };
            let slot = Span::new(self.me * self.step, data.len);
            steps.reduce = Some(ReducePart { slot, own, output: Some(data.start - block.start), share: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::check::{Element, Memory, Moved, Random, assert_ordered, contributions, counts, run_host};
    use proptest::prelude::*;

    /// Plans of all members; which of them read their own input privately is drawn.
    fn plans(op: HostOp, n: usize, count: usize, chunk: usize, align: usize, random: &mut Random) -> Vec<HostPlan> {
        let private = random.below(3);
        (0..n)
            .map(|me| {
                let plan = HostPlan::new(op, n, me, count, chunk, align);
                if private == 0 || (private == 1 && random.below(2) == 0) { plan.read_own_input() } else { plan }
            })
            .collect()
    }

    fn allreduce(op: HostOp, n: usize, count: usize, chunk: usize, align: usize, seed: u64) {
        let mut random = Random::new(seed);
        let slots = 1 + random.below(3);
        let plans = plans(op, n, count, chunk, align, &mut random);
        let inputs: Vec<Memory> = (0..n).map(|rank| contributions(rank, count)).collect();
        let mut outputs: Vec<Memory> = vec![vec![None; count]; n];
        let moved = run_host(&plans, slots, chunk, &inputs, &mut outputs, &mut random);
        for (me, output) in outputs.iter().enumerate() {
            for (index, element) in output.iter().enumerate() {
                assert_ordered(element.as_ref().expect("an output element was not written"), index, n);
            }
            assert_eq!(moved[me], expected(&plans[me], n, count), "{op:?}, member {me} of {n}");
        }
    }

    /// The documented traffic of a member.
    fn expected(plan: &HostPlan, n: usize, count: usize) -> Moved {
        match plan.op {
            HostOp::OneShot => {
                let packed = if plan.own && n == 1 { 0 } else { count };
                Moved { packed, reduced: n * count, written: count, unpacked: 0 }
            }
            _ => {
                let owned: usize = (0..plan.chunks()).map(|c| plan.slice(plan.me, plan.span(c).len).len).sum();
                Moved {
                    packed: if plan.own { count - owned } else { count },
                    reduced: n * owned,
                    written: if n == 1 { owned } else { 2 * owned },
                    unpacked: count - owned,
                }
            }
        }
    }

    fn gather(op: HostOp, n: usize, count: usize, chunk: usize, seed: u64) {
        let mut random = Random::new(seed);
        let slots = 1 + random.below(3);
        let plans = plans(op, n, count, chunk, 1 + random.below(5), &mut random);
        let (input_len, output_len) = match op {
            HostOp::Allgather => (count, n * count),
            _ => (count, count),
        };
        let inputs: Vec<Memory> = (0..n).map(|rank| contributions(rank, input_len)).collect();
        let block = |me: usize| match op {
            HostOp::ReduceScatter { row } => Span::new(0, count).part(me, n, row),
            _ => Span::new(0, output_len),
        };
        let mut outputs: Vec<Memory> = (0..n).map(|me| vec![None; block(me).len]).collect();
        let moved = run_host(&plans, slots, chunk, &inputs, &mut outputs, &mut random);
        for (me, output) in outputs.iter().enumerate() {
            let traffic = (moved[me].packed, moved[me].reduced, moved[me].written, moved[me].unpacked);
            match op {
                HostOp::Broadcast { root } if me == root => {
                    assert!(output.iter().all(Option::is_none), "the root's output is left alone");
                    assert_eq!(traffic, (if n > 1 { count } else { 0 }, 0, 0, 0));
                }
                HostOp::Broadcast { root } => {
                    assert!(output.iter().cloned().eq((0..count).map(|at| Some(Element::of(root, at)))));
                    assert_eq!(traffic, (0, 0, 0, count));
                }
                HostOp::Allgather => {
                    let all = (0..n).flat_map(|from| (0..count).map(move |at| Some(Element::of(from, at))));
                    assert!(output.iter().cloned().eq(all));
                    assert_eq!(traffic, (count, 0, 0, n * count));
                }
                HostOp::Reduce { root, .. } if root != Some(me) => {
                    assert!(output.iter().all(Option::is_none), "only the root gets something");
                    assert_eq!(moved[me].unpacked, 0);
                }
                HostOp::Reduce { .. } => {
                    for (index, element) in output.iter().enumerate() {
                        assert_ordered(element.as_ref().expect("written"), index, n);
                    }
                }
                _ => {
                    let block = block(me);
                    for (index, element) in output.iter().enumerate() {
                        assert_ordered(element.as_ref().expect("written"), block.start + index, n);
                    }
                    let packed = if plans[me].own { count - block.len } else { count };
                    assert_eq!(traffic, (packed, n * block.len, block.len, 0));
                }
            }
        }
    }

    #[test]
    fn one_shot_is_complete_and_in_rank_order() {
        for n in 1..=17 {
            for count in counts(n, 20) {
                allreduce(HostOp::OneShot, n, count, 20, 4, (n * 1000 + count) as u64);
            }
        }
    }

    #[test]
    fn two_shot_is_complete_and_in_rank_order() {
        for n in 1..=17 {
            for count in counts(n, 20) {
                let seed = (n * 1000 + count) as u64;
                allreduce(HostOp::TwoShot { owners: n }, n, count, 20, 1, seed);
                allreduce(HostOp::TwoShot { owners: n }, n, count, 20, 4, seed + 1);
            }
        }
    }

    #[test]
    fn two_shot_with_fewer_owners_than_members() {
        for n in 1..=9 {
            for owners in 1..n {
                for count in counts(n, 12) {
                    allreduce(HostOp::TwoShot { owners }, n, count, 12, 2, (n * 1000 + count) as u64);
                }
            }
        }
    }

    #[test]
    fn broadcast_from_every_root() {
        for n in 1..=17 {
            for root in 0..n {
                for count in [0, 1, n, 19, 20, 21, 67] {
                    gather(HostOp::Broadcast { root }, n, count, 20, (n * 100 + root) as u64);
                }
            }
        }
    }

    #[test]
    fn allgather_and_reduce_scatter() {
        for n in 1..=17 {
            for count in counts(n, 20) {
                gather(HostOp::Allgather, n, count, 20, count as u64);
                for row in [1, 3] {
                    gather(HostOp::ReduceScatter { row }, n, count * row, 20, count as u64);
                    gather(HostOp::ReduceScatter { row }, n, count * row * n, n, count as u64);
                }
            }
        }
    }

    #[test]
    fn blocks_of_any_lengths_are_reduced_and_scattered() {
        for n in 1..=17 {
            let mut random = Random::new(n as u64);
            for most in [0, 1, 7, 40] {
                let mut count = 0;
                let blocks = (0..n).map(|_| {
                    let len = random.below(most + 1);
                    count += len;
                    Span::new(count - len, len)
                });
                let blocks: Arc<[Span]> = blocks.collect();
                let op = HostOp::ReduceScatter { row: 1 };
                let all = plans(op, n, count, 20, 1 + random.below(5), &mut random);
                let all: Vec<HostPlan> = all.into_iter().map(|plan| plan.cut(Arc::clone(&blocks))).collect();
                let inputs: Vec<Memory> = (0..n).map(|rank| contributions(rank, count)).collect();
                let mut outputs: Vec<Memory> = blocks.iter().map(|block| vec![None; block.len]).collect();
                run_host(&all, 1 + random.below(3), 20, &inputs, &mut outputs, &mut random);
                for (output, block) in outputs.iter().zip(&*blocks) {
                    for (index, element) in output.iter().enumerate() {
                        assert_ordered(element.as_ref().expect("written"), block.start + index, n);
                    }
                }
            }
        }
    }

    #[test]
    fn reduce_to_every_root() {
        for n in 1..=17 {
            for root in 0..n {
                for count in [0, 1, n, 19, 20, 21, 67] {
                    let seed = (n * 100 + root) as u64;
                    gather(HostOp::Reduce { owners: n, root: Some(root) }, n, count, 20, seed);
                    gather(HostOp::Reduce { owners: n.div_ceil(2), root: Some(root) }, n, count, 20, seed + 1);
                    gather(HostOp::Reduce { owners: n.div_ceil(3), root: None }, n, count, 20, seed + 2);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn any_shape(
            n in 1usize..=17, owners in 1usize..=17, count in 0usize..200, chunk in 17usize..80, align in 1usize..17,
            seed: u64,
        ) {
            allreduce(HostOp::TwoShot { owners: owners.min(n) }, n, count, chunk, align, seed);
            allreduce(HostOp::OneShot, n, count, chunk, align, seed);
            gather(HostOp::Broadcast { root: owners % n }, n, count, chunk, seed);
            gather(HostOp::Allgather, n, count, chunk, seed);
            gather(HostOp::ReduceScatter { row: align }, n, count * align, chunk, seed);
            gather(HostOp::Reduce { owners: owners.min(n), root: Some(owners % n) }, n, count, chunk, seed);
        }
    }

    #[test]
    fn counts_beyond_32_bits() {
        let count = (1 << 40) + 3;
        let plan = HostPlan::new(HostOp::TwoShot { owners: 3 }, 3, 2, count, 1 << 17, 16);
        let mut steps = ChunkSteps::default();
        plan.steps(plan.chunks() - 1, &mut steps);
        assert_eq!(plan.span(plan.chunks() - 1), Span::new(1 << 40, 3));
        assert_eq!(steps.pack, [Pack { data: Span::new(1 << 40, 3), slot: 0 }]);
        assert_eq!(steps.reduce, None, "three elements fit the first owner's aligned slice");
        assert_eq!(steps.unpack, [Unpack { from: 0, slot: Span::new(0, 3), output: 1 << 40 }]);
    }

    #[test]
    fn steps_reuse_their_buffers() {
        let plan = HostPlan::new(HostOp::TwoShot { owners: 8 }, 8, 3, 100_000, 1024, 16).read_own_input();
        let mut steps = ChunkSteps::default();
        plan.steps(0, &mut steps);
        let before = (steps.pack.as_ptr(), steps.unpack.as_ptr());
        for chunk in 0..plan.chunks() {
            plan.steps(chunk, &mut steps);
        }
        assert_eq!(before, (steps.pack.as_ptr(), steps.unpack.as_ptr()));
    }
}
