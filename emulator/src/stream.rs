//! Streams: each has a thread, which does what is queued in order, and starts with the first thing that is.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::{c_int, c_uint};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::codes::{self, Result};
use crate::context::{self, Context};
use crate::entry::Out;
use crate::graph::{self, Capture};
use crate::handle::Registry;
use crate::work::{Callback, HostFunction, Work};

/// CU_STREAM_NON_BLOCKING: no order with the NULL stream.
const NON_BLOCKING: c_uint = 1;
/// The handles of the default streams; 0 is the same as 1.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// A stream.
pub(crate) struct Stream {
    pub(crate) handle: usize,
    pub(crate) context: Arc<Context>,
    flags: c_uint,
    priority: c_int,
    state: Mutex<State>,
    changed: Condvar,
    capture: Mutex<Option<Arc<Capture>>>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    queued: u64,
    done: u64,
    running: bool,
    closing: bool,
}

/// All streams, default ones and those that are still being drained included.
static STREAMS: Registry<Stream> = Registry::new();

/// The stream of a handle.
pub(crate) fn of(handle: usize) -> Result<Arc<Stream>> {
    let current = || context::current().ok_or(codes::INVALID_CONTEXT);
    match handle {
        0 | LEGACY => Ok(current()?.legacy()),
        PER_THREAD => per_thread(&current()?),
        _ => STREAMS
            .get(handle)
            .and_then(|stream| if stream.state().closing { Err(codes::INVALID_HANDLE) } else { Ok(stream) }),
    }
}

/// How many streams there are, default ones not counted.
pub(crate) fn count() -> usize {
    STREAMS.all().iter().filter(|stream| stream.flags & DEFAULT == 0 && !stream.state().closing).count()
}

/// Marks default streams among the flags; the driver has no such flag.
const DEFAULT: c_uint = 1 << 31;

thread_local! {
    static OWN: RefCell<OwnStreams> = RefCell::default();
}

/// The streams of a thread, by context.
#[derive(Default)]
struct OwnStreams(HashMap<usize, Arc<Stream>>);

impl Drop for OwnStreams {
    fn drop(&mut self) {
        self.0.values().for_each(|stream| stream.close());
    }
}

fn per_thread(context: &Arc<Context>) -> Result<Arc<Stream>> {
    OWN.with_borrow_mut(|own| {
        let stream = own.0.entry(context.handle);
        Ok(stream.or_insert_with(|| Stream::add(context, DEFAULT, 0)).clone())
    })
}

impl Stream {
    fn add(context: &Arc<Context>, flags: c_uint, priority: c_int) -> Arc<Self> {
        let make = |handle| Self {
            handle,
            context: context.clone(),
            flags,
            priority,
            state: Mutex::default(),
            changed: Condvar::new(),
            capture: Mutex::new(None),
        };
        STREAMS.add(make).1
    }

    /// The NULL stream of a context.
    pub(crate) fn legacy(context: &Arc<Context>) -> Arc<Self> {
        Self::add(context, DEFAULT | LEGACY_FLAG, 0)
    }

    pub(crate) fn all_of(context: &Context) -> Vec<Arc<Self>> {
        STREAMS.all().into_iter().filter(|stream| stream.context.handle == context.handle).collect()
    }

    /// Ends the streams of a context that ends.
    pub(crate) fn end_all_of(context: &Context) {
        Self::all_of(context).iter().for_each(|stream| stream.close());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capture that it is part of.
    pub(crate) fn capture(&self) -> Option<Arc<Capture>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_capture(&self, capture: Option<Arc<Capture>>) {
        *self.capture.lock().unwrap_or_else(PoisonError::into_inner) = capture;
    }

    pub(crate) fn is_legacy(&self) -> bool {
        self.flags & LEGACY_FLAG != 0
    }

    /// Queues work, in the order that the NULL stream has with those that are not non-blocking.
    pub(crate) fn queue(self: &Arc<Self>, work: Work) -> Result<()> {
        if self.is_legacy() {
            let others = Self::all_of(&self.context).into_iter();
            for other in others.filter(|other| other.flags & NON_BLOCKING == 0 && other.handle != self.handle) {
                self.wait_on(&other)?;
            }
        } else if self.flags & NON_BLOCKING == 0
            && let Some(legacy) = self.context.legacy_if_used()
        {
            self.wait_on(&legacy)?;
        }
        self.push(work)
    }

    fn wait_on(self: &Arc<Self>, other: &Arc<Self>) -> Result<()> {
        let (queued, done) = {
            let state = other.state();
            (state.queued, state.done)
        };
        if done < queued { self.push(Work::WaitStream(other.clone(), queued)) } else { Ok(()) }
    }

    fn push(self: &Arc<Self>, work: Work) -> Result<()> {
        let mut state = self.state();
        if state.closing {
            return Err(codes::INVALID_HANDLE);
        }
        if !state.running {
            let stream = self.clone();
            let name = format!("cuda {:x}", self.handle);
            thread::Builder::new().name(name).spawn(move || stream.work()).map_err(|_| codes::OPERATING_SYSTEM)?;
            state.running = true;
        }
        state.queue.push_back(work);
        state.queued += 1;
        self.changed.notify_all();
        Ok(())
    }

    /// The stream's thread.
    fn work(self: Arc<Self>) {
        let mut state = self.state();
        loop {
            if let Some(work) = state.queue.pop_front() {
                drop(state);
                work.run(&self);
                // What it held is given back before anybody sees that it is done.
                drop(work);
                state = self.state();
                state.done += 1;
                self.changed.notify_all();
            } else if state.closing {
                break;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(state);
        self.forget();
    }

    /// Waits until this much of what was queued is done.
    pub(crate) fn wait_for(&self, count: u64) {
        let mut state = self.state();
        while state.done < count {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for all that is queued now.
    pub(crate) fn drain(&self) {
        let queued = self.state().queued;
        self.wait_for(queued);
    }

    fn is_done(&self) -> bool {
        let state = self.state();
        state.done == state.queued
    }

    /// Takes no more work; its thread does what is queued, and ends.
    fn close(&self) {
        let mut state = self.state();
        state.closing = true;
        self.changed.notify_all();
        let idle = !state.running;
        drop(state);
        if idle {
            self.forget();
        }
    }

    fn forget(&self) {
        // It may be off the list already: by its context's end, and then by its thread's.
        drop(STREAMS.remove(self.handle));
    }
}

/// Marks the NULL stream among the flags.
const LEGACY_FLAG: c_uint = 1 << 30;

fn create(handle: Out<usize>, context: &Arc<Context>, flags: c_uint, priority: c_int) -> Result<()> {
    if flags & !NON_BLOCKING != 0 {
        return Err(codes::INVALID_VALUE);
    }
    handle.set(Stream::add(context, flags, priority.clamp(-5, 0)).handle)
}

/// The stream of a handle, for a call that looks at what it has done: that is refused while it captures.
fn looked_at(handle: usize) -> Result<Arc<Stream>> {
    let stream = of(handle)?;
    if stream.capture().is_some() {
        graph::invalidate(&stream);
        return Err(codes::STREAM_CAPTURE_UNSUPPORTED);
    }
    Ok(stream)
}

api! {
    /// A new stream.
    fn cuStreamCreate(handle: Out<usize>, flags: c_uint) at Context |call| {
        create(handle, call.context()?, flags, 0)
    }

    /// A new stream with a priority, which is kept and means nothing here.
    fn cuStreamCreateWithPriority(handle: Out<usize>, flags: c_uint, priority: c_int) at Context |call| {
        create(handle, call.context()?, flags, priority)
    }

    /// Forgets the handle at once; what is queued is still done.
    fn cuStreamDestroy_v2(handle: usize) at Release |_| {
        let stream = STREAMS.get(handle)?;
        if stream.flags & DEFAULT != 0 {
            return Err(codes::INVALID_HANDLE);
        }
        if stream.capture().is_some() {
            graph::invalidate(&stream);
        }
        stream.close();
        Ok(())
    }

    /// The priority, as it was kept.
    fn cuStreamGetPriority(handle: usize, priority: Out<c_int>) at Context |_| {
        priority.set(of(handle)?.priority)
    }

    /// The flags that it was made with.
    fn cuStreamGetFlags(handle: usize, flags: Out<c_uint>) at Context |_| {
        flags.set(of(handle)?.flags & NON_BLOCKING)
    }

    /// Waits for all that is queued.
    fn cuStreamSynchronize(handle: usize) at Context |_| {
        let stream = looked_at(handle)?;
        stream.drain();
        stream.context.check()
    }

    /// Whether all that was queued is done.
    fn cuStreamQuery(handle: usize) at Context |_| {
        let stream = looked_at(handle)?;
        if stream.is_done() { stream.context.check() } else { Err(codes::NOT_READY) }
    }

    /// Queues a function of the program. It is not called if the device has failed by then.
    fn cuLaunchHostFunc(handle: usize, function: Option<extern "C" fn(usize)>, data: usize) at Context |_| {
        let call = Callback::Plain(function.ok_or(codes::INVALID_VALUE)?);
        graph::submit(&of(handle)?, Work::Host(HostFunction { call, data }))
    }

    /// Queues a function of the program that is told the code.
    fn cuStreamAddCallback(
        handle: usize,
        function: Option<extern "C" fn(usize, u32, usize)>,
        data: usize,
        flags: c_uint,
    ) at Context |_| {
        let function = function.ok_or(codes::INVALID_VALUE)?;
        let stream = looked_at(handle)?;
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        stream.queue(Work::Host(HostFunction { call: Callback::Status(function, handle), data }))
    }

    /// Queues the write of a word.
    fn cuStreamWriteValue32_v2(handle: usize, address: u64, value: u32, flags: c_uint) at Context |_| {
        if !address.is_multiple_of(4) || flags & !1 != 0 {
            return Err(codes::INVALID_VALUE);
        }
        graph::submit(&of(handle)?, Work::WriteValue { address: address as usize, value })
    }

    /// Makes the stream wait until a word is at least, is, or has bits of, a value.
    fn cuStreamWaitValue32_v2(handle: usize, address: u64, value: u32, flags: c_uint) at Context |_| {
        if !address.is_multiple_of(4) || flags > 3 {
            return Err(codes::INVALID_VALUE);
        }
        graph::submit(&of(handle)?, Work::WaitValue { address: address as usize, value, flags })
    }
}
