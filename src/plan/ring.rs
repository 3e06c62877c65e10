//! Ring: the work area is cut into n blocks, and every rank sends to the next and receives from the one before.
//!
//! Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 2009.
//!
//! * **Reduce-scatter**, n-1 rounds: a block starts at the rank after its owner and takes every rank's contribution on
//!   its way round; it arrives complete at its owner. Each rank sends (n-1)/n of the work area.
//! * **Allgather**, n-1 rounds: complete blocks travel once round. Each rank sends (n-1)/n of the work area.
//! * **Allreduce** is one after the other: 2(n-1) rounds, 2(n-1)/n of the work area a rank, which no schedule beats.
//!
//! Block b is summed in the order b+1, b+2, .., n-1, 0, .., b: the same on every rank and every run, but not rank order.
//! The relative error of a sum of floats is at most (n-1) units of rounding of the type that travels as partial, times
//! the sum of magnitudes over the magnitude of the sum.

use std::sync::Arc;

use super::round::{Combine, Round, Values};
use super::span::Span;

/// What travels round the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Allreduce,
    ReduceScatter,
    Allgather,
}

/// A ring schedule for one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    kind: Kind,
    ranks: usize,
    me: usize,
    /// Elements of the work area.
    total: usize,
    /// Blocks start at multiples of this many elements.
    align: usize,
    /// The blocks by rank, end to end, where they are not cut by `align`.
    blocks: Option<Arc<[Span]>>,
}

impl Ring {
    /// Allreduce of `count` elements; blocks start at multiples of `align` elements.
    pub(crate) fn allreduce(ranks: usize, me: usize, count: usize, align: usize) -> Self {
        Self::new(Kind::Allreduce, ranks, me, count, align)
    }

    /// Reduce-scatter: the work area is `count` elements in blocks of whole rows of `row`, and block `me` ends complete.
    ///
    /// The other blocks end with partial sums of no meaning.
    pub(crate) fn reduce_scatter(ranks: usize, me: usize, count: usize, row: usize) -> Self {
        Self::new(Kind::ReduceScatter, ranks, me, count, row)
    }

    /// Allgather: the work area is `ranks` blocks of `count` elements, and block `me` is loaded at the start.
    pub(crate) fn allgather(ranks: usize, me: usize, count: usize) -> Self {
        Self::new(Kind::Allgather, ranks, me, count * ranks, 1)
    }

    fn new(kind: Kind, ranks: usize, me: usize, total: usize, align: usize) -> Self {
        assert!(me < ranks && align > 0, "rank {me} of {ranks}, alignment {align}");
        Self { kind, ranks, me, total, align, blocks: None }
    }

    /// The same ring, but its blocks are these, one for each rank, end to end.
    ///
    /// # Panics
    /// If there is not one for each rank, or they do not add up to the work area.
    #[must_use]
    pub(crate) fn cut(self, blocks: Arc<[Span]>) -> Self {
        let ends = blocks.last().map_or(0, |last| last.end());
        assert!(blocks.len() == self.ranks && ends == self.total, "{blocks:?} of {} elements", self.total);
        Self { blocks: Some(blocks), ..self }
    }

    /// The elements of block `index` (modulo the number of ranks).
    fn block(&self, index: usize) -> Span {
        match &self.blocks {
            Some(blocks) => blocks[index % self.ranks],
            None => Span::new(0, self.total).part(index % self.ranks, self.ranks, self.align),
        }
    }

    pub(crate) fn rounds(&self) -> usize {
        match self.kind {
            _ if self.total == 0 => 0,
            _ if self.ranks == 1 => 1,
            Kind::Allreduce => 2 * (self.ranks - 1),
            Kind::ReduceScatter | Kind::Allgather => self.ranks - 1,
        }
    }

    pub(crate) fn round(&self, index: usize, round: &mut Round) {
        let n = self.ranks;
        let own = self.block(self.me);
        if index == 0 {
            round.load(if self.kind == Kind::Allgather { own } else { Span::new(0, self.total) });
        }
        if n == 1 {
            if self.kind != Kind::Allgather {
                round.finish(own);
            }
            return;
        }
        let (next, before) = ((self.me + 1) % n, (self.me + n - 1) % n);
        let scattering = match self.kind {
            Kind::Allreduce => index < n - 1,
            Kind::ReduceScatter => true,
            Kind::Allgather => false,
        };
        if scattering {
            // Block b leaves rank b+1 in round 0 and reaches rank b in round n-2.
            round.send(next, self.block(self.me + 2 * n - 1 - index), Values::Partial);
            round.receive(before, self.block(self.me + 2 * n - 2 - index), Combine::Reduce);
            if index == n - 2 {
                round.finish(own);
            }
        } else {
            let step = if self.kind == Kind::Allreduce { index - (n - 1) } else { index };
            round.send(next, self.block(self.me + n - step), Values::Final);
            round.receive(before, self.block(self.me + n - 1 - step), Combine::Copy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LinkPlan;
    use crate::plan::check::{Element, Random, assert_complete, counts, run_links};
    use proptest::prelude::*;

    fn allreduce(n: usize, count: usize, align: usize, seed: u64) {
        let plans: Vec<LinkPlan> = (0..n).map(|me| Ring::allreduce(n, me, count, align).into()).collect();
        let own = |rank, at| Some(Element::of(rank, at));
        let (work, sent) = run_links(&plans, count, own, &mut Random::new(seed));
        for (index, first) in work[0].iter().enumerate() {
            assert_complete(first.as_ref().expect("written"), index, n);
            assert!(work.iter().all(|other| other[index] == *first), "the same order on every rank");
        }
        assert_eq!(plans[0].rounds(), if count == 0 { 0 } else { (2 * (n - 1)).max(1) });
        // Every rank sends all blocks but one in each half; which one is its neighbour's or its own.
        for (me, sent) in sent.iter().enumerate() {
            let block = |index: usize| Span::new(0, count).part(index % n, n, align).len;
            let (partial, last) = if n == 1 { (0, 0) } else { (count - block(me), count - block(me + 1)) };
            assert_eq!((sent.partial, sent.last), (partial, last), "rank {me} of {n}");
        }
        let total: usize = sent.iter().map(|sent| sent.partial + sent.last).sum();
        assert_eq!(total, 2 * (n - 1) * count);
    }

    fn reduce_scatter(n: usize, rows: usize, row: usize, seed: u64) {
        let count = rows * row;
        let plans: Vec<LinkPlan> = (0..n).map(|me| Ring::reduce_scatter(n, me, count, row).into()).collect();
        let own = |rank, at| Some(Element::of(rank, at));
        let (work, sent) = run_links(&plans, count, own, &mut Random::new(seed));
        for (me, work) in work.iter().enumerate() {
            let block = Span::new(0, count).part(me, n, row);
            assert_eq!(block.len, (rows / n + usize::from(me < rows % n)) * row, "the first ranks get one row more");
            for (index, element) in work.iter().enumerate().skip(block.start).take(block.len) {
                assert_complete(element.as_ref().expect("written"), index, n);
            }
            assert_eq!((sent[me].partial, sent[me].last), (if n == 1 { 0 } else { count - block.len }, 0));
        }
        assert_eq!(plans[0].rounds(), if count == 0 { 0 } else { (n - 1).max(1) });
    }

    #[test]
    fn blocks_of_any_lengths_arrive_complete() {
        for n in 1..=17 {
            let mut random = Random::new(n as u64);
            for most in [0, 1, 9] {
                let mut count = 0;
                let blocks = (0..n).map(|_| {
                    let len = random.below(most + 1);
                    count += len;
                    Span::new(count - len, len)
                });
                let blocks: Arc<[Span]> = blocks.collect();
                let plan = |me| Ring::reduce_scatter(n, me, count, 1).cut(Arc::clone(&blocks)).into();
                let plans: Vec<LinkPlan> = (0..n).map(plan).collect();
                let (work, _) = run_links(&plans, count, |rank, at| Some(Element::of(rank, at)), &mut random);
                for (work, block) in work.iter().zip(&*blocks) {
                    for (index, element) in work.iter().enumerate().skip(block.start).take(block.len) {
                        assert_complete(element.as_ref().expect("written"), index, n);
                    }
                }
            }
        }
    }

    fn allgather(n: usize, count: usize, seed: u64) {
        let plans: Vec<LinkPlan> = (0..n).map(|me| Ring::allgather(n, me, count).into()).collect();
        let own = |rank, at| (at / count == rank).then(|| Element::of(rank, at));
        let (work, sent) = run_links(&plans, n * count, own, &mut Random::new(seed));
        for (work, sent) in work.iter().zip(sent) {
            for (index, element) in work.iter().enumerate() {
                assert_eq!(*element, Some(Element::of(index / count, index)));
            }
            assert_eq!((sent.partial, sent.last), (0, (n - 1) * count));
        }
        assert_eq!(plans[0].rounds(), if count == 0 { 0 } else { (n - 1).max(1) });
    }

    #[test]
    fn every_size() {
        for n in 1..=17 {
            for count in counts(n, 20) {
                allreduce(n, count, 1, (n * 1000 + count) as u64);
                allreduce(n, count, 4, (n * 2000 + count) as u64);
            }
            for count in [0, 1, 2, 5, 7] {
                reduce_scatter(n, n * count, 1, (n + count) as u64);
                reduce_scatter(n, n + count, 1 + count, (n + count) as u64);
                allgather(n, count, (n + count) as u64);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_shape(n in 1usize..=17, count in 0usize..150, align in 1usize..17, seed: u64) {
            allreduce(n, count, align, seed);
            reduce_scatter(n, count, align.div_ceil(4), seed);
            allgather(n, count / n, seed);
        }
    }
}
