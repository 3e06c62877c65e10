//! Reduce: one rank gets the reduction of all ranks' elements.

use crate::communicator::{Communicator, apart};
use crate::coordinator::Kind;
use crate::engine::Collective;
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Memory, Options, Scope, ScopedHandle};
use crate::process_set::ProcessSet;
use crate::tensor::{Piece, RawSlice, ReduceOp, Reducible, Tensor};

impl Communicator {
    /// Reduces `data` over all ranks, in place, to rank `root`. On the other ranks `data` is left as it is.
    ///
    /// The root's elements have the same bits as after an [`allreduce`](Self::allreduce).
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length, `op` and `root`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no rank `root`, or `op` is Adasum; else as [`allreduce`](Self::allreduce).
    pub fn reduce<T: Reducible>(&mut self, data: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        self.check_root("reduce root", root)?;
        self.check_part::<T>(op)?;
        let piece = Piece::in_place(RawSlice::of_mut(data));
        self.run_on::<T>(Collective::Reduce { op, root }, data.len(), piece)
    }

    /// As [`reduce`](Self::reduce), into `output` on the root, which has the length of `input`; on the other ranks
    /// `output` is not looked at and may be empty.
    ///
    /// # Collective
    /// As [`reduce`](Self::reduce). Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`reduce`](Self::reduce), and [`Error::Argument`] on the root if the lengths differ.
    pub fn reduce_into<T: Reducible>(
        &mut self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        self.check_root("reduce root", root)?;
        self.check_part::<T>(op)?;
        let is_root = self.rank() == root;
        if is_root && input.len() != output.len() {
            return self.refuse(Error::argument(format!(
                "reduce of {} elements into {}: input and output of the root must be equally long",
                input.len(),
                output.len()
            )));
        }
        let piece = apart(input, if is_root { output } else { &mut [] });
        self.run_on::<T>(Collective::Reduce { op, root }, input.len(), piece)
    }
}

impl ProcessSet {
    /// Reduces the tensor `name` over the set's ranks, in place, to rank `root`, and waits for it. On the other ranks `data`
    /// is left as it is.
    ///
    /// `root` is a global rank, also in a set that has its own numbers.
    ///
    /// # Collective
    /// As [`allreduce`](Self::allreduce), with the same root.
    ///
    /// # Errors
    /// [`Error::Argument`] if `root` is not in the set, or `op` is Adasum; else as [`allreduce`](Self::allreduce).
    pub fn reduce<T: Reducible>(&self, name: &str, data: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        let root = self.set.root(name, "reduce to", root)?;
        let call = Call::slice(Kind::Reduce { op, root }, data, Options::default());
        self.set.blocking(name, &call, Memory::borrowed(Piece::in_place(RawSlice::of_mut(data))))
    }

    /// Begins to reduce the tensor `name` to rank `root`; the handle gives it back, reduced on the root, as it was elsewhere.
    ///
    /// # Collective
    /// As [`allreduce_async`](Self::allreduce_async), with the same root.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if `root` is not in the set, or `op` is Adasum.
    pub fn reduce_async<B>(&self, name: &str, tensor: B, op: ReduceOp, root: usize) -> Result<Handle<B>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        let root = self.set.root(name, "reduce to", root)?;
        self.set.owned(name, Kind::Reduce { op, root }, tensor, Options::default())
    }

    /// As [`reduce`](Self::reduce), from `input` into `output` on the root, which has the length of `input`; on the other ranks
    /// `output` is not looked at and may be empty. `input` is left as it is, however the call ends.
    ///
    /// # Collective
    /// As [`reduce`](Self::reduce). Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`reduce`](Self::reduce), and [`Error::Argument`] on the root if the lengths differ.
    pub fn reduce_into<T: Reducible>(
        &self,
        name: &str,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        let kind = Kind::Reduce { op, root: self.set.root(name, "reduce to", root)? };
        let memory = self.set.apart(name, kind, input, output)?;
        self.set.blocking(name, &Call::slice(kind, input, Options::default()), memory)
    }

    /// Begins to reduce the tensor `name` to rank `root`, from `input` into `output`, which has as many elements on the root and
    /// is not looked at elsewhere; the handle gives both back, `input` as it was.
    ///
    /// # Collective
    /// As [`reduce_async`](Self::reduce_async), with the shape of `input`. Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`reduce_async`](Self::reduce_async), and [`Error::Argument`] on the root if the numbers of elements differ. Both
    /// tensors are dropped if the call fails.
    pub fn reduce_into_async<A, B>(
        &self,
        name: &str,
        input: A,
        output: B,
        op: ReduceOp,
        root: usize,
    ) -> Result<Handle<(A, B)>>
    where
        A: Tensor<Element: Reducible> + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        let root = self.set.root(name, "reduce to", root)?;
        self.set.owned_apart(name, Kind::Reduce { op, root }, (input, output), Options::default())
    }
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Begins to reduce the borrowed tensor `name` to rank `root`, in place. On the other ranks it is left as it is.
    ///
    /// # Collective
    /// As [`ProcessSet::reduce_async`].
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_async`].
    pub fn reduce_async<T: Reducible>(
        &'scope self,
        name: &str,
        data: &'env mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<ScopedHandle<'scope>> {
        let root = self.set.root(name, "reduce to", root)?;
        let call = Call::slice(Kind::Reduce { op, root }, data, Options::default());
        self.begin(name, &call, Memory::borrowed(Piece::in_place(RawSlice::of_mut(data))))
    }

    /// Begins to reduce the borrowed tensor `name` to rank `root`, from `input` into `output`, which is not looked at elsewhere
    /// and may be empty there. `input` is left as it is.
    ///
    /// # Collective
    /// As [`ProcessSet::reduce_into_async`].
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_into_async`].
    pub fn reduce_into_async<T: Reducible>(
        &'scope self,
        name: &str,
        input: &'env [T],
        output: &'env mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<ScopedHandle<'scope>> {
        let kind = Kind::Reduce { op, root: self.set.root(name, "reduce to", root)? };
        let memory = self.set.apart(name, kind, input, output)?;
        self.begin(name, &Call::slice(kind, input, Options::default()), memory)
    }
}
