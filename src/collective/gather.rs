//! Gather: one rank gets every rank's block.

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
        self.uneven(Move::Gather { root }, vec![input.len()], input)
    }
}

impl ProcessSet {
    /// Collects the tensor `name` of every rank on rank `root`, in rank order, and waits for it. The other ranks get empty
    /// blocks.
    ///
    /// `root` is a global rank, also in a set that has its own numbers.
    ///
    /// # Collective
    /// As [`allgather`](Self::allgather), with the same root.
    ///
    /// # Errors
    /// [`Error::Argument`] if `root` is not in the set; else as [`allreduce`](Self::allreduce).
    pub fn gather<T: Element>(&self, name: &str, data: &[T], root: usize) -> Result<Blocks<T>> {
        let root = self.set.root(name, "gather to", root)? as usize;
        let call = Call::slice(Kind::Move(Move::Gather { root }), data, Options::default());
        uneven::blocking(&self.set, name, &call, data, vec![data.len()])
    }

    /// Begins to collect the tensor `name` of every rank on rank `root`; the handle gives the blocks.
    ///
    /// # Collective
    /// As [`gather`](Self::gather); all dimensions of the tensor but the first must be equal on every rank, too.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if `root` is not in the set.
    pub fn gather_async<B>(&self, name: &str, tensor: B, root: usize) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        let root = self.set.root(name, "gather to", root)? as usize;
        uneven::begin(&self.set, name, Kind::Move(Move::Gather { root }), tensor, None)
    }
}
