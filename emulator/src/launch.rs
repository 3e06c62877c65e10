//! Launches: arguments are copied when the call is made, the kernel runs when its turn comes.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codes::{self, Result};
use crate::device::{MAX_BLOCK, MAX_GRID};
use crate::entry::{In, Out};
use crate::graph;
use crate::library::Grid;
use crate::module::{self, Function};
use crate::ptx::Waits;
use crate::settings::settings;
use crate::stream;
use crate::work::Work;

/// A kernel with what it is to be called with.
pub(crate) struct Launch {
    function: Arc<Function>,
    blocks: [u32; 3],
    threads: [u32; 3],
    shared: u32,
    /// Whether all blocks must run together.
    cooperative: bool,
    /// The arguments, each at a multiple of 16 bytes.
    bytes: Vec<u128>,
}

/// How often each kernel has run.
static RUNS: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

pub(crate) fn runs() -> MutexGuard<'static, BTreeMap<String, u64>> {
    RUNS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Launch {
    fn new(
        handle: usize,
        blocks: [c_uint; 3],
        threads: [c_uint; 3],
        shared: c_uint,
        parameters: In<In<u8>>,
        cooperative: bool,
    ) -> Result<Self> {
        let function = module::function(handle)?;
        let fits =
            |size: [u32; 3], most: [u32; 3]| size.iter().zip(most).all(|(&size, most)| (1..=most).contains(&size));
        let all: u64 = threads.iter().map(|&size| u64::from(size)).product();
        if !fits(blocks, MAX_GRID) || !fits(threads, MAX_BLOCK) || all > u64::from(function.max_threads()) {
            return Err(codes::INVALID_VALUE);
        }
        if shared > function.max_shared() {
            return Err(codes::INVALID_VALUE);
        }
        let grid: u64 = blocks.iter().map(|&size| u64::from(size)).product();
        if cooperative && grid > u64::from(settings().blocks) {
            return Err(codes::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
        let mut bytes = Vec::new();
        for (at, &size) in function.sizes.iter().enumerate() {
            let argument = parameters.at(at)?;
            let mut words = vec![0_u128; size.div_ceil(16)];
            // SAFETY: `words` has room for `size` bytes, and the caller gives as many for this parameter.
            unsafe { std::ptr::copy_nonoverlapping(argument.pointer()?, words.as_mut_ptr().cast::<u8>(), size) };
            bytes.append(&mut words);
        }
        Ok(Self { function, blocks, threads, shared, cooperative, bytes })
    }

    pub(crate) fn name(&self) -> &str {
        &self.function.name
    }

    /// Runs it in this thread.
    pub(crate) fn run(&self) -> Result<()> {
        *runs().entry(self.function.name.clone()).or_default() += 1;
        let settings = settings();
        let waits = if self.cooperative { Waits::Anywhere } else { self.function.waits };
        let grid = Grid {
            blocks: self.blocks,
            threads: self.threads,
            shared: self.shared,
            waits: waits as u32,
            together: settings.blocks,
            ucontext: settings.ucontext.into(),
            order: settings.order,
            limit_ns: settings.spin_limit.as_nanos() as u64,
        };
        // A copy for this run: a graph may be launched again while the program's kernel scribbles over its parameters.
        let mut bytes = self.bytes.clone();
        let mut places = Vec::new();
        let mut at = 0;
        for size in &self.function.sizes {
            places.push(bytes[at..].as_mut_ptr().cast::<c_void>());
            at += size.div_ceil(16);
        }
        self.function.kernel.run(&grid, &mut places)
    }
}

/// Queues a launch. Kernel and stream must be of one context: a program with two devices mixes them up easily.
fn submit(handle: usize, launch: Launch) -> Result<()> {
    let stream = stream::of(handle)?;
    if launch.function.context != stream.context.handle {
        return Err(codes::INVALID_HANDLE);
    }
    graph::submit(&stream, Work::Launch(Arc::new(launch)))
}

api! {
    /// Queues a kernel.
    fn cuLaunchKernel(
        function: usize,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        handle: usize,
        parameters: In<In<u8>>,
        extra: usize,
    ) at Context |_| {
        if extra != 0 {
            return Err(codes::NOT_SUPPORTED);
        }
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        submit(handle, Launch::new(function, grid, block, shared, parameters, false)?)
    }

    /// Queues a kernel whose blocks all run together.
    fn cuLaunchCooperativeKernel(
        function: usize,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        handle: usize,
        parameters: In<In<u8>>,
    ) at Context |_| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        submit(handle, Launch::new(function, grid, block, shared, parameters, true)?)
    }

    /// Blocks a multiprocessor: so many that all multiprocessors have what runs together here.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<c_int>,
        function: usize,
        threads: c_int,
        _shared: usize,
    ) at Context |_| {
        let function = module::function(function)?;
        let fits = u32::try_from(threads).is_ok_and(|threads| threads > 0 && threads <= function.max_threads());
        blocks.set(if fits { settings().blocks.min(4) as c_int } else { 0 })
    }

    /// The same; there are no flags that mean anything.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<c_int>,
        function: usize,
        threads: c_int,
        _shared: usize,
        _flags: c_uint,
    ) at Context |_| {
        let function = module::function(function)?;
        let fits = u32::try_from(threads).is_ok_and(|threads| threads > 0 && threads <= function.max_threads());
        blocks.set(if fits { settings().blocks.min(4) as c_int } else { 0 })
    }
}
