//! Scatter: every rank gets its block of one rank's elements.

use std::sync::Arc;

use super::uneven;
use crate::communicator::{Communicator, apart};
use crate::coordinator::Kind;
use crate::engine::Collective;
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Options};
use crate::plan::moves::Move;
use crate::process_set::ProcessSet;
use crate::tensor::{Blocks, Element, Hold, Received, Tensor};

impl Communicator {
    /// Leaves block `rank` of the root's `input` in `output`. On the other ranks `input` is not looked at and may be
    /// empty.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length of `output` and `root`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no rank `root`, or on the root if `input` does not hold `size` times `output`; else as
    /// [`allreduce`](Self::allreduce).
    pub fn scatter<T: Element>(&mut self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        self.check_root("scatter root", root)?;
        let is_root = self.rank() == root;
        if is_root && output.len().checked_mul(self.size()) != Some(input.len()) {
            return self.refuse(Error::argument(format!(
                "scatter of {} elements to {} ranks with {} each: the input of the root must hold size times the output",
                input.len(),
                self.size(),
                output.len()
            )));
        }
        let piece = apart(if is_root { input } else { &[] }, output);
        let count = piece.output.len() / size_of::<T>();
        self.run_on::<T>(Collective::Move(Move::Scatter { root }), count, piece)
    }

    /// Cuts the root's `input` into blocks of `counts` elements, one for each rank, and returns this rank's. On the other
    /// ranks neither is looked at.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and `root`. Counts may be zero.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no rank `root`, or on the root if there is not one count for each rank or they do not
    /// add up to the input; [`Error::System`] if there is no memory for the block; else as [`allreduce`](Self::allreduce).
    pub fn scatterv<T: Element>(&mut self, input: &[T], counts: &[usize], root: usize) -> Result<Vec<T>> {
        self.check_root("scatter root", root)?;
        let is_root = self.rank() == root;
        if is_root {
            self.check_counts("scatterv", counts, input.len())?;
        }
        let (counts, input) = if is_root { (counts.to_vec(), input) } else { (Vec::new(), &[][..]) };
        self.uneven(Move::Scatter { root }, counts, input).map(Blocks::into_data)
    }

    /// One count for each rank, which add up to the input.
    pub(super) fn check_counts(&mut self, what: &str, counts: &[usize], input: usize) -> Result<()> {
        let total = counts.iter().try_fold(0_usize, |sum, &count| sum.checked_add(count));
        if counts.len() == self.size() && total == Some(input) {
            return Ok(());
        }
        self.refuse(Error::argument(format!(
            "{what} of {input} elements in blocks of {counts:?}: pass one count for each of the {} ranks, which add up to \
             the input",
            self.size()
        )))
    }
}

impl ProcessSet {
    /// Cuts the tensor `name` of rank `root` into blocks of `counts` elements, one for each rank of the set, waits, and
    /// returns this rank's. On the other ranks neither is looked at.
    ///
    /// `root` is a global rank, also in a set that has its own numbers.
    ///
    /// # Collective
    /// Every rank of the set submits the name, with the same type and root; in any order among names, from any thread.
    /// Counts may be zero and change from call to call.
    ///
    /// # Errors
    /// [`Error::Argument`] if `root` is not in the set, or on the root if there is not one count for each rank or they do
    /// not add up to the tensor; else as [`allreduce`](Self::allreduce).
    pub fn scatter<T: Element>(&self, name: &str, data: &[T], counts: &[usize], root: usize) -> Result<Vec<T>> {
        let root = self.set.root(name, "scatter from", root)? as usize;
        let (data, counts) = if self.rank() == root { (data, counts) } else { (&[][..], &[][..]) };
        if self.rank() == root {
            uneven::check_counts(&self.set, name, counts, data.len())?;
        }
        let call = Call::slice(Kind::Move(Move::Scatter { root }), data, Options::default());
        uneven::blocking(&self.set, name, &call, data, counts.to_vec()).map(Blocks::into_data)
    }

    /// Begins to cut the tensor `name` of rank `root` into blocks, `rows[j]` of its rows for rank j of the set; the handle gives
    /// this rank's elements. On the other ranks neither is looked at: pass what is at hand, or nothing.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let (samples, rows) = if kolo.rank() == 0 { (vec![1.0_f32, 2.0, 3.0], vec![2, 1]) } else { (vec![], vec![]) };
    /// let mine = kolo.scatter_async("samples", samples, &rows, 0)?.wait()?;
    /// assert_eq!(mine, [[1.0, 2.0].as_slice(), &[3.0]][kolo.rank()]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`scatter`](Self::scatter). Ranks may differ in whether they wait.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if `root` is not in the set, or on the root if
    /// there is not one count for each rank or they do not add up to the first dimension.
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
        let root = self.set.root(name, "scatter from", root)? as usize;
        let is_root = self.rank() == root;
        let counts = if is_root { uneven::split(&self.set, name, &tensor, rows)? } else { Vec::new() };
        let (hold, view) = Hold::new(tensor);
        let input = if is_root { view } else { view.part(0, 0) };
        // The others do not know how long a row is, so the ranks agree on elements.
        let shape = vec![counts.iter().sum()];
        let call = Call::new(Kind::Move(Move::Scatter { root }), B::Element::DTYPE, shape, Options::default());
        let result = Received::<B::Element>::new();
        let memory = uneven::memory(input, counts, Arc::clone(&result) as _, Some(hold as _));
        self.set.handle(name, &call, memory, result)
    }
}
