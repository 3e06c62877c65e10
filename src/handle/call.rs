//! From a user's call to a submission.

use std::sync::Arc;
use std::time::Duration;

use super::{Entry, Flight, Handle, NamedSet, wait};
use crate::coordinator::{Device, Kind, Request, Spec, Ticket};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element, Hold, Piece, RawSlice, Tensor};

/// What a named operation may be given beyond its tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Multiplies every rank's elements before the reduction. Equal on every rank.
    pub prescale: f64,
    /// Multiplies the result, after an average's division. Equal on every rank.
    pub postscale: f64,
    /// How long the ranks may take to agree on the operation; `KOLO_DEADLINE` by default. May differ by rank.
    pub deadline: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self { prescale: 1.0, postscale: 1.0, deadline: None }
    }
}

/// What is asked for, equal on all ranks.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) options: Options,
}

impl NamedSet {
    /// Submits an operation on memory that stays valid until its flight is over.
    ///
    /// `waits`: the caller goes on to wait for it.
    pub(crate) fn begin(
        self: &Arc<Self>,
        name: &str,
        call: Call,
        piece: Piece,
        hold: Option<Arc<dyn Send + Sync>>,
        waits: bool,
    ) -> Result<(Ticket, Arc<Flight>)> {
        let Call { kind, dtype, shape, options } = call;
        let Options { prescale, postscale, deadline } = options;
        let flight = Arc::new(Flight::new(name));
        let spec = Spec { kind, dtype, device: Device::Host, prescale, postscale };
        let request = Request { name: Arc::clone(flight.name()), spec, shape };
        let elements = (piece.output.len() / dtype.size()) as u64;
        if request.elements() != elements {
            let (shape, product) = (&request.shape, request.elements());
            let reason = format!("its shape {shape:?} has {product} elements and its slice {elements}");
            self.refuse(name, &reason);
            return Err(Error::argument(format!("'{name}': {reason}; make Tensor::shape fit Tensor::as_slice")));
        }
        let entry = Entry { flight: Arc::clone(&flight), ticket: Ticket(0), piece, hold };
        let ticket = self.submit(&request, entry, waits, deadline)?;
        Ok((ticket, flight))
    }

    /// Submits an operation on borrowed memory and waits for it.
    pub(crate) fn blocking(self: &Arc<Self>, name: &str, call: Call, data: RawSlice) -> Result<()> {
        let (ticket, flight) = self.begin(name, call, Piece::in_place(data), None, true)?;
        // The borrow ends with this call, however it ends.
        let _guard = Guard { set: self, ticket, flight: &flight };
        wait(self, ticket, &flight)
    }

    /// Submits an operation on an owned tensor.
    pub(crate) fn owned<B>(self: &Arc<Self>, name: &str, kind: Kind, tensor: B, options: Options) -> Result<Handle<B>>
    where
        B: Tensor + Send + 'static,
    {
        let call = Call { kind, dtype: B::Element::DTYPE, shape: tensor.shape(), options };
        let (hold, view) = Hold::new(tensor);
        let keep: Arc<dyn Send + Sync> = Arc::clone(&hold) as _;
        let (ticket, flight) = self.begin(name, call, Piece::in_place(view), Some(keep), false)?;
        Ok(Handle { set: Arc::clone(self), ticket, flight, hold })
    }

    /// The broadcast from a global rank; tells the peers if it is not in the set.
    pub(crate) fn broadcast_from(self: &Arc<Self>, name: &str, root: usize) -> Result<Kind> {
        let globals = self.team().globals();
        match globals.iter().position(|&rank| rank as usize == root) {
            Some(root) => Ok(Kind::Broadcast { root: root as u32 }),
            None => {
                let reason = format!("broadcast from rank {root}, which is not in the set {globals:?}");
                self.refuse(name, &reason);
                Err(Error::argument(format!("'{name}': {reason}; pass the global rank of a member")))
            }
        }
    }
}

/// Cancels an operation on a borrowed tensor if it is still in flight when the borrow ends.
struct Guard<'a> {
    set: &'a Arc<NamedSet>,
    ticket: Ticket,
    flight: &'a Flight,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.flight.is_over() {
            self.set.cancel(self.ticket);
        }
    }
}
