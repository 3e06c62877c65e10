//! The kernels, compiled for the host: shared libraries that each hold a table of them and a runner.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::codes::{Code, Result};
use crate::entry;
use crate::settings::settings;

/// A kernel as shim/table.h describes it.
#[repr(C)]
struct RawKernel {
    name: *const c_char,
    call: *const c_void,
    sizes: *const u32,
    parameters: u32,
}

/// How a grid is to be run; shim/run.h has the same.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) shared: u32,
    /// 0: one thread after the other; 1: fibers, blocks one after the other; 2: fibers, blocks together.
    pub(crate) waits: u32,
    pub(crate) together: u32,
    pub(crate) ucontext: u32,
    pub(crate) order: u64,
    pub(crate) limit_ns: u64,
}

type Run = unsafe extern "C" fn(*const RawKernel, *const Grid, *mut *mut c_void, *mut c_char, usize) -> u32;
type Table = unsafe extern "C" fn(*mut u32) -> *const RawKernel;

/// A kernel that can be run.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    raw: &'static RawKernel,
    run: Run,
}

// SAFETY: the table is constant data of a library that is never unloaded, and the runner may be called by any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    pub(crate) fn name(&self) -> String {
        // SAFETY: the table's names are texts of the library that end with a zero.
        unsafe { CStr::from_ptr(self.raw.name) }.to_string_lossy().into_owned()
    }

    /// Bytes of each parameter.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        // SAFETY: the table says how many sizes there are. Without any there may be no array.
        (0..self.raw.parameters as usize).map(|at| unsafe { *self.raw.sizes.add(at) } as usize).collect()
    }

    /// Runs a grid in this thread, and those that the runner starts. The arguments are addresses of copies.
    pub(crate) fn run(&self, grid: &Grid, arguments: &mut [*mut c_void]) -> Result<()> {
        let mut message: [c_char; 512] = [0; 512];
        let places = arguments.as_mut_ptr();
        // SAFETY: the number and the sizes of the arguments were compared with the table's when the module was loaded.
        let code = unsafe { (self.run)(self.raw, grid, places, message.as_mut_ptr(), message.len()) };
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the runner ends what it writes with a zero, and the array began as zeros.
        let message = unsafe { CStr::from_ptr(message.as_ptr()) };
        entry::complain(&format!("kernel {}: {}", self.name(), message.to_string_lossy()));
        Err(Code(code))
    }
}

/// The kernel of this name, of whichever library has it.
pub(crate) fn kernel(name: &str) -> Option<&'static Kernel> {
    kernels().iter().find(|kernel| kernel.name() == name)
}

fn kernels() -> &'static [Kernel] {
    static KERNELS: OnceLock<Vec<Kernel>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        let mut kernels = Vec::new();
        let others = settings().kernels.iter().map(PathBuf::from);
        for path in std::iter::once(own_library()).chain(others) {
            match load(&path) {
                Ok(more) => kernels.extend(more),
                // Without its kernels no test can mean anything.
                Err(message) => panic!("kolo emulator: the kernels in {}: {message}", path.display()),
            }
        }
        kernels
    })
}

/// The library of kolo's own kernels: beside this one, or where the build has left it.
fn own_library() -> PathBuf {
    const NAME: &str = "libkolo_kernels.so";
    // SAFETY: an all-zero Dl_info is valid, and dladdr fills it for an address of this library.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the address is that of a function of this library.
    let found = unsafe { libc::dladdr(own_library as *const c_void, &mut info) };
    let beside = (found != 0 && !info.dli_fname.is_null()).then(|| {
        // SAFETY: dladdr gave the path of a loaded library, a text that lives as long as it is loaded.
        let path = unsafe { CStr::from_ptr(info.dli_fname) };
        PathBuf::from(path.to_string_lossy().into_owned()).with_file_name(NAME)
    });
    beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(env!("OUT_DIR")).join(NAME))
}

fn load(path: &std::path::Path) -> std::result::Result<Vec<Kernel>, String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: a path that ends with a zero. Constructors of the library run, which are ours.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE) };
    if library.is_null() {
        return Err(last_error());
    }
    let symbol = |name: &CStr| {
        // SAFETY: an open library, and a name that ends with a zero.
        let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
        if symbol.is_null() { Err(last_error()) } else { Ok(symbol) }
    };
    let (table, run) = (symbol(c"kolo_kernels")?, symbol(c"kolo_run")?);
    // SAFETY: the build script makes these libraries, and shim/run.h declares the functions with these types.
    let (table, run) =
        unsafe { (std::mem::transmute::<*mut c_void, Table>(table), std::mem::transmute::<*mut c_void, Run>(run)) };
    let mut count = 0;
    // SAFETY: the function writes the number of kernels and returns a table of as many.
    let first = unsafe { table(&mut count) };
    // SAFETY: as above; the library is never unloaded, so its constant data lives for ever.
    Ok((0..count as usize).map(|at| Kernel { raw: unsafe { &*first.add(at) }, run }).collect())
}

fn last_error() -> String {
    // SAFETY: dlerror returns a text, or null.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".into();
    }
    // SAFETY: as above; it is valid until the next call of this thread.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// As the runner counts it.
const _: () = assert!(size_of::<Grid>() == 56);

#[cfg(test)]
mod tests {
    use crate::codes;

    #[test]
    fn the_runner_and_the_driver_mean_the_same_codes() {
        let header = include_str!("../shim/run.h");
        let returned = [codes::ILLEGAL_ADDRESS, codes::LAUNCH_TIMEOUT, codes::MISALIGNED_ADDRESS, codes::LAUNCH_FAILED];
        for code in returned {
            assert!(header.contains(&format!("= {},", code.0)), "run.h lacks {}", code.0);
        }
    }
}
