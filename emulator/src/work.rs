//! What a stream does, one after the other, and how each is done.

use std::ffi::c_uint;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::codes::{self, Code, Result};
use crate::context::Context;
use crate::event::Event;
use crate::launch::Launch;
use crate::memory::{self, Allocation};
use crate::settings::settings;
use crate::stream::Stream;
use crate::{entry, faults, trace};

/// An end of a copy.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Memory that the API knows. It is looked up again when its turn comes, since it may have been freed by then.
    Known(usize),
    /// Memory of the program, which answers for it.
    Program(usize),
    /// Bytes of the program that were taken when the copy was called.
    Taken(Arc<[u8]>),
}

/// A function of the program, with what it is to be called with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostFunction {
    pub(crate) call: Callback,
    pub(crate) data: usize,
}

/// The two shapes of such functions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Callback {
    /// `cuLaunchHostFunc`: not called once the context has failed.
    Plain(extern "C" fn(usize)),
    /// `cuStreamAddCallback`: stream, code, data; called whatever happened.
    Status(extern "C" fn(usize, u32, usize), usize),
}

/// One operation.
#[derive(Clone)]
pub(crate) enum Work {
    Copy {
        to: Place,
        from: Place,
        bytes: usize,
    },
    /// A pattern of `width` bytes, `count` times.
    Set {
        to: usize,
        value: u32,
        width: usize,
        count: usize,
    },
    Launch(Arc<Launch>),
    Record(Arc<Event>, u64),
    Wait(Arc<Event>, u64),
    /// Until another stream has done what was queued on it.
    WaitStream(Arc<Stream>, u64),
    Host(HostFunction),
    Free(usize),
    WriteValue {
        address: usize,
        value: u32,
    },
    WaitValue {
        address: usize,
        value: u32,
        flags: c_uint,
    },
    Graph(Arc<Vec<Work>>),
}

impl Work {
    /// Does it, in the thread of the stream.
    pub(crate) fn run(&self, stream: &Stream) {
        let context = &stream.context;
        let (kind, kernel) = self.kind();
        trace::operation(stream.handle, kernel.unwrap_or(kind));
        thread::sleep(faults::delay(kind, kernel));
        // Events are reached, memory is freed and waits of the order end even after a failure, so that nobody hangs.
        match self {
            Self::Record(event, version) => return event.complete(*version),
            Self::WaitStream(other, count) => return other.wait_for(*count),
            Self::Graph(works) => return works.iter().for_each(|work| work.run(stream)),
            Self::Free(base) => {
                // Freed twice, or synchronously in between: the caller's mistake, which the driver reports like this.
                if let Err(code) = memory::free(context, *base, |kind| kind.on_device()) {
                    context.fail(code);
                }
                return;
            }
            Self::Host(function) => return function.run(context),
            _ => {}
        }
        if context.check().is_err() {
            return;
        }
        let outcome = match faults::of_operation(kind, kernel) {
            Some(code) => Err(code),
            None => self.on_device(context),
        };
        if let Err(Code(code)) = outcome {
            entry::complain(&format!("{} failed with {code} on stream {:#x}", kernel.unwrap_or(kind), stream.handle));
            context.fail(Code(code));
        }
    }

    /// What faults and delays call it.
    fn kind(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Copy { .. } => ("copy", None),
            Self::Set { .. } | Self::WriteValue { .. } => ("set", None),
            Self::Launch(launch) => ("kernel", Some(launch.name())),
            Self::Record(..) | Self::Wait(..) | Self::WaitStream(..) | Self::WaitValue { .. } => ("event", None),
            Self::Host(_) => ("host", None),
            Self::Free(_) => ("free", None),
            // Its parts have delays of their own.
            Self::Graph(_) => ("graph", None),
        }
    }

    fn on_device(&self, context: &Context) -> Result<()> {
        match self {
            Self::Copy { to, from, bytes } => copy(to, from, *bytes),
            Self::Set { to, value, width, count } => set(*to, *value, *width, *count),
            Self::Launch(launch) => launch.run(),
            Self::Wait(event, version) => event.wait(*version),
            Self::WriteValue { address, value } => set(*address, *value, 4, 1),
            Self::WaitValue { address, value, flags } => wait_value(context, *address, *value, *flags),
            Self::Record(..) | Self::WaitStream(..) | Self::Host(_) | Self::Free(_) | Self::Graph(_) => Ok(()),
        }
    }
}

/// The memory of a known place, held while it is used.
fn held(address: usize, bytes: usize) -> Result<Arc<Allocation>> {
    memory::find(address, bytes).ok_or(codes::ILLEGAL_ADDRESS)
}

fn copy(to: &Place, from: &Place, bytes: usize) -> Result<()> {
    let (source, _source_held) = match from {
        Place::Known(address) => (*address, Some(held(*address, bytes)?)),
        Place::Program(address) => (*address, None),
        Place::Taken(taken) => (taken.as_ptr() as usize, None),
    };
    let (target, _target_held) = match to {
        Place::Known(address) => (*address, Some(held(*address, bytes)?)),
        Place::Program(address) => (*address, None),
        Place::Taken(_) => return Err(codes::INVALID_VALUE),
    };
    // SAFETY: known memory holds `bytes` bytes and is held; for the rest the caller of the copy answers, as it does towards
    // the driver. The ranges may overlap.
    unsafe { std::ptr::copy(source as *const u8, target as *mut u8, bytes) };
    Ok(())
}

fn set(to: usize, value: u32, width: usize, count: usize) -> Result<()> {
    let _held = held(to, width * count)?;
    // SAFETY: `width * count` bytes are held, and the address was checked to be a multiple of the width.
    unsafe {
        match width {
            1 => (to as *mut u8).write_bytes(value as u8, count),
            2 => (0..count).for_each(|at| (to as *mut u16).add(at).write_volatile(value as u16)),
            _ => (0..count).for_each(|at| (to as *mut u32).add(at).write_volatile(value)),
        }
    }
    Ok(())
}

fn wait_value(context: &Context, address: usize, wanted: u32, flags: c_uint) -> Result<()> {
    let _held = held(address, 4)?;
    let since = Instant::now();
    loop {
        // SAFETY: four bytes are held, at an address that was checked to be a multiple of four.
        let value = unsafe { (address as *const u32).read_volatile() };
        let there = match flags {
            0 => (value.wrapping_sub(wanted) as i32) >= 0,
            1 => value == wanted,
            2 => value & wanted != 0,
            _ => !(value | wanted) != 0,
        };
        if there || context.check().is_err() {
            return Ok(());
        }
        if since.elapsed() > settings().spin_limit {
            return Err(codes::LAUNCH_TIMEOUT);
        }
        thread::sleep(Duration::from_micros(50));
    }
}

impl HostFunction {
    fn run(self, context: &Context) {
        let failed = faults::of_operation("host", None);
        if let Some(code) = failed {
            context.fail(code);
        }
        let code = context.check().map_or_else(|code| code.0, |()| 0);
        entry::in_host_function(true);
        match self.call {
            Callback::Plain(call) if code == 0 => call(self.data),
            Callback::Plain(_) => {}
            Callback::Status(call, stream) => call(stream, code, self.data),
        }
        entry::in_host_function(false);
    }
}
