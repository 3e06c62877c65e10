//! All-to-all: every rank has a block for every rank.

use super::blocks::{Blocks, room};
use crate::communicator::{Communicator, apart};
use crate::engine::{Collective, Move};
use crate::error::{Error, Result};
use crate::plan::moves::Moves;
use crate::tensor::Element;

impl Communicator {
    /// Sends block j of `input` to rank j, and leaves what rank i sent to this one in block i of `output`: the transpose
    /// of the blocks. Both hold `size` blocks of the same length.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and length.
    ///
    /// # Errors
    /// [`Error::Argument`] if the lengths differ or are no multiple of `size`; else as [`allreduce`](Self::allreduce).
    pub fn alltoall<T: Element>(&mut self, input: &[T], output: &mut [T]) -> Result<()> {
        if input.len() != output.len() || !input.len().is_multiple_of(self.size()) {
            return self.refuse(Error::argument(format!(
                "alltoall of {} elements into {} over {} ranks: both must hold one block for each rank, of one length; \
                 alltoallv takes blocks of any length",
                input.len(),
                output.len(),
                self.size()
            )));
        }
        let count = input.len() / self.size();
        self.run_on::<T>(Collective::Move(Move::AllToAll), count, apart(input, output))
    }

    /// Cuts `input` into blocks of `counts` elements, sends block j to rank j, and returns the blocks that the others sent
    /// to this rank.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// // Rank 0 keeps one and sends two; rank 1 sends nothing and keeps one.
    /// let (input, counts) = if kolo.rank() == 0 { (vec![1, 2, 3], [1, 2]) } else { (vec![4], [0, 1]) };
    /// let received = world.alltoallv(&input, &counts)?;
    /// assert_eq!(received.data(), [[1].as_slice(), &[2, 3, 4]][kolo.rank()]);
    /// assert_eq!(received.counts(), [[1, 0], [2, 1]][kolo.rank()]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type. A rank may send or receive nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is not one count for each rank, or they do not add up to the input; [`Error::System`] if
    /// there is no memory for the blocks; else as [`allreduce`](Self::allreduce).
    pub fn alltoallv<T: Element>(&mut self, input: &[T], counts: &[usize]) -> Result<Blocks<T>> {
        self.check_counts("alltoallv", counts, input.len())?;
        let (theirs, inputs) = self.all_to_all_sizes(T::DTYPE, counts)?;
        let received = theirs.iter().map(|block| block.len).collect();
        let moves = Moves::all_to_all(self.rank(), inputs, &theirs, counts);
        let mut data = match room(moves.output(), "alltoallv") {
            Ok(data) => data,
            Err(error) => return self.abandon(error),
        };
        self.move_blocks(Move::AllToAll, moves, input, &mut data)?;
        Ok(Blocks::new(data, received))
    }
}
