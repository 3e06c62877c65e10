//! Binomial tree: reduce to one rank and broadcast from it, in the fewest rounds that point-to-point messages allow.
//!
//! Source: the classic binomial tree, as in Thakur, Rabenseifner and Gropp, "Optimization of collective communication
//! operations in MPICH", IJHPCA 2005.
//!
//! * **Reduce** to rank 0, L = ceil(log2 n) rounds: in round j, rank r with r mod 2^(j+1) = 2^j sends all it has to
//!   r - 2^j. n-1 messages of the whole work area in all.
//! * **Broadcast** from any root, L rounds: the same tree downwards, ranks counted from the root.
//! * **Allreduce** is reduce, then broadcast: 2L rounds, 2(n-1) messages of the whole work area. For small tensors only:
//!   a rank in the middle receives and sends the whole work area up to L times.
//!
//! Sums associate along the tree: the same on every rank and every run, but not one after another in rank order. The
//! relative error is at most L units of rounding, times the sum of magnitudes over the magnitude of the sum.

use super::round::{Combine, Round, Values};
use super::span::Span;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Allreduce,
    Broadcast { root: usize },
}

/// A binomial tree schedule for one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    kind: Kind,
    ranks: usize,
    me: usize,
    count: usize,
}

impl Tree {
    /// Allreduce of `count` elements.
    pub(crate) fn allreduce(ranks: usize, me: usize, count: usize) -> Self {
        assert!(me < ranks, "rank {me} of {ranks}");
        Self { kind: Kind::Allreduce, ranks, me, count }
    }

    /// Broadcast of `count` elements, which `root` loads in round 0.
    pub(crate) fn broadcast(ranks: usize, me: usize, root: usize, count: usize) -> Self {
        assert!(me < ranks && root < ranks, "rank {me}, root {root} of {ranks}");
        Self { kind: Kind::Broadcast { root }, ranks, me, count }
    }

    /// ceil(log2 ranks).
    fn depth(&self) -> usize {
        (usize::BITS - (self.ranks - 1).leading_zeros()) as usize
    }

    pub(crate) fn rounds(&self) -> usize {
        match self.kind {
            _ if self.count == 0 => 0,
            _ if self.ranks == 1 => 1,
            Kind::Allreduce => 2 * self.depth(),
            Kind::Broadcast { .. } => self.depth(),
        }
    }

    pub(crate) fn round(&self, index: usize, round: &mut Round) {
        let all = Span::new(0, self.count);
        let depth = self.depth();
        match self.kind {
            Kind::Allreduce => {
                if index == 0 {
                    round.load(all);
                }
                if index < depth {
                    self.reduce(index, round);
                }
                if self.me == 0 && (self.ranks == 1 || index + 1 == depth) {
                    round.finish(all);
                }
                if index >= depth {
                    self.broadcast_round(0, index - depth, round);
                }
            }
            Kind::Broadcast { root } => {
                if index == 0 && self.me == root {
                    round.load(all);
                }
                self.broadcast_round(root, index, round);
            }
        }
    }

    fn reduce(&self, index: usize, round: &mut Round) {
        let (all, far) = (Span::new(0, self.count), 1usize << index);
        match self.me % (2 * far) {
            0 if self.me + far < self.ranks => round.receive(self.me + far, all, Combine::Reduce),
            rest if rest == far => round.send(self.me - far, all, Values::Partial),
            _ => {}
        }
    }

    fn broadcast_round(&self, root: usize, index: usize, round: &mut Round) {
        if self.ranks == 1 {
            return;
        }
        let (all, n) = (Span::new(0, self.count), self.ranks);
        let far = 1usize << (self.depth() - 1 - index);
        let place = (self.me + n - root) % n;
        match place % (2 * far) {
            0 if place + far < n => round.send((self.me + far) % n, all, Values::Final),
            rest if rest == far => round.receive((self.me + n - far) % n, all, Combine::Copy),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LinkPlan;
    use crate::plan::check::{Element, Random, assert_complete, counts, run_links};
    use proptest::prelude::*;

    fn log2_up(n: usize) -> usize {
        n.next_power_of_two().trailing_zeros() as usize
    }

    fn allreduce(n: usize, count: usize, seed: u64) {
        let plans: Vec<LinkPlan> = (0..n).map(|me| Tree::allreduce(n, me, count).into()).collect();
        let own = |rank, at| Some(Element::of(rank, at));
        let (work, sent) = run_links(&plans, count, own, &mut Random::new(seed));
        for (index, first) in work[0].iter().enumerate() {
            assert_complete(first.as_ref().expect("written"), index, n);
            assert!(work.iter().all(|other| other[index] == *first), "the same order on every rank");
        }
        assert_eq!(plans[0].rounds(), if count == 0 { 0 } else { (2 * log2_up(n)).max(1) });
        assert_eq!(sent.iter().map(|sent| sent.partial).sum::<usize>(), (n - 1) * count);
        assert_eq!(sent.iter().map(|sent| sent.last).sum::<usize>(), (n - 1) * count);
    }

    fn broadcast(n: usize, root: usize, count: usize, seed: u64) {
        let plans: Vec<LinkPlan> = (0..n).map(|me| Tree::broadcast(n, me, root, count).into()).collect();
        let own = |rank, at| (rank == root).then(|| Element::of(rank, at));
        let (work, sent) = run_links(&plans, count, own, &mut Random::new(seed));
        for work in &work {
            assert!(work.iter().cloned().eq((0..count).map(|at| Some(Element::of(root, at)))));
        }
        assert_eq!(plans[0].rounds(), if count == 0 { 0 } else { log2_up(n).max(1) });
        assert_eq!(sent.iter().map(|sent| sent.last).sum::<usize>(), (n - 1) * count);
        assert!(sent.iter().all(|sent| sent.partial == 0 && sent.last <= log2_up(n) * count));
    }

    #[test]
    fn every_size_and_root() {
        for n in 1..=17 {
            for count in counts(n, 20) {
                allreduce(n, count, (n * 1000 + count) as u64);
            }
            for root in 0..n {
                for count in [0, 1, 13] {
                    broadcast(n, root, count, (n * 100 + root) as u64);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_shape(n in 1usize..=40, root: usize, count in 0usize..60, seed: u64) {
            allreduce(n, count, seed);
            broadcast(n, root % n, count, seed);
        }
    }
}
