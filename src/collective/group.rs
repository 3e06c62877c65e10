//! Groups: several tensors that are one operation under one name. All of them are reduced, or none.

use std::sync::Arc;

use crate::communicator::Communicator;
use crate::coordinator::Kind;
use crate::engine::{Collective, Operation, Pieces};
use crate::error::Result;
use crate::handle::{Call, Handle, Memory, Options};
use crate::process_set::ProcessSet;
use crate::tensor::{GiveBack, Hold, Piece, RawSlice, ReduceOp, Reducible, Tensor};

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
}

fn group<T: Reducible>(op: ReduceOp, shapes: Vec<Vec<usize>>) -> Call {
    Call { kind: Kind::Allreduce { op }, dtype: T::DTYPE, shapes, group: true, options: Options::default() }
}

fn pieces<T: Reducible>(tensors: &mut [&mut [T]]) -> Pieces {
    Pieces::Many(tensors.iter_mut().map(|tensor| Piece::in_place(RawSlice::of_mut(tensor))).collect())
}

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
