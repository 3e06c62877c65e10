//! Each case runs in a process of its own, whose driver is the emulator: settings are read once a process, and a case may end
//! with a device that has failed.

use std::env;
use std::ffi::{CStr, c_char};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, sys};
use cudarc::nvrtc::Ptx;
use xtask::process::{self, Echo};

/// Says to a process of a case which part it plays.
const ROLE: &str = "KOLO_EMULATOR_TEST_ROLE";
/// Where the parts of a case of two processes meet.
const SOCKET: &str = "KOLO_EMULATOR_TEST_SOCKET";

pub(crate) const BASIC: &str = include_str!("../kernels/basic.ptx");
pub(crate) const MEET: &str = include_str!("../kernels/meet.ptx");
pub(crate) const WAIT: &str = include_str!("../kernels/wait.ptx");

/// Defines a case. Its environment may be given, and whether it leaves objects behind on purpose.
macro_rules! case {
    ($name:ident $(, env = $env:expr)? $(, leaves = $leaves:expr)?, || $body:block) => {
        #[test]
        fn $name() {
            #[allow(unused_mut, reason = "most cases have no options")]
            let mut case = $crate::common::Case { path: concat!(module_path!(), "::", stringify!($name)), env: &[], leaves: "" };
            $(case.env = &$env;)?
            $(case.leaves = $leaves;)?
            case.run(|_| $body);
        }
    };
}

/// Defines a case of two processes, which talk over a socket.
macro_rules! two_processes {
    ($name:ident $(, env = $env:expr)? $(, leaves = $leaves:expr)?, first: |$first:ident| $one:block, second: |$second:ident| $two:block) => {
        #[test]
        fn $name() {
            #[allow(unused_mut, reason = "most cases have no options")]
            let mut case = $crate::common::Case { path: concat!(module_path!(), "::", stringify!($name)), env: &[], leaves: "" };
            $(case.env = &$env;)?
            $(case.leaves = $leaves;)?
            case.run(|case| {
                match $crate::common::Peer::of(case) {
                    $crate::common::Peer::First(mut $first) => $one,
                    $crate::common::Peer::Second(mut $second) => $two,
                }
            });
        }
    };
}

pub(crate) struct Case {
    pub(crate) path: &'static str,
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// What the emulator says is left at exit; nothing, usually.
    pub(crate) leaves: &'static str,
}

impl Case {
    /// The name by which the test binary knows it.
    fn name(&self) -> &str {
        self.path.split_once("::").expect("a case stands in a module").1
    }

    #[track_caller]
    pub(crate) fn run(&self, body: impl FnOnce(&Self)) {
        if env::var_os(ROLE).is_some() {
            assert!(name_of_device().contains("kolo emulator"), "the driver is {}", name_of_device());
            return body(self);
        }
        let mut command = self.command("first");
        command.env("KOLO_EMULATOR_LEAKS", "1");
        let finished = process::run(&mut command, Duration::from_secs(60), Echo::Quiet).expect("a test starts");
        let left = finished.output.lines().find_map(|line| line.split_once("left at exit: ").map(|(_, left)| left));
        assert!(finished.success(), "{} in {}:\n{}", finished.ending(), self.name(), finished.output);
        assert_eq!(left.unwrap_or_default(), self.leaves, "{}", finished.output);
        assert!(finished.output.contains("1 passed"), "{}", finished.output);
        assert!(finished.left_behind.is_empty(), "processes left behind: {}", finished.output);
    }

    fn command(&self, role: &str) -> Command {
        let mut command = Command::new(env::current_exe().expect("this binary"));
        command.args(["--exact", self.name(), "--nocapture"]).env(ROLE, role);
        command.env("LD_LIBRARY_PATH", folder());
        command.env("KOLO_EMULATOR_KERNELS", test_kernels());
        command.env_remove("CUDA_VISIBLE_DEVICES");
        command.envs(self.env.iter().copied());
        command
    }
}

/// A folder in which the emulator is called libcuda.so.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let binary = env::current_exe().expect("this binary");
        let library = binary.with_file_name("libkolo_emulator.so");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver");
        fs::create_dir_all(&folder).expect("a folder for the library");
        let link = folder.join("libcuda.so");
        if fs::read_link(&link).ok().as_deref() != Some(&library) {
            let fresh = folder.join(format!("libcuda.so.{}", std::process::id()));
            std::os::unix::fs::symlink(&library, &fresh).expect("a link");
            fs::rename(&fresh, &link).expect("a link in place");
        }
        folder
    })
}

fn test_kernels() -> PathBuf {
    Path::new(env!("OUT_DIR")).join("libkolo_test_kernels.so")
}

fn name_of_device() -> String {
    match env::var_os("KOLO_EMULATOR_DEVICES").is_some_and(|devices| devices == "0") || hidden() {
        true => "kolo emulator without devices".into(),
        false => CudaContext::new(0).and_then(|context| context.name()).expect("a device with a name"),
    }
}

fn hidden() -> bool {
    env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|list| list.starts_with('-') || list.is_empty())
        || env::var("KOLO_EMULATOR_FAULTS").is_ok_and(|faults| faults.contains("cuInit"))
}

/// One of two processes.
pub(crate) enum Peer {
    First(Link),
    Second(Link),
}

/// The way to the other process.
pub(crate) struct Link {
    stream: UnixStream,
    /// The second process, as the first one has it.
    child: Option<Child>,
}

impl Peer {
    /// Starts the second process, or says that this is it.
    pub(crate) fn of(case: &Case) -> Self {
        if env::var(ROLE).as_deref() == Ok("second") {
            let path = env::var_os(SOCKET).expect("the first process gave it");
            return Self::Second(Link {
                stream: UnixStream::connect(path).expect("the first process listens"),
                child: None,
            });
        }
        let folder = tempfile::tempdir().expect("a folder for a socket");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let child = case.command("second").env(SOCKET, &path).stdin(Stdio::null()).spawn().expect("a second process");
        let (stream, _) = listener.accept().expect("the second process connects");
        Self::First(Link { stream, child: Some(child) })
    }
}

impl Link {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the other process listens");
    }

    pub(crate) fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("the other process sends");
        bytes
    }

    /// Waits until both have got here.
    pub(crate) fn meet(&mut self) {
        self.send(&[1]);
        assert_eq!(self.receive::<1>(), [1]);
    }

    /// Waits until the other process is gone.
    pub(crate) fn until_gone(&mut self) {
        let read = self.stream.read(&mut [0]);
        assert!(matches!(read, Ok(0) | Err(_)), "the other process speaks: {read:?}");
    }

    /// The second process must end well.
    pub(crate) fn join(&mut self) {
        let status =
            self.child.take().expect("the first process has a second one").wait().expect("it can be waited for");
        assert!(status.success(), "the second process: {status}");
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the first process has a second one");
        child.kill().expect("it can be killed");
        child.wait().expect("it can be waited for");
    }
}

/// The first device with a stream, as kolo uses it: its own bookkeeping, not cudarc's.
pub(crate) fn gpu() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).expect("a device");
    // SAFETY: the cases order their streams themselves.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    (context, stream)
}

pub(crate) fn kernel(context: &Arc<CudaContext>, ptx: &str, name: &str) -> CudaFunction {
    context.load_module(Ptx::from_src(ptx)).expect("PTX loads").load_function(name).expect("a kernel")
}

pub(crate) fn blocks_of(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// The code of a call that must fail.
#[track_caller]
pub(crate) fn code<T>(result: Result<T, DriverError>) -> sys::CUresult {
    match result {
        Ok(_) => panic!("this call should have failed"),
        Err(DriverError(code)) => code,
    }
}

/// A line of the emulator's statistics.
pub(crate) fn statistic(name: &str) -> usize {
    type Statistics = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    let mut text = vec![0_u8; 1 << 16];
    // SAFETY: the symbol has this type in the emulator, which is the driver here, and the place has the size that is said.
    unsafe {
        let statistics =
            sys::culib().get::<Statistics>(b"koloEmulatorStatistics\0").expect("the driver is the emulator");
        assert!(statistics(text.as_mut_ptr().cast(), text.len()) < text.len());
    }
    let text = CStr::from_bytes_until_nul(&text).expect("a text").to_str().expect("plain letters");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or_default()
}

/// Replaces the faults that are injected.
pub(crate) fn set_faults(faults: &CStr) {
    type SetFaults = unsafe extern "C" fn(*const c_char) -> u32;
    // SAFETY: as for the statistics; the text ends with a zero.
    let code = unsafe {
        let set = sys::culib().get::<SetFaults>(b"koloEmulatorSetFaults\0").expect("the driver is the emulator");
        set(faults.as_ptr())
    };
    assert_eq!(code, 0, "{faults:?}");
}
