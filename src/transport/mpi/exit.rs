//! How MPI starts and ends in this process: once each, both on one thread that kolo keeps for it.
//!
//! MPI wants to be finalised by the thread that initialised it, and users start kolo on any thread they like. So MPI
//! lives on a thread of its own, asleep between the two. At process exit it is asked to finalise, but only after an
//! orderly run: no kolo is left alive, and nothing failed. Otherwise MPI is left as it is, and the launcher sees a
//! process that ended without saying goodbye. Open MPI's then ends the job with an error, which is the truth. MPICH's
//! ends the job, too, but calls it a success if the process did; so an exit with status 0 becomes one with status 1, and
//! the user is told why, unless the job's failure has been told already.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::call::{serial, serial_within};
use super::{leftover, world};
use crate::error::{Error, Result};
use crate::event;
use crate::os::host;
use crate::transport::launcher::launched;

static STATE: Mutex<State> = Mutex::new(State { home: Home::None, live: BTreeMap::new(), next: 0, hooked: false });
static CHANGED: Condvar = Condvar::new();
static FAILED: AtomicBool = AtomicBool::new(false);
/// What failed first, if nobody has told the user.
static UNTOLD: Mutex<Option<String>> = Mutex::new(None);
static EXITING: AtomicBool = AtomicBool::new(false);
/// The process that MPI belongs to; 0 before there is one. A forked child has another number and does nothing.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// What a runtime that is still live wants done when the process exits; it gets the status where that is known.
type OnExit = Box<dyn FnOnce(Option<c_int>) + Send>;

struct State {
    home: Home,
    live: BTreeMap<u64, OnExit>,
    next: u64,
    hooked: bool,
}

/// Where the thread that keeps MPI stands.
enum Home {
    /// kolo has started no MPI here.
    None,
    Starting,
    /// It refused to start, or was too slow.
    Broken(Error),
    Running(c_int),
    /// The process exits.
    Ending,
    Over,
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process is the one that started MPI, and not a fork of it.
pub(super) fn is_owner() -> bool {
    OWNER.load(Ordering::Relaxed) == std::process::id()
}

/// Keeps MPI from being finalised at exit, because something failed that ends no job by itself. Pending transfers are
/// leaked from now on. If the process wants to end with status 0, the user is told.
pub(crate) fn mark_failed(why: &str) {
    if first_failure(why) {
        UNTOLD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
    }
}

/// The same, for a failure that the user is told otherwise.
pub(super) fn mark_failed_told(why: &str) {
    first_failure(why);
    // Whatever failed before was the same, or matters less.
    UNTOLD.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn first_failure(why: &str) -> bool {
    let first = !FAILED.swap(true, Ordering::AcqRel);
    // While the process exits, a logger may miss its thread-local storage.
    if first && !EXITING.load(Ordering::Relaxed) {
        log::debug!("MPI will not be finalised: {why}");
    }
    first
}

/// Tells why a process that says that all is well ends as one that failed.
fn tell() {
    let why = UNTOLD.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(why) = why else { return };
    let rank =
        launched().and_then(|launcher| launcher.rank).map_or_else(String::new, |rank| format!("rank {rank} on "));
    event::tell_error(&format!(
        "{rank}{}: the program ended with code 0, but MPI cannot be finalised, so the code is 1: {why}",
        host::hostname()
    ));
}

/// Whether [`mark_failed`] was called.
pub(super) fn failed() -> bool {
    FAILED.load(Ordering::Acquire)
}

/// A running kolo. While one exists, an exit of the process is a failure.
#[derive(Debug)]
pub(crate) struct LiveGuard {
    number: u64,
}

impl LiveGuard {
    /// `on_exit` runs on the thread that exits, if the guard still exists then, and gets the status if the C library
    /// tells it. Thread-local storage may be gone.
    pub(super) fn new(on_exit: impl FnOnce(Option<c_int>) + Send + 'static) -> Self {
        let mut state = lock();
        let number = state.next;
        state.next += 1;
        state.live.insert(number, Box::new(on_exit));
        Self { number }
    }
}

impl Drop for LiveGuard {
    fn drop(&mut self) {
        // In a forked child the lock may be held for ever by a thread that exists only in the parent.
        if is_owner() {
            let (callback, last_of_theirs) = {
                let mut state = lock();
                let callback = state.live.remove(&self.number);
                (callback, state.live.is_empty() && matches!(state.home, Home::None))
            };
            drop(callback);
            if last_of_theirs && !failed() {
                warn_application();
            }
        }
    }
}

/// The application ends its own MPI, and should know what it meets.
fn warn_application() {
    match leftover::tidy() {
        Err(error) => mark_failed(&error.to_string()),
        Ok(()) if leftover::parked() == 0 => {}
        Ok(()) => event::tell_warning(&format!(
            "{}: {} messages of a set or communicator that was given up are still under way; MPI_Finalize may wait for \
             them for ever; call MPI_Abort instead, or let kolo start MPI",
            name(),
            leftover::parked()
        )),
    }
}

/// Which process this is, in words.
fn name() -> String {
    let rank =
        launched().and_then(|launcher| launcher.rank).map_or_else(String::new, |rank| format!("rank {rank} on "));
    rank + &host::hostname()
}

/// Makes [`at_exit`] run when this process exits.
///
/// Registered after MPI has started, so it runs before whatever MPI registered itself.
pub(super) fn watch_exit() -> Result<()> {
    let mut state = lock();
    if !state.hooked {
        if !register() {
            return Err(Error::system(
                "registering kolo's end of the process; free some memory",
                std::io::Error::from(std::io::ErrorKind::OutOfMemory),
            ));
        }
        state.hooked = true;
        OWNER.store(std::process::id(), Ordering::Relaxed);
    }
    Ok(())
}

/// The C library of GNU tells its exit handlers the status.
#[cfg(target_env = "gnu")]
fn register() -> bool {
    unsafe extern "C" {
        fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    extern "C" fn handler(status: c_int, _: *mut c_void) {
        at_exit(Some(status));
    }
    // SAFETY: a plain function that stays loaded as long as the library that registers it, and no argument.
    unsafe { on_exit(handler, std::ptr::null_mut()) == 0 }
}

/// Others do not, so any exit may be one with status 0.
#[cfg(not(target_env = "gnu"))]
fn register() -> bool {
    extern "C" fn handler() {
        at_exit(None);
    }
    // SAFETY: a plain function that stays loaded as long as the library that registers it.
    unsafe { libc::atexit(handler) == 0 }
}

/// Starts MPI on a thread of its own and returns the thread level that it grants.
///
/// # Errors
///
/// MPI's own, and a timeout: MPI waits in here for every rank of the launcher.
pub(super) fn start_home(deadline: Duration) -> Result<c_int> {
    {
        let mut state = lock();
        match &state.home {
            Home::None => state.home = Home::Starting,
            Home::Broken(error) => return Err(error.clone()),
            Home::Running(level) => return Ok(*level),
            Home::Starting | Home::Ending | Home::Over => {
                return Err(Error::config("MPI starts once in a process, and this one is already ending it"));
            }
        }
    }
    let spawned = std::thread::Builder::new().name("kolo-mpi".to_owned()).spawn(home);
    let mut state = lock();
    if let Err(source) = spawned {
        let error = Error::system("starting the thread that keeps MPI; raise the limit of threads", source);
        state.home = Home::Broken(error.clone());
        return Err(error);
    }
    let end = Instant::now() + deadline;
    loop {
        match &state.home {
            Home::Running(level) => return Ok(*level),
            Home::Broken(error) => return Err(error.clone()),
            _ => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let error = Error::Timeout {
                what: "starting MPI".into(),
                waited: deadline,
                missing: "MPI_Init_thread waits for a rank; make every process that the launcher starts call \
                          kolo::init, and see whether one died or cannot reach the others"
                    .into(),
            };
            state.home = Home::Broken(error.clone());
            mark_failed("MPI did not start in time");
            return Err(error);
        }
        state = CHANGED.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// The life of the thread that keeps MPI.
fn home() {
    let started = serial().init();
    let mut state = lock();
    // The one who asked may have given up; then there is nothing to keep.
    if !matches!(state.home, Home::Starting) {
        return;
    }
    state.home = match started {
        Ok(level) => Home::Running(level),
        Err(error) => Home::Broken(error),
    };
    CHANGED.notify_all();
    while matches!(state.home, Home::Running(_)) {
        state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if !matches!(state.home, Home::Ending) {
        return;
    }
    drop(state);
    // A thread that exits the process from within an MPI call keeps the lock; then there is no orderly end.
    if let Some(mpi) = serial_within(Duration::from_secs(5)) {
        // The application may have finalised an MPI that kolo started. There is nobody left to tell an error to.
        if !mpi.finalized().unwrap_or(true)
            && let Err(error) = mpi.finalize()
        {
            log::debug!("{error}");
        }
    }
    lock().home = Home::Over;
    CHANGED.notify_all();
}

/// Runs on the thread that exits. A panic must not leave it, and nothing here relies on thread-local storage.
fn at_exit(status: Option<c_int>) {
    if !is_owner() {
        return;
    }
    EXITING.store(true, Ordering::Relaxed);
    let (live, ours) = {
        let mut state = lock();
        (std::mem::take(&mut state.live), !matches!(state.home, Home::None | Home::Over))
    };
    let alive = !live.is_empty();
    // Where the C library does not tell the status, it may be 0.
    let succeeds = status.is_none_or(|status| status & 0xff == 0);
    // A logger may panic when its thread-local storage is gone.
    let say = || {
        if succeeds {
            drop(catch_unwind(tell));
        }
    };
    let mut fail = |error: &Error| {
        mark_failed(&error.to_string());
        say();
    };
    if !alive
        && ours
        && !failed()
        && let Err(error) = world::depart(&mut fail)
    {
        fail(&error);
    }
    for on_exit in live.into_values() {
        // What a callback panics with has been reported by the panic hook; the process ends anyway.
        drop(catch_unwind(AssertUnwindSafe(|| on_exit(status))));
    }
    if alive || (failed() && ours) {
        say();
        if succeeds {
            // SAFETY: flushes what C libraries have printed, and ends the process: later handlers only tidy up.
            unsafe {
                libc::fflush(std::ptr::null_mut());
                libc::_exit(1);
            }
        }
        return;
    }
    if !ours || failed() {
        return;
    }
    let mut state = lock();
    if !matches!(state.home, Home::Running(_)) {
        return;
    }
    state.home = Home::Ending;
    CHANGED.notify_all();
    // No deadline: finalising waits for the other ranks, as it must. The launcher ends it if one dies.
    while !matches!(state.home, Home::Over) {
        state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}
