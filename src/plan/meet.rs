//! Meeting: the same portion of every rank's data comes together at one rank, which looks at it and keeps nothing.
//!
//! For what cannot be computed from partial results, such as the products of every pair of ranks. Portion p of the
//! elements is rank p mod n's to look at, in round p / n: every rank sends n-1 portions a round and receives n-1, so that
//! in the end each has sent m (n-1)/n of its m bytes, the least that brings all of them together, and no rank ever
//! holds more than n portions.
//!
//! The work area is as if it held every rank's elements: those of rank r from `r * count` on. A round loads what this rank
//! contributes, receives the others' part of this rank's portion, and finishes that portion at this rank's own place.

use std::sync::Arc;

use super::round::{Combine, Round, Values};
use super::span::Span;

/// A meeting, for one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meeting {
    ranks: usize,
    me: usize,
    /// Where the portions begin; then the number of elements.
    cuts: Arc<[usize]>,
}

impl Meeting {
    /// Portion p goes from `cuts[p]` to `cuts[p + 1]`. The cuts ascend from 0 and are equal on every rank.
    pub(crate) fn new(ranks: usize, me: usize, cuts: Arc<[usize]>) -> Self {
        assert!(me < ranks && cuts.first() == Some(&0) && cuts.is_sorted(), "rank {me} of {ranks}, cuts {cuts:?}");
        Self { ranks, me, cuts }
    }

    pub(crate) fn rounds(&self) -> usize {
        (self.cuts.len() - 1).div_ceil(self.ranks)
    }

    /// A portion at `rank`'s place of the work area; empty beyond the last.
    fn portion(&self, portion: usize, rank: usize) -> Span {
        let count = self.cuts[self.cuts.len() - 1];
        match self.cuts.get(portion..portion + 2) {
            Some(&[start, end]) => Span::new(rank * count + start, end - start),
            _ => Span::default(),
        }
    }

    pub(crate) fn round(&self, index: usize, round: &mut Round) {
        let first = index * self.ranks;
        let last = (first + self.ranks).min(self.cuts.len() - 1);
        let begin = self.portion(first, self.me).start;
        round.load(Span::new(begin, self.cuts[last] - self.cuts[first]));
        for far in 1..self.ranks {
            let to = (self.me + far) % self.ranks;
            round.send(to, self.portion(first + to, self.me), Values::Final);
            let from = (self.me + self.ranks - far) % self.ranks;
            round.receive(from, self.portion(first + self.me, from), Combine::Copy);
        }
        round.finish(self.portion(first + self.me, self.me));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LinkPlan;
    use crate::plan::check::{Element, Random, run_links};
    use proptest::prelude::*;

    fn meet(n: usize, lengths: &[usize], seed: u64) {
        let mut cuts = vec![0];
        cuts.extend(lengths.iter().scan(0, |at, len| {
            *at += len;
            Some(*at)
        }));
        let count = cuts[lengths.len()];
        let shared: Arc<[usize]> = cuts.clone().into();
        let plans: Vec<LinkPlan> = (0..n).map(|me| Meeting::new(n, me, Arc::clone(&shared)).into()).collect();
        assert_eq!(plans[0].rounds(), lengths.len().div_ceil(n));
        let own = |rank: usize, at: usize| (at / count.max(1) == rank).then(|| Element::of(rank, at));
        let (work, sent) = run_links(&plans, n * count, own, &mut Random::new(seed));
        for (me, work) in work.iter().enumerate() {
            let mine = cuts.windows(2).enumerate().filter(|(portion, _)| portion % n == me);
            let mut owned = 0;
            for (_, cut) in mine {
                for at in cut[0]..cut[1] {
                    owned += 1;
                    for rank in 0..n {
                        let place = rank * count + at;
                        let mut expected = Element::of(rank, place);
                        expected.done = rank == me;
                        assert_eq!(work[place], Some(expected), "element {at} of rank {rank} at rank {me}");
                    }
                }
            }
            assert_eq!((sent[me].partial, sent[me].last), (0, count - owned), "everything else is sent once");
        }
    }

    #[test]
    fn every_size() {
        for n in 1..=17 {
            for lengths in
                [&[][..], &[1], &[3, 1, 4], &[2; 17], &[5, 1, 1, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]]
            {
                meet(n, lengths, (n * 100 + lengths.len()) as u64);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_shape(n in 1usize..=17, lengths in prop::collection::vec(1usize..9, 0..40), seed: u64) {
            meet(n, &lengths, seed);
        }
    }
}
