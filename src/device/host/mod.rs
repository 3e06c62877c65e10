//! Element kernels of the host plane: reduce and scaled copy over raw pointers.
//!
//! Contract, whichever instruction set runs:
//!
//! * Inputs are taken in order, element by element: ((x0 (+) x1) (+) x2) .. So equal inputs give equal bits, on every
//!   rank, at every length and alignment, on every instruction set (the payload of a NaN excepted: IEEE leaves open
//!   which operand's is kept).
//! * 16-bit floats accumulate in f32 and are rounded once, to nearest even, when they are stored. The other types
//!   accumulate in themselves; integers wrap.
//! * Min and Max give NaN when any input is NaN, and order -0 below +0.
//! * [`dots`] are the dot products of every pair of inputs, in f64: what Adasum begins with. Adasum itself is no fold.
//! * And, Or and Xor are of integers. A bool does not reduce; it is copied, by [`copy_checked`] where it came from a peer.
//! * [`Finish`] happens once, on the accumulator: a true division, then a multiplication.
//! * A group of elements is read from all inputs before any of it is written, so an output may be one of the inputs.
//!
//! Memory is touched through raw pointers only: slots are written by peers at other times, and no reference to them may
//! exist. Pointers need no alignment.

mod bools;
mod copy;
mod dots;
mod half;
mod kernel;
mod lane;
mod rows;

#[cfg(test)]
mod tests;

pub(crate) use copy::{can_stream, copy, copy_streaming};
pub(crate) use dots::{dots, pair, pairs};
pub(crate) use rows::add_rows;

use crate::tensor::{DType, ReduceOp};

/// Where a reduction reads from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// Elements of the operation's type.
    Elements(*const u8),
    /// Accumulators: f32 for 16-bit floats, else the operation's type.
    Partial(*const u8),
}

impl Source {
    /// The same, so many bytes further.
    pub(crate) fn advance(self, bytes: usize) -> Self {
        match self {
            Self::Elements(from) => Self::Elements(from.wrapping_add(bytes)),
            Self::Partial(from) => Self::Partial(from.wrapping_add(bytes)),
        }
    }
}

/// Where a reduction writes to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sink {
    /// Elements of the operation's type.
    Elements(*mut u8),
    /// Accumulators: f32 for 16-bit floats, else the operation's type.
    Partial(*mut u8),
}

/// What happens to an accumulator once everything is in it, before it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Finish {
    /// Divide by this count (Average): one IEEE division for floats, truncation toward zero for integers. 1 does nothing.
    pub(crate) divide_by: u64,
    /// Then multiply: in f64 for f64 and integers (truncated toward zero, saturating), in f32 else. 1.0 does nothing.
    pub(crate) postscale: f64,
}

impl Finish {
    /// Store as it is.
    pub(crate) const NONE: Self = Self { divide_by: 1, postscale: 1.0 };
}

impl Default for Finish {
    fn default() -> Self {
        Self::NONE
    }
}

/// Bytes of one accumulator of `dtype`: what [`Source::Partial`] and [`Sink::Partial`] hold.
pub(crate) const fn partial_size(dtype: DType) -> usize {
    match dtype {
        DType::F16 | DType::BF16 => 4,
        other => other.size(),
    }
}

/// Reduces `count` elements of every input, in order, and writes the finished result to every output.
///
/// `Average` reduces like `Sum`: the division is `finish`'s, so that partial sums can pass through here too. With one
/// input this converts, finishes, or copies.
///
/// # Panics
/// If there is no input, `finish.divide_by` is 0 or beyond `i64::MAX`, or `op` does not take `dtype`.
///
/// # Safety
/// For the whole call, each input must be readable and each output writable for `count` elements or accumulators, as its
/// variant says, and nobody else may write an input or touch an output. An output may be the same pointer as an input of
/// the same variant (in place); apart from that, outputs overlap neither inputs nor each other.
pub(crate) unsafe fn reduce(
    dtype: DType,
    op: ReduceOp,
    inputs: &[Source],
    count: usize,
    outputs: &[Sink],
    finish: Finish,
) {
    assert!(!inputs.is_empty(), "a reduction of nothing");
    assert!(op.takes(dtype), "{op} of {dtype}");
    assert!(finish.divide_by != 0 && i64::try_from(finish.divide_by).is_ok(), "an average of {}", finish.divide_by);
    // SAFETY: the caller's promise is the kernel's.
    unsafe { kernel::reduce(kernel::Isa::detect(), dtype, op, inputs, count, outputs, finish) }
}

/// Copies `count` elements from `src` to `dst`, each multiplied by `scale` (1.0: bit for bit).
///
/// The product is formed in f64 for f64 and integers (truncated toward zero, saturating), in f32 else, and rounded once.
///
/// # Panics
/// If a bool is to be scaled.
///
/// # Safety
/// For the whole call, `src` must be readable and `dst` writable for `count` elements, nobody else may write `src` or touch
/// `dst`, and the two are equal or do not overlap.
pub(crate) unsafe fn copy_scaled(dtype: DType, src: *const u8, dst: *mut u8, count: usize, scale: f64) {
    if scale != 1.0 {
        // SAFETY: the caller's promise is the kernel's.
        unsafe { kernel::scale(kernel::Isa::detect(), dtype, src, dst, count, scale) }
    } else if !std::ptr::eq(src, dst) {
        // SAFETY: readable and writable for count elements, and without overlap since they differ.
        unsafe { copy(src, dst, count * dtype.size()) }
    }
}

/// Copies `count` elements that a peer has written. Returns whether they are elements of the type: a byte that is no bool
/// arrives as the bool of its lowest bit.
///
/// # Safety
/// For the whole call, `src` must be readable and `dst` writable for `count` elements, nobody else may touch `dst`, and the
/// two do not overlap.
pub(crate) unsafe fn copy_checked(dtype: DType, src: *const u8, dst: *mut u8, count: usize) -> bool {
    if dtype == DType::Bool {
        // SAFETY: the caller's promise; a bool is a byte.
        return unsafe { bools::copy(src, dst, count) };
    }
    // SAFETY: the caller's promise; any bits are elements of every other type.
    unsafe { copy(src, dst, count * dtype.size()) };
    true
}
