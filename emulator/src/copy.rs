//! Copies and fills.
//!
//! The driver treats pageable host memory differently from pinned memory, and programs come to depend on it: bytes that go to
//! the device are taken before the call returns, and a copy to the host has happened when it returns. So it is here.

use std::ffi::{c_uchar, c_uint, c_ushort};
use std::sync::Arc;

use crate::codes::{self, Result};
use crate::graph;
use crate::memory;
use crate::stream::{self, Stream};
use crate::work::{Place, Work};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Device,
    Host,
    /// Whichever the address says.
    Either,
}

/// An address that was looked at: in memory that the API knows or not.
fn known(address: usize, bytes: usize, side: Side) -> Result<bool> {
    let found = memory::find(address, bytes);
    if side == Side::Device && found.is_none() {
        return Err(codes::INVALID_VALUE);
    }
    // Memory that is known but ends too early: the driver refuses that as well.
    if found.is_none() && memory::overlapping(address, bytes).is_some_and(|near| near.kind.on_device()) {
        return Err(codes::INVALID_VALUE);
    }
    Ok(found.is_some())
}

fn copy(stream: &Arc<Stream>, to: (usize, Side), from: (usize, Side), bytes: usize, wait: bool) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let to_known = known(to.0, bytes, to.1)?;
    let from_known = known(from.0, bytes, from.1)?;
    if wait && stream.capture().is_some() {
        graph::invalidate(stream);
        return Err(codes::STREAM_CAPTURE_UNSUPPORTED);
    }
    let captured = stream.capture().is_some();
    let target = if to_known { Place::Known(to.0) } else { Place::Program(to.0) };
    let source = if from_known {
        Place::Known(from.0)
    } else if captured {
        // A graph reads the program's memory each time it is launched.
        Place::Program(from.0)
    } else {
        // SAFETY: the caller gives `bytes` readable bytes, valid during the call.
        Place::Taken(unsafe { std::slice::from_raw_parts(from.0 as *const u8, bytes) }.into())
    };
    graph::submit(stream, Work::Copy { to: target, from: source, bytes })?;
    if captured || (to_known && !wait) {
        return Ok(());
    }
    stream.drain();
    stream.context.check()
}

fn fill(handle: usize, to: u64, value: u32, width: usize, count: usize, wait: bool) -> Result<()> {
    let to = to as usize;
    if count == 0 {
        return Ok(());
    }
    let bytes = width.checked_mul(count).ok_or(codes::INVALID_VALUE)?;
    if !to.is_multiple_of(width) || memory::find(to, bytes).is_none() {
        return Err(codes::INVALID_VALUE);
    }
    let stream = stream::of(handle)?;
    graph::submit(&stream, Work::Set { to, value, width, count })?;
    if wait {
        stream.drain();
        return stream.context.check();
    }
    Ok(())
}

/// The NULL stream, on which calls without a stream are done.
const NULL: usize = 0;

api! {
    /// Host to device, in the stream's order.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: usize, bytes: usize, handle: usize) at Context |_| {
        copy(&stream::of(handle)?, (to as usize, Side::Device), (from, Side::Host), bytes, false)
    }

    /// Device to host, in the stream's order.
    fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, bytes: usize, handle: usize) at Context |_| {
        copy(&stream::of(handle)?, (to, Side::Host), (from as usize, Side::Device), bytes, false)
    }

    /// Device to device, in the stream's order.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, handle: usize) at Context |_| {
        copy(&stream::of(handle)?, (to as usize, Side::Device), (from as usize, Side::Device), bytes, false)
    }

    /// From anywhere to anywhere, in the stream's order.
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, handle: usize) at Context |_| {
        copy(&stream::of(handle)?, (to as usize, Side::Either), (from as usize, Side::Either), bytes, false)
    }

    /// From one device to another, in the stream's order. It needs no peer access.
    fn cuMemcpyPeerAsync(
        to: u64,
        _to_context: usize,
        from: u64,
        _from_context: usize,
        bytes: usize,
        handle: usize,
    ) at Context |_| {
        copy(&stream::of(handle)?, (to as usize, Side::Device), (from as usize, Side::Device), bytes, false)
    }

    /// Host to device, at once.
    fn cuMemcpyHtoD_v2(to: u64, from: usize, bytes: usize) at Context |_| {
        copy(&stream::of(NULL)?, (to as usize, Side::Device), (from, Side::Host), bytes, true)
    }

    /// Device to host, at once.
    fn cuMemcpyDtoH_v2(to: usize, from: u64, bytes: usize) at Context |_| {
        copy(&stream::of(NULL)?, (to, Side::Host), (from as usize, Side::Device), bytes, true)
    }

    /// Device to device. The driver does not wait for it.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) at Context |_| {
        copy(&stream::of(NULL)?, (to as usize, Side::Device), (from as usize, Side::Device), bytes, false)
    }

    /// Fills bytes. The driver does not wait for it.
    fn cuMemsetD8_v2(to: u64, value: c_uchar, count: usize) at Context |_| {
        fill(NULL, to, value.into(), 1, count, false)
    }

    /// Fills 16-bit words.
    fn cuMemsetD16_v2(to: u64, value: c_ushort, count: usize) at Context |_| {
        fill(NULL, to, value.into(), 2, count, false)
    }

    /// Fills 32-bit words.
    fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) at Context |_| {
        fill(NULL, to, value, 4, count, false)
    }

    /// Fills bytes, in the stream's order.
    fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, handle: usize) at Context |_| {
        fill(handle, to, value.into(), 1, count, false)
    }

    /// Fills 16-bit words, in the stream's order.
    fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, handle: usize) at Context |_| {
        fill(handle, to, value.into(), 2, count, false)
    }

    /// Fills 32-bit words, in the stream's order.
    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, handle: usize) at Context |_| {
        fill(handle, to, value, 4, count, false)
    }
}
