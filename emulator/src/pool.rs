//! Memory in the order of a stream, and the pool that it comes from. There is one pool a device.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::codes::{self, Result};
use crate::device;
use crate::entry::{In, Out};
use crate::graph;
use crate::memory::{self, Kind};
use crate::settings::settings;
use crate::stream;
use crate::work::Work;

/// Added to a device's number to get its pool's handle.
const POOL: usize = 0x100;

/// What CU_MEMPOOL_ATTR_RELEASE_THRESHOLD was set to; kept, since memory is always given back at once.
static THRESHOLD: AtomicU64 = AtomicU64::new(0);

fn allocate(out: Out<u64>, bytes: usize, stream: usize, ordinal: Option<usize>) -> Result<()> {
    if !settings().pools {
        return Err(codes::NOT_SUPPORTED);
    }
    let stream = stream::of(stream)?;
    // The driver would make a node of it that allocates on each launch. We have none, so we say so.
    if stream.capture().is_some() {
        graph::invalidate(&stream);
        return Err(codes::NOT_SUPPORTED);
    }
    let ordinal = ordinal.unwrap_or(stream.context.ordinal);
    out.set(memory::allocate(ordinal, bytes, Kind::Pool(ordinal))? as u64)
}

fn of(pool: usize) -> Result<usize> {
    let ordinal = pool.checked_sub(POOL).ok_or(codes::INVALID_VALUE)?;
    device::device(ordinal).map_err(|_| codes::INVALID_VALUE)?;
    Ok(ordinal)
}

api! {
    /// Memory for what is queued on the stream after this.
    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, handle: usize) at Context |_| {
        allocate(address, bytes, handle, None)
    }

    /// The same, from a given pool.
    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: usize, handle: usize) at Context |_| {
        allocate(address, bytes, handle, Some(of(pool)?))
    }

    /// Frees it when the stream gets there: who still uses it then, on another stream, meets unmapped pages.
    fn cuMemFreeAsync(address: u64, handle: usize) at Release |_| {
        let known = memory::find(address as usize, 1).filter(|found| found.base == address as usize);
        known.filter(|found| matches!(found.kind, Kind::Pool(_) | Kind::Device(_))).ok_or(codes::INVALID_VALUE)?;
        let stream = stream::of(handle)?;
        if stream.capture().is_some() {
            graph::invalidate(&stream);
            return Err(codes::NOT_SUPPORTED);
        }
        stream.queue(Work::Free(address as usize))
    }

    /// The device's pool.
    fn cuDeviceGetDefaultMemPool(pool: Out<usize>, ordinal: c_int) at Driver |_| {
        let ordinal = usize::try_from(ordinal).map_err(|_| codes::INVALID_DEVICE)?;
        device::device(ordinal)?;
        pool.set(POOL + ordinal)
    }

    /// The pool in use: the same.
    fn cuDeviceGetMemPool(pool: Out<usize>, ordinal: c_int) at Driver |_| {
        let ordinal = usize::try_from(ordinal).map_err(|_| codes::INVALID_DEVICE)?;
        device::device(ordinal)?;
        pool.set(POOL + ordinal)
    }

    /// Sets an attribute: the release threshold is kept, other settings are refused.
    fn cuMemPoolSetAttribute(pool: usize, attribute: c_uint, value: In<u64>) at Driver |_| {
        of(pool)?;
        if attribute != 4 {
            return Err(codes::NOT_SUPPORTED);
        }
        THRESHOLD.store(value.get()?, Ordering::Relaxed);
        Ok(())
    }

    /// Reads it back.
    fn cuMemPoolGetAttribute(pool: usize, attribute: c_uint, value: Out<u64>) at Driver |_| {
        of(pool)?;
        if attribute != 4 {
            return Err(codes::NOT_SUPPORTED);
        }
        value.set(THRESHOLD.load(Ordering::Relaxed))
    }

    /// Gives back what the pool holds: it never holds anything.
    fn cuMemPoolTrimTo(pool: usize, _keep: usize) at Driver |_| {
        of(pool).map(drop)
    }
}
