//! Memory that several processes map.
//!
//! Room is reserved (`fallocate`) before it is mapped: memory that is missing is then an error with advice, and never a
//! SIGBUS at the first touch. A new mapping is zero. It is unmapped on drop.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use rustix::process::{Resource, getrlimit};
use rustix::shm;

use crate::error::{Error, Result};

/// A shared mapping of this process.
#[derive(Debug)]
pub(crate) struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
    /// Kept where peers open it through `/proc`.
    fd: Option<OwnedFd>,
}

// SAFETY: a Mapping is an address range that it alone unmaps; it gives out its address and never reads or writes there.
unsafe impl Send for Mapping {}
// SAFETY: as above; its methods take no part in what threads do to the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Memory of this process (and of nobody else), for ranks that are its threads.
    pub(crate) fn anonymous(len: usize) -> Result<Self> {
        let len = whole_pages(len)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let ptr = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED) }
            .map_err(|error| refused(&format!("mapping {len} bytes of memory"), len, error))?;
        Ok(Self { ptr: non_null(ptr), len, fd: None })
    }

    /// Memory with a descriptor, which peers of the same user open with [`Mapping::open_proc_fd`]. It has no name in any
    /// directory, so that nothing stays behind however the processes end, and `/dev/shm` need not be large.
    pub(crate) fn memfd(name: &str, len: usize) -> Result<Self> {
        let len = whole_pages(len)?;
        let what = format!("reserving {len} bytes of shared memory ('{name}')");
        check_limits(&what, len)?;
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|error| refused(&what, len, error))?;
        reserve(&fd, &what, len)?;
        // Nobody can make it shorter from now on, which would be a SIGBUS for the others.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(|error| refused(&what, len, error))?;
        Self::map(fd, len, &what, true)
    }

    /// Memory with a name below `/dev/shm`, for hosts where peers cannot open a memfd. Nobody but this user can open it;
    /// a name that exists is an error. Call [`Mapping::shm_unlink`] once every peer has mapped it.
    pub(crate) fn shm_create(name: &str, len: usize) -> Result<Self> {
        let len = whole_pages(len)?;
        let what = format!("reserving {len} bytes in /dev/shm{name}");
        check_limits(&what, len)?;
        let flags = shm::OFlags::CREATE | shm::OFlags::EXCL | shm::OFlags::RDWR;
        let fd = shm::open(name, flags, Mode::RUSR | Mode::WUSR).map_err(|error| refused(&what, len, error))?;
        let mapping = reserve(&fd, &what, len).and_then(|()| Self::map(fd, len, &what, false));
        if mapping.is_err() {
            // The reason above is what the caller must hear; a name that stays would only be a second one.
            drop(Self::shm_unlink(name));
        }
        mapping
    }

    /// Maps what a peer made with [`Mapping::shm_create`].
    pub(crate) fn shm_open(name: &str, len: usize) -> Result<Self> {
        let len = whole_pages(len)?;
        let what = format!("opening /dev/shm{name}");
        let fd = shm::open(name, shm::OFlags::RDWR, Mode::empty()).map_err(|error| refused(&what, len, error))?;
        check_file(&fd, &what, len)?;
        Self::map(fd, len, &what, false)
    }

    /// Removes a name that [`Mapping::shm_create`] made. The memory lives until the last mapping goes.
    pub(crate) fn shm_unlink(name: &str) -> Result<()> {
        shm::unlink(name).map_err(|error| Error::system(format!("removing /dev/shm{name}"), error))
    }

    /// Maps the memory that the process `pid` holds as its descriptor `fd` ([`Mapping::memfd`]).
    pub(crate) fn open_proc_fd(pid: u32, fd: RawFd, len: usize) -> Result<Self> {
        let len = whole_pages(len)?;
        let what = format!("opening the shared memory of process {pid} (/proc/{pid}/fd/{fd})");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(format!("/proc/{pid}/fd/{fd}"))
            .map_err(|error| {
                let advice = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "; the ranks of a host must run as one user and be allowed to look into each other's /proc"
                    }
                    io::ErrorKind::NotFound => "; the process ended, or lives in another pid namespace",
                    _ => "",
                };
                Error::system(format!("{what}{advice}"), error)
            })?;
        let fd = OwnedFd::from(file);
        check_file(&fd, &what, len)?;
        Self::map(fd, len, &what, false)
    }

    /// Maps an empty file, which grows to `len` bytes. Its descriptor is kept for as long as the mapping.
    pub(crate) fn file(fd: OwnedFd, what: &str, len: usize) -> Result<Self> {
        let len = whole_pages(len)?;
        check_limits(what, len)?;
        loop {
            match rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len as u64) {
                Ok(()) => return Self::map(fd, len, what, true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::system(what.to_owned(), error)),
            }
        }
    }

    /// The memory as words, for who reads and writes it by atomics only.
    pub(crate) fn words(&self) -> &[core::sync::atomic::AtomicU64] {
        let words = self.len / size_of::<u64>();
        // SAFETY: the mapping is page aligned, lives as long as `self`, and any bytes are a word. That nobody writes it but
        // by atomics is for those who share it to keep: the maker of a file calls nothing else on its mapping.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), words) }
    }

    fn map(fd: OwnedFd, len: usize, what: &str, keep: bool) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let ptr = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0) }
            .map_err(|error| refused(what, len, error))?;
        Ok(Self { ptr: non_null(ptr), len, fd: keep.then_some(fd) })
    }

    /// The first byte. Page aligned.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes: what was asked for, in whole pages.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The descriptor to tell peers, of memory that has one.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.fd.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Enters the pages of a part into this process's page table now, so that the first use takes no faults. Best called
    /// by the rank that will write the part. Where the kernel cannot (before Linux 5.14), the first use takes them.
    pub(crate) fn populate(&self, start: usize, len: usize) -> Result<()> {
        let page = rustix::param::page_size();
        assert!(start <= self.len && len <= self.len - start, "{start}+{len} of {} bytes", self.len);
        let first = start / page * page;
        let len = start + len - first;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the range lies inside this mapping; populating changes no byte of it.
        let answer = unsafe { madvise(self.ptr.as_ptr().add(first).cast(), len, Advice::LinuxPopulateWrite) };
        match answer {
            Ok(()) | Err(Errno::INVAL | Errno::INTR) => Ok(()),
            Err(error) => Err(refused(&format!("touching {len} bytes of memory"), len, error)),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value; whoever holds pointers into it also holds this value.
        let answer = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
        debug_assert!(answer.is_ok(), "munmap of a whole mapping: {answer:?}");
    }
}

fn non_null(ptr: *mut std::ffi::c_void) -> NonNull<u8> {
    NonNull::new(ptr.cast()).expect("the kernel maps nothing at address zero unless told to")
}

fn whole_pages(len: usize) -> Result<usize> {
    let rounded = len.checked_next_multiple_of(rustix::param::page_size());
    match rounded {
        Some(len) if len > 0 && isize::try_from(len).is_ok() => Ok(len),
        _ => Err(Error::argument(format!("{len} bytes of shared memory cannot be mapped"))),
    }
}

/// Reserves the room. Without it, writing to a mapping of a full file system is a SIGBUS.
fn reserve(fd: &impl AsFd, what: &str, len: usize) -> Result<()> {
    loop {
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, len as u64) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(refused(what, len, error)),
        }
    }
}

/// Finds what the kernel would answer with a signal: a file beyond the size limit (SIGXFSZ), memory that is not there
/// (the OOM killer).
fn check_limits(what: &str, len: usize) -> Result<()> {
    if let Some(limit) = getrlimit(Resource::Fsize).current
        && len as u64 > limit
    {
        let advice = format!("{what}: the limit on file sizes is {limit} bytes; raise it (`ulimit -f unlimited`)");
        return Err(Error::system(advice, Errno::FBIG));
    }
    // Reading the file costs more than a small reservation could harm.
    const WORTH_A_LOOK: usize = 16 << 20;
    if len >= WORTH_A_LOOK
        && let Some(available) = available_memory()
        && len as u64 > available
    {
        return Err(refused(&format!("{what}: {available} bytes are available"), len, Errno::NOMEM));
    }
    Ok(())
}

fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Refuses a file that is not what a peer of this job made: too short (a SIGBUS later), or of another user.
fn check_file(fd: &OwnedFd, what: &str, len: usize) -> Result<()> {
    let stat = rustix::fs::fstat(fd).map_err(|error| Error::system(what.to_owned(), error))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size < len as u64 {
        let text =
            format!("{what}: it has {size} bytes, not {len}; all ranks must run the same build with the same settings");
        return Err(Error::system(text, Errno::INVAL));
    }
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user {
        let owner = stat.st_uid;
        let text = format!("{what}: it belongs to user {owner}, and this is user {user}; run all ranks as one user");
        return Err(Error::system(text, Errno::PERM));
    }
    Ok(())
}

/// The error of a reservation, with what to do about it.
fn refused(what: &str, len: usize, error: Errno) -> Error {
    let mib = len.div_ceil(1 << 20);
    let advice = match error {
        Errno::NOSPC => format!(
            "; /dev/shm has less than {mib} MiB free: enlarge it (`mount -o remount,size=..  /dev/shm`, \
             `docker run --shm-size=..`), remove what others left there, or set KOLO_SHARED_RESERVE lower"
        ),
        Errno::NOMEM => format!(
            "; {mib} MiB of memory are not there: start fewer ranks on this host, raise the memory limit of the \
             container, or set KOLO_SHARED_RESERVE lower"
        ),
        Errno::MFILE | Errno::NFILE => "; raise the limit on open files (`ulimit -n`)".to_owned(),
        Errno::EXIST => "; a job that was killed may have left it: remove it".to_owned(),
        Errno::ACCESS | Errno::PERM => {
            "; a security profile forbids it: allow shared memory for this container".to_owned()
        }
        _ => String::new(),
    };
    Error::system(format!("{what}{advice}"), error)
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::{Rlimit, setrlimit};

    use super::*;
    use crate::os::rerun;

    /// A name that no other test and no other run uses.
    fn name(label: &str) -> String {
        format!("/kolo-test-{label}-{}", std::process::id())
    }

    fn byte(mapping: &Mapping, at: usize) -> u8 {
        assert!(at < mapping.len());
        // SAFETY: inside the mapping; the tests let nobody write at the same time.
        unsafe { mapping.ptr().add(at).read_volatile() }
    }

    fn set_byte(mapping: &Mapping, at: usize, value: u8) {
        assert!(at < mapping.len());
        // SAFETY: as above.
        unsafe { mapping.ptr().add(at).write_volatile(value) }
    }

    fn text(error: &Error) -> String {
        assert!(matches!(error, Error::System { .. }), "{error:?}");
        error.to_string()
    }

    #[test]
    fn anonymous_memory_is_zero_and_whole_pages() {
        let mapping = Mapping::anonymous(5000).expect("mapped");
        assert_eq!(mapping.len() % rustix::param::page_size(), 0);
        assert!(mapping.len() >= 5000 && mapping.fd().is_none());
        assert!((0..mapping.len()).all(|at| byte(&mapping, at) == 0));
        mapping.populate(100, 4000).expect("populated");
        mapping.populate(mapping.len(), 0).expect("nothing to populate");
        assert_eq!(byte(&mapping, 4096), 0);
    }

    #[test]
    fn no_bytes_and_too_many_bytes_are_argument_errors() {
        for len in [0, usize::MAX, isize::MAX as usize + 1] {
            assert!(matches!(Mapping::anonymous(len), Err(Error::Argument(_))), "{len}");
        }
    }

    #[test]
    fn a_memfd_is_shared_through_proc() {
        let ours = Mapping::memfd("kolo-test", 10_000).expect("made");
        let fd = ours.fd().expect("kept");
        let theirs = Mapping::open_proc_fd(std::process::id(), fd, 10_000).expect("opened");
        assert_eq!(ours.len(), theirs.len());
        assert_ne!(ours.ptr(), theirs.ptr());
        set_byte(&ours, 9_999, 7);
        assert_eq!(byte(&theirs, 9_999), 7);
        set_byte(&theirs, 0, 8);
        assert_eq!(byte(&ours, 0), 8);
        // The peer's mapping outlives the maker's.
        drop(ours);
        assert_eq!(byte(&theirs, 9_999), 7);
        assert!(text(&Mapping::open_proc_fd(std::process::id(), fd + 1000, 1).unwrap_err()).contains("/proc/"));
    }

    #[test]
    fn nobody_can_shorten_a_memfd() {
        let mapping = Mapping::memfd("kolo-test", 8192).expect("made");
        let path = format!("/proc/self/fd/{}", mapping.fd().expect("kept"));
        let file = OpenOptions::new().write(true).open(path).expect("opened");
        assert!(file.set_len(10).is_err());
        assert!(file.set_len(1 << 20).is_err());
    }

    #[test]
    fn a_peer_that_expects_more_is_told() {
        let mapping = Mapping::memfd("kolo-test", 4096).expect("made");
        let fd = mapping.fd().expect("kept");
        let error = Mapping::open_proc_fd(std::process::id(), fd, 1 << 20).unwrap_err();
        assert!(text(&error).contains("same settings"), "{error}");
    }

    #[test]
    fn a_named_memory_is_shared_and_leaves_no_name() {
        let name = name("named");
        let ours = Mapping::shm_create(&name, 4096).expect("made");
        let again = text(&Mapping::shm_create(&name, 4096).unwrap_err());
        assert!(again.contains("remove it"), "{again}");
        let theirs = Mapping::shm_open(&name, 4096).expect("opened");
        assert!(text(&Mapping::shm_open(&name, 1 << 20).unwrap_err()).contains("4096 bytes"));
        Mapping::shm_unlink(&name).expect("removed");
        assert!(!std::path::Path::new("/dev/shm").join(&name[1..]).exists());
        set_byte(&ours, 1, 9);
        assert_eq!(byte(&theirs, 1), 9);
        assert!(Mapping::shm_open(&name, 4096).is_err());
        assert!(Mapping::shm_unlink(&name).is_err());
    }

    #[test]
    fn memory_that_no_host_has_is_an_error_with_advice() {
        let error = text(&Mapping::memfd("kolo-test", 1 << 50).unwrap_err());
        assert!(error.contains("KOLO_SHARED_RESERVE"), "{error}");
    }

    const IN_A_CHILD: &str = "os::memory::tests::roles_in_a_child";

    /// What the children of the tests below do.
    #[test]
    fn roles_in_a_child() {
        let Some(role) = rerun::role() else { return };
        let (role, argument) = role.split_once(' ').unwrap_or((&role, ""));
        match role {
            "peer" => {
                let (pid, fd) = argument.split_once(' ').expect("pid and fd");
                let mapping =
                    Mapping::open_proc_fd(pid.parse().expect("pid"), fd.parse().expect("fd"), 4096).expect("opened");
                assert_eq!(byte(&mapping, 0), 41);
                set_byte(&mapping, 4095, 42);
            }
            "limited" => {
                let limit = Rlimit { current: Some(1 << 16), maximum: Some(1 << 16) };
                setrlimit(Resource::Fsize, limit).expect("limited");
                for error in [
                    Mapping::memfd("kolo-test", 1 << 20).unwrap_err(),
                    Mapping::shm_create(&name("limited"), 1 << 20).unwrap_err(),
                ] {
                    assert!(text(&error).contains("ulimit -f"), "{error}");
                }
                Mapping::memfd("kolo-test", 1 << 15).expect("below the limit");
            }
            // /dev/shm has 256 KiB here.
            "full" => {
                let error = text(&Mapping::shm_create(&name("full"), 1 << 20).unwrap_err());
                assert!(error.contains("/dev/shm has less than 1 MiB free") && error.contains("--shm-size"), "{error}");
                assert!(std::fs::read_dir("/dev/shm").expect("listed").next().is_none(), "a name stayed");
                let fits = Mapping::shm_create(&name("fits"), 1 << 17).expect("it fits");
                set_byte(&fits, (1 << 17) - 1, 1);
                Mapping::shm_unlink(&name("fits")).expect("removed");
                let memfd = Mapping::memfd("kolo-test", 1 << 20).expect("a memfd needs no room in /dev/shm");
                set_byte(&memfd, (1 << 20) - 1, 1);
            }
            other => panic!("no role {other}"),
        }
    }

    #[test]
    fn another_process_shares_a_memfd() {
        let mapping = Mapping::memfd("kolo-test", 4096).expect("made");
        set_byte(&mapping, 0, 41);
        let role = format!("peer {} {}", std::process::id(), mapping.fd().expect("kept"));
        rerun::succeed(&rerun::command(IN_A_CHILD, &role).output().expect("a child"));
        assert_eq!(byte(&mapping, 4095), 42);
    }

    #[test]
    fn a_limit_on_file_sizes_is_an_error_and_no_signal() {
        rerun::succeed(&rerun::command(IN_A_CHILD, "limited").output().expect("a child"));
    }

    #[test]
    fn a_full_dev_shm_is_an_error_and_no_signal() {
        // A mount namespace of its own, in which /dev/shm is small.
        let mount = "mount -t tmpfs -o size=256k tmpfs /dev/shm";
        let may = Command::new("unshare").args(["-m", "sh", "-c", mount]).stderr(Stdio::null()).status();
        if !may.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: a small /dev/shm cannot be mounted here (it takes root and `unshare`)");
            return;
        }
        let inner = rerun::command(IN_A_CHILD, "full");
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("{mount} && exec \"$0\" \"$@\"")]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        rerun::succeed(&command.output().expect("a child"));
    }
}
