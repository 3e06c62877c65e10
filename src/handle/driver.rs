//! Who advances the operations of a rank: whoever waits, and the background thread when nobody does.
//!
//! Every set, and every communicator's queue, is advanced under its own lock, held for at most a chunk of work and never while waiting, so a stalled set
//! delays no other. A thread that waits for a handle drives all active sets itself; the background thread sleeps
//! meanwhile. With nothing to do, nobody polls and nobody wakes. README.md argues that no wake-up is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::engine::{Idle, Port, Step};
use crate::error::{Error, Result};
use crate::os::sync::{AtomicU32, fence};
use crate::os::{futex, time};

/// Something with operations in flight: a named set, or a communicator's queue.
pub(crate) trait Driven: Send + Sync {
    /// Advances it unless another thread is doing so. Returns what it came to, and when to look again.
    fn try_poll(self: Arc<Self>, now: Duration) -> Option<(Step, Option<Duration>)>;

    /// Somebody waits: for a while, hears what the others have to say and speaks for them, as every leader must.
    fn attend(self: Arc<Self>);

    /// Ends every operation in flight with `error`.
    fn shut(self: Arc<Self>, error: &Error);
}

/// Takes the lock of what is driven unless another thread has it; `condemn` makes of what a panic left behind what it can.
pub(super) fn try_lock<'a, T>(
    lock: &'a Mutex<T>,
    condemn: impl FnOnce(PoisonError<MutexGuard<'a, T>>) -> MutexGuard<'a, T>,
) -> Option<MutexGuard<'a, T>> {
    match lock.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(condemn(poisoned)),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Says that a thread of kolo itself panicked.
pub(crate) type OnPanic = Box<dyn Fn(&str) + Send + Sync>;

/// Advances the sets and queues of one rank.
pub(crate) struct Driver {
    port: Arc<Port>,
    clock: Clock,
    /// When the clock began, by the monotonic clock.
    born: Duration,
    on_panic: OnPanic,
    /// Every set, for the end.
    sets: Mutex<Vec<Weak<dyn Driven>>>,
    /// The sets with something to do. A set that its user has dropped lives on in here until it has done it.
    active: Mutex<Vec<Arc<dyn Driven>>>,
    /// How many sets are active.
    busy: AtomicUsize,
    /// Threads that wait for a handle and drive meanwhile.
    waiters: AtomicUsize,
    /// Summonses of this rank that were heeded.
    heeded: AtomicU32,
    asleep: AtomicBool,
    stop: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The clock of negotiation.
#[derive(Debug)]
enum Clock {
    Real(Instant),
    /// Set by a test, which also does all polling: there is no background thread.
    #[cfg(test)]
    Virtual(Mutex<Duration>),
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("busy", &self.busy)
            .field("waiters", &self.waiters)
            .field("asleep", &self.asleep)
            .finish_non_exhaustive()
    }
}

// No user code runs under these locks, and each holds one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that waits and drives. What it leaves is handed over when it stops, also by unwinding.
struct Waiter<'a>(&'a Arc<Driver>);

impl<'a> Waiter<'a> {
    fn new(driver: &'a Arc<Driver>) -> Self {
        driver.waiters.fetch_add(1, Ordering::SeqCst);
        Self(driver)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::SeqCst);
        if self.0.busy.load(Ordering::SeqCst) > 0 {
            self.0.hand_over();
        }
    }
}

impl Driver {
    /// A driver whose background thread starts when it is first needed.
    pub(crate) fn new(port: Arc<Port>, on_panic: OnPanic) -> Arc<Self> {
        Arc::new(Self::with(port, Clock::Real(Instant::now()), on_panic))
    }

    /// A driver for tests, which poll the sets themselves and set the time.
    #[cfg(test)]
    pub(super) fn manual(port: Arc<Port>) -> Arc<Self> {
        Arc::new(Self::with(port, Clock::Virtual(Mutex::default()), Box::new(|_| ())))
    }

    fn with(port: Arc<Port>, clock: Clock, on_panic: OnPanic) -> Self {
        Self {
            port,
            clock,
            born: time::monotonic(),
            on_panic,
            sets: Mutex::default(),
            active: Mutex::default(),
            busy: AtomicUsize::new(0),
            waiters: AtomicUsize::new(0),
            heeded: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            thread: Mutex::new(None),
        }
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// When the driver was made, by the monotonic clock.
    pub(crate) fn born(&self) -> Duration {
        self.born
    }

    /// Time since the driver was made: the clock of negotiation.
    pub(crate) fn now(&self) -> Duration {
        match &self.clock {
            Clock::Real(born) => born.elapsed(),
            #[cfg(test)]
            Clock::Virtual(now) => *lock(now),
        }
    }

    /// A time of that clock in the clock that the host's processes share.
    pub(super) fn host_time(&self, time: Duration) -> Duration {
        self.born.saturating_add(time)
    }

    #[cfg(test)]
    pub(super) fn set_time(&self, time: Duration) {
        if let Clock::Virtual(now) = &self.clock {
            *lock(now) = time;
        }
    }

    /// How many sets have something to do.
    #[cfg(test)]
    pub(super) fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }

    /// Knows `set` from now on.
    pub(crate) fn adopt(&self, set: Weak<dyn Driven>) {
        let mut sets = lock(&self.sets);
        sets.retain(|set| set.strong_count() > 0);
        sets.push(set);
    }

    /// `set` has something to do. Under its lock.
    pub(super) fn activate(&self, set: Arc<dyn Driven>) {
        let mut active = lock(&self.active);
        active.push(set);
        self.busy.store(active.len(), Ordering::SeqCst);
    }

    /// `set` has nothing to do any more. Under its lock, by a caller that has a reference of its own.
    pub(super) fn retire(&self, set: &dyn Driven) {
        let mut active = lock(&self.active);
        active.retain(|other| !std::ptr::addr_eq(Arc::as_ptr(other), set));
        self.busy.store(active.len(), Ordering::SeqCst);
    }

    /// Operations have ended: wakes the threads of this rank that may wait for them.
    pub(super) fn ended(&self, operations: usize) {
        if operations > 0 {
            self.port.control.bells().ring(self.port.control.me());
        }
    }

    /// Whoever called may have left something to do, or kept others from doing it, and goes away.
    pub(super) fn hand_over(self: &Arc<Self>) {
        // Waiters, and the background thread if it drives, sleep on the rank's doorbell.
        self.port.control.bells().ring(self.port.control.me());
        if self.waiters.load(Ordering::SeqCst) > 0 || self.busy.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Err(error) = self.start() {
            crate::event::tell_warning(&format!("{error}; operations advance only while a thread waits for one"));
        }
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.wake_thread();
        }
    }

    fn wake_thread(&self) {
        let alarm = self.port.control.alarm();
        alarm.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(alarm);
    }

    /// Lets the sets that this rank leads look at what others say, if somebody asked for that.
    pub(super) fn heed_summons(&self) {
        let summoned = self.port.control.summoned();
        if self.heeded.swap(summoned, Ordering::SeqCst) != summoned {
            for set in self.sets() {
                set.attend();
            }
        }
    }

    fn sets(&self) -> Vec<Arc<dyn Driven>> {
        lock(&self.sets).iter().filter_map(Weak::upgrade).collect()
    }

    /// Starts the background thread, unless it runs.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(crate) fn start(self: &Arc<Self>) -> Result<()> {
        #[cfg(test)]
        if let Clock::Virtual(_) = self.clock {
            return Ok(());
        }
        let mut thread = lock(&self.thread);
        if thread.is_none() && !self.stop.load(Ordering::SeqCst) {
            let driver = Arc::clone(self);
            let name = format!("kolo-engine-{}", self.port.control.me());
            let spawned = Builder::new().name(name).spawn(move || driver.run());
            *thread = Some(spawned.map_err(|error| {
                Error::system("cannot start kolo's background thread; raise the limit of processes (ulimit -u)", error)
            })?);
        }
        Ok(())
    }

    /// Advances every active set that no other thread is advancing, once. `sets` is a buffer to reuse.
    ///
    /// Returns whether anything moved, and when a set wants to be looked at again at the latest.
    fn drive(&self, sets: &mut Vec<Arc<dyn Driven>>) -> (bool, Option<Duration>) {
        // Copied out: none of them is advanced, or dropped, under the list's lock.
        sets.extend(lock(&self.active).iter().cloned());
        let now = self.now();
        let mut moved = false;
        let mut wake_at: Option<Duration> = None;
        for set in sets.drain(..) {
            if let Some((step, at)) = set.try_poll(now) {
                moved |= step != Step::Pending;
                wake_at = [wake_at, at].into_iter().flatten().min();
            }
        }
        (moved, wake_at)
    }

    /// Drives until `over`, the job fails, or `deadline` has passed since the call; returns whether it is over.
    ///
    /// # Errors
    /// The job's first failure.
    pub(crate) fn wait(self: &Arc<Self>, over: impl Fn() -> bool, deadline: Duration) -> Result<bool> {
        if over() {
            return Ok(true);
        }
        // A worker that drove could be made to steal a task which submits, inside the set's lock.
        if rayon::current_thread_index().is_some() {
            self.hand_over();
            return self.watch(&over, deadline);
        }
        let _waiter = Waiter::new(self);
        let (mut idle, mut sets) = (Idle::default(), Vec::new());
        let begin = Instant::now();
        loop {
            let (moved, wake_at) = self.drive(&mut sets);
            if over() {
                return Ok(true);
            }
            if moved {
                idle = Idle::default();
                continue;
            }
            self.port.check()?;
            let waited = begin.elapsed();
            if waited >= deadline {
                return Ok(false);
            }
            let left = deadline - waited;
            let longest = wake_at.map_or(left, |at| left.min(at.saturating_sub(self.now())));
            idle.expect_messages(self.port.abroad.is_some());
            self.port.back_off(&mut idle, longest, || self.drive(&mut sets).0 || over());
        }
    }

    /// Waits while others drive.
    fn watch(&self, over: &impl Fn() -> bool, deadline: Duration) -> Result<bool> {
        let mut idle = Idle::default();
        let begin = Instant::now();
        while !over() {
            self.port.check()?;
            let waited = begin.elapsed();
            if waited >= deadline {
                return Ok(false);
            }
            idle.expect_messages(self.port.abroad.is_some());
            self.port.back_off(&mut idle, deadline - waited, over);
        }
        Ok(true)
    }

    /// The background thread: drives while something is to do and nobody waits.
    fn run(self: &Arc<Self>) {
        if catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            // Its operations would hang; the panic hook has printed why.
            let text = "kolo's background thread panicked; its panic message is above";
            (self.on_panic)(text);
            self.shut_sets(&Error::Poisoned(text.into()));
        }
    }

    fn serve(&self) {
        let (mut idle, mut sets) = (Idle::default(), Vec::new());
        while !self.stop.load(Ordering::SeqCst) {
            self.heed_summons();
            if self.busy.load(Ordering::SeqCst) == 0 || self.waiters.load(Ordering::SeqCst) > 0 {
                idle = Idle::default();
                // A waiter that found a set locked by this thread may have gone to sleep meanwhile.
                self.port.control.bells().ring(self.port.control.me());
                self.sleep_until_needed();
                continue;
            }
            let (moved, wake_at) = self.drive(&mut sets);
            if moved {
                idle = Idle::default();
                continue;
            }
            let longest = wake_at.map_or(Duration::MAX, |at| at.saturating_sub(self.now()));
            idle.expect_messages(self.port.abroad.is_some());
            self.port.back_off(&mut idle, longest, || {
                self.drive(&mut sets).0 || self.stop.load(Ordering::SeqCst) || self.waiters.load(Ordering::SeqCst) > 0
            });
        }
    }

    /// Sleeps until there is something to do that nobody waits for.
    fn sleep_until_needed(&self) {
        let word = self.port.control.alarm();
        let alarm = word.load(Ordering::SeqCst);
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let idle = self.busy.load(Ordering::SeqCst) == 0 || self.waiters.load(Ordering::SeqCst) > 0;
        let summoned = self.port.control.summoned() != self.heeded.load(Ordering::SeqCst);
        if idle && !summoned && !self.stop.load(Ordering::SeqCst) {
            futex::wait(word, alarm, None);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Ends all operations in flight with `error`, and the background thread.
    pub(crate) fn shut_down(&self, error: &Error) {
        self.shut_sets(error);
        self.stop.store(true, Ordering::SeqCst);
        // Also if it is not asleep yet: then the changed word keeps it awake.
        self.wake_thread();
        self.port.control.bells().ring(self.port.control.me());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            log::error!("kolo's background thread panicked; its panic message is above");
        }
    }

    fn shut_sets(&self, error: &Error) {
        for set in self.sets() {
            set.shut(error);
        }
    }
}
