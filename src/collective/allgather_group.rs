//! Grouped allgather: several tensors of every rank on every rank, as one operation. All of them are gathered, or none.

use std::sync::Arc;

use crate::communicator::Communicator;
use crate::coordinator::Kind;
use crate::engine::Pieces;
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Landing, Memory, Options, Uneven, row_of};
use crate::plan::moves::Move;
use crate::process_set::ProcessSet;
use crate::tensor::{Blocks, Element, GiveBack, Grow, Hold, Piece, RawSlice, Received, Tensor};

impl Communicator {
    /// Gathers each of `tensors` of every rank, of whatever length, on every rank, as one operation: one wait for the lengths
    /// and one for the elements, not two a tensor.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// let rank = kolo.rank() as u32;
    /// let all = world.allgather_group(&[&[rank], &vec![rank; kolo.rank()]])?;
    /// assert_eq!(all[0].data(), [0, 1]);
    /// assert_eq!((all[1].data(), all[1].counts()), ([1].as_slice(), [0, 1].as_slice()));
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and number of tensors. Lengths may differ by
    /// rank, and be zero.
    ///
    /// # Errors
    /// [`Error::System`] if there is no memory for the blocks; else as [`allreduce`](Self::allreduce).
    pub fn allgather_group<T: Element>(&mut self, tensors: &[&[T]]) -> Result<Vec<Blocks<T>>> {
        let results = Gathered::<T>::new(tensors.len());
        let counts = tensors.iter().map(|tensor| tensor.len()).collect();
        let uneven = results.uneven(counts, &vec![1; tensors.len()]);
        let mut sizing = uneven.sizing(Move::Allgather, self.size(), self.rank());
        self.run(sizing.operation(T::DTYPE, 1))?;
        let inputs = inputs(tensors.iter().map(|tensor| RawSlice::of(tensor)));
        let ready = sizing.finish().and_then(|told| uneven.land(&told, Move::Allgather, T::DTYPE, &inputs));
        match ready {
            Ok(operation) => self.run(operation)?,
            // The others have begun already.
            Err(error) => return self.abandon(error),
        }
        results.take().ok_or_else(|| Error::Cancelled("allgather of a group".into()))
    }
}

impl ProcessSet {
    /// Gathers each of `tensors` of every rank on every rank of the set, under one name, and waits for it. All of them are
    /// gathered, or none.
    ///
    /// # Collective
    /// As [`allgather`](Self::allgather), with the same number of tensors.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce).
    pub fn allgather_group<T: Element>(&self, name: &str, tensors: &[&[T]]) -> Result<Vec<Blocks<T>>> {
        let shapes: Vec<Vec<usize>> = tensors.iter().map(|tensor| vec![tensor.len()]).collect();
        let results = Gathered::<T>::new(tensors.len());
        let memory = results.memory(inputs(tensors.iter().map(|tensor| RawSlice::of(tensor))), &shapes, None);
        self.set.blocking(name, &call::<T>(shapes), memory)?;
        results.take().ok_or_else(|| Error::Cancelled(name.into()))
    }

    /// Begins to gather each of `tensors` of every rank on every rank of the set, under one name; the handle gives the blocks of
    /// each. All of them are gathered, or none.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let tensors = vec![vec![kolo.rank() as f32; 2], vec![5.0; kolo.rank()]];
    /// let all = kolo.allgather_group_async("samples", tensors)?.wait()?;
    /// assert_eq!(all[0].data(), [0.0, 0.0, 1.0, 1.0]);
    /// assert_eq!(all[1].counts(), [0, 1]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`allgather_group`](Self::allgather_group); all dimensions of each tensor but the first must be equal on every rank,
    /// too. Ranks whose tensors differ get [`Error::Mismatch`]; it tells their number, and a digest of those dimensions.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async).
    pub fn allgather_group_async<B>(&self, name: &str, tensors: Vec<B>) -> Result<Handle<Vec<Blocks<B::Element>>>>
    where
        B: Tensor + Send + 'static,
    {
        let shapes: Vec<Vec<usize>> = tensors.iter().map(Tensor::shape).collect();
        let (holds, views): (Vec<Arc<Hold<B>>>, Vec<RawSlice>) = tensors.into_iter().map(Hold::new).unzip();
        let results = Gathered::<B::Element>::new(views.len());
        let memory = results.memory(inputs(views.into_iter()), &shapes, Some(Arc::new(holds)));
        self.set.handle(name, &call::<B::Element>(shapes), memory, results)
    }
}

fn call<T: Element>(shapes: Vec<Vec<usize>>) -> Call {
    let kind = Kind::Move(Move::Allgather);
    Call { kind, dtype: T::DTYPE, shapes, group: true, options: Options::default() }
}

/// What every rank puts in.
pub(super) fn inputs(views: impl Iterator<Item = RawSlice>) -> Pieces {
    Pieces::Many(views.map(|input| Piece { input, output: input.part(0, 0) }).collect())
}

/// The results of a grouped allgather, by tensor.
pub(super) struct Gathered<T: Element>(Vec<Arc<Received<T>>>);

impl<T: Element> Gathered<T> {
    pub(super) fn new(tensors: usize) -> Arc<Self> {
        Arc::new(Self((0..tensors).map(|_| Received::new()).collect()))
    }

    /// `counts` are the elements of each of this rank's tensors, `rows` those of a row.
    pub(super) fn uneven(&self, counts: Vec<usize>, rows: &[usize]) -> Uneven {
        let results = self.0.iter().zip(rows).map(|(result, &row)| (Arc::clone(result) as Arc<dyn Grow>, row));
        Uneven { counts, result: Landing::Group(results.collect()) }
    }

    fn memory(&self, inputs: Pieces, shapes: &[Vec<usize>], hold: Option<Arc<dyn Send + Sync>>) -> Memory {
        let counts = inputs.iter().map(|piece| piece.input.len() / T::DTYPE.size()).collect();
        let rows: Vec<usize> = shapes.iter().map(|shape| row_of(shape)).collect();
        Memory { uneven: Some(self.uneven(counts, &rows)), hold, ..Memory::of(inputs) }
    }
}

impl<T: Element> GiveBack<Vec<Blocks<T>>> for Gathered<T> {
    fn take(&self) -> Option<Vec<Blocks<T>>> {
        self.0.iter().map(|result| GiveBack::<Blocks<T>>::take(&**result)).collect()
    }

    fn cancelled(&self) -> Option<Vec<Blocks<T>>> {
        None
    }
}
