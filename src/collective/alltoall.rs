//! All-to-all: every rank has a block for every rank.

use super::uneven;
use crate::communicator::{Communicator, apart};
use crate::coordinator::Kind;
use crate::engine::Collective;
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Options};
use crate::plan::moves::Move;
use crate::process_set::ProcessSet;
use crate::tensor::{Blocks, Element, Tensor};

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
        self.uneven(Move::AllToAll, counts.to_vec(), input)
    }
}

impl ProcessSet {
    /// Cuts the tensor `name` into blocks of `counts` elements, sends block j to rank j of the set, waits, and returns the
    /// blocks that the others sent to this rank.
    ///
    /// # Collective
    /// Every rank of the set submits the name, with the same type; in any order among names, from any thread. Counts may
    /// be zero and change from call to call; a rank may send or receive nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is not one count for each rank or they do not add up to the tensor; else as
    /// [`allreduce`](Self::allreduce).
    pub fn alltoall<T: Element>(&self, name: &str, data: &[T], counts: &[usize]) -> Result<Blocks<T>> {
        uneven::check_counts(&self.set, name, counts, data.len())?;
        let call = Call::slice(Kind::Move(Move::AllToAll), data, Options::default());
        uneven::blocking(&self.set, name, &call, data, counts.to_vec())
    }

    /// Begins an all-to-all of the tensor `name`, `rows[j]` of whose rows go to rank j of the set; the handle gives the blocks
    /// that this rank gets.
    ///
    /// # Collective
    /// As [`alltoall`](Self::alltoall); all dimensions of the tensor but the first must be equal on every rank, too.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if there is not one count for each rank or
    /// they do not add up to the first dimension.
    pub fn alltoall_async<B>(&self, name: &str, tensor: B, rows: &[usize]) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        let counts = uneven::split(&self.set, name, &tensor, rows)?;
        uneven::begin(&self.set, name, Kind::Move(Move::AllToAll), tensor, Some(counts))
    }
}
