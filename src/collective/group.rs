//! Groups: several tensors that are one operation under one name. All of them are reduced, or none.

use std::sync::Arc;

use crate::communicator::{Communicator, apart};
use crate::coordinator::Kind;
use crate::engine::{Collective, Operation, Pieces};
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Memory, NamedSet, Options, Scope, ScopedHandle};
use crate::process_set::ProcessSet;
use crate::tensor::{Both, GiveBack, Hold, Piece, RawSlice, ReduceOp, Reducible, Tensor};

impl Communicator {
    /// Reduces all of `tensors` over all ranks, in place, as one operation: one wait for the peers, not one a tensor.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// let (mut weight, mut bias) = ([1.0_f32; 6], [2.0_f32; 2]);
    /// world.allreduce_group(&mut [&mut weight, &mut bias], kolo::ReduceOp::Sum)?;
    /// assert_eq!((weight[5], bias[1]), (2.0, 4.0));
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and `op`, and tensors of the same lengths in the
    /// same order. Only the sum of the lengths is compared; under Adasum, whose factors are each tensor's own, a digest of
    /// them as well.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce).
    pub fn allreduce_group<T: Reducible>(&mut self, tensors: &mut [&mut [T]], op: ReduceOp) -> Result<()> {
        self.check_op::<T>(op)?;
        let count = tensors.iter().map(|tensor| tensor.len()).sum();
        let operation = Operation::new(Collective::Allreduce(op), T::DTYPE, count, None);
        self.run(Operation { pieces: pieces(tensors), ..operation })
    }

    /// As [`allreduce_group`](Self::allreduce_group), from each of `inputs` into the one of `outputs` at the same place, which
    /// has the same length. `inputs` are left as they are.
    ///
    /// # Collective
    /// As [`allreduce_group`](Self::allreduce_group). Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`allreduce_group`](Self::allreduce_group), and [`Error::Argument`] if the numbers of tensors or their lengths differ.
    pub fn allreduce_group_into<T: Reducible>(
        &mut self,
        inputs: &[&[T]],
        outputs: &mut [&mut [T]],
        op: ReduceOp,
    ) -> Result<()> {
        if let Some(reason) = misfit(&lengths(inputs), &lengths(outputs)) {
            return self.refuse(Error::argument(format!("allreduce of a group: {reason}; {FIT}")));
        }
        self.check_op::<T>(op)?;
        let count = inputs.iter().map(|input| input.len()).sum();
        let operation = Operation::new(Collective::Allreduce(op), T::DTYPE, count, None);
        self.run(Operation { pieces: pieces_apart(inputs, outputs), ..operation })
    }
}

impl ProcessSet {
    /// Reduces all of `tensors` over the set's ranks, in place, under one name, and waits for it. All of them are reduced, or
    /// none.
    ///
    /// # Collective
    /// As [`allreduce`](Self::allreduce), with tensors of the same lengths in the same order. Ranks whose lengths differ get
    /// [`Error::Mismatch`](crate::Error::Mismatch); it tells the number of tensors and elements, and a digest of the lengths.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce).
    pub fn allreduce_group<T: Reducible>(&self, name: &str, tensors: &mut [&mut [T]], op: ReduceOp) -> Result<()> {
        let shapes = tensors.iter().map(|tensor| vec![tensor.len()]).collect();
        let call = group::<T>(op, shapes);
        self.set.blocking(name, &call, Memory::of(pieces(tensors)))
    }

    /// Begins to reduce all of `tensors` under one name; the handle gives them back. All of them are reduced, or none.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let tensors = vec![vec![1.0_f32; 3], vec![2.0; 5]];
    /// let tensors = kolo.allreduce_group_async("layer", tensors, kolo::ReduceOp::Sum)?.wait()?;
    /// assert_eq!((tensors[0][0], tensors[1][4]), (2.0, 4.0));
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`allreduce_group`](Self::allreduce_group); the shapes must be equal on every rank, too.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async).
    pub fn allreduce_group_async<B>(&self, name: &str, tensors: Vec<B>, op: ReduceOp) -> Result<Handle<Vec<B>>>
    where
        B: Tensor<Element: Reducible> + Send + 'static,
    {
        let shapes = tensors.iter().map(Tensor::shape).collect();
        let call = group::<B::Element>(op, shapes);
        let (holds, views): (Vec<Arc<Hold<B>>>, Vec<RawSlice>) = tensors.into_iter().map(Hold::new).unzip();
        let holds = Arc::new(Holds(holds));
        let pieces = Pieces::Many(views.into_iter().map(Piece::in_place).collect());
        let memory = Memory { hold: Some(Arc::clone(&holds) as _), ..Memory::of(pieces) };
        self.set.handle(name, &call, memory, holds)
    }

    /// As [`allreduce_group`](Self::allreduce_group), from each of `inputs` into the one of `outputs` at the same place, which
    /// has the same length. `inputs` are left as they are, however the call ends.
    ///
    /// # Collective
    /// As [`allreduce_group`](Self::allreduce_group). Ranks may differ in whether they reduce in place.
    ///
    /// # Errors
    /// As [`allreduce_group`](Self::allreduce_group), and [`Error::Argument`] if the numbers of tensors or their lengths differ.
    pub fn allreduce_group_into<T: Reducible>(
        &self,
        name: &str,
        inputs: &[&[T]],
        outputs: &mut [&mut [T]],
        op: ReduceOp,
    ) -> Result<()> {
        check_group(&self.set, name, &lengths(inputs), &lengths(outputs))?;
        let call = group::<T>(op, inputs.iter().map(|input| vec![input.len()]).collect());
        self.set.blocking(name, &call, Memory::of(pieces_apart(inputs, outputs)))
    }

    /// Begins to reduce all of `inputs` under one name, each into the one of `outputs` at the same place, which has as many
    /// elements; the handle gives all of them back, `inputs` as they were.
    ///
    /// # Collective
    /// As [`allreduce_group_async`](Self::allreduce_group_async), with the shapes of `inputs`. Ranks may differ in whether they
    /// reduce in place.
    ///
    /// # Errors
    /// As [`allreduce_group_async`](Self::allreduce_group_async), and [`Error::Argument`] if the numbers of tensors or of their
    /// elements differ. All tensors are dropped if the call fails.
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
        check_group(&self.set, name, &elements(&inputs), &elements(&outputs))?;
        let call = group::<A::Element>(op, inputs.iter().map(Tensor::shape).collect());
        let (both, pieces) = hold_apart(inputs, outputs);
        let memory = Memory { hold: Some(Arc::clone(&both) as _), ..Memory::of(pieces) };
        self.set.handle(name, &call, memory, both)
    }
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Begins to reduce all of the borrowed `tensors` under one name, in place. All of them are reduced, or none.
    ///
    /// # Collective
    /// As [`ProcessSet::allreduce_group_async`].
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_group_async`].
    pub fn allreduce_group_async<T: Reducible>(
        &'scope self,
        name: &str,
        mut tensors: Vec<&'env mut [T]>,
        op: ReduceOp,
    ) -> Result<ScopedHandle<'scope>> {
        let call = group::<T>(op, tensors.iter().map(|tensor| vec![tensor.len()]).collect());
        self.begin(name, &call, Memory::of(pieces(&mut tensors)))
    }

    /// Begins to reduce all of the borrowed `inputs` under one name, each into the one of `outputs` at the same place. `inputs` are
    /// left as they are.
    ///
    /// # Collective
    /// As [`ProcessSet::allreduce_group_into_async`].
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_group_into_async`].
    pub fn allreduce_group_into_async<T: Reducible>(
        &'scope self,
        name: &str,
        inputs: &[&'env [T]],
        mut outputs: Vec<&'env mut [T]>,
        op: ReduceOp,
    ) -> Result<ScopedHandle<'scope>> {
        check_group(&self.set, name, &lengths(inputs), &lengths(&outputs))?;
        let call = group::<T>(op, inputs.iter().map(|input| vec![input.len()]).collect());
        self.begin(name, &call, Memory::of(pieces_apart(inputs, &mut outputs)))
    }
}

fn group<T: Reducible>(op: ReduceOp, shapes: Vec<Vec<usize>>) -> Call {
    Call { kind: Kind::Allreduce { op }, dtype: T::DTYPE, shapes, group: true, options: Options::default() }
}

fn pieces<T: Reducible>(tensors: &mut [&mut [T]]) -> Pieces {
    Pieces::Many(tensors.iter_mut().map(|tensor| Piece::in_place(RawSlice::of_mut(tensor))).collect())
}

/// The same, of outputs that are as long as the inputs.
fn pieces_apart<T: Reducible>(inputs: &[&[T]], outputs: &mut [&mut [T]]) -> Pieces {
    Pieces::Many(inputs.iter().zip(outputs).map(|(input, output)| apart(input, output)).collect())
}

/// Takes the tensors of two groups in.
#[expect(clippy::type_complexity, reason = "two lists")]
pub(super) fn hold_apart<A, B>(inputs: Vec<A>, outputs: Vec<B>) -> (Arc<Both<Vec<A>, Vec<B>>>, Pieces)
where
    A: Tensor + Send + 'static,
    B: Tensor + Send + 'static,
{
    let (inputs, read): (Vec<Arc<Hold<A>>>, Vec<RawSlice>) = inputs.into_iter().map(Hold::new).unzip();
    let (outputs, written): (Vec<Arc<Hold<B>>>, Vec<RawSlice>) = outputs.into_iter().map(Hold::new).unzip();
    let pieces = read.into_iter().zip(written).map(|(input, output)| Piece { input, output });
    (Both::of(Arc::new(Holds(inputs)), Arc::new(Holds(outputs))), Pieces::Many(pieces.collect()))
}

/// Each output has room for its input, or the call is refused.
fn check_group(set: &Arc<NamedSet>, name: &str, inputs: &[usize], outputs: &[usize]) -> Result<()> {
    misfit(inputs, outputs).map_or(Ok(()), |reason| set.reject(name, &reason, FIT))
}

fn lengths<S: AsRef<[T]>, T>(tensors: &[S]) -> Vec<usize> {
    tensors.iter().map(|tensor| tensor.as_ref().len()).collect()
}

pub(super) fn elements<B: Tensor>(tensors: &[B]) -> Vec<usize> {
    tensors.iter().map(|tensor| tensor.as_slice().len()).collect()
}

/// What is wrong with outputs of these lengths for such inputs, if anything is.
pub(super) fn misfit(inputs: &[usize], outputs: &[usize]) -> Option<String> {
    if inputs.len() != outputs.len() {
        return Some(format!("{} tensors into {}", inputs.len(), outputs.len()));
    }
    let at = inputs.iter().zip(outputs).position(|(input, output)| input != output)?;
    Some(format!("tensor {at} of the group: {} elements into {}", inputs[at], outputs[at]))
}

/// What to do about it.
pub(super) const FIT: &str = "pass as many outputs as inputs, each as long as its input";

/// The tensors of a group in flight.
pub(super) struct Holds<B>(pub(super) Vec<Arc<Hold<B>>>);

impl<B: Send> GiveBack<Vec<B>> for Holds<B> {
    fn take(&self) -> Option<Vec<B>> {
        self.0.iter().map(|hold| hold.take()).collect()
    }

    fn cancelled(&self) -> Option<Vec<B>> {
        self.take()
    }
}
