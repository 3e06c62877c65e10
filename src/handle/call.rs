//! From a user's call to a submission.

use std::sync::Arc;
use std::time::Duration;

use super::{Entry, Flight, Handle, NamedSet, Uneven, Way, wait};
use crate::coordinator::{Device, Group, Kind, Request, Spec, Ticket, check_user_name};
use crate::engine::Pieces;
use crate::error::{Error, Result};
use crate::event::Mark;
use crate::plan::Span;
use crate::tensor::{Both, DType, Element, GiveBack, Hold, Piece, RawSlice, Tensor};

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

/// What is asked for, equal on all ranks but for the number of rows where each rank has its own.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) dtype: DType,
    /// Of the tensor, or of all tensors of a group.
    pub(crate) shapes: Vec<Vec<usize>>,
    /// Whether it is a group, also of one.
    pub(crate) group: bool,
    pub(crate) options: Options,
}

impl Call {
    /// On one tensor.
    pub(crate) fn new(kind: Kind, dtype: DType, shape: Vec<usize>, options: Options) -> Self {
        Self { kind, dtype, shapes: vec![shape], group: false, options }
    }

    /// On one slice.
    pub(crate) fn slice<T: Element>(kind: Kind, data: &[T], options: Options) -> Self {
        Self::new(kind, T::DTYPE, vec![data.len()], options)
    }

    pub(super) fn request(&self, name: &Arc<str>) -> Request {
        let Options { prescale, postscale, .. } = self.options;
        let spec = Spec { kind: self.kind, dtype: self.dtype, device: Device::Host, prescale, postscale };
        let (mut shape, group) = if self.group {
            let all = self.shapes.iter().map(|shape| elements(shape)).sum();
            let group = if self.kind.has_own_rows() {
                let mut shapes = self.shapes.clone();
                shapes.iter_mut().for_each(forget_rows);
                Group::of(&shapes)
            } else {
                Group::of(&self.shapes)
            };
            (vec![all], Some(group))
        } else {
            (self.shapes.first().cloned().unwrap_or_default(), None)
        };
        if self.kind.has_own_rows() {
            forget_rows(&mut shape);
        }
        Request { name: Arc::clone(name), spec, shape, group }
    }
}

/// Of a tensor whose ranks may have more or fewer rows, what must be equal. A scalar is a row.
fn forget_rows(shape: &mut Vec<usize>) {
    match shape.first_mut() {
        Some(rows) => *rows = 0,
        None => shape.push(0),
    }
}

/// Elements of a tensor of this shape.
pub(crate) fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product, &dim| product.saturating_mul(dim))
}

/// Elements of a row of a tensor of this shape.
pub(crate) fn row_of(shape: &[usize]) -> usize {
    elements(shape.get(1..).unwrap_or_default())
}

/// What is wrong with a tensor of this shape and so many elements, if anything is.
pub(crate) fn misfit(shape: &[usize], count: usize) -> Option<String> {
    let product = elements(shape);
    (product != count).then(|| format!("its shape {shape:?} has {product} elements and its slice {count}"))
}

/// What to do about it.
pub(crate) const FIT: &str = "make Tensor::shape fit Tensor::as_slice";

/// The memory of an operation, and what keeps it alive.
pub(crate) struct Memory {
    pub(crate) pieces: Pieces,
    /// Elements of a row, for operations that keep rows whole.
    pub(crate) row: usize,
    pub(crate) uneven: Option<Uneven>,
    /// The blocks of a reduce-scatter by rank, end to end, if they are not cut by rows.
    pub(crate) blocks: Option<Arc<[Span]>>,
    pub(crate) hold: Option<Arc<dyn Send + Sync>>,
}

impl Memory {
    /// A tensor that the caller's borrow keeps alive.
    pub(crate) fn borrowed(piece: Piece) -> Self {
        Self::of(Pieces::One([piece]))
    }

    /// Tensors that the caller's borrows keep alive.
    pub(crate) fn of(pieces: Pieces) -> Self {
        Self { pieces, row: 1, uneven: None, blocks: None, hold: None }
    }

    /// As an operation on it is handed in.
    pub(super) fn entry(self, flight: Arc<Flight>) -> Entry {
        let Self { pieces, row, uneven, blocks, hold } = self;
        let (ticket, mark, last, course) = (None, Mark::NONE, None, None);
        Entry { flight, ticket, mark, pieces, row, uneven, blocks, hold, last, course }
    }
}

impl NamedSet {
    /// Submits an operation on memory that stays valid until its flight is over.
    ///
    /// `waits`: the caller goes on to wait for it.
    pub(crate) fn begin(
        self: &Arc<Self>,
        name: &str,
        call: &Call,
        memory: Memory,
        waits: bool,
    ) -> Result<(Ticket, Arc<Flight>)> {
        check_user_name(name)?;
        // Where blocks are given, so are pieces of tensors, which were looked at when they were cut.
        for (shape, piece) in call.shapes.iter().zip(memory.pieces.iter()).filter(|_| memory.blocks.is_none()) {
            self.check_shape(name, shape, piece.input.len() / call.dtype.size())?;
        }
        let flight = Arc::new(Flight::new(name));
        let request = call.request(flight.name());
        let entry = memory.entry(Arc::clone(&flight));
        let ticket = self.submit(&request, entry, waits, call.options.deadline)?;
        Ok((ticket, flight))
    }

    /// A tensor's shape fits its elements, or the call is refused.
    pub(crate) fn check_shape(self: &Arc<Self>, name: &str, shape: &[usize], elements: usize) -> Result<()> {
        match misfit(shape, elements) {
            None => Ok(()),
            Some(reason) => self.reject(name, &reason, FIT),
        }
    }

    /// Refuses a call, and tells the peers that submit the name.
    pub(crate) fn reject<R>(self: &Arc<Self>, name: &str, reason: &str, advice: &str) -> Result<R> {
        self.refuse(name, reason);
        Err(Error::argument(format!("'{name}': {reason}; {advice}")))
    }

    /// Submits an operation on borrowed memory and waits for it.
    pub(crate) fn blocking(self: &Arc<Self>, name: &str, call: &Call, memory: Memory) -> Result<()> {
        let (ticket, flight) = self.begin(name, call, memory, true)?;
        // The borrow ends with this call, however it ends.
        let _guard = Guard { set: self, ticket, flight: &flight };
        wait(self, ticket, &flight)
    }

    /// Submits an operation on an owned tensor.
    pub(crate) fn owned<B>(self: &Arc<Self>, name: &str, kind: Kind, tensor: B, options: Options) -> Result<Handle<B>>
    where
        B: Tensor + Send + 'static,
    {
        let call = Call::new(kind, B::Element::DTYPE, tensor.shape(), options);
        let (hold, view) = Hold::new(tensor);
        let keep: Arc<dyn Send + Sync> = Arc::clone(&hold) as _;
        let memory = Memory { hold: Some(keep), ..Memory::borrowed(Piece::in_place(view)) };
        self.handle(name, &call, memory, hold)
    }

    /// Submits an operation that reads one owned tensor and writes another.
    pub(crate) fn owned_apart<A, B>(
        self: &Arc<Self>,
        name: &str,
        kind: Kind,
        (input, output): (A, B),
        options: Options,
    ) -> Result<Handle<(A, B)>>
    where
        A: Tensor + Send + 'static,
        B: Tensor<Element = A::Element> + Send + 'static,
    {
        let call = Call::new(kind, A::Element::DTYPE, input.shape(), options);
        self.check_output(name, kind, input.as_slice().len(), output.as_slice().len())?;
        let (both, piece) = Both::new(input, output);
        let memory = Memory::borrowed(self.as_written(kind, piece));
        self.handle(name, &call, Memory { hold: Some(Arc::clone(&both) as _), ..memory }, both)
    }

    /// The memory of an operation that reads one borrowed slice and writes another; or the call is refused.
    pub(crate) fn apart<T: Element>(
        self: &Arc<Self>,
        name: &str,
        kind: Kind,
        input: &[T],
        output: &mut [T],
    ) -> Result<Memory> {
        self.check_output(name, kind, input.len(), output.len())?;
        let piece = Piece { input: RawSlice::of(input), output: RawSlice::of_mut(output) };
        Ok(Memory::borrowed(self.as_written(kind, piece)))
    }

    /// Whether this rank gets a result, which has as many elements as the input.
    fn gets_whole(&self, kind: Kind) -> bool {
        !matches!(kind, Kind::Reduce { root, .. } if root as usize != self.team().rank())
    }

    /// Where this rank gets a result, there is as much room for it; or the call is refused.
    fn check_output(self: &Arc<Self>, name: &str, kind: Kind, input: usize, output: usize) -> Result<()> {
        if input == output || !self.gets_whole(kind) {
            return Ok(());
        }
        let reason = format!("{kind} of {input} elements into {output}");
        self.reject(name, &reason, "make input and output equally long")
    }

    /// What it does not write, an operation does not look at.
    pub(super) fn as_written(&self, kind: Kind, piece: Piece) -> Piece {
        if self.gets_whole(kind) { piece } else { Piece { output: piece.output.part(0, 0), ..piece } }
    }

    /// Submits an operation whose result `result` gives back.
    pub(crate) fn handle<R>(
        self: &Arc<Self>,
        name: &str,
        call: &Call,
        memory: Memory,
        result: Arc<dyn GiveBack<R>>,
    ) -> Result<Handle<R>> {
        let (ticket, flight) = self.begin(name, call, memory, false)?;
        Ok(Handle { way: Way::Named(Arc::clone(self), ticket), flight, result })
    }

    /// The set rank of the global rank `root`; tells the peers if it is not in the set.
    pub(crate) fn root(self: &Arc<Self>, name: &str, what: &str, root: usize) -> Result<u32> {
        let globals = self.team().globals();
        match globals.iter().position(|&rank| rank as usize == root) {
            Some(root) => Ok(root as u32),
            None => {
                let reason = format!("{what} rank {root}, which is not in the set {globals:?}");
                self.reject(name, &reason, "pass the global rank of a member")
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
