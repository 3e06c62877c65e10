//! Host memory that the device may read and write: allocated for it, or registered.

use std::ffi::c_uint;

use crate::codes::{self, Result};
use crate::entry::Out;
use crate::graph;
use crate::memory::{self, Allocation, Kind};
use crate::pages::Pages;

/// The flags of `cuMemHostAlloc`: portable, mapped, write-combined.
const ALLOC_FLAGS: c_uint = 7;
/// Those of `cuMemHostRegister`: portable, mapped, I/O memory, read only.
const REGISTER_FLAGS: c_uint = 15;

fn pin(bytes: usize, flags: c_uint) -> Result<usize> {
    if bytes == 0 || flags & !ALLOC_FLAGS != 0 {
        return Err(codes::INVALID_VALUE);
    }
    let pages = Pages::new(bytes).map_err(|_| codes::OUT_OF_MEMORY)?;
    Ok(memory::add(Allocation { base: pages.base(), bytes, kind: Kind::Pinned, flags, pages: Some(pages) }).base)
}

api! {
    /// Pinned memory, filled with the pattern.
    fn cuMemHostAlloc(address: Out<usize>, bytes: usize, flags: c_uint) at Context |call| {
        graph::forbid_in_capture(call.context()?)?;
        address.set(pin(bytes, flags)?)
    }

    /// The same without flags.
    fn cuMemAllocHost_v2(address: Out<usize>, bytes: usize) at Context |call| {
        graph::forbid_in_capture(call.context()?)?;
        address.set(pin(bytes, 0)?)
    }

    /// Frees pinned memory, when all that was queued on the device is done.
    fn cuMemFreeHost(address: usize) at Release |call| {
        let context = call.context()?;
        context.drain();
        memory::free(context, address, |kind| kind == Kind::Pinned)
    }

    /// Pins memory of the program, of which no part may be pinned already.
    fn cuMemHostRegister_v2(address: usize, bytes: usize, flags: c_uint) at Context |call| {
        graph::forbid_in_capture(call.context()?)?;
        if address == 0 || bytes == 0 || flags & !REGISTER_FLAGS != 0 {
            return Err(codes::INVALID_VALUE);
        }
        if memory::overlapping(address, bytes).is_some() {
            return Err(codes::HOST_MEMORY_ALREADY_REGISTERED);
        }
        memory::add(Allocation { base: address, bytes, kind: Kind::Registered, flags, pages: None });
        Ok(())
    }

    /// Takes that back.
    fn cuMemHostUnregister(address: usize) at Release |call| {
        call.context()?.drain();
        memory::remove(address, |kind| kind == Kind::Registered).map_err(|_| codes::HOST_MEMORY_NOT_REGISTERED)?;
        Ok(())
    }

    /// The device's address of pinned memory: the same.
    fn cuMemHostGetDevicePointer_v2(device: Out<u64>, address: usize, flags: c_uint) at Context |_| {
        let pinned = memory::find(address, 1).filter(|found| !found.kind.on_device()).ok_or(codes::INVALID_VALUE)?;
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        debug_assert!(pinned.base <= address);
        device.set(address as u64)
    }

    /// The flags that pinned memory was made with.
    fn cuMemHostGetFlags(flags: Out<c_uint>, address: usize) at Context |_| {
        let pinned = memory::find(address, 1).filter(|found| !found.kind.on_device()).ok_or(codes::INVALID_VALUE)?;
        flags.set(pinned.flags)
    }
}
