//! Who advances the named operations of a rank: whoever waits, and the background thread when nobody does.
//!
//! Every set is advanced under its own lock, held for at most a chunk of work and never while waiting, so a stalled set
//! delays no other. A thread that waits for a handle drives all sets itself; the background thread sleeps meanwhile. With
//! nothing pending, nobody polls and nobody wakes.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::set::NamedSet;
use crate::engine::{Idle, Port, Step};
use crate::error::{Error, Result};
use crate::os::futex;

/// Advances the named sets of one rank.
#[derive(Debug)]
pub(crate) struct Driver {
    port: Arc<Port>,
    born: Instant,
    sets: Mutex<Vec<Weak<NamedSet>>>,
    /// Named operations in flight over all sets.
    pending: AtomicUsize,
    /// Threads that wait for a handle and drive meanwhile.
    waiters: AtomicUsize,
    /// The background thread's alarm: changes whenever there may be work for it.
    alarm: AtomicU32,
    asleep: AtomicBool,
    stop: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Driver {
    /// A driver whose background thread starts with the first asynchronous operation.
    pub(crate) fn new(port: Arc<Port>) -> Arc<Self> {
        Arc::new(Self {
            port,
            born: Instant::now(),
            sets: Mutex::default(),
            pending: AtomicUsize::new(0),
            waiters: AtomicUsize::new(0),
            alarm: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            thread: Mutex::new(None),
        })
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Time since the driver was made: the clock of negotiation.
    pub(crate) fn now(&self) -> Duration {
        self.born.elapsed()
    }

    /// Advances `set` from now on.
    pub(crate) fn adopt(&self, set: &Arc<NamedSet>) {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.retain(|set| set.strong_count() > 0);
        sets.push(Arc::downgrade(set));
    }

    /// Counts an operation in. `waits`: its caller goes on to wait for it, so the background thread may sleep on.
    pub(crate) fn submitted(self: &Arc<Self>, waits: bool) -> Result<()> {
        self.pending.fetch_add(1, Ordering::SeqCst);
        if waits || self.waiters.load(Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.start()?;
        self.wake_thread();
        Ok(())
    }

    /// Counts operations out, and wakes the threads of this rank that wait for them.
    pub(crate) fn completed(&self, operations: usize) {
        if operations > 0 {
            self.pending.fetch_sub(operations, Ordering::SeqCst);
            self.port.control.bells().ring(self.port.control.me());
        }
    }

    fn wake_thread(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.alarm.fetch_add(1, Ordering::SeqCst);
            futex::wake_all(&self.alarm);
        }
    }

    fn start(self: &Arc<Self>) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let driver = Arc::clone(self);
            let spawned =
                Builder::new().name(format!("kolo-engine-{}", self.port.control.me())).spawn(move || driver.run());
            *thread = Some(spawned.map_err(|error| {
                Error::system("cannot start kolo's background thread; raise the limit of processes (ulimit -u)", error)
            })?);
        }
        Ok(())
    }

    /// The sets, copied out: none of them is touched under the list's lock.
    fn live_sets(&self) -> Vec<Arc<NamedSet>> {
        let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.iter().filter_map(Weak::upgrade).collect()
    }

    /// Advances every set that no other thread is advancing, once.
    ///
    /// Returns whether anything moved, and when a set wants to be looked at again at the latest.
    fn drive(&self) -> (bool, Option<Duration>) {
        let now = self.now();
        let mut moved = false;
        let mut wake_at: Option<Duration> = None;
        for set in self.live_sets() {
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
    pub(crate) fn wait(&self, over: impl Fn() -> bool, deadline: Duration) -> Result<bool> {
        if over() {
            return Ok(true);
        }
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let outcome = self.wait_driving(&over, deadline);
        let others = self.waiters.fetch_sub(1, Ordering::SeqCst) - 1;
        if self.pending.load(Ordering::SeqCst) > 0 {
            // Somebody must take over: a sleeping waiter may have found a set locked by this thread.
            if others > 0 {
                self.port.control.bells().ring(self.port.control.me());
            } else {
                self.wake_thread();
            }
        }
        outcome
    }

    fn wait_driving(&self, over: &impl Fn() -> bool, deadline: Duration) -> Result<bool> {
        let mut idle = Idle::default();
        let begin = Instant::now();
        loop {
            let (moved, wake_at) = self.drive();
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
            let longest =
                wake_at.map_or(deadline - waited, |at| (deadline - waited).min(at.saturating_sub(self.now())));
            self.port.back_off(&mut idle, longest, || self.drive().0 || over());
        }
    }

    /// The background thread: drives while something is pending and nobody waits.
    fn run(&self) {
        let mut idle = Idle::default();
        while !self.stop.load(Ordering::SeqCst) {
            if self.pending.load(Ordering::SeqCst) == 0 || self.waiters.load(Ordering::SeqCst) > 0 {
                idle = Idle::default();
                // A waiter that found a set locked by this thread may have gone to sleep meanwhile.
                self.port.control.bells().ring(self.port.control.me());
                self.sleep_until_needed();
                continue;
            }
            let (moved, wake_at) = self.drive();
            if moved {
                idle = Idle::default();
                continue;
            }
            let longest = wake_at.map_or(Duration::MAX, |at| at.saturating_sub(self.now()));
            self.port.back_off(&mut idle, longest, || {
                self.drive().0 || self.stop.load(Ordering::SeqCst) || self.waiters.load(Ordering::SeqCst) > 0
            });
        }
    }

    /// Sleeps until an operation is submitted that nobody waits for.
    fn sleep_until_needed(&self) {
        let alarm = self.alarm.load(Ordering::SeqCst);
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let idle = self.pending.load(Ordering::SeqCst) == 0 || self.waiters.load(Ordering::SeqCst) > 0;
        if idle && !self.stop.load(Ordering::SeqCst) {
            futex::wait(&self.alarm, alarm, None);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Ends all operations in flight with `error`, and the background thread.
    pub(crate) fn shut_down(&self, error: &Error) {
        for set in self.live_sets() {
            set.shut(error);
        }
        self.stop.store(true, Ordering::SeqCst);
        self.alarm.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(&self.alarm);
        self.port.control.bells().ring(self.port.control.me());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            log::error!("kolo's background thread panicked; its panic message is above");
        }
    }
}
