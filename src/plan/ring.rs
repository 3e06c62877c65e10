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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    kind: Kind,
    ranks: usize,
    me: usize,
    /// Elements of the work area.
    total: usize,
    /// Blocks start at multiples of this many elements.
    align: usize,
}

impl Ring {
    /// Allreduce of `count` elements; blocks start at multiples of `align` elements.
    pub(crate) fn allreduce(ranks: usize, me: usize, count: usize, align: usize) -> Self {
        Self::new(Kind::Allreduce, ranks, me, count, align)
    }

    /// Reduce-scatter: the work area is `ranks` blocks of `count` elements, and block `me` ends complete.
    ///
    /// The other blocks end with partial sums of no meaning.
    pub(crate) fn reduce_scatter(ranks: usize, me: usize, count: usize) -> Self {
        Self::new(Kind::ReduceScatter, ranks, me, count * ranks, 1)
    }

    /// Allgather: the work area is `ranks` blocks of `count` elements, and block `me` is loaded at the start.
    pub(crate) fn allgather(ranks: usize, me: usize, count: usize) -> Self {
        Self::new(Kind::Allgather, ranks, me, count * ranks, 1)
    }

    fn new(kind: Kind, ranks: usize, me: usize, total: usize, align: usize) -> Self {
        assert!(me < ranks && align > 0, "rank {me} of {ranks}, alignment {align}");
        Self { kind, ranks, me, total, align }
    }

    /// The elements of block `index` (modulo the number of ranks).
    fn block(&self, index: usize) -> Span {
        Span::new(0, self.total).part(index % self.ranks, self.ranks, self.align)
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
