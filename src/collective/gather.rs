//! Gather: one rank gets every rank's block.

use super::blocks::{Blocks, room};
use crate::communicator::{Communicator, apart};
use crate::engine::{Collective, Move};
use crate::error::{Error, Result};
use crate::plan::moves::Moves;
use crate::tensor::Element;

impl Communicator {
    /// Collects every rank's `input` in `output` on rank `root`, in rank order. On the other ranks `output` is not looked
    /// at and may be empty.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length of `input` and `root`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no rank `root`, or on the root if `output` does not hold `size` times `input`; else as
    /// [`allreduce`](Self::allreduce).
    pub fn gather<T: Element>(&mut self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        self.check_root("gather root", root)?;
        let is_root = self.rank() == root;
        if is_root && input.len().checked_mul(self.size()) != Some(output.len()) {
            return self.refuse(Error::argument(format!(
                "gather of {} elements from {} ranks into {}: the output of the root must hold size times the input",
                input.len(),
                self.size(),
                output.len()
            )));
        }
        let piece = apart(input, if is_root { output } else { &mut [] });
        self.run_on::<T>(Collective::Move(Move::Gather { root }), input.len(), piece)
    }

    /// Collects every rank's `input`, of whatever length, on rank `root`. The other ranks get no elements, but the counts.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and `root`. Lengths may differ by rank,
    /// and be zero.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no rank `root`; [`Error::System`] on the root if it has no memory for the blocks; else
    /// as [`allreduce`](Self::allreduce).
    pub fn gatherv<T: Element>(&mut self, input: &[T], root: usize) -> Result<Blocks<T>> {
        self.check_root("gather root", root)?;
        let of = Move::Gather { root };
        let counts = self.gather_sizes(of, T::DTYPE, input.len())?;
        let moves = Moves::gather(&counts, self.rank(), Some(root));
        let mut data = match room(moves.output(), "gatherv") {
            Ok(data) => data,
            Err(error) => return self.abandon(error),
        };
        self.move_blocks(of, moves, input, &mut data)?;
        let counts = if self.rank() == root { counts } else { vec![0; counts.len()] };
        Ok(Blocks::new(data, counts))
    }
}
