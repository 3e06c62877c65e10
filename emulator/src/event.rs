//! Events. Each record has a number, and a wait is for the record that was the last when the wait was called.

use std::ffi::c_uint;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::codes::{self, Result};
use crate::context::Context;
use crate::entry::Out;
use crate::graph::{self, Mark};
use crate::handle::Registry;
use crate::ipc::SharedEvent;
use crate::stream;
use crate::work::Work;

/// CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING and CU_EVENT_INTERPROCESS.
const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;
const FLAGS: c_uint = 7;

/// An event.
pub(crate) struct Event {
    context: Arc<Context>,
    timed: bool,
    state: Mutex<State>,
    changed: Condvar,
    /// Its counters, where other processes know them.
    shared: Option<SharedEvent>,
}

#[derive(Default)]
struct State {
    recorded: u64,
    completed: u64,
    completed_at: Option<Instant>,
    /// Set when the last record was captured and not queued.
    captured: Option<Mark>,
}

static EVENTS: Registry<Event> = Registry::new();

pub(crate) fn of(handle: usize) -> Result<Arc<Event>> {
    EVENTS.get(handle)
}

pub(crate) fn count() -> usize {
    EVENTS.count()
}

/// Gives an event of another process a place here.
pub(crate) fn import(context: &Arc<Context>, shared: SharedEvent) -> usize {
    EVENTS.add(|_| Event::new(context, false, Some(shared))).0
}

impl Event {
    fn new(context: &Arc<Context>, timed: bool, shared: Option<SharedEvent>) -> Self {
        Self { context: context.clone(), timed, state: Mutex::default(), changed: Condvar::new(), shared }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What other processes open, if they may.
    pub(crate) fn shared(&self) -> Option<&SharedEvent> {
        self.shared.as_ref()
    }

    /// Numbers a record that is about to be queued.
    pub(crate) fn begin_record(&self) -> u64 {
        let mut state = self.state();
        state.captured = None;
        if let Some(shared) = &self.shared {
            return shared.begin_record();
        }
        state.recorded += 1;
        state.recorded
    }

    /// A record was captured.
    pub(crate) fn mark(&self, mark: Mark) {
        self.state().captured = Some(mark);
    }

    pub(crate) fn captured(&self) -> Option<Mark> {
        self.state().captured.clone()
    }

    /// The number of the last record; 0 if there was none.
    pub(crate) fn recorded(&self) -> u64 {
        self.shared.as_ref().map_or_else(|| self.state().recorded, SharedEvent::recorded)
    }

    /// The stream has reached a record.
    pub(crate) fn complete(&self, version: u64) {
        if let Some(shared) = &self.shared {
            return shared.complete(version);
        }
        let mut state = self.state();
        if version > state.completed {
            state.completed = version;
            state.completed_at = Some(Instant::now());
        }
        self.changed.notify_all();
    }

    fn is_complete(&self, version: u64) -> bool {
        match &self.shared {
            Some(shared) => shared.completed() >= version,
            None => self.state().completed >= version,
        }
    }

    /// Waits until a record is reached.
    pub(crate) fn wait(&self, version: u64) -> Result<()> {
        if let Some(shared) = &self.shared {
            return shared.wait(version);
        }
        let mut state = self.state();
        while state.completed < version {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// When the last record was reached.
    fn reached(&self) -> Result<Instant> {
        let state = self.state();
        if !self.timed || state.recorded == 0 {
            return Err(codes::INVALID_HANDLE);
        }
        state.completed_at.filter(|_| state.completed >= state.recorded).ok_or(codes::NOT_READY)
    }
}

fn elapsed(milliseconds: Out<f32>, start: usize, end: usize) -> Result<()> {
    let (start, end) = (of(start)?.reached()?, of(end)?.reached()?);
    let later = end.saturating_duration_since(start).as_secs_f32() - start.saturating_duration_since(end).as_secs_f32();
    milliseconds.set(later * 1000.0)
}

/// Refuses what would look into a captured record, which has no time.
fn of_the_host(handle: usize) -> Result<Arc<Event>> {
    let event = of(handle)?;
    match event.captured() {
        Some(mark) => {
            mark.capture.invalidate();
            Err(codes::CAPTURED_EVENT)
        }
        None => Ok(event),
    }
}

api! {
    /// A new event, which counts as reached until it is recorded.
    fn cuEventCreate(handle: Out<usize>, flags: c_uint) at Context |call| {
        let context = call.context()?;
        let timed = flags & DISABLE_TIMING == 0;
        let interprocess = flags & INTERPROCESS != 0;
        if flags & !FLAGS != 0 || (interprocess && timed) {
            return Err(codes::INVALID_VALUE);
        }
        let shared = if interprocess { Some(SharedEvent::new()?) } else { None };
        handle.set(EVENTS.add(|_| Event::new(context, timed, shared)).0)
    }

    /// Forgets the handle. Waits and records that are queued still happen.
    fn cuEventDestroy_v2(handle: usize) at Release |_| {
        EVENTS.remove(handle).map(drop)
    }

    /// Queues a record.
    fn cuEventRecord(handle: usize, stream: usize) at Context |_| {
        let (event, stream) = (of(handle)?, stream::of(stream)?);
        if event.context.handle != stream.context.handle {
            return Err(codes::INVALID_HANDLE);
        }
        if let Some(capture) = stream.capture() {
            event.mark(graph::mark(&capture, &stream)?);
            return Ok(());
        }
        let version = event.begin_record();
        stream.queue(Work::Record(event, version))
    }

    /// Whether the last record has been reached.
    fn cuEventQuery(handle: usize) at Context |_| {
        let event = of_the_host(handle)?;
        if event.is_complete(event.recorded()) { event.context.check() } else { Err(codes::NOT_READY) }
    }

    /// Waits until the last record is reached.
    fn cuEventSynchronize(handle: usize) at Context |call| {
        graph::forbid_in_capture(call.context()?)?;
        let event = of_the_host(handle)?;
        event.wait(event.recorded())?;
        event.context.check()
    }

    /// Milliseconds from one event to another.
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) at Context |_| {
        elapsed(milliseconds, start, end)
    }

    /// The same, under its newer name.
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: usize, end: usize) at Context |_| {
        elapsed(milliseconds, start, end)
    }

    /// Makes a stream wait for the last record, on whichever stream that was.
    fn cuStreamWaitEvent(stream: usize, handle: usize, flags: c_uint) at Context |_| {
        let (event, stream) = (of(handle)?, stream::of(stream)?);
        if flags != 0 {
            return Err(codes::NOT_SUPPORTED);
        }
        if let Some(mark) = event.captured() {
            return graph::join(&stream, &mark);
        }
        if stream.capture().is_some() {
            graph::invalidate(&stream);
            return Err(codes::STREAM_CAPTURE_ISOLATION);
        }
        let version = event.recorded();
        if version == 0 || event.is_complete(version) {
            return Ok(());
        }
        stream.queue(Work::Wait(event, version))
    }
}
