//! Memory that MPI may read or write. All of it belongs to kolo, and none is freed while MPI may still use it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use super::call::{Comm, Received, Request, Serial};
use crate::error::Result;

/// Staging memory starts at cache lines.
const ALIGN: usize = 64;

/// A piece of staging memory that MPI does not know at the moment.
#[derive(Debug)]
pub(super) struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a Buffer owns its memory alone, like a Box.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Zeroed memory of `length` bytes.
    pub(super) fn new(length: usize) -> Self {
        // Lengths are pieces and bootstrap messages; one that no layout can hold is a defect of the caller.
        let layout = Layout::from_size_align(length.max(1), ALIGN).expect("a staging length fits the address space");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: owned, initialised at allocation, and not with MPI: a transfer owns its buffer until it is over.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, dropped once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A buffer on its way. Dropping it leaks the buffer, for MPI may still use it; only an answer of MPI gives it back.
#[derive(Debug)]
pub(super) struct Transfer {
    request: Request,
    buffer: ManuallyDrop<Buffer>,
}

impl Transfer {
    /// Starts to send the first `length` bytes of `buffer`.
    pub(super) fn send(mpi: &Serial, comm: Comm, buffer: Buffer, length: usize, to: i32, tag: i32) -> Result<Self> {
        assert!(length <= buffer.layout.size(), "a send of more bytes than its buffer has");
        let buffer = ManuallyDrop::new(buffer);
        // SAFETY: the transfer owns the buffer and leaks it unless MPI has said that the send is over.
        let request = unsafe { mpi.isend(comm, buffer.start.as_ptr(), length, to, tag) }?;
        Ok(Self { request, buffer })
    }

    /// Starts to receive into the whole of `buffer`.
    pub(super) fn receive(mpi: &Serial, comm: Comm, buffer: Buffer, from: i32, tag: i32) -> Result<Self> {
        let buffer = ManuallyDrop::new(buffer);
        // SAFETY: the transfer owns the buffer and leaks it unless MPI has said that the receive is over.
        let request = unsafe { mpi.irecv(comm, buffer.start.as_ptr(), buffer.layout.size(), from, tag) }?;
        Ok(Self { request, buffer })
    }

    /// The buffer, once the send is over.
    pub(super) fn sent(mut self, mpi: &Serial) -> Result<Progress<Buffer>> {
        Ok(if mpi.sent(&mut self.request)? {
            Progress::Over(ManuallyDrop::into_inner(self.buffer))
        } else {
            Progress::Pending(self)
        })
    }

    /// The buffer and what is in it, once the receive is over.
    pub(super) fn received(mut self, mpi: &Serial) -> Result<Progress<(Buffer, Received)>> {
        Ok(match mpi.received(&mut self.request)? {
            Some(what) => Progress::Over((ManuallyDrop::into_inner(self.buffer), what)),
            None => Progress::Pending(self),
        })
    }

    /// Asks MPI to withdraw a receive; [`received`](Self::received) tells when it has.
    pub(super) fn cancel(&mut self, mpi: &Serial) -> Result<()> {
        mpi.cancel(&mut self.request)
    }
}

/// A transfer that was looked at.
#[derive(Debug)]
pub(super) enum Progress<T> {
    /// It goes on.
    Pending(Transfer),
    /// It is over, and this is left of it.
    Over(T),
}
