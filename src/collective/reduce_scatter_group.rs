//! Grouped reduce-scatter: every rank gets its rows of the reduction of several tensors, as one operation. All of them are
//! reduced, or none.

use std::sync::Arc;

use crate::communicator::Communicator;
use crate::coordinator::Kind;
use crate::engine::{Collective, Operation, Pieces, mix};
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Memory, Options, row_of};
use crate::plan::Span;
use crate::process_set::ProcessSet;
use crate::tensor::{Element, GiveBack, Hold, Piece, RawSlice, ReduceOp, Reducible, Tensor, room};

impl Communicator {
    /// Reduces each of `tensors` over all ranks and returns this rank's block of each, as one operation: one wait for the peers,
    /// not one a tensor.
    ///
    /// Each tensor is cut into `size` blocks; if it does not come out even, the first ranks get one element more.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// let blocks = world.reduce_scatter_group(&[&[1.0_f32; 4], &[2.0; 3]], kolo::ReduceOp::Sum)?;
    /// assert_eq!(blocks[0], [2.0; 2]);
    /// assert_eq!(blocks[1], [[4.0; 2].as_slice(), &[4.0; 1]][kolo.rank()]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and `op`, and tensors of the same lengths in the
    /// same order. The sum of the lengths is compared, and a digest of them.
    ///
    /// # Errors
    /// [`Error::Argument`] if `op` is Adasum; [`Error::System`] if there is no memory for the blocks; else as
    /// [`allreduce`](Self::allreduce).
    pub fn reduce_scatter_group<T: Reducible>(&mut self, tensors: &[&[T]], op: ReduceOp) -> Result<Vec<Vec<T>>> {
        let tensors: Vec<(&[T], usize)> = tensors.iter().map(|tensor| (*tensor, 1)).collect();
        self.reduce_scatter_group_rows(&tensors, op)
    }

    /// As [`reduce_scatter_group`](Self::reduce_scatter_group), for tensors in rows that stay whole: with each tensor stands how
    /// many elements a row of it has. Of each first dimension the first ranks get one row more if it does not come out even.
    ///
    /// # Collective
    /// As [`reduce_scatter_group`](Self::reduce_scatter_group), with the same rows.
    ///
    /// # Errors
    /// As [`reduce_scatter_group`](Self::reduce_scatter_group), and [`Error::Argument`] if a tensor is not made of whole rows.
    pub fn reduce_scatter_group_rows<T: Reducible>(
        &mut self,
        tensors: &[(&[T], usize)],
        op: ReduceOp,
    ) -> Result<Vec<Vec<T>>> {
        if let Some((tensor, row)) =
            tensors.iter().find(|(tensor, row)| *row == 0 || !tensor.len().is_multiple_of(*row))
        {
            let text = format!("reduce_scatter of {} elements in rows of {row}: pass whole rows", tensor.len());
            return self.refuse(Error::argument(text));
        }
        self.check_part::<T>(op)?;
        let inputs: Vec<(RawSlice, usize)> = tensors.iter().map(|(tensor, row)| (RawSlice::of(tensor), *row)).collect();
        match Cut::<T>::new(&inputs, self.rank(), self.size()) {
            Ok(cut) => {
                self.run(cut.operation(&inputs, op))?;
                cut.results.take().ok_or_else(|| Error::Cancelled("reduce_scatter of a group".into()))
            }
            Err(error) => self.refuse(error),
        }
    }
}

impl ProcessSet {
    /// Reduces each of `tensors` over the set's ranks, under one name, waits, and returns this rank's block of each. All of them
    /// are reduced, or none.
    ///
    /// Each tensor is cut into blocks, one for each rank of the set; if it does not come out even, the first ranks get one
    /// element more.
    ///
    /// # Collective
    /// As [`allreduce_group`](Self::allreduce_group).
    ///
    /// # Errors
    /// [`Error::Argument`] if `op` is Adasum; [`Error::System`] if there is no memory for the blocks; else as
    /// [`allreduce`](Self::allreduce).
    pub fn reduce_scatter_group<T: Reducible>(
        &self,
        name: &str,
        tensors: &[&[T]],
        op: ReduceOp,
    ) -> Result<Vec<Vec<T>>> {
        let shapes = tensors.iter().map(|tensor| vec![tensor.len()]).collect();
        let inputs: Vec<(RawSlice, usize)> = tensors.iter().map(|tensor| (RawSlice::of(tensor), 1)).collect();
        let cut = self.cut::<T>(name, &inputs)?;
        let memory = Memory { blocks: Some(Arc::clone(&cut.blocks)), ..Memory::of(cut.pieces.clone()) };
        self.set.blocking(name, &call::<T>(op, shapes), memory)?;
        cut.results.take().ok_or_else(|| Error::Cancelled(name.into()))
    }

    /// Begins to reduce each of `tensors` under one name; the handle gives this rank's rows of each. All of them are reduced, or
    /// none.
    ///
    /// Rows stay whole: of each first dimension each rank of the set gets an equal part, the first ones one row more if it does
    /// not come out even.
    ///
    /// # Collective
    /// As [`allreduce_group_async`](Self::allreduce_group_async).
    ///
    /// # Errors
    /// [`Error::Argument`] if `op` is Adasum; else as [`reduce_scatter_group`](Self::reduce_scatter_group) and
    /// [`allreduce_async`](Self::allreduce_async).
    pub fn reduce_scatter_group_async<B>(
        &self,
        name: &str,
        tensors: Vec<B>,
        op: ReduceOp,
    ) -> Result<Handle<Vec<Vec<B::Element>>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        let shapes: Vec<Vec<usize>> = tensors.iter().map(Tensor::shape).collect();
        for (shape, tensor) in shapes.iter().zip(&tensors) {
            self.set.check_shape(name, shape, tensor.as_slice().len())?;
        }
        let (holds, views): (Vec<Arc<Hold<B>>>, Vec<RawSlice>) = tensors.into_iter().map(Hold::new).unzip();
        let inputs: Vec<(RawSlice, usize)> = views.into_iter().zip(shapes.iter().map(|shape| row_of(shape))).collect();
        let Cut { results, pieces, blocks } = self.cut::<B::Element>(name, &inputs)?;
        // Both live as long as the operation.
        let keep: Arc<dyn Send + Sync> = Arc::new((holds, Arc::clone(&results)));
        let memory = Memory { blocks: Some(blocks), hold: Some(keep), ..Memory::of(pieces) };
        self.set.handle(name, &call::<B::Element>(op, shapes), memory, results)
    }

    /// Cuts the tensors, or tells the peers that it cannot.
    fn cut<T: Reducible>(&self, name: &str, inputs: &[(RawSlice, usize)]) -> Result<Cut<T>> {
        Cut::new(inputs, self.rank(), self.size()).inspect_err(|error| self.set.refuse(name, &error.to_string()))
    }
}

fn call<T: Reducible>(op: ReduceOp, shapes: Vec<Vec<usize>>) -> Call {
    Call { kind: Kind::ReduceScatter { op }, dtype: T::DTYPE, shapes, group: true, options: Options::default() }
}

/// Tensors cut into rows, in the order in which the operation takes them: what goes to a rank lies together.
pub(super) struct Cut<T: Element> {
    pub(super) results: Arc<Scattered<T>>,
    pub(super) pieces: Pieces,
    /// The elements that each rank gets.
    pub(super) blocks: Arc<[Span]>,
}

impl<T: Element> Cut<T> {
    /// Of `inputs`, each with the elements of a row.
    ///
    /// # Errors
    /// No memory for this rank's rows.
    pub(super) fn new(inputs: &[(RawSlice, usize)], me: usize, ranks: usize) -> Result<Self> {
        let size = T::DTYPE.size();
        let part = |(tensor, row): (RawSlice, usize), rank: usize| {
            Span::new(0, tensor.len() / size).part(rank, ranks, row.max(1))
        };
        let rows = |input: &(RawSlice, usize)| {
            room::<T>(part(*input, me).len, "the blocks of a reduce_scatter of a group").map(Hold::new)
        };
        let (results, outputs): (Vec<_>, Vec<RawSlice>) =
            inputs.iter().map(rows).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let (mut pieces, mut blocks, mut start) = (Vec::with_capacity(ranks * inputs.len()), Vec::new(), 0);
        for rank in 0..ranks {
            let mut len = 0;
            for (input, output) in inputs.iter().zip(&outputs) {
                let part = part(*input, rank);
                let output = if rank == me { *output } else { output.part(0, 0) };
                pieces.push(Piece { input: input.0.part(part.start * size, part.len * size), output });
                len += part.len;
            }
            blocks.push(Span::new(start, len));
            start += len;
        }
        Ok(Self { results: Arc::new(Scattered(results)), pieces: Pieces::Many(pieces), blocks: blocks.into() })
    }

    /// The operation, where no log has compared the shapes.
    pub(super) fn operation(&self, inputs: &[(RawSlice, usize)], op: ReduceOp) -> Operation {
        let numbers = inputs.iter().flat_map(|(tensor, row)| [tensor.len() / T::DTYPE.size(), *row]);
        // A print has 24 bits for it.
        let digest = (mix(numbers) >> 40) as u32;
        let count = self.blocks.iter().map(|block| block.len).sum();
        Operation {
            pieces: self.pieces.clone(),
            blocks: Some(Arc::clone(&self.blocks)),
            ..Operation::new(Collective::ReduceScatterGroup { op, digest }, T::DTYPE, count, None)
        }
    }
}

/// This rank's rows of each tensor.
pub(super) struct Scattered<T: Element>(Vec<Arc<Hold<Vec<T>>>>);

impl<T: Element> GiveBack<Vec<Vec<T>>> for Scattered<T> {
    fn take(&self) -> Option<Vec<Vec<T>>> {
        self.0.iter().map(|rows| rows.take()).collect()
    }

    fn cancelled(&self) -> Option<Vec<Vec<T>>> {
        None
    }
}
