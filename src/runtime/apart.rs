//! What a rank reduces with all others from one place into another.

use super::Kolo;
use crate::error::Result;
use crate::handle::{Handle, Options};
#[cfg(doc)]
use crate::process_set::ProcessSet;
use crate::tensor::{ReduceOp, Reducible, Tensor};

impl Kolo {
    /// Reduces the tensor `name` over all ranks from `input` into `output`, and waits for it:
    /// [`ProcessSet::allreduce_into`] of all ranks.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let (local, mut mean) = ([kolo.rank() as f64], [0.0]);
    /// kolo.allreduce_into("loss", &local, &mut mean, kolo::ReduceOp::Average)?;
    /// assert_eq!((local, mean), ([kolo.rank() as f64], [0.5]));
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_into`].
    pub fn allreduce_into<T: Reducible>(&self, name: &str, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        self.world().allreduce_into(name, input, output, op)
    }

    /// As [`allreduce_into`](Self::allreduce_into), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_into`].
    pub fn allreduce_into_with<T: Reducible>(
        &self,
        name: &str,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
        options: &Options,
    ) -> Result<()> {
        self.world().allreduce_into_with(name, input, output, op, options)
    }

    /// Begins to reduce the tensor `name` over all ranks from `input` into `output`:
    /// [`ProcessSet::allreduce_into_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_into_async`].
    pub fn allreduce_into_async<A, B>(&self, name: &str, input: A, output: B, op: ReduceOp) -> Result<Handle<(A, B)>>
    where
        A: Tensor<Element: Reducible> + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        self.world().allreduce_into_async(name, input, output, op)
    }

    /// As [`allreduce_into_async`](Self::allreduce_into_async), with scale factors and a deadline.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_into_async`].
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
        self.world().allreduce_into_async_with(name, input, output, op, options)
    }

    /// Reduces the tensor `name` to rank `root`, from `input` into `output` there, and waits for it:
    /// [`ProcessSet::reduce_into`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_into`].
    pub fn reduce_into<T: Reducible>(
        &self,
        name: &str,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        self.world().reduce_into(name, input, output, op, root)
    }

    /// Begins to reduce the tensor `name` to rank `root`, from `input` into `output` there:
    /// [`ProcessSet::reduce_into_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::reduce_into_async`].
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
        self.world().reduce_into_async(name, input, output, op, root)
    }

    /// Reduces several tensors under one name, all or none, each from one place into another:
    /// [`ProcessSet::allreduce_group_into`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_group_into`].
    pub fn allreduce_group_into<T: Reducible>(
        &self,
        name: &str,
        inputs: &[&[T]],
        outputs: &mut [&mut [T]],
        op: ReduceOp,
    ) -> Result<()> {
        self.world().allreduce_group_into(name, inputs, outputs, op)
    }

    /// Begins to reduce several tensors under one name, each from one place into another:
    /// [`ProcessSet::allreduce_group_into_async`] of all ranks.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_group_into_async`].
    pub fn allreduce_group_into_async<A, B>(
        &self,
        name: &str,
        inputs: Vec<A>,
        outputs: Vec<B>,
        op: ReduceOp,
    ) -> Result<Handle<(Vec<A>, Vec<B>)>>
    where
        A: Tensor<Element: Reducible> + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        self.world().allreduce_group_into_async(name, inputs, outputs, op)
    }
}
