//! What a rank does with the others: communicators, and named operations of all ranks.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Kolo;
use crate::collective::Sparse;
use crate::communicator::Communicator;
use crate::error::Result;
use crate::handle::{Handle, Options, Scope};
#[cfg(doc)]
use crate::process_set::ProcessSet;
use crate::tensor::{Blocks, Element, ReduceOp, Reducible, Tensor};

impl Kolo {
    /// A communicator of all ranks, for collectives matched by order.
    ///
    /// # Collective
    /// Every rank of the job, in the same order among communicators and process sets.
    ///
    /// # Errors
    /// On every rank: a host without shared memory left, a rank that does not come before the deadline.
    pub fn communicator(&self) -> Result<Communicator> {
        let session = &self.world().session;
        let all = (0..self.size() as u32).collect();
        let built = session.ground.build(all, false, &mut |bytes| self.job.allgather(bytes))?;
        Ok(Communicator::new(Arc::clone(session), built))
    }

    /// Returns once every rank has called it: [`ProcessSet::barrier`] of all ranks.
    ///
    /// # Collective
    /// Every rank of the job; one call at a time on each.
    ///
    /// # Errors
    /// As [`ProcessSet::barrier`].
    pub fn barrier(&self) -> Result<()> {
        self.world().barrier()
    }

    /// Comes to the barrier, and goes on: [`ProcessSet::barrier_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::barrier_async`].
    pub fn barrier_async(&self) -> Result<Handle<()>> {
        self.world().barrier_async()
    }

    /// Reduces the tensor `name` over all ranks, in place, and waits for it: [`ProcessSet::allreduce`] of all ranks.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut loss = [kolo.rank() as f64];
    /// kolo.allreduce("loss", &mut loss, kolo::ReduceOp::Average)?;
    /// assert_eq!(loss, [0.5]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce`].
    pub fn allreduce<T: Reducible>(&self, name: &str, data: &mut [T], op: ReduceOp) -> Result<()> {
        self.world().allreduce(name, data, op)
    }

    /// As [`allreduce`](Self::allreduce), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce`].
    pub fn allreduce_with<T: Reducible>(
        &self,
        name: &str,
        data: &mut [T],
        op: ReduceOp,
        options: &Options,
    ) -> Result<()> {
        self.world().allreduce_with(name, data, op, options)
    }

    /// Begins to reduce the tensor `name` over all ranks: [`ProcessSet::allreduce_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_async`].
    pub fn allreduce_async<B>(&self, name: &str, tensor: B, op: ReduceOp) -> Result<Handle<B>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.world().allreduce_async(name, tensor, op)
    }

    /// As [`allreduce_async`](Self::allreduce_async), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_async`].
    pub fn allreduce_async_with<B>(&self, name: &str, tensor: B, op: ReduceOp, options: &Options) -> Result<Handle<B>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.world().allreduce_async_with(name, tensor, op, options)
    }

    /// Copies the tensor `name` of rank `root` to all ranks, and waits for it: [`ProcessSet::broadcast`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::broadcast`].
    pub fn broadcast<T: Element>(&self, name: &str, data: &mut [T], root: usize) -> Result<()> {
        self.world().broadcast(name, data, root)
    }

    /// Begins to copy the tensor `name` of rank `root` to all ranks: [`ProcessSet::broadcast_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::broadcast_async`].
    pub fn broadcast_async<B>(&self, name: &str, tensor: B, root: usize) -> Result<Handle<B>>
    where
        B: Tensor + Send + 'static,
    {
        self.world().broadcast_async(name, tensor, root)
    }

    /// Reduces the tensor `name` to rank `root`, in place, and waits for it: [`ProcessSet::reduce`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::reduce`].
    pub fn reduce<T: Reducible>(&self, name: &str, data: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        self.world().reduce(name, data, op, root)
    }

    /// Begins to reduce the tensor `name` to rank `root`: [`ProcessSet::reduce_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_async`].
    pub fn reduce_async<B>(&self, name: &str, tensor: B, op: ReduceOp, root: usize) -> Result<Handle<B>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.world().reduce_async(name, tensor, op, root)
    }

    /// Reduces the tensor `name` and returns this rank's block: [`ProcessSet::reduce_scatter`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_scatter`].
    pub fn reduce_scatter<T: Reducible>(&self, name: &str, data: &[T], op: ReduceOp) -> Result<Vec<T>> {
        self.world().reduce_scatter(name, data, op)
    }

    /// Begins to reduce the tensor `name`, for this rank's rows: [`ProcessSet::reduce_scatter_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_scatter_async`].
    pub fn reduce_scatter_async<B>(&self, name: &str, tensor: B, op: ReduceOp) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.world().reduce_scatter_async(name, tensor, op)
    }

    /// Gathers the tensor `name` of every rank on every rank: [`ProcessSet::allgather`] of all ranks.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mine = vec![kolo.rank() as u64; 2 - kolo.rank()]; // lengths may differ
    /// let all = kolo.allgather("who", &mine)?;
    /// assert_eq!(all.data(), [0, 0, 1]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`ProcessSet::allgather`].
    pub fn allgather<T: Element>(&self, name: &str, data: &[T]) -> Result<Blocks<T>> {
        self.world().allgather(name, data)
    }

    /// Begins to gather the tensor `name` of every rank: [`ProcessSet::allgather_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allgather_async`].
    pub fn allgather_async<B>(&self, name: &str, tensor: B) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.world().allgather_async(name, tensor)
    }

    /// Collects the tensor `name` of every rank on rank `root`: [`ProcessSet::gather`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::gather`].
    pub fn gather<T: Element>(&self, name: &str, data: &[T], root: usize) -> Result<Blocks<T>> {
        self.world().gather(name, data, root)
    }

    /// Begins to collect the tensor `name` on rank `root`: [`ProcessSet::gather_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::gather_async`].
    pub fn gather_async<B>(&self, name: &str, tensor: B, root: usize) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.world().gather_async(name, tensor, root)
    }

    /// Cuts the tensor `name` of rank `root` into blocks, one for each rank: [`ProcessSet::scatter`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::scatter`].
    pub fn scatter<T: Element>(&self, name: &str, data: &[T], counts: &[usize], root: usize) -> Result<Vec<T>> {
        self.world().scatter(name, data, counts, root)
    }

    /// Begins to cut the tensor `name` of rank `root` into blocks, one for each rank: [`ProcessSet::scatter_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::scatter_async`].
    pub fn scatter_async<B>(
        &self,
        name: &str,
        tensor: B,
        rows: &[usize],
        root: usize,
    ) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.world().scatter_async(name, tensor, rows, root)
    }

    /// Sends a block of the tensor `name` to each rank: [`ProcessSet::alltoall`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::alltoall`].
    pub fn alltoall<T: Element>(&self, name: &str, data: &[T], counts: &[usize]) -> Result<Blocks<T>> {
        self.world().alltoall(name, data, counts)
    }

    /// Begins to send rows of the tensor `name` to each rank: [`ProcessSet::alltoall_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::alltoall_async`].
    pub fn alltoall_async<B>(&self, name: &str, tensor: B, rows: &[usize]) -> Result<Handle<Blocks<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        self.world().alltoall_async(name, tensor, rows)
    }

    /// Reduces a tensor of which each rank has some rows: [`ProcessSet::allreduce_sparse`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_sparse`].
    pub fn allreduce_sparse<T: Reducible>(
        &self,
        name: &str,
        shape: [usize; 2],
        indices: &[u64],
        values: &[T],
        op: ReduceOp,
    ) -> Result<Sparse<T>> {
        self.world().allreduce_sparse(name, shape, indices, values, op)
    }

    /// Begins to reduce a tensor of which each rank has some rows: [`ProcessSet::allreduce_sparse_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_sparse_async`].
    pub fn allreduce_sparse_async<T: Reducible>(
        &self,
        name: &str,
        shape: [usize; 2],
        indices: &[u64],
        values: &[T],
        op: ReduceOp,
    ) -> Result<Handle<Sparse<T>>> {
        self.world().allreduce_sparse_async(name, shape, indices, values, op)
    }

    /// Reduces several tensors under one name, all or none: [`ProcessSet::allreduce_group`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_group`].
    pub fn allreduce_group<T: Reducible>(&self, name: &str, tensors: &mut [&mut [T]], op: ReduceOp) -> Result<()> {
        self.world().allreduce_group(name, tensors, op)
    }

    /// Begins to reduce several tensors under one name: [`ProcessSet::allreduce_group_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_group_async`].
    pub fn allreduce_group_async<B>(&self, name: &str, tensors: Vec<B>, op: ReduceOp) -> Result<Handle<Vec<B>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.world().allreduce_group_async(name, tensors, op)
    }

    /// Says that this rank has no more data, and waits until every rank has said so: [`ProcessSet::join`] of all ranks.
    /// Returns the rank that was the last.
    ///
    /// # Errors
    /// As [`ProcessSet::join`].
    pub fn join(&self) -> Result<usize> {
        self.world().join()
    }

    /// As [`join`](Self::join), but returns at once: [`ProcessSet::join_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::join`].
    pub fn join_async(&self) -> Result<Handle<usize>> {
        self.world().join_async()
    }

    /// Gathers several tensors of every rank under one name, all or none: [`ProcessSet::allgather_group`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allgather_group`].
    pub fn allgather_group<T: Element>(&self, name: &str, tensors: &[&[T]]) -> Result<Vec<Blocks<T>>> {
        self.world().allgather_group(name, tensors)
    }

    /// Begins to gather several tensors of every rank under one name: [`ProcessSet::allgather_group_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allgather_group_async`].
    pub fn allgather_group_async<B>(&self, name: &str, tensors: Vec<B>) -> Result<Handle<Vec<Blocks<B::Element>>>>
    where
        B: Tensor + Send + 'static,
    {
        self.world().allgather_group_async(name, tensors)
    }

    /// Reduces several tensors under one name, all or none, and returns this rank's block of each:
    /// [`ProcessSet::reduce_scatter_group`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_scatter_group`].
    pub fn reduce_scatter_group<T: Reducible>(
        &self,
        name: &str,
        tensors: &[&[T]],
        op: ReduceOp,
    ) -> Result<Vec<Vec<T>>> {
        self.world().reduce_scatter_group(name, tensors, op)
    }

    /// Begins to reduce several tensors under one name, for this rank's rows of each:
    /// [`ProcessSet::reduce_scatter_group_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_scatter_group_async`].
    pub fn reduce_scatter_group_async<B>(
        &self,
        name: &str,
        tensors: Vec<B>,
        op: ReduceOp,
    ) -> Result<Handle<Vec<Vec<B::Element>>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.world().reduce_scatter_group_async(name, tensors, op)
    }

    /// Copies the object `name` of rank `root` to all ranks: [`ProcessSet::broadcast_object`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::broadcast_object`].
    pub fn broadcast_object<T>(&self, name: &str, object: Option<T>, root: usize) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        self.world().broadcast_object(name, object, root)
    }

    /// Begins to copy the object `name` of rank `root` to all ranks: [`ProcessSet::broadcast_object_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::broadcast_object_async`].
    pub fn broadcast_object_async<T>(&self, name: &str, object: Option<T>, root: usize) -> Result<Handle<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        self.world().broadcast_object_async(name, object, root)
    }

    /// Gathers the object `name` of every rank on every rank: [`ProcessSet::allgather_object`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allgather_object`].
    pub fn allgather_object<T>(&self, name: &str, object: &T) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        self.world().allgather_object(name, object)
    }

    /// Begins to gather the object `name` of every rank: [`ProcessSet::allgather_object_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allgather_object_async`].
    pub fn allgather_object_async<T>(&self, name: &str, object: &T) -> Result<Handle<Vec<T>>>
    where
        T: Serialize + DeserializeOwned + 'static,
    {
        self.world().allgather_object_async(name, object)
    }

    /// Lends tensors to operations of all ranks that have all ended when it returns: [`ProcessSet::scope`].
    ///
    /// # Errors
    /// As [`ProcessSet::scope`].
    pub fn scope<'env, R>(&self, body: impl for<'s> FnOnce(&'s Scope<'s, 'env>) -> Result<R>) -> Result<R> {
        self.world().scope(body)
    }
}
