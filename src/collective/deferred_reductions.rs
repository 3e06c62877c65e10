//! The asynchronous operations of a communicator that reduce.

use std::sync::Arc;

use super::group::{FIT, Holds, elements, hold_apart, misfit};
use super::reduce_scatter_group::Cut;
use crate::communicator::Communicator;
use crate::engine::{Collective, Operation, Pieces};
use crate::error::{Error, Result};
use crate::handle::{Handle, row_of};
use crate::tensor::{Both, Element, Hold, Piece, RawSlice, ReduceOp, Reducible, Tensor};

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

    /// Begins to reduce `input` over all ranks into `output`, which has as many elements; the handle gives both back, `input` as
    /// it was.
    ///
    /// # Collective
    /// As [`allreduce_into`](Self::allreduce_into).
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if the numbers of elements differ. Both tensors are
    /// dropped if the call fails.
    pub fn allreduce_into_async<A, B>(&mut self, input: A, output: B, op: ReduceOp) -> Result<Handle<(A, B)>>
    where
        A: Tensor<Element: Reducible> + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        self.queue()?;
        self.check_op::<A::Element>(op)?;
        self.submit_apart("allreduce", input, output, Collective::Allreduce(op))
    }

    /// Hands in a reduction of one tensor into another, which is as long on the ranks that get a result, and not looked at on the
    /// others.
    fn submit_apart<A, B>(&mut self, what: &str, input: A, output: B, collective: Collective) -> Result<Handle<(A, B)>>
    where
        A: Tensor + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        let (count, room) = (self.check_shape(&input)?, output.as_slice().len());
        let gets = !matches!(collective, Collective::Reduce { root, .. } if root != self.rank());
        if gets && count != room {
            return self.refuse(Error::argument(format!(
                "{what} of {count} elements into {room}: input and output must be equally long"
            )));
        }
        let (both, piece) = Both::new(input, output);
        let piece = if gets { piece } else { Piece { output: piece.output.part(0, 0), ..piece } };
        let operation = Operation::new(collective, A::Element::DTYPE, count, Some(piece));
        self.submit(what, operation, Some(Arc::clone(&both) as _), both)
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

    /// Begins to reduce all of `inputs` over all ranks, as one operation, each into the one of `outputs` at the same place, which
    /// has as many elements; the handle gives all of them back, `inputs` as they were.
    ///
    /// # Collective
    /// As [`allreduce_group_into`](Self::allreduce_group_into).
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if the numbers of tensors or of their elements
    /// differ. All tensors are dropped if the call fails.
    pub fn allreduce_group_into_async<A, B>(
        &mut self,
        inputs: Vec<A>,
        outputs: Vec<B>,
        op: ReduceOp,
    ) -> Result<Handle<(Vec<A>, Vec<B>)>>
    where
        A: Tensor<Element: Reducible> + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        self.queue()?;
        self.check_op::<A::Element>(op)?;
        let mut count = 0;
        for input in &inputs {
            count += self.check_shape(input)?;
        }
        if let Some(reason) = misfit(&elements(&inputs), &elements(&outputs)) {
            return self.refuse(Error::argument(format!("allreduce of a group: {reason}; {FIT}")));
        }
        let (both, pieces) = hold_apart(inputs, outputs);
        let operation = Operation::new(Collective::Allreduce(op), A::Element::DTYPE, count, None);
        self.submit("allreduce_group", Operation { pieces, ..operation }, Some(Arc::clone(&both) as _), both)
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

    /// Begins to reduce `input` to rank `root`, into `output`, which has as many elements there and is not looked at elsewhere; the
    /// handle gives both back, `input` as it was.
    ///
    /// # Collective
    /// As [`reduce_into`](Self::reduce_into).
    ///
    /// # Errors
    /// As [`reduce_async`](Self::reduce_async), and [`Error::Argument`] on the root if the numbers of elements differ. Both tensors
    /// are dropped if the call fails.
    pub fn reduce_into_async<A, B>(&mut self, input: A, output: B, op: ReduceOp, root: usize) -> Result<Handle<(A, B)>>
    where
        A: Tensor<Element: Reducible> + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        self.queue()?;
        self.check_root("reduce root", root)?;
        self.check_part::<A::Element>(op)?;
        self.submit_apart("reduce", input, output, Collective::Reduce { op, root })
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
