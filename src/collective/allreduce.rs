//! Allreduce: every rank gets the reduction of all ranks' elements.

use crate::communicator::{Communicator, apart};
use crate::coordinator::Kind;
use crate::engine::Collective;
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Memory, Options, Scope, ScopedHandle};
use crate::process_set::ProcessSet;
use crate::tensor::{Piece, RawSlice, ReduceOp, Reducible, Tensor};

impl Communicator {
    /// Reduces `data` over all ranks, in place: afterwards every rank holds the same bits.
    ///
    /// On one host the reduction is in rank order, so it equals one process that adds the ranks' data one after another.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length and `op`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the ranks disagree; [`Error::Argument`] if `op` does not [take](ReduceOp::takes) the type; the
    /// first failure of the job; [`Error::Timeout`] at the deadline.
    #[inline]
    pub fn allreduce<T: Reducible>(&mut self, data: &mut [T], op: ReduceOp) -> Result<()> {
        self.check_op::<T>(op)?;
        let piece = Piece::in_place(RawSlice::of_mut(data));
        self.run_on::<T>(Collective::Allreduce(op), data.len(), piece)
    }

    /// Reduces `input` over all ranks into `output`, which has the same length. `input` is left as it is.
    ///
    /// # Collective
    /// As [`allreduce`](Self::allreduce). Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce), and [`Error::Argument`] if the lengths differ.
    #[inline]
    pub fn allreduce_into<T: Reducible>(&mut self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        if input.len() != output.len() {
            return self.refuse(Error::argument(format!(
                "allreduce of {} elements into {}: input and output must be equally long",
                input.len(),
                output.len()
            )));
        }
        self.check_op::<T>(op)?;
        self.run_on::<T>(Collective::Allreduce(op), input.len(), apart(input, output))
    }
}

impl ProcessSet {
    /// Reduces the tensor `name` over the set's ranks, in place, and waits for it.
    ///
    /// # Collective
    /// Every rank of the set submits the name, with the same type, length, `op` and scale factors; in any order among
    /// names, from any thread.
    ///
    /// # Errors
    /// [`Error::Argument`] if the name is in flight already or is no name (empty, or over 512 bytes), or if `op` does not
    /// [take](ReduceOp::takes) the type; [`Error::Mismatch`] on every rank if they ask for different things, before data
    /// moves; [`Error::Timeout`] at the deadline; the first failure of the job. `data` holds unspecified elements after the
    /// last two.
    pub fn allreduce<T: Reducible>(&self, name: &str, data: &mut [T], op: ReduceOp) -> Result<()> {
        self.allreduce_with(name, data, op, &Options::default())
    }

    /// As [`allreduce`](Self::allreduce), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce).
    pub fn allreduce_with<T: Reducible>(
        &self,
        name: &str,
        data: &mut [T],
        op: ReduceOp,
        options: &Options,
    ) -> Result<()> {
        let call = Call::slice(Kind::Allreduce { op }, data, *options);
        self.set.blocking(name, &call, Memory::borrowed(Piece::in_place(RawSlice::of_mut(data))))
    }

    /// Begins to reduce the tensor `name`; the handle gives it back.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let handle = kolo.allreduce_async("gradient", vec![kolo.rank() as f32; 3], kolo::ReduceOp::Sum)?;
    /// // ... compute the next gradient meanwhile ...
    /// assert_eq!(handle.wait()?, [1.0; 3]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`allreduce`](Self::allreduce); the tensor's shape must be equal on every rank, too.
    ///
    /// # Errors
    /// [`Error::Argument`] if the name is in flight already or is no name, `op` does not take the type, or the tensor's
    /// shape does not fit its elements. All others come from the handle. The tensor is dropped if the call fails.
    pub fn allreduce_async<B>(&self, name: &str, tensor: B, op: ReduceOp) -> Result<Handle<B>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.allreduce_async_with(name, tensor, op, &Options::default())
    }

    /// As [`allreduce_async`](Self::allreduce_async), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async).
    pub fn allreduce_async_with<B>(&self, name: &str, tensor: B, op: ReduceOp, options: &Options) -> Result<Handle<B>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        self.set.owned(name, Kind::Allreduce { op }, tensor, *options)
    }

    /// Reduces the tensor `name` over the set's ranks from `input` into `output`, which has the same length, and waits for it.
    /// `input` is left as it is, however the call ends.
    ///
    /// They are two slices: what overlaps does not compile.
    ///
    /// ```compile_fail
    /// # kolo::threads(1, |kolo| -> kolo::Result<()> {
    /// let mut data = [1.0_f32; 4];
    /// kolo.allreduce_into("x", &data[..3], &mut data[1..], kolo::ReduceOp::Sum)
    /// # });
    /// ```
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut data = [1.0_f32, 2.0, 0.0, 0.0];
    /// let (input, output) = data.split_at_mut(2);
    /// kolo.allreduce_into("x", input, output, kolo::ReduceOp::Sum)?;
    /// assert_eq!(data, [1.0, 2.0, 2.0, 4.0]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`allreduce`](Self::allreduce). Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce), and [`Error::Argument`] if the lengths differ. `output` is as it was after a mismatch,
    /// and unspecified after what `data` of [`allreduce`](Self::allreduce) is unspecified after.
    pub fn allreduce_into<T: Reducible>(&self, name: &str, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        self.allreduce_into_with(name, input, output, op, &Options::default())
    }

    /// As [`allreduce_into`](Self::allreduce_into), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`allreduce_into`](Self::allreduce_into).
    pub fn allreduce_into_with<T: Reducible>(
        &self,
        name: &str,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
        options: &Options,
    ) -> Result<()> {
        let kind = Kind::Allreduce { op };
        let memory = self.set.apart(name, kind, input, output)?;
        self.set.blocking(name, &Call::slice(kind, input, *options), memory)
    }

    /// Begins to reduce the tensor `name` from `input` into `output`, which has as many elements; the handle gives both back,
    /// `input` as it was, also from [`Handle::cancel`].
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let (gradient, sum) = (vec![kolo.rank() as f32; 3], kolo.alloc(3)?);
    /// let handle = kolo.allreduce_into_async("gradient", gradient, sum, kolo::ReduceOp::Sum)?;
    /// let (gradient, sum) = handle.wait()?;
    /// assert_eq!((gradient[0], sum[0]), (kolo.rank() as f32, 1.0));
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`allreduce_async`](Self::allreduce_async), with the shape of `input`. Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if the numbers of elements differ. Both tensors are
    /// dropped if the call fails.
    pub fn allreduce_into_async<A, B>(&self, name: &str, input: A, output: B, op: ReduceOp) -> Result<Handle<(A, B)>>
    where
        A: Tensor<Element: Reducible> + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        self.allreduce_into_async_with(name, input, output, op, &Options::default())
    }

    /// As [`allreduce_into_async`](Self::allreduce_into_async), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`allreduce_into_async`](Self::allreduce_into_async).
    pub fn allreduce_into_async_with<A, B>(
        &self,
        name: &str,
        input: A,
        output: B,
        op: ReduceOp,
        options: &Options,
    ) -> Result<Handle<(A, B)>>
    where
        A: Tensor<Element: Reducible> + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        self.set.owned_apart(name, Kind::Allreduce { op }, (input, output), *options)
    }
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Begins to reduce the borrowed tensor `name`, in place.
    ///
    /// # Collective
    /// As [`ProcessSet::allreduce_async`].
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_async`].
    pub fn allreduce_async<T: Reducible>(
        &'scope self,
        name: &str,
        data: &'env mut [T],
        op: ReduceOp,
    ) -> Result<ScopedHandle<'scope>> {
        self.allreduce_async_with(name, data, op, &Options::default())
    }

    /// As [`allreduce_async`](Self::allreduce_async), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_async`].
    pub fn allreduce_async_with<T: Reducible>(
        &'scope self,
        name: &str,
        data: &'env mut [T],
        op: ReduceOp,
        options: &Options,
    ) -> Result<ScopedHandle<'scope>> {
        let call = Call::slice(Kind::Allreduce { op }, data, *options);
        self.begin(name, &call, Memory::borrowed(Piece::in_place(RawSlice::of_mut(data))))
    }

    /// Begins to reduce the borrowed tensor `name` from `input` into `output`. `input` is left as it is, and may be read
    /// meanwhile, but not written:
    ///
    /// ```compile_fail
    /// # kolo::threads(1, |kolo| -> kolo::Result<()> {
    /// let (mut gradient, mut sum) = (vec![1.0_f32; 4], vec![0.0; 4]);
    /// kolo.scope(|scope| {
    ///     scope.allreduce_into_async("gradient", &gradient, &mut sum, kolo::ReduceOp::Sum)?;
    ///     gradient[0] = 2.0; // in flight: borrowed by the operation
    ///     Ok(())
    /// })
    /// # });
    /// ```
    ///
    /// ```
    /// # kolo::threads(1, |kolo| -> kolo::Result<()> {
    /// let (mut gradient, mut sum) = (vec![1.0_f32; 4], vec![0.0; 4]);
    /// kolo.scope(|scope| {
    ///     scope.allreduce_into_async("gradient", &gradient, &mut sum, kolo::ReduceOp::Sum)?;
    ///     assert_eq!(gradient[0], 1.0);
    ///     Ok(())
    /// })?;
    /// gradient[0] = 2.0;
    /// # assert_eq!(sum, [1.0; 4]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`ProcessSet::allreduce_into_async`].
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_into_async`].
    pub fn allreduce_into_async<T: Reducible>(
        &'scope self,
        name: &str,
        input: &'env [T],
        output: &'env mut [T],
        op: ReduceOp,
    ) -> Result<ScopedHandle<'scope>> {
        self.allreduce_into_async_with(name, input, output, op, &Options::default())
    }

    /// As [`allreduce_into_async`](Self::allreduce_into_async), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_into_async`].
    pub fn allreduce_into_async_with<T: Reducible>(
        &'scope self,
        name: &str,
        input: &'env [T],
        output: &'env mut [T],
        op: ReduceOp,
        options: &Options,
    ) -> Result<ScopedHandle<'scope>> {
        let kind = Kind::Allreduce { op };
        let memory = self.set.apart(name, kind, input, output)?;
        self.begin(name, &Call::slice(kind, input, *options), memory)
    }
}
