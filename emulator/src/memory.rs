//! All memory that the API knows: of devices, of the host, of other processes. One map, since there is one address space.

use std::collections::BTreeMap;
use std::ffi::c_uint;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codes::{self, Result};
use crate::context::Context;
use crate::device::{self};
use crate::entry::{self, Out};
use crate::graph;
use crate::pages::Pages;
use crate::settings::settings;

/// Where memory came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `cuMemAlloc`, of this device.
    Device(usize),
    /// `cuMemAllocAsync`, of this device.
    Pool(usize),
    /// `cuMemHostAlloc`.
    Pinned,
    /// `cuMemHostRegister`: memory of the program.
    Registered,
    /// `cuIpcOpenMemHandle`: memory of another process, opened on this device.
    Imported(usize),
}

impl Kind {
    /// Whether it lies on a device, wherever the device is.
    pub(crate) fn on_device(self) -> bool {
        matches!(self, Self::Device(_) | Self::Pool(_) | Self::Imported(_))
    }
}

/// A piece of memory.
pub(crate) struct Allocation {
    pub(crate) base: usize,
    pub(crate) bytes: usize,
    pub(crate) kind: Kind,
    /// What `cuMemHostAlloc` or `cuMemHostRegister` was given.
    pub(crate) flags: c_uint,
    /// Its pages, unless they belong to the program.
    pub(crate) pages: Option<Pages>,
}

impl Allocation {
    fn budget(&self) -> Option<usize> {
        match self.kind {
            Kind::Device(ordinal) | Kind::Pool(ordinal) => Some(ordinal),
            _ => None,
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(device) = self.budget().and_then(|ordinal| device::device(ordinal).ok()) {
            device.give_back(self.bytes as u64);
        }
    }
}

static MEMORY: Mutex<BTreeMap<usize, Arc<Allocation>>> = Mutex::new(BTreeMap::new());

fn memory() -> MutexGuard<'static, BTreeMap<usize, Arc<Allocation>>> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The memory that holds all of these bytes.
pub(crate) fn find(address: usize, bytes: usize) -> Option<Arc<Allocation>> {
    let memory = memory();
    let (_, found) = memory.range(..=address).next_back()?;
    let inside = address.checked_add(bytes)? <= found.base + found.bytes && address < found.base + found.bytes;
    inside.then(|| found.clone())
}

/// The memory that these bytes lie in, or touch.
pub(crate) fn overlapping(address: usize, bytes: usize) -> Option<Arc<Allocation>> {
    let end = address.saturating_add(bytes);
    let memory = memory();
    let (_, found) = memory.range(..end).next_back()?;
    (found.base + found.bytes > address).then(|| found.clone())
}

pub(crate) fn add(allocation: Allocation) -> Arc<Allocation> {
    let allocation = Arc::new(allocation);
    memory().insert(allocation.base, allocation.clone());
    allocation
}

/// Takes memory off the map, if it begins here and is of a kind that is wanted. It goes once its last user has it not.
pub(crate) fn remove(base: usize, wanted: impl Fn(Kind) -> bool) -> Result<Arc<Allocation>> {
    let mut memory = memory();
    if !memory.get(&base).is_some_and(|found| wanted(found.kind)) {
        return Err(codes::INVALID_VALUE);
    }
    memory.remove(&base).ok_or(codes::INVALID_VALUE)
}

/// How many pieces of memory of a kind there are.
pub(crate) fn count(wanted: impl Fn(Kind) -> bool) -> usize {
    memory().values().filter(|allocation| wanted(allocation.kind)).count()
}

/// Fresh memory of a device.
pub(crate) fn allocate(ordinal: usize, bytes: usize, kind: Kind) -> Result<usize> {
    if bytes == 0 {
        return Err(codes::INVALID_VALUE);
    }
    device::device(ordinal)?.take(bytes as u64)?;
    let Ok(pages) = Pages::new(bytes) else {
        device::device(ordinal)?.give_back(bytes as u64);
        return Err(codes::OUT_OF_MEMORY);
    };
    let base = pages.base();
    add(Allocation { base, bytes, kind, flags: 0, pages: Some(pages) });
    Ok(base)
}

/// Frees memory once nobody uses it, and looks whether anybody has written beside it.
pub(crate) fn free(context: &Context, base: usize, wanted: impl Fn(Kind) -> bool) -> Result<()> {
    let allocation = remove(base, wanted)?;
    if let Some((before, behind)) = allocation.pages.as_ref().map(Pages::strays).filter(|strays| *strays != (0, 0)) {
        let bytes = allocation.bytes;
        entry::complain(&format!(
            "memory of {bytes} bytes at {base:#x}: {before} bytes before it and {behind} behind it were written"
        ));
        context.fail(codes::ILLEGAL_ADDRESS);
    }
    Ok(())
}

api! {
    /// Memory of the device, by itself between guard pages.
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) at Context |call| {
        let context = call.context()?;
        graph::forbid_in_capture(context)?;
        address.set(allocate(context.ordinal, bytes, Kind::Device(context.ordinal))? as u64)
    }

    /// Frees it, when all that was queued on the device is done.
    fn cuMemFree_v2(address: u64) at Release |call| {
        let context = call.context()?;
        graph::forbid_in_capture(context)?;
        if address == 0 {
            return Ok(());
        }
        context.drain();
        free(context, address as usize, |kind| matches!(kind, Kind::Device(_) | Kind::Pool(_)))
    }

    /// Bytes that are free, and all bytes.
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) at Context |call| {
        free.set(call.context()?.device().free() as usize)?;
        total.set(settings().memory as usize)
    }

    /// Where the memory begins that an address lies in, and how long it is.
    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) at Context |_| {
        let found = find(address as usize, 1).filter(|found| found.kind.on_device()).ok_or(codes::NOT_FOUND)?;
        base.set_if_wanted(found.base as u64);
        bytes.set_if_wanted(found.bytes);
        Ok(())
    }

    /// What is known of an address: whether it is the device's or the host's, of which device, and its range.
    fn cuPointerGetAttribute(value: Out<u64>, attribute: c_uint, address: u64) at Context |_| {
        let found = find(address as usize, 1).ok_or(codes::INVALID_VALUE)?;
        let narrow = |number: u32| {
            // SAFETY: these attributes are 32 bits wide, and the caller gives a place for one.
            Out::<u32>::set(unsafe { std::mem::transmute::<Out<u64>, Out<u32>>(value) }, number)
        };
        match attribute {
            // CU_POINTER_ATTRIBUTE_MEMORY_TYPE: 1 host, 2 device.
            2 => narrow(if found.kind.on_device() { 2 } else { 1 }),
            // DEVICE_POINTER and HOST_POINTER.
            3 => value.set(address),
            4 if !found.kind.on_device() => value.set(address),
            // DEVICE_ORDINAL.
            9 => match found.kind {
                Kind::Device(ordinal) | Kind::Pool(ordinal) | Kind::Imported(ordinal) => narrow(ordinal as u32),
                Kind::Pinned | Kind::Registered => narrow(0),
            },
            // RANGE_START_ADDR and RANGE_SIZE.
            11 => value.set(found.base as u64),
            12 => value.set(found.bytes as u64),
            _ => Err(codes::INVALID_VALUE),
        }
    }
}
