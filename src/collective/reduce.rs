//! Reduce: one rank gets the reduction of all ranks' elements.

use crate::communicator::{Communicator, apart};
use crate::engine::Collective;
use crate::error::{Error, Result};
use crate::tensor::{Element, Piece, RawSlice, ReduceOp};

impl Communicator {
    /// Reduces `data` over all ranks, in place, to rank `root`. On the other ranks `data` is left as it is.
    ///
    /// The root's elements have the same bits as after an [`allreduce`](Self::allreduce).
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length, `op` and `root`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no rank `root`; else as [`allreduce`](Self::allreduce).
    pub fn reduce<T: Element>(&mut self, data: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        self.check_root("reduce root", root)?;
        let piece = Piece::in_place(RawSlice::of_mut(data));
        self.run_on::<T>(Collective::Reduce { op, root }, data.len(), piece)
    }

    /// As [`reduce`](Self::reduce), into `output` on the root, which has the length of `input`; on the other ranks
    /// `output` is not looked at and may be empty.
    ///
    /// # Collective
    /// As [`reduce`](Self::reduce). Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`reduce`](Self::reduce), and [`Error::Argument`] on the root if the lengths differ.
    pub fn reduce_into<T: Element>(&mut self, input: &[T], output: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        self.check_root("reduce root", root)?;
        let is_root = self.rank() == root;
        if is_root && input.len() != output.len() {
            return self.refuse(Error::argument(format!(
                "reduce of {} elements into {}: input and output of the root must be equally long",
                input.len(),
                output.len()
            )));
        }
        let piece = apart(input, if is_root { output } else { &mut [] });
        self.run_on::<T>(Collective::Reduce { op, root }, input.len(), piece)
    }
}
