//! Modules: PTX is read for its kernels, and each is matched with the host's.

use std::ffi::{c_char, c_int, c_uint};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::codes::{self, Result};
use crate::context::Context;
use crate::device::{MAX_THREADS, SHARED, SHARED_ON_REQUEST};
use crate::entry::{self, In, Out};
use crate::graph;
use crate::handle::Registry;
use crate::library::{self, Kernel};
use crate::ptx::{self, Waits};

/// The newest PTX that a driver for CUDA 12.8 takes.
const NEWEST: (u32, u32) = (8, 7);
/// What the devices say they are.
const TARGET: u32 = 70;

/// The first bytes of ELF files and of fat binaries.
const BINARIES: [[u8; 4]; 2] = [*b"\x7fELF", [0x50, 0xed, 0x55, 0xba]];

struct Module {
    /// The handle of the context that it was loaded in.
    context: usize,
    entries: Vec<ptx::Entry>,
}

/// A kernel of a loaded module.
pub(crate) struct Function {
    module: usize,
    /// The handle of its module's context.
    pub(crate) context: usize,
    pub(crate) name: String,
    pub(crate) kernel: &'static Kernel,
    pub(crate) sizes: Vec<usize>,
    pub(crate) waits: Waits,
    max_threads: u32,
    /// Bytes of dynamic shared memory that a launch may ask for.
    max_shared: AtomicU32,
}

impl Function {
    pub(crate) fn max_threads(&self) -> u32 {
        self.max_threads
    }

    pub(crate) fn max_shared(&self) -> u32 {
        self.max_shared.load(Ordering::Relaxed)
    }
}

static MODULES: Registry<Module> = Registry::new();
static FUNCTIONS: Registry<Function> = Registry::new();

pub(crate) fn function(handle: usize) -> Result<Arc<Function>> {
    FUNCTIONS.get(handle)
}

pub(crate) fn count() -> usize {
    MODULES.count()
}

fn load(context: &Context, text: &str) -> Result<usize> {
    let text = ptx::parse(text).map_err(|message| {
        entry::complain(&format!("this is no PTX: {message}"));
        codes::INVALID_PTX
    })?;
    if text.version > NEWEST {
        return Err(codes::UNSUPPORTED_PTX_VERSION);
    }
    if text.target > TARGET {
        entry::complain(&format!("the PTX is for sm_{}, and the device is an sm_{TARGET}", text.target));
        return Err(codes::NO_BINARY_FOR_GPU);
    }
    for entry in &text.entries {
        let Some(kernel) = library::kernel(&entry.name) else { continue };
        if kernel.sizes() != entry.parameters {
            entry::complain(&format!(
                "parameters of {} have {:?} bytes in the PTX and {:?} in the source: make the PTX again",
                entry.name,
                entry.parameters,
                kernel.sizes()
            ));
            return Err(codes::INVALID_IMAGE);
        }
    }
    Ok(MODULES.add(|_| Module { context: context.handle, entries: text.entries }).0)
}

fn load_image(context: &Context, image: In<c_char>) -> Result<usize> {
    // The magic numbers have no zeros before their end, so a text that is shorter is not read beyond it.
    let mut magic = [0; 4];
    for (at, byte) in magic.iter_mut().enumerate() {
        *byte = image.at(at)? as u8;
        if *byte == 0 {
            break;
        }
    }
    if BINARIES.contains(&magic) {
        entry::complain("binaries for a GPU cannot be run, only PTX whose source was compiled for the host");
        return Err(codes::NO_BINARY_FOR_GPU);
    }
    load(context, &image.text()?)
}

fn get_function(module: usize, name: &str) -> Result<usize> {
    let found = MODULES.get(module)?;
    let entry = found.entries.iter().find(|entry| entry.name == name).ok_or(codes::NOT_FOUND)?;
    let kernel = library::kernel(name).ok_or_else(|| {
        entry::complain(&format!("the PTX has a kernel {name}, but no library compiled for the host has it"));
        codes::NOT_FOUND
    })?;
    let function = |_| Function {
        module,
        context: found.context,
        name: name.to_owned(),
        kernel,
        sizes: entry.parameters.clone(),
        waits: entry.waits,
        max_threads: entry.max_threads.unwrap_or(MAX_THREADS),
        max_shared: AtomicU32::new(SHARED),
    };
    Ok(FUNCTIONS.add(function).0)
}

api! {
    /// Loads PTX text.
    fn cuModuleLoadData(module: Out<usize>, image: In<c_char>) at Context |call| {
        graph::forbid_in_capture(call.context()?)?;
        module.set(load_image(call.context()?, image)?)
    }

    /// Loads PTX text. The options of the compiler mean nothing here.
    fn cuModuleLoadDataEx(
        module: Out<usize>,
        image: In<c_char>,
        _count: c_uint,
        _options: usize,
        _values: usize,
    ) at Context |call| {
        graph::forbid_in_capture(call.context()?)?;
        module.set(load_image(call.context()?, image)?)
    }

    /// Loads a file of PTX.
    fn cuModuleLoad(module: Out<usize>, path: In<c_char>) at Context |call| {
        graph::forbid_in_capture(call.context()?)?;
        let bytes = fs::read(path.text()?).map_err(|_| codes::FILE_NOT_FOUND)?;
        if BINARIES.iter().any(|magic| bytes.starts_with(magic)) {
            return Err(codes::NO_BINARY_FOR_GPU);
        }
        module.set(load(call.context()?, &String::from_utf8_lossy(&bytes))?)
    }

    /// Forgets a module and its functions. Launches that are queued still happen.
    fn cuModuleUnload(module: usize) at Release |_| {
        MODULES.remove(module)?;
        FUNCTIONS.retain(|function| function.module != module);
        Ok(())
    }

    /// A kernel by its name.
    fn cuModuleGetFunction(function: Out<usize>, module: usize, name: In<c_char>) at Context |_| {
        function.set(get_function(module, &name.text()?)?)
    }

    /// What is known of a kernel.
    fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, handle: usize) at Context |_| {
        let function = FUNCTIONS.get(handle)?;
        value.set(match attribute {
            0 => function.max_threads as c_int,
            // Static shared memory, constants, local memory, registers: the host's compiler does not say.
            1..=4 => 0,
            5 | 6 => TARGET as c_int,
            8 => function.max_shared() as c_int,
            _ => return Err(codes::INVALID_VALUE),
        })
    }

    /// Sets how much dynamic shared memory a launch may ask for. How the cache is divided means nothing here.
    fn cuFuncSetAttribute(handle: usize, attribute: c_int, value: c_int) at Context |_| {
        let function = FUNCTIONS.get(handle)?;
        match (attribute, u32::try_from(value)) {
            (8, Ok(bytes)) if bytes <= SHARED_ON_REQUEST => function.max_shared.store(bytes, Ordering::Relaxed),
            (9, _) => {}
            _ => return Err(codes::INVALID_VALUE),
        }
        Ok(())
    }
}
