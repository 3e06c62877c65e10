//! What operations on blocks that differ in size by rank have in common.

use std::sync::Arc;

use crate::communicator::Communicator;
use crate::coordinator::Kind;
use crate::engine::{Pieces, Sizing};
use crate::error::{Error, Result};
use crate::handle::{Call, Handle, Landing, Memory, NamedSet, Options, Uneven, row_of};
use crate::plan::moves::Move;
use crate::tensor::{Blocks, Element, GiveBack, Grow, Hold, Piece, RawSlice, Received, Tensor, room};

impl Communicator {
    /// An operation on blocks whose sizes each rank decides for itself.
    pub(super) fn uneven<T: Element>(&mut self, of: Move, counts: Vec<usize>, input: &[T]) -> Result<Blocks<T>> {
        self.uneven_of(of, counts, RawSlice::of(input))
    }

    /// The same on elements that stay where they are until it returns.
    pub(super) fn uneven_of<T: Element>(&mut self, of: Move, counts: Vec<usize>, input: RawSlice) -> Result<Blocks<T>> {
        let mut sizing = Sizing::new(of, self.size(), self.rank(), counts);
        self.run(sizing.operation(T::DTYPE, 1))?;
        let ready = sizing.finish().and_then(|told| {
            let data = room::<T>(told.moves.output(), "the blocks of all ranks")?;
            Ok((told, data))
        });
        let (told, mut data) = match ready {
            Ok(ready) => ready,
            // The others have begun already.
            Err(error) => return self.abandon(error),
        };
        self.run(told.operation(of, T::DTYPE, input, RawSlice::of_mut(&mut data)))?;
        Ok(Blocks::new(data, told.received))
    }

    /// This rank cannot go on with an operation that the others have begun.
    pub(super) fn abandon<R>(&mut self, error: Error) -> Result<R> {
        let line = self.line()?;
        line.channel.give_up(error.clone());
        line.take_leave();
        Err(error)
    }
}

/// One count for each rank, which add up to `total`; or the call is refused.
pub(super) fn check_counts(set: &Arc<NamedSet>, name: &str, counts: &[usize], total: usize) -> Result<()> {
    let ranks = set.team().size();
    let sum = counts.iter().try_fold(0_usize, |sum, &count| sum.checked_add(count));
    if counts.len() == ranks && sum == Some(total) {
        return Ok(());
    }
    let reason = format!("blocks of {counts:?} of {total} for {ranks} ranks");
    set.reject(name, &reason, "pass one count for each rank of the set, which add up to the tensor")
}

/// The elements of blocks of `rows` rows, one for each rank, which add up to the tensor; or the call is refused.
pub(super) fn split<B: Tensor>(set: &Arc<NamedSet>, name: &str, tensor: &B, rows: &[usize]) -> Result<Vec<usize>> {
    let shape = tensor.shape();
    set.check_shape(name, &shape, tensor.as_slice().len())?;
    check_counts(set, name, rows, shape.first().copied().unwrap_or(1))?;
    let row = row_of(&shape);
    Ok(rows.iter().map(|rows| rows * row).collect())
}

/// A named operation on borrowed blocks, to its end.
pub(super) fn blocking<T: Element>(
    set: &Arc<NamedSet>,
    name: &str,
    call: &Call,
    data: &[T],
    counts: Vec<usize>,
) -> Result<Blocks<T>> {
    let result = Received::<T>::new();
    set.blocking(name, call, memory(RawSlice::of(data), counts, Arc::clone(&result) as _, None))?;
    GiveBack::<Blocks<T>>::take(&*result).ok_or_else(|| Error::Cancelled(name.into()))
}

/// Begins a named operation on an owned tensor, all of it or its blocks of `counts` elements.
pub(super) fn begin<B>(
    set: &Arc<NamedSet>,
    name: &str,
    kind: Kind,
    tensor: B,
    counts: Option<Vec<usize>>,
) -> Result<Handle<Blocks<B::Element>>>
where
    B: Tensor + Send + 'static,
{
    let call = Call::new(kind, B::Element::DTYPE, tensor.shape(), Options::default());
    let (hold, view) = Hold::new(tensor);
    let counts = counts.unwrap_or_else(|| vec![view.len() / B::Element::DTYPE.size()]);
    let result = Received::<B::Element>::new();
    let memory = memory(view, counts, Arc::clone(&result) as _, Some(hold as _));
    set.handle(name, &call, memory, result)
}

/// The memory of a named operation that makes `result` of blocks of `input`.
pub(super) fn memory(
    input: RawSlice,
    counts: Vec<usize>,
    result: Arc<dyn Grow>,
    hold: Option<Arc<dyn Send + Sync>>,
) -> Memory {
    let nothing = RawSlice::of::<u8>(&[]);
    let pieces = Pieces::One([Piece { input, output: nothing }]);
    Memory { uneven: Some(Uneven { counts, result: Landing::One(result) }), hold, ..Memory::of(pieces) }
}
