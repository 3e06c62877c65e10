//! The asynchronous operations of a communicator that reduce.

use std::sync::Arc;

use super::group::Holds;
use super::reduce_scatter_group::Cut;
use crate::communicator::Communicator;
use crate::engine::{Collective, Operation, Pieces};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::handle::{Handle, row_of};
use crate::tensor::{Element, Hold, Piece, RawSlice, ReduceOp, Reducible, Tensor};

impl Communicator {
    /// Begins to reduce `tensor` over all ranks; the handle gives it back.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// let first = world.allreduce_async(vec![kolo.rank() as f32; 3], kolo::ReduceOp::Sum)?;
    /// let second = world.allreduce_async(vec![1_u64], kolo::ReduceOp::Sum)?;
    /// // ... compute meanwhile ...
    /// assert_eq!(second.wait()?, [2]);
    /// assert_eq!(first.wait()?, [1.0; 3]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`allreduce`](Self::allreduce): its place in the order is that of this call. Ranks may differ in whether they wait.
    ///
    /// # Errors
    /// [`Error::Argument`] if `op` does not [take](ReduceOp::takes) the type, or the tensor's shape does not fit its elements;
    /// [`Error::Poisoned`] if the communicator has ended; [`Error::System`] if there is no thread to be had. All others come
    /// from the handle: those of [`allreduce`](Self::allreduce), and [`Error::Poisoned`] if an operation before it ended the
    /// communicator. The tensor is dropped if the call fails.
    pub fn allreduce_async<B>(&mut self, tensor: B, op: ReduceOp) -> Result<Handle<B>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.queue()?;
        self.check_op::<B::Element>(op)?;
        self.submit_in_place("allreduce", tensor, Collective::Allreduce(op))
    }

    /// Begins to reduce all of `tensors` over all ranks, as one operation; the handle gives them back.
    ///
    /// # Collective
    /// As [`allreduce_group`](Self::allreduce_group).
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async).
    pub fn allreduce_group_async<B>(&mut self, tensors: Vec<B>, op: ReduceOp) -> Result<Handle<Vec<B>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.queue()?;
        self.check_op::<B::Element>(op)?;
        let mut count = 0;
        for tensor in &tensors {
            count += self.check_shape(tensor)?;
        }
        let (holds, views): (Vec<Arc<Hold<B>>>, Vec<RawSlice>) = tensors.into_iter().map(Hold::new).unzip();
        let holds = Arc::new(Holds(holds));
        let pieces = Pieces::Many(views.into_iter().map(Piece::in_place).collect());
        let operation = Operation::new(Collective::Allreduce(op), B::Element::DTYPE, count, None);
        self.submit("allreduce_group", Operation { pieces, ..operation }, Some(Arc::clone(&holds) as _), holds)
    }

    /// Begins to reduce `tensor` to rank `root`; the handle gives it back, reduced on the root, as it was elsewhere.
    ///
    /// # Collective
    /// As [`reduce`](Self::reduce).
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if there is no rank `root`, or `op` is Adasum.
    pub fn reduce_async<B>(&mut self, tensor: B, op: ReduceOp, root: usize) -> Result<Handle<B>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.queue()?;
        self.check_root("reduce root", root)?;
        self.check_part::<B::Element>(op)?;
        self.submit_in_place("reduce", tensor, Collective::Reduce { op, root })
    }

    /// Begins to reduce `tensor` over all ranks; the handle gives this rank's rows of the result.
    ///
    /// Rows stay whole: of the first dimension each rank gets an equal part, the first ones one row more if it does not come
    /// out even.
    ///
    /// # Collective
    /// As [`reduce_scatter_rows`](Self::reduce_scatter_rows), with tensors of the same shape.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if `op` is Adasum, or rows that do not come out even
    /// are too long, as in [`reduce_scatter_rows`](Self::reduce_scatter_rows).
    pub fn reduce_scatter_async<B>(&mut self, tensor: B, op: ReduceOp) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.queue()?;
        let count = self.check_shape(&tensor)?;
        let row = self.check_rows(count, row_of(&tensor.shape()).max(1))?;
        self.check_part::<B::Element>(op)?;
        let len = self.reduce_scatter_len(count, row);
        self.submit_into("reduce_scatter", tensor, (Collective::ReduceScatter { op, row }, count), true, len)
    }

    /// Begins to reduce each of `tensors` over all ranks, as one operation; the handle gives this rank's rows of each.
    ///
    /// # Collective
    /// As [`reduce_scatter_group_rows`](Self::reduce_scatter_group_rows), with tensors of the same shapes.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if `op` is Adasum; [`Error::System`] if there is
    /// no memory for the rows.
    pub fn reduce_scatter_group_async<B>(
        &mut self,
        tensors: Vec<B>,
        op: ReduceOp,
    ) -> Result<Handle<Vec<Vec<B::Element>>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.queue()?;
        for tensor in &tensors {
            self.check_shape(tensor)?;
        }
        self.check_part::<B::Element>(op)?;
        let rows: Vec<usize> = tensors.iter().map(|tensor| row_of(&tensor.shape()).max(1)).collect();
        let (holds, views): (Vec<Arc<Hold<B>>>, Vec<RawSlice>) = tensors.into_iter().map(Hold::new).unzip();
        let inputs: Vec<(RawSlice, usize)> = views.into_iter().zip(rows).collect();
        let cut = match Cut::<B::Element>::new(&inputs, self.rank(), self.size()) {
            Ok(cut) => cut,
            Err(error) => return self.refuse(error),
        };
        let operation = cut.operation(&inputs, op);
        // All live as long as the operation.
        let keep: Arc<dyn Send + Sync> = Arc::new((holds, Arc::clone(&cut.results)));
        self.submit("reduce_scatter_group", operation, Some(keep), cut.results)
    }
}
