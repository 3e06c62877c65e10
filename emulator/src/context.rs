//! Contexts. There is one a device, its primary context, as frameworks and cudarc use it.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codes::{self, Code, Result};
use crate::device::{self, Device};
use crate::entry::Out;
use crate::handle::Registry;
use crate::settings::settings;
use crate::stream::Stream;
use crate::{graph, trace};

/// What belongs to one device, in this process.
pub(crate) struct Context {
    pub(crate) handle: usize,
    /// The number of its device.
    pub(crate) ordinal: usize,
    /// The code with which the device failed; every later call returns it. 0 while all is well.
    sticky: AtomicU32,
    /// The devices whose memory it has asked to reach.
    peers: Mutex<HashSet<usize>>,
    /// The NULL stream, once it is used.
    legacy: Mutex<Option<Arc<Stream>>>,
}

/// A device's primary context, and how often it was retained.
#[derive(Default)]
pub(crate) struct Primary {
    retained: usize,
    context: Option<Arc<Context>>,
}

static CONTEXTS: Registry<Context> = Registry::new();

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The thread's current context.
pub(crate) fn current() -> Option<Arc<Context>> {
    CONTEXTS.get(CURRENT.get()).ok()
}

/// The context of a handle, or the current one for none.
fn of(handle: usize) -> Result<Arc<Context>> {
    CONTEXTS.get(handle).map_err(|_| codes::INVALID_CONTEXT)
}

impl Context {
    fn new(handle: usize, ordinal: usize) -> Self {
        Self { handle, ordinal, sticky: AtomicU32::new(0), peers: Mutex::default(), legacy: Mutex::default() }
    }

    pub(crate) fn device(&self) -> &'static Device {
        device::device(self.ordinal).expect("a context is made for a device that exists")
    }

    /// Fails with the sticky error, if there is one.
    pub(crate) fn check(&self) -> Result<()> {
        match self.sticky.load(Ordering::Acquire) {
            0 => Ok(()),
            code => Err(Code(code)),
        }
    }

    /// The device has failed. The first failure stays.
    pub(crate) fn fail(&self, code: Code) {
        if self.sticky.compare_exchange(0, code.0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            trace::note(&format!("device {} has failed: {}", self.ordinal, code.0));
        }
    }

    /// The NULL stream.
    pub(crate) fn legacy(self: &Arc<Self>) -> Arc<Stream> {
        let mut legacy = self.legacy.lock().unwrap_or_else(PoisonError::into_inner);
        legacy.get_or_insert_with(|| Stream::legacy(self)).clone()
    }

    /// The NULL stream, if it was ever used.
    pub(crate) fn legacy_if_used(&self) -> Option<Arc<Stream>> {
        self.legacy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all that was queued on its streams is done.
    pub(crate) fn drain(&self) {
        for stream in Stream::all_of(self) {
            stream.drain();
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashSet<usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn primary(handle: c_int) -> Result<(usize, MutexGuard<'static, Primary>)> {
    let ordinal = usize::try_from(handle).map_err(|_| codes::INVALID_DEVICE)?;
    let device = device::device(ordinal)?;
    Ok((ordinal, device.primary.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Ends a context: what is queued is done first.
fn end(context: Option<Arc<Context>>) -> Result<()> {
    let Some(context) = context else { return Ok(()) };
    context.drain();
    Stream::end_all_of(&context);
    // It holds the context in turn.
    drop(context.legacy.lock().unwrap_or_else(PoisonError::into_inner).take());
    CONTEXTS.remove(context.handle).map(drop)
}

api! {
    /// Makes the primary context, or counts one user more.
    fn cuDevicePrimaryCtxRetain(handle: Out<usize>, ordinal: c_int) at Driver |_| {
        let (ordinal, mut primary) = primary(ordinal)?;
        let context = primary.context.get_or_insert_with(|| CONTEXTS.add(|handle| Context::new(handle, ordinal)).1);
        handle.set(context.handle)?;
        primary.retained += 1;
        Ok(())
    }

    /// Counts one user less. The last one ends the context.
    fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) at Driver |_| {
        let (_, mut primary) = primary(ordinal)?;
        primary.retained = primary.retained.checked_sub(1).ok_or(codes::INVALID_CONTEXT)?;
        if primary.retained > 0 {
            return Ok(());
        }
        end(primary.context.take())
    }

    /// Ends the context whoever uses it: the only way out of a sticky error.
    fn cuDevicePrimaryCtxReset_v2(ordinal: c_int) at Driver |_| {
        let (_, mut primary) = primary(ordinal)?;
        end(primary.context.take())
    }

    /// Whether the primary context exists; it has no flags.
    fn cuDevicePrimaryCtxGetState(ordinal: c_int, flags: Out<c_uint>, active: Out<c_int>) at Driver |_| {
        let (_, primary) = primary(ordinal)?;
        flags.set(0)?;
        active.set(c_int::from(primary.context.is_some()))
    }

    /// The thread's context, or none.
    fn cuCtxGetCurrent(handle: Out<usize>) at Driver |_| {
        handle.set(current().map_or(0, |context| context.handle))
    }

    /// Makes a context the thread's; none is allowed.
    fn cuCtxSetCurrent(handle: usize) at Driver |_| {
        if handle != 0 {
            of(handle)?;
        }
        CURRENT.set(handle);
        Ok(())
    }

    /// The device of the thread's context.
    fn cuCtxGetDevice(handle: Out<c_int>) at Driver |call| {
        handle.set(call.context()?.ordinal as c_int)
    }

    /// Waits for everything that was queued on the device.
    fn cuCtxSynchronize() at Context |call| {
        let context = call.context()?;
        graph::forbid_in_capture(context)?;
        context.drain();
        context.check()
    }

    /// Priorities are kept, and mean nothing here.
    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) at Context |_| {
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }

    /// Lets the thread's context reach the memory of another one's device.
    fn cuCtxEnablePeerAccess(peer: usize, flags: c_uint) at Context |call| {
        let (context, peer) = (call.context()?, of(peer)?);
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        if peer.ordinal == context.ordinal {
            return Err(codes::INVALID_DEVICE);
        }
        if !settings().peers {
            return Err(codes::PEER_ACCESS_UNSUPPORTED);
        }
        let new = context.peers().insert(peer.ordinal);
        if new { Ok(()) } else { Err(codes::PEER_ACCESS_ALREADY_ENABLED) }
    }

    /// Takes that back.
    fn cuCtxDisablePeerAccess(peer: usize) at Context |call| {
        let known = call.context()?.peers().remove(&of(peer)?.ordinal);
        if known { Ok(()) } else { Err(codes::PEER_ACCESS_NOT_ENABLED) }
    }
}
