//! Reduce-scatter: every rank gets its block of the reduction of all ranks' elements.

use crate::communicator::{Communicator, apart};
use crate::engine::Collective;
use crate::error::{Error, Result};
use crate::tensor::{ReduceOp, Reducible};

impl Communicator {
    /// Reduces `input` over all ranks and leaves block `rank` of the result in `output`.
    ///
    /// `input` holds `size` blocks of `output.len()` elements.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length and `op`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the lengths do not fit, `op` does not [take](ReduceOp::takes) the type or is Adasum; else as [`allreduce`](Self::allreduce).
    pub fn reduce_scatter<T: Reducible>(&mut self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        if output.len().checked_mul(self.size()) != Some(input.len()) {
            return Err(Error::argument(format!(
                "reduce_scatter of {} elements over {} ranks into {}: the input must hold size times the output",
                input.len(),
                self.size(),
                output.len()
            )));
        }
        if op == ReduceOp::Adasum {
            return Err(Error::argument(
                "adasum combines whole tensors, and reduce_scatter hands out parts; use allreduce",
            ));
        }
        op.check(T::DTYPE)?;
        self.run_on::<T>(Collective::ReduceScatter(op), output.len(), apart(input, output))
    }
}
