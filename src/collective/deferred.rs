//! What the asynchronous operations of a communicator have in common.

use std::sync::Arc;

use crate::communicator::Communicator;
use crate::engine::{Collective, Operation, Pieces};
use crate::error::{Error, Result};
use crate::handle::{Collectively, FIT, Handle, Landing, LaneOf, Uneven, misfit};
use crate::plan::moves::Move;
use crate::tensor::{Element, GiveBack, Hold, Piece, RawSlice, Received, Tensor, room};

impl Communicator {
    /// Hands an operation in. `hold` keeps its memory alive.
    pub(super) fn submit<R>(
        &mut self,
        what: &str,
        operation: Operation,
        hold: Option<Arc<dyn Send + Sync>>,
        result: Arc<dyn GiveBack<R>>,
    ) -> Result<Handle<R>> {
        let task = Box::new(Collectively::One(Some(operation)));
        self.queue()?.submit(LaneOf::Collectives, what, task, hold, result)
    }

    /// Hands in an operation that reduces or fills a tensor in place.
    pub(super) fn submit_in_place<B>(&mut self, what: &str, tensor: B, collective: Collective) -> Result<Handle<B>>
    where
        B: Tensor + Send + 'static,
    {
        let count = self.check_shape(&tensor)?;
        let (hold, view) = Hold::new(tensor);
        let operation = Operation::new(collective, B::Element::DTYPE, count, Some(Piece::in_place(view)));
        self.submit(what, operation, Some(Arc::clone(&hold) as _), hold)
    }

    /// Hands in an operation that makes `len` new elements of a tensor, or of those of another rank: then the tensor is not
    /// looked at.
    pub(super) fn submit_into<B>(
        &mut self,
        what: &str,
        tensor: B,
        (collective, count): (Collective, usize),
        looked_at: bool,
        len: usize,
    ) -> Result<Handle<Vec<B::Element>>>
    where
        B: Tensor + Send + 'static,
    {
        let (result, output) = match room::<B::Element>(len, what) {
            Ok(room) => Hold::new(room),
            Err(error) => return self.refuse(error),
        };
        let (hold, view) = Hold::new(tensor);
        let piece = Piece { input: if looked_at { view } else { view.part(0, 0) }, output };
        let operation = Operation::new(collective, B::Element::DTYPE, count, Some(piece));
        // Both live as long as the operation.
        let keep: Arc<dyn Send + Sync> = Arc::new((hold, Arc::clone(&result)));
        self.submit(what, operation, Some(keep), result)
    }

    /// Hands in an operation on blocks whose sizes each rank decides for itself: `counts` elements each, in rows of `row`.
    pub(super) fn submit_uneven<B, R>(
        &mut self,
        what: &str,
        of: Move,
        tensor: B,
        (counts, row): (Vec<usize>, usize),
        looked_at: bool,
    ) -> Result<Handle<R>>
    where
        B: Tensor + Send + 'static,
        Received<B::Element>: GiveBack<R>,
    {
        let (hold, view) = Hold::new(tensor);
        let input = if looked_at { view } else { view.part(0, 0) };
        let result = Received::<B::Element>::new();
        let uneven = Uneven { counts, result: Landing::One(Arc::clone(&result) as _) };
        let pieces = Pieces::One([Piece { input, output: RawSlice::of::<u8>(&[]) }]);
        let task = Box::new(Collectively::uneven(of, B::Element::DTYPE, row, uneven, pieces));
        self.queue()?.submit(LaneOf::Collectives, what, task, Some(hold as _), result)
    }

    /// The number of a tensor's elements, if its shape fits them; or the call is refused.
    pub(super) fn check_shape<B: Tensor>(&mut self, tensor: &B) -> Result<usize> {
        let count = tensor.as_slice().len();
        match misfit(&tensor.shape(), count) {
            None => Ok(count),
            Some(reason) => self.refuse(Error::argument(format!("{reason}; {FIT}"))),
        }
    }
}

/// The result of an operation that gives nothing back.
pub(super) struct Nothing;

impl GiveBack<()> for Nothing {
    fn take(&self) -> Option<()> {
        Some(())
    }

    fn cancelled(&self) -> Option<()> {
        None
    }
}
