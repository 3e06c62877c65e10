//! Allgather: every rank gets every rank's elements.

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
        self.uneven(Move::Allgather, vec![input.len()], input)
    }
}

impl ProcessSet {
    /// Gathers the tensor `name` of every rank, in rank order, on every rank of the set, and waits for it.
    ///
    /// # Collective
    /// Every rank of the set submits the name, with the same type; in any order among names, from any thread. Lengths may
    /// differ by rank and from call to call, and be zero.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce).
    pub fn allgather<T: Element>(&self, name: &str, data: &[T]) -> Result<Blocks<T>> {
        let call = Call::slice(Kind::Move(Move::Allgather), data, Options::default());
        uneven::blocking(&self.set, name, &call, data, vec![data.len()])
    }

    /// Begins to gather the tensor `name` of every rank on every rank of the set; the handle gives the blocks.
    ///
    /// # Collective
    /// As [`allgather`](Self::allgather); all dimensions of the tensor but the first must be equal on every rank, too.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async).
    pub fn allgather_async<B>(&self, name: &str, tensor: B) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        uneven::begin(&self.set, name, Kind::Move(Move::Allgather), tensor, None)
    }
}
