//! The asynchronous operations of a communicator that move elements, and its barrier.

use std::sync::Arc;

use super::allgather_group::{Gathered, inputs};
use super::deferred::Nothing;
use crate::communicator::Communicator;
use crate::engine::{Collective, Operation};
use crate::error::{Error, Result};
use crate::handle::{Collectively, Handle, LaneOf, row_of};
use crate::plan::moves::Move;
use crate::tensor::{Blocks, DType, Element, Hold, RawSlice, Tensor};

impl Communicator {
    /// Begins a barrier: the handle's operation has ended once every rank has submitted it, and all that it submitted before
    /// has ended on this rank.
    ///
    /// # Collective
    /// As [`barrier`](Self::barrier).
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async).
    pub fn barrier_async(&mut self) -> Result<Handle<()>> {
        let operation = Operation::new(Collective::Barrier, DType::U8, 0, None);
        self.submit("barrier", operation, None, Arc::new(Nothing))
    }

    /// Begins to copy `tensor` of rank `root` to every rank; the handle gives it back.
    ///
    /// # Collective
    /// As [`broadcast`](Self::broadcast).
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if there is no rank `root`.
    pub fn broadcast_async<B>(&mut self, tensor: B, root: usize) -> Result<Handle<B>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        self.check_root("broadcast root", root)?;
        self.submit_in_place("broadcast", tensor, Collective::Broadcast { root })
    }

    /// Begins to gather `tensor` of every rank; the handle gives the elements of all ranks, in rank order.
    ///
    /// # Collective
    /// As [`allgather`](Self::allgather): the lengths are equal. [`allgatherv_async`](Self::allgatherv_async) takes any.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::System`] if there is no memory for the elements.
    pub fn allgather_async<B>(&mut self, tensor: B) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        let count = self.check_shape(&tensor)?;
        let all = count.saturating_mul(self.size());
        self.submit_into("allgather", tensor, (Collective::Allgather, count), true, all)
    }

    /// Begins to gather `tensor` of every rank, of whatever first dimension; the handle gives the blocks.
    ///
    /// # Collective
    /// As [`allgatherv`](Self::allgatherv); all dimensions but the first are equal on every rank.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async). If a rank has no memory for the blocks, the communicator ends.
    pub fn allgatherv_async<B>(&mut self, tensor: B) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        let count = self.check_shape(&tensor)?;
        let row = row_of(&tensor.shape()).max(1);
        self.submit_uneven("allgatherv", Move::Allgather, tensor, (vec![count], row), true)
    }

    /// Begins to gather each of `tensors` of every rank, as one operation; the handle gives the blocks of each.
    ///
    /// # Collective
    /// As [`allgather_group`](Self::allgather_group); all dimensions of each tensor but the first are equal on every rank.
    ///
    /// # Errors
    /// As [`allgatherv_async`](Self::allgatherv_async).
    pub fn allgather_group_async<B>(&mut self, tensors: Vec<B>) -> Result<Handle<Vec<Blocks<B::Element>>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        let mut counts = Vec::with_capacity(tensors.len());
        for tensor in &tensors {
            counts.push(self.check_shape(tensor)?);
        }
        let rows: Vec<usize> = tensors.iter().map(|tensor| row_of(&tensor.shape()).max(1)).collect();
        let (holds, views): (Vec<Arc<Hold<B>>>, Vec<RawSlice>) = tensors.into_iter().map(Hold::new).unzip();
        let results = Gathered::<B::Element>::new(views.len());
        let uneven = results.uneven(counts, &rows);
        let pieces = inputs(views.into_iter());
        let task = Box::new(Collectively::uneven(Move::Allgather, B::Element::DTYPE, 1, uneven, pieces));
        self.queue()?.submit(LaneOf::Collectives, "allgather_group", task, Some(Arc::new(holds)), results)
    }

    /// Begins to collect `tensor` of every rank on rank `root`; the handle gives the elements of all ranks there, and none on
    /// the others.
    ///
    /// # Collective
    /// As [`gather`](Self::gather): the lengths are equal. [`gatherv_async`](Self::gatherv_async) takes any.
    ///
    /// # Errors
    /// As [`allgather_async`](Self::allgather_async), and [`Error::Argument`] if there is no rank `root`.
    pub fn gather_async<B>(&mut self, tensor: B, root: usize) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        self.check_root("gather root", root)?;
        let count = self.check_shape(&tensor)?;
        let all = if self.rank() == root { count.saturating_mul(self.size()) } else { 0 };
        self.submit_into("gather", tensor, (Collective::Move(Move::Gather { root }), count), true, all)
    }

    /// Begins to collect `tensor` of every rank, of whatever first dimension, on rank `root`; the handle gives the blocks there,
    /// and empty ones on the others.
    ///
    /// # Collective
    /// As [`gatherv`](Self::gatherv); all dimensions but the first are equal on every rank.
    ///
    /// # Errors
    /// As [`allgatherv_async`](Self::allgatherv_async), and [`Error::Argument`] if there is no rank `root`.
    pub fn gatherv_async<B>(&mut self, tensor: B, root: usize) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        self.check_root("gather root", root)?;
        let count = self.check_shape(&tensor)?;
        let row = row_of(&tensor.shape()).max(1);
        self.submit_uneven("gatherv", Move::Gather { root }, tensor, (vec![count], row), true)
    }

    /// Begins to scatter the root's `tensor`; the handle gives block `rank` of it, of `count` elements. On the other ranks the
    /// tensor is not looked at and may be empty.
    ///
    /// # Collective
    /// As [`scatter`](Self::scatter), with the same type, `count` and `root`.
    ///
    /// # Errors
    /// As [`allgather_async`](Self::allgather_async), and [`Error::Argument`] if there is no rank `root`, or on the root if the
    /// tensor does not hold `size` times `count` elements.
    pub fn scatter_async<B>(&mut self, tensor: B, count: usize, root: usize) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        self.check_root("scatter root", root)?;
        let (is_root, all) = (self.rank() == root, tensor.as_slice().len());
        if is_root && count.checked_mul(self.size()) != Some(all) {
            return self.refuse(Error::argument(format!(
                "scatter of {all} elements to {} ranks with {count} each: the tensor of the root must hold size times as many",
                self.size(),
            )));
        }
        let scatter = (Collective::Move(Move::Scatter { root }), count);
        self.submit_into("scatter", tensor, scatter, is_root, count)
    }

    /// Begins to scatter the root's `tensor`, `rows[i]` of whose rows go to rank i; the handle gives this rank's elements. On the
    /// other ranks neither is looked at.
    ///
    /// # Collective
    /// As [`scatterv`](Self::scatterv), with the same type and `root`.
    ///
    /// # Errors
    /// As [`allgatherv_async`](Self::allgatherv_async), and [`Error::Argument`] if there is no rank `root`, or on the root if there is
    /// not one count for each rank or they do not add up to the first dimension.
    pub fn scatterv_async<B>(&mut self, tensor: B, rows: &[usize], root: usize) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        self.check_root("scatter root", root)?;
        let is_root = self.rank() == root;
        let counts = if is_root { self.check_split("scatterv", &tensor, rows)? } else { Vec::new() };
        self.submit_uneven("scatterv", Move::Scatter { root }, tensor, (counts, 1), is_root)
    }

    /// Begins to send block j of `tensor` to rank j; the handle gives the blocks that the others sent to this one, in rank order.
    ///
    /// # Collective
    /// As [`alltoall`](Self::alltoall): the blocks are equally long. [`alltoallv_async`](Self::alltoallv_async) takes any.
    ///
    /// # Errors
    /// As [`allgather_async`](Self::allgather_async), and [`Error::Argument`] if the number of elements is no multiple of `size`.
    pub fn alltoall_async<B>(&mut self, tensor: B) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        let all = self.check_shape(&tensor)?;
        if !all.is_multiple_of(self.size()) {
            return self.refuse(Error::argument(format!(
                "alltoall of {all} elements over {} ranks: pass one block for each rank, of one length; alltoallv takes \
                 blocks of any length",
                self.size()
            )));
        }
        let count = all / self.size();
        self.submit_into("alltoall", tensor, (Collective::Move(Move::AllToAll), count), true, all)
    }

    /// Begins an all-to-all of `tensor`, `rows[j]` of whose rows go to rank j; the handle gives the blocks that this rank gets.
    ///
    /// # Collective
    /// As [`alltoallv`](Self::alltoallv); all dimensions but the first are equal on every rank.
    ///
    /// # Errors
    /// As [`allgatherv_async`](Self::allgatherv_async), and [`Error::Argument`] if there is not one count for each rank or they do
    /// not add up to the first dimension.
    pub fn alltoallv_async<B>(&mut self, tensor: B, rows: &[usize]) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.queue()?;
        let counts = self.check_split("alltoallv", &tensor, rows)?;
        let row = row_of(&tensor.shape()).max(1);
        self.submit_uneven("alltoallv", Move::AllToAll, tensor, (counts, row), true)
    }

    /// The elements of blocks of `rows` rows, which add up to the tensor.
    fn check_split<B: Tensor>(&mut self, what: &str, tensor: &B, rows: &[usize]) -> Result<Vec<usize>> {
        self.check_shape(tensor)?;
        let shape = tensor.shape();
        self.check_counts(what, rows, shape.first().copied().unwrap_or(1))?;
        let row = row_of(&shape);
        Ok(rows.iter().map(|rows| rows * row).collect())
    }
}
