//! Ordered chain: partial sums flow from rank 0 to rank n-1, each adding its own; the result flows back.
//!
//! Source: a pipelined linear array, the oldest schedule there is; chosen for its order and not for its speed. Every
//! element is ((x0 + x1) + x2) + .. in rank order, divided and rounded once, which is what one process that adds the
//! contributions one after another computes: the same bits.
//!
//! Across hosts a "rank" of the chain is a host: its owner of the slice adds the host's members, in order, to the partial
//! of the host before ([`Combine::Extend`]). The order is rank order when each host holds contiguous ranks.
//!
//! The work area is cut into S segments, so that all links are busy at once, in both directions. Segment s passes from
//! rank k to k+1 in round s+k, and back from k to k-1 in round s + 2(n-1) - k. S-1 + 2(n-1) rounds; each of the n-1
//! links carries the work area once forth (partials) and once back (results), so the time tends to that of one work area
//! each way when S is much larger than n.

use super::round::{Combine, Round, Values};
use super::span::Span;

/// An ordered chain for one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    ranks: usize,
    me: usize,
    count: usize,
    /// Elements a segment.
    segment: usize,
}

impl Chain {
    /// Allreduce of `count` elements, pipelined by segments of `segment` elements.
    pub(crate) fn allreduce(ranks: usize, me: usize, count: usize, segment: usize) -> Self {
        assert!(me < ranks && segment > 0, "rank {me} of {ranks}, segments of {segment}");
        Self { ranks, me, count, segment }
    }

    /// How many segments there are.
    pub(crate) fn segments(&self) -> usize {
        self.count.div_ceil(self.segment)
    }

    pub(crate) fn rounds(&self) -> usize {
        match self.segments() {
            0 => 0,
            segments => segments - 1 + (2 * (self.ranks - 1)).max(1),
        }
    }

    pub(crate) fn round(&self, index: usize, round: &mut Round) {
        let (n, k) = (self.ranks, self.me);
        // The segment that passes in this round, if it began `delay` rounds ago; empty when none does.
        let segment = |delay: usize| match index.checked_sub(delay) {
            Some(s) => Span::new(0, self.count).piece(s, self.segment),
            None => Span::default(),
        };
        if k == 0 {
            round.load(segment(0));
        } else {
            let arriving = segment(k - 1);
            round.receive(k - 1, arriving, Combine::Extend);
            round.send(k - 1, segment(2 * (n - 1) - k), Values::Final);
        }
        if k == n - 1 {
            round.finish(segment(k.saturating_sub(1)));
        } else {
            round.send(k + 1, segment(k), Values::Partial);
            round.receive(k + 1, segment(2 * (n - 1) - (k + 1)), Combine::Copy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LinkPlan;
    use crate::plan::check::{Element, Random, assert_ordered, counts, run_links};
    use proptest::prelude::*;

    fn allreduce(n: usize, count: usize, segment: usize, seed: u64) {
        let plans: Vec<LinkPlan> = (0..n).map(|me| Chain::allreduce(n, me, count, segment).into()).collect();
        let own = |rank, at| Some(Element::of(rank, at));
        let (work, sent) = run_links(&plans, count, own, &mut Random::new(seed));
        for work in &work {
            for (index, element) in work.iter().enumerate() {
                assert_ordered(element.as_ref().expect("written"), index, n);
            }
        }
        for (me, sent) in sent.iter().enumerate() {
            let forth = if me + 1 < n { count } else { 0 };
            let back = if me > 0 { count } else { 0 };
            assert_eq!((sent.partial, sent.last), (forth, back));
        }
        let segments = count.div_ceil(segment);
        let expected = if count == 0 { 0 } else { segments - 1 + (2 * (n - 1)).max(1) };
        assert_eq!(plans[0].rounds(), expected);
    }

    #[test]
    fn every_size() {
        for n in 1..=17 {
            for count in counts(n, 20) {
                for segment in [1, 5, 20, 1000] {
                    allreduce(n, count, segment, (n * 1000 + count) as u64);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_shape(n in 1usize..=17, count in 0usize..100, segment in 1usize..30, seed: u64) {
            allreduce(n, count, segment, seed);
        }
    }
}
