//! Allreduce: every rank gets the reduction of all ranks' elements.

use crate::communicator::{Communicator, apart};
use crate::engine::Collective;
use crate::error::{Error, Result};
use crate::tensor::{Element, Piece, RawSlice, ReduceOp};

impl Communicator {
    /// Reduces `data` over all ranks, in place: afterwards every rank holds the same bits.
    ///
    /// On one host the reduction is in rank order, so it equals one process that adds the ranks' data one after another.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length and `op`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the ranks disagree; the first failure of the job; [`Error::Timeout`] at the deadline.
    #[inline]
    pub fn allreduce<T: Element>(&mut self, data: &mut [T], op: ReduceOp) -> Result<()> {
        let piece = Piece::in_place(RawSlice::of_mut(data));
        self.run_on::<T>(Collective::Allreduce(op), data.len(), piece)
    }

    /// Reduces `input` over all ranks into `output`, which has the same length. `input` is left as it is.
    ///
    /// # Collective
    /// As [`allreduce`](Self::allreduce). Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce), and [`Error::Argument`] if the lengths differ.
    #[inline]
    pub fn allreduce_into<T: Element>(&mut self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        if input.len() != output.len() {
            return Err(Error::argument(format!(
                "allreduce of {} elements into {}: input and output must be equally long",
                input.len(),
                output.len()
            )));
        }
        self.run_on::<T>(Collective::Allreduce(op), input.len(), apart(input, output))
    }
}
