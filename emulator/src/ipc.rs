//! Memory and events of other processes.
//!
//! A handle names the process and its descriptor of a memory file, which the importer opens through `/proc`. So nothing
//! lies in a file system, and nothing is left when a process is killed: what the importer has mapped stays mapped, and what
//! it has not opened by then cannot be opened any more.

use std::ffi::c_uint;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::codes::{self, Result};
use crate::device;
use crate::entry::Out;
use crate::event;
use crate::graph;
use crate::memory::{self, Allocation, Kind};
use crate::pages::Pages;
use crate::settings::settings;

const MEMORY: u64 = u64::from_le_bytes(*b"kolo-mem");
const EVENT: u64 = u64::from_le_bytes(*b"kolo-evt");

/// What stands in the 64 bytes that processes hand to each other.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle {
    magic: u64,
    process: u32,
    descriptor: i32,
    /// The file's number: a descriptor may have been closed and used again.
    inode: u64,
    inside: u64,
    offset: u64,
    bytes: u64,
    /// The device that it lies on.
    device: u64,
    unused: u64,
}

const _: () = assert!(size_of::<Handle>() == 64);

impl Handle {
    fn of(pages: &Pages, magic: u64, bytes: usize, device: usize) -> Result<Self> {
        let file = File::from(pages.file().try_clone_to_owned().map_err(|_| codes::OPERATING_SYSTEM)?);
        Ok(Self {
            magic,
            process: std::process::id(),
            descriptor: pages.file().as_raw_fd(),
            inode: file.metadata().map_err(|_| codes::OPERATING_SYSTEM)?.ino(),
            inside: pages.inside() as u64,
            offset: pages.offset() as u64,
            bytes: bytes as u64,
            device: device as u64,
            unused: 0,
        })
    }

    /// Maps what the handle names.
    fn open(&self, magic: u64) -> Result<Pages> {
        if self.magic != magic {
            return Err(codes::INVALID_VALUE);
        }
        if self.process == std::process::id() {
            return Err(codes::INVALID_CONTEXT);
        }
        let path = format!("/proc/{}/fd/{}", self.process, self.descriptor);
        let open = || -> io::Result<Pages> {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            if file.metadata()?.ino() != self.inode {
                return Err(io::ErrorKind::NotFound.into());
            }
            Pages::of(OwnedFd::from(file), self.inside as usize, self.offset as usize, self.bytes as usize)
        };
        open().map_err(|_| codes::MAP_FAILED)
    }
}

/// Memory that is open here. A second open gives the same address.
static OPEN: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

struct Opened {
    process: u32,
    inode: u64,
    base: usize,
    count: usize,
}

fn opened() -> MutexGuard<'static, Vec<Opened>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts one opening less; says whether it was the last.
fn close(address: usize) -> Result<bool> {
    let mut opened = opened();
    let at = opened.iter().position(|open| open.base == address).ok_or(codes::INVALID_VALUE)?;
    opened[at].count -= 1;
    let last = opened[at].count == 0;
    if last {
        opened.swap_remove(at);
    }
    Ok(last)
}

/// An event's counters on a page that several processes map.
pub(crate) struct SharedEvent {
    pages: Pages,
}

struct Counters {
    recorded: AtomicU64,
    completed: AtomicU64,
    /// The process that made the last record.
    recorder: AtomicU32,
}

/// How often a waiter looks, and how often it looks whether there is still something to wait for.
const LOOK: Duration = Duration::from_micros(50);
const LOOK_FOR_DEATH: Duration = Duration::from_millis(20);

impl SharedEvent {
    pub(crate) fn new() -> Result<Self> {
        let shared = Self { pages: Pages::new(size_of::<Counters>()).map_err(|_| codes::OUT_OF_MEMORY)? };
        let counters = shared.counters();
        counters.recorded.store(0, Ordering::Relaxed);
        counters.recorder.store(0, Ordering::Relaxed);
        counters.completed.store(0, Ordering::Release);
        Ok(shared)
    }

    fn counters(&self) -> &Counters {
        // SAFETY: the page is mapped as long as `self`, is aligned to 256 bytes, and all processes use it as atomics only.
        unsafe { &*(self.pages.base() as *const Counters) }
    }

    pub(crate) fn begin_record(&self) -> u64 {
        self.counters().recorder.store(std::process::id(), Ordering::Relaxed);
        self.counters().recorded.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn recorded(&self) -> u64 {
        self.counters().recorded.load(Ordering::Acquire)
    }

    pub(crate) fn complete(&self, version: u64) {
        self.counters().completed.fetch_max(version, Ordering::AcqRel);
    }

    pub(crate) fn completed(&self) -> u64 {
        self.counters().completed.load(Ordering::Acquire)
    }

    /// Waits for a record, of whichever process. If that process is dead, nothing will ever reach the record: a driver would
    /// wait, so that is a time-out here as well, after the usual limit.
    pub(crate) fn wait(&self, version: u64) -> Result<()> {
        let mut looked = Instant::now();
        let mut dead_since = None;
        while self.completed() < version {
            thread::sleep(LOOK);
            if looked.elapsed() < LOOK_FOR_DEATH {
                continue;
            }
            looked = Instant::now();
            if is_alive(self.counters().recorder.load(Ordering::Relaxed)) {
                continue;
            }
            if dead_since.get_or_insert(looked).elapsed() > settings().spin_limit {
                return Err(codes::LAUNCH_TIMEOUT);
            }
        }
        Ok(())
    }
}

/// Whether a process runs; one that is only waited for by its parent does not.
fn is_alive(process: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The name stands in brackets, and may hold anything.
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.starts_with(['Z', 'X'])
}

api! {
    /// A handle by which other processes open memory of `cuMemAlloc`. Memory of a pool cannot be opened.
    fn cuIpcGetMemHandle(handle: Out<Handle>, address: u64) at Context |_| {
        let found = memory::find(address as usize, 1).filter(|found| matches!(found.kind, Kind::Device(_)));
        let found = found.ok_or(codes::INVALID_VALUE)?;
        let pages = found.pages.as_ref().ok_or(codes::INVALID_VALUE)?;
        let Kind::Device(ordinal) = found.kind else { return Err(codes::INVALID_VALUE) };
        handle.set(Handle::of(pages, MEMORY, found.bytes, device::device(ordinal)?.physical)?)
    }

    /// Maps memory of another process. The only flag there is must be given.
    fn cuIpcOpenMemHandle_v2(address: Out<u64>, handle: Handle, flags: c_uint) at Context |call| {
        let context = call.context()?;
        graph::forbid_in_capture(context)?;
        if flags != 1 {
            return Err(codes::INVALID_VALUE);
        }
        if handle.device != context.device().physical as u64 && !settings().peers {
            return Err(codes::PEER_ACCESS_UNSUPPORTED);
        }
        let mut opened = opened();
        let known = opened.iter_mut().find(|open| (open.process, open.inode) == (handle.process, handle.inode));
        if let Some(open) = known {
            open.count += 1;
            return address.set(open.base as u64);
        }
        let pages = handle.open(MEMORY)?;
        let kind = Kind::Imported(context.ordinal);
        let bytes = handle.bytes as usize;
        let base = memory::add(Allocation { base: pages.base(), bytes, kind, flags, pages: Some(pages) }).base;
        opened.push(Opened { process: handle.process, inode: handle.inode, base, count: 1 });
        address.set(base as u64)
    }

    /// Gives back one opening; the last one unmaps the memory.
    fn cuIpcCloseMemHandle(address: u64) at Release |call| {
        if !close(address as usize)? {
            return Ok(());
        }
        call.context()?.drain();
        memory::remove(address as usize, |kind| matches!(kind, Kind::Imported(_))).map(drop)
    }

    /// A handle by which other processes open an event that was made for it.
    fn cuIpcGetEventHandle(handle: Out<Handle>, event: usize) at Context |call| {
        let event = event::of(event)?;
        let shared = event.shared().ok_or(codes::INVALID_VALUE)?;
        let device = call.context()?.device().physical;
        handle.set(Handle::of(&shared.pages, EVENT, size_of::<Counters>(), device)?)
    }

    /// Opens an event of another process.
    fn cuIpcOpenEventHandle(event: Out<usize>, handle: Handle) at Context |call| {
        let pages = handle.open(EVENT)?;
        if (handle.bytes as usize) < size_of::<Counters>() {
            return Err(codes::INVALID_VALUE);
        }
        event.set(event::import(call.context()?, SharedEvent { pages }))
    }
}
