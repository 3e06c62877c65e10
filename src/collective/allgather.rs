//! Allgather: every rank gets every rank's elements.

use super::blocks::{Blocks, room};
use crate::communicator::{Communicator, apart};
use crate::engine::{Collective, Move};
use crate::error::{Error, Result};
use crate::plan::moves::Moves;
use crate::tensor::Element;

impl Communicator {
    /// Gathers `input` of every rank, in rank order, into `output`, which holds `size` times as many elements.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and length.
    ///
    /// # Errors
    /// [`Error::Argument`] if the lengths do not fit; else as [`allreduce`](Self::allreduce).
    pub fn allgather<T: Element>(&mut self, input: &[T], output: &mut [T]) -> Result<()> {
        if input.len().checked_mul(self.size()) != Some(output.len()) {
            return self.refuse(Error::argument(format!(
                "allgather of {} elements from each of {} ranks into {}: the output must hold size times the input",
                input.len(),
                self.size(),
                output.len()
            )));
        }
        self.run_on::<T>(Collective::Allgather, input.len(), apart(input, output))
    }

    /// Gathers `input` of every rank, of whatever length, on every rank.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type. Lengths may differ by rank, and be zero.
    ///
    /// # Errors
    /// [`Error::System`] if there is no memory for the blocks; else as [`allreduce`](Self::allreduce).
    pub fn allgatherv<T: Element>(&mut self, input: &[T]) -> Result<Blocks<T>> {
        let counts = self.gather_sizes(Move::Allgather, T::DTYPE, input.len())?;
        let moves = Moves::gather(&counts, self.rank(), None);
        let mut data = match room(moves.output(), "allgatherv") {
            Ok(data) => data,
            Err(error) => return self.abandon(error),
        };
        self.move_blocks(Move::Allgather, moves, input, &mut data)?;
        Ok(Blocks::new(data, counts))
    }
}
