//! Raw views of buffers that an operation in flight reads and writes.

use super::Element;

/// Bytes that an operation in flight may touch, without a lifetime.
///
/// Whoever makes one promises that the memory stays valid, and that nobody else touches it, until the operation that
/// holds the view has ended. Handles and scopes keep that promise: they own or borrow the buffer for as long. Whoever
/// writes through one writes only bytes that are elements of the buffer's type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawSlice {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a RawSlice is an address and a length; the promise above makes its use from another thread exclusive.
unsafe impl Send for RawSlice {}
// SAFETY: a shared RawSlice gives out only its address and length.
unsafe impl Sync for RawSlice {}

impl RawSlice {
    /// The bytes of a buffer that the operation reads and writes.
    pub(crate) fn of_mut<T: Element>(data: &mut [T]) -> Self {
        Self { ptr: data.as_mut_ptr().cast(), len: size_of_val(data) }
    }

    /// The bytes of a buffer that the operation only reads.
    pub(crate) fn of<T: Element>(data: &[T]) -> Self {
        Self { ptr: data.as_ptr().cast_mut().cast(), len: size_of_val(data) }
    }

    pub(crate) fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The part from byte `start`, `len` bytes long.
    ///
    /// # Panics
    /// If the part does not lie inside.
    pub(crate) fn part(&self, start: usize, len: usize) -> Self {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {} bytes", self.len);
        // SAFETY: start <= self.len, so the address stays inside (or one past) the same allocation.
        Self { ptr: unsafe { self.ptr.add(start) }, len }
    }
}

/// One tensor of an operation: where its elements come from and where the result goes.
///
/// Both have the same length for allreduce and broadcast; in place, they are the same memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Read before anything is written at the same offset of `output`.
    pub(crate) input: RawSlice,
    /// Written once the result is known.
    pub(crate) output: RawSlice,
}

impl Piece {
    pub(crate) fn in_place(data: RawSlice) -> Self {
        Self { input: data, output: data }
    }
}
