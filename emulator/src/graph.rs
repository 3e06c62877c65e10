//! Captures and graphs. A capture writes down what its streams are told, in the order of the calls; a launch does that
//! again, in that order. The driver may do parts of a graph at the same time; we do not.

use std::collections::HashMap;
use std::ffi::{c_int, c_ulonglong};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::codes::{self, Result};
use crate::context::Context;
use crate::entry::Out;
use crate::handle::Registry;
use crate::stream::{self, Stream};
use crate::work::Work;

/// CU_STREAM_CAPTURE_MODE_GLOBAL, THREAD_LOCAL and RELAXED: whose unsafe calls are refused meanwhile.
const GLOBAL: c_int = 0;
const THREAD_LOCAL: c_int = 1;
const RELAXED: c_int = 2;

/// The flags of an instantiation: free on launch, upload, device launch, priorities of nodes.
const AUTO_FREE: c_ulonglong = 1;
const DEVICE_LAUNCH: c_ulonglong = 4;
const FLAGS: c_ulonglong = 15;

/// A capture in progress.
pub(crate) struct Capture {
    context: usize,
    mode: c_int,
    thread: ThreadId,
    invalid: AtomicBool,
    inside: Mutex<Inside>,
}

struct Inside {
    works: Vec<Work>,
    /// The streams in it, the one where it began first.
    streams: Vec<Arc<Stream>>,
    /// For each stream, how many operations it was told.
    told: HashMap<usize, usize>,
    /// For each stream, how many of them another stream waits for.
    waited: HashMap<usize, usize>,
    over: bool,
}

/// Where in a capture an event was recorded.
#[derive(Clone)]
pub(crate) struct Mark {
    pub(crate) capture: Arc<Capture>,
    stream: usize,
    told: usize,
}

/// Captures that go on.
static CAPTURES: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());
static GRAPHS: Registry<Arc<Vec<Work>>> = Registry::new();
static EXECUTABLES: Registry<Arc<Vec<Work>>> = Registry::new();

fn captures() -> MutexGuard<'static, Vec<Arc<Capture>>> {
    CAPTURES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many graphs there are, instantiated ones included.
pub(crate) fn count() -> usize {
    GRAPHS.count() + EXECUTABLES.count()
}

impl Capture {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened that a capture does not survive.
    pub(crate) fn invalidate(&self) {
        self.invalid.store(true, Ordering::Release);
    }

    fn is_invalid(&self) -> bool {
        self.invalid.load(Ordering::Acquire)
    }

    /// Whether it forbids this thread calls that a graph cannot hold.
    fn forbids(&self) -> bool {
        match self.mode {
            GLOBAL => true,
            THREAD_LOCAL => self.thread == thread::current().id(),
            _ => false,
        }
    }
}

/// Ends the capture of a stream, which was told something impossible.
pub(crate) fn invalidate(stream: &Stream) {
    if let Some(capture) = stream.capture() {
        capture.invalidate();
    }
}

/// Refuses a call that waits or allocates while a capture forbids such calls.
pub(crate) fn forbid_in_capture(context: &Context) -> Result<()> {
    let captures = captures();
    match captures.iter().find(|capture| capture.context == context.handle && capture.forbids()) {
        Some(capture) => {
            capture.invalidate();
            Err(codes::STREAM_CAPTURE_UNSUPPORTED)
        }
        None => Ok(()),
    }
}

/// Queues work, or writes it down if the stream captures.
pub(crate) fn submit(stream: &Arc<Stream>, work: Work) -> Result<()> {
    let Some(capture) = stream.capture() else { return stream.queue(work) };
    if capture.is_invalid() {
        return Err(codes::STREAM_CAPTURE_INVALIDATED);
    }
    let mut inside = capture.inside();
    inside.works.push(work);
    *inside.told.entry(stream.handle).or_default() += 1;
    Ok(())
}

/// Where a captured record stands.
pub(crate) fn mark(capture: &Arc<Capture>, stream: &Stream) -> Result<Mark> {
    if capture.is_invalid() {
        return Err(codes::STREAM_CAPTURE_INVALIDATED);
    }
    let told = capture.inside().told.get(&stream.handle).copied().unwrap_or_default();
    Ok(Mark { capture: capture.clone(), stream: stream.handle, told })
}

/// A stream is told to wait for a captured record: it becomes part of the capture.
pub(crate) fn join(stream: &Arc<Stream>, mark: &Mark) -> Result<()> {
    if stream.is_legacy() {
        mark.capture.invalidate();
        return Err(codes::STREAM_CAPTURE_IMPLICIT);
    }
    let mut inside = mark.capture.inside();
    if inside.over {
        return Err(codes::CAPTURED_EVENT);
    }
    match stream.capture() {
        Some(own) if !Arc::ptr_eq(&own, &mark.capture) => {
            own.invalidate();
            mark.capture.invalidate();
            return Err(codes::STREAM_CAPTURE_ISOLATION);
        }
        Some(_) => {}
        None => {
            stream.set_capture(Some(mark.capture.clone()));
            inside.streams.push(stream.clone());
        }
    }
    if stream.handle != mark.stream {
        let waited = inside.waited.entry(mark.stream).or_default();
        *waited = mark.told.max(*waited);
        // The wait itself is something that others must wait for in turn.
        *inside.told.entry(stream.handle).or_default() += 1;
    }
    Ok(())
}

fn begin(handle: usize, mode: c_int) -> Result<()> {
    let stream = stream::of(handle)?;
    if !(GLOBAL..=RELAXED).contains(&mode) {
        return Err(codes::INVALID_VALUE);
    }
    if stream.is_legacy() {
        return Err(codes::STREAM_CAPTURE_UNSUPPORTED);
    }
    if stream.capture().is_some() {
        return Err(codes::ILLEGAL_STATE);
    }
    let inside = Inside {
        works: Vec::new(),
        streams: vec![stream.clone()],
        told: HashMap::new(),
        waited: HashMap::new(),
        over: false,
    };
    let capture = Arc::new(Capture {
        context: stream.context.handle,
        mode,
        thread: thread::current().id(),
        invalid: AtomicBool::new(false),
        inside: Mutex::new(inside),
    });
    captures().push(capture.clone());
    stream.set_capture(Some(capture));
    Ok(())
}

/// Ends a capture; returns what was written down.
fn end(handle: usize) -> Result<Vec<Work>> {
    let stream = stream::of(handle)?;
    let capture = stream.capture().ok_or(codes::ILLEGAL_STATE)?;
    let mut inside = capture.inside();
    if inside.streams[0].handle != stream.handle {
        capture.invalidate();
        return Err(codes::STREAM_CAPTURE_UNMATCHED);
    }
    if capture.mode != RELAXED && capture.thread != thread::current().id() {
        return Err(codes::STREAM_CAPTURE_WRONG_THREAD);
    }
    inside.over = true;
    let streams = std::mem::take(&mut inside.streams);
    streams.iter().for_each(|stream| stream.set_capture(None));
    captures().retain(|other| !Arc::ptr_eq(other, &capture));
    if capture.is_invalid() {
        return Err(codes::STREAM_CAPTURE_INVALIDATED);
    }
    let unjoined = streams[1..].iter().any(|stream| {
        let counted = |counts: &HashMap<usize, usize>| counts.get(&stream.handle).copied().unwrap_or_default();
        counted(&inside.waited) < counted(&inside.told)
    });
    if unjoined { Err(codes::STREAM_CAPTURE_UNJOINED) } else { Ok(std::mem::take(&mut inside.works)) }
}

fn instantiate(executable: Out<usize>, graph: usize, flags: c_ulonglong) -> Result<()> {
    let both = AUTO_FREE | DEVICE_LAUNCH;
    if flags & !FLAGS != 0 || flags & both == both {
        return Err(codes::INVALID_VALUE);
    }
    let works = GRAPHS.get(graph)?;
    executable.set(EXECUTABLES.add(|_| (*works).clone()).0)
}

api! {
    /// From now on the stream's operations are written down and not done.
    fn cuStreamBeginCapture_v2(handle: usize, mode: c_int) at Context |_| {
        begin(handle, mode)
    }

    /// Ends that, and gives the graph.
    fn cuStreamEndCapture(handle: usize, graph: Out<usize>) at Context |_| {
        match end(handle) {
            Ok(works) => graph.set(GRAPHS.add(|_| Arc::new(works)).0),
            Err(code) => {
                graph.set_if_wanted(0);
                Err(code)
            }
        }
    }

    /// 0: it does not capture; 1: it does; 2: it does, in vain.
    fn cuStreamIsCapturing(handle: usize, status: Out<c_int>) at Context |_| {
        status.set(stream::of(handle)?.capture().map_or(0, |capture| 1 + c_int::from(capture.is_invalid())))
    }

    /// How many operations a graph holds. The list itself is not given.
    fn cuGraphGetNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) at Context |_| {
        let works = GRAPHS.get(graph)?;
        // The caller may ask for the number alone, which is all there is.
        nodes.is_null().then_some(()).ok_or(codes::NOT_SUPPORTED)?;
        count.set(works.len())
    }

    /// Makes a graph ready to be launched.
    fn cuGraphInstantiateWithFlags(executable: Out<usize>, graph: usize, flags: c_ulonglong) at Context |_| {
        instantiate(executable, graph, flags)
    }

    /// Does what a graph holds, in the stream's order.
    fn cuGraphLaunch(executable: usize, handle: usize) at Context |_| {
        let (works, stream) = (EXECUTABLES.get(executable)?, stream::of(handle)?);
        submit(&stream, Work::Graph((*works).clone()))
    }

    /// Nothing is left to do before a launch.
    fn cuGraphUpload(executable: usize, handle: usize) at Context |_| {
        stream::of(handle)?;
        EXECUTABLES.get(executable).map(drop)
    }

    /// Forgets a graph.
    fn cuGraphDestroy(graph: usize) at Release |_| {
        GRAPHS.remove(graph).map(drop)
    }

    /// Forgets an instantiated graph; launches that are queued still happen.
    fn cuGraphExecDestroy(executable: usize) at Release |_| {
        EXECUTABLES.remove(executable).map(drop)
    }
}
