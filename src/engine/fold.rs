//! Reductions over the members of a host, and the one division that ends them.

use crate::device::host::{Finish, Sink, Source, reduce};
use crate::tensor::{DType, ReduceOp};

/// Members up to this many need no list on the heap.
const FEW: usize = 16;

/// How elements of one operation combine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fold {
    pub(super) dtype: DType,
    pub(super) op: ReduceOp,
    /// What is done once to the sum over all ranks.
    pub(super) finish: Finish,
}

impl Fold {
    pub(super) fn new(dtype: DType, op: ReduceOp, ranks: usize, postscale: f64) -> Self {
        let divide_by = if op == ReduceOp::Average { ranks as u64 } else { 1 };
        Self { dtype, op, finish: Finish { divide_by, postscale } }
    }

    /// Reduces `count` elements of `first` (if any) and then of each member's source, in order, into `sinks`.
    ///
    /// # Safety
    /// As [`reduce`].
    #[inline]
    pub(super) unsafe fn members(
        &self,
        first: Option<Source>,
        members: usize,
        source: impl Fn(usize) -> Source,
        count: usize,
        sinks: &[Sink],
        finish: Finish,
    ) {
        let all = first.into_iter().chain((0..members).map(source));
        if members < FEW {
            let mut few = [Source::Elements(std::ptr::null()); FEW];
            let mut used = 0;
            for (place, source) in few.iter_mut().zip(all) {
                *place = source;
                used += 1;
            }
            // SAFETY: the caller's promise.
            unsafe { reduce(self.dtype, self.op, &few[..used], count, sinks, finish) };
        } else {
            let many: Vec<Source> = all.collect();
            // SAFETY: the caller's promise.
            unsafe { reduce(self.dtype, self.op, &many, count, sinks, finish) };
        }
    }
}
