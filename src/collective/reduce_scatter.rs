//! Reduce-scatter: every rank gets its block of the reduction of all ranks' elements.

use std::sync::Arc;

use crate::communicator::{Communicator, apart};
use crate::coordinator::Kind;
use crate::engine::{Collective, MAX_ROW};
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Memory, Options, row_of};
use crate::plan::Span;
use crate::process_set::ProcessSet;
use crate::tensor::{Element, Hold, Piece, RawSlice, ReduceOp, Reducible, Tensor, room};

impl Communicator {
    /// Reduces `input` over all ranks and leaves block `rank` of the result in `output`.
    ///
    /// `input` is cut into `size` blocks. If it does not come out even, the first `input.len() % size` ranks get one
    /// element more; [`reduce_scatter_len`](Self::reduce_scatter_len) tells how many this rank gets.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length of `input` and `op`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the lengths do not fit, or `op` is Adasum; else as [`allreduce`](Self::allreduce).
    pub fn reduce_scatter<T: Reducible>(&mut self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        self.reduce_scatter_rows(input, 1, output, op)
    }

    /// As [`reduce_scatter`](Self::reduce_scatter), for rows of `row` elements that stay whole: of a tensor whose first
    /// dimension is `input.len() / row`, the first ranks get one row more if it does not come out even.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// let matrix = [1.0_f32; 3 * 4]; // three rows of four
    /// let mut rows = vec![0.0; world.reduce_scatter_len(matrix.len(), 4)];
    /// world.reduce_scatter_rows(&matrix, 4, &mut rows, kolo::ReduceOp::Sum)?;
    /// assert_eq!(rows, [[2.0; 8].as_slice(), &[2.0; 4]][kolo.rank()]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`reduce_scatter`](Self::reduce_scatter), with the same `row`.
    ///
    /// # Errors
    /// As [`reduce_scatter`](Self::reduce_scatter).
    pub fn reduce_scatter_rows<T: Reducible>(
        &mut self,
        input: &[T],
        row: usize,
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        if row == 0 || !input.len().is_multiple_of(row) {
            let text = format!("reduce_scatter of {} elements in rows of {row}: pass whole rows", input.len());
            return self.refuse(Error::argument(text));
        }
        let row = self.check_rows(input.len(), row)?;
        self.check_part::<T>(op)?;
        let due = self.reduce_scatter_len(input.len(), row);
        if output.len() != due {
            return self.refuse(Error::argument(format!(
                "reduce_scatter of {} elements over {} ranks into {}: rank {} gets {due}; see reduce_scatter_len",
                input.len(),
                self.size(),
                output.len(),
                self.rank()
            )));
        }
        self.run_on::<T>(Collective::ReduceScatter { op, row }, input.len(), apart(input, output))
    }

    /// The length of rows that the ranks agree on: where they come out even it does not matter.
    pub(super) fn check_rows(&mut self, count: usize, row: usize) -> Result<usize> {
        let rows = count / row;
        let row = if rows.is_multiple_of(self.size()) { 1 } else { row };
        if row <= MAX_ROW {
            return Ok(row);
        }
        self.refuse(Error::argument(format!(
            "reduce_scatter of {rows} rows of {row} elements over {} ranks: rows longer than {MAX_ROW} must come out even; \
             pad the tensor to a multiple of {} rows",
            self.size(),
            self.size()
        )))
    }

    /// How many elements of a [`reduce_scatter_rows`](Self::reduce_scatter_rows) of `count` elements in rows of `row` this
    /// rank gets. Local.
    ///
    /// # Panics
    /// If `row` is zero.
    #[must_use]
    pub fn reduce_scatter_len(&self, count: usize, row: usize) -> usize {
        Span::new(0, count).part(self.rank(), self.size(), row).len
    }
}

impl ProcessSet {
    /// Reduces the tensor `name` over the set's ranks, waits, and returns this rank's block of the result.
    ///
    /// The tensor is cut into blocks, one for each rank of the set; if it does not come out even, the first ranks get one
    /// element more.
    ///
    /// # Collective
    /// As [`allreduce`](Self::allreduce).
    ///
    /// # Errors
    /// [`Error::Argument`] if `op` is Adasum; else as [`allreduce`](Self::allreduce).
    pub fn reduce_scatter<T: Reducible>(&self, name: &str, data: &[T], op: ReduceOp) -> Result<Vec<T>> {
        let call = Call::slice(Kind::ReduceScatter { op }, data, Options::default());
        let (result, output) = self.block::<T>(data.len(), 1)?;
        let piece = Piece { input: RawSlice::of(data), output };
        self.set.blocking(name, &call, Memory::borrowed(piece))?;
        result.take().ok_or_else(|| Error::Cancelled(name.into()))
    }

    /// Begins to reduce the tensor `name`; the handle gives this rank's rows of the result.
    ///
    /// Rows stay whole: of the first dimension each rank of the set gets an equal part, the first ones one row more if it does
    /// not come out even.
    ///
    /// # Collective
    /// As [`allreduce_async`](Self::allreduce_async).
    ///
    /// # Errors
    /// [`Error::Argument`] if `op` is Adasum; else as [`allreduce_async`](Self::allreduce_async).
    pub fn reduce_scatter_async<B>(&self, name: &str, tensor: B, op: ReduceOp) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        let shape = tensor.shape();
        let row = row_of(&shape).max(1);
        let call = Call::new(Kind::ReduceScatter { op }, B::Element::DTYPE, shape, Options::default());
        let (hold, input) = Hold::new(tensor);
        let (result, output) = self.block::<B::Element>(input.len() / B::Element::DTYPE.size(), row)?;
        // Both live as long as the operation.
        let keep: Arc<dyn Send + Sync> = Arc::new((hold, Arc::clone(&result)));
        let memory = Memory { row, hold: Some(keep), ..Memory::borrowed(Piece { input, output }) };
        self.set.handle(name, &call, memory, result)
    }

    /// Room for this rank's block of `count` elements in rows of `row`.
    fn block<T: Reducible>(&self, count: usize, row: usize) -> Result<(Arc<Hold<Vec<T>>>, RawSlice)> {
        let len = Span::new(0, count).part(self.rank(), self.size(), row).len;
        room::<T>(len, "the block of a reduce_scatter").map(Hold::new)
    }
}
