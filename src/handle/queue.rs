//! The operations in flight of one communicator, in the order in which they were submitted.
//!
//! README.md, "a communicator's operations", says who has the line when, and what becomes of operations at each end.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::core::{EXPECTED, LINGER, UNDER_WAY};
use super::course::Course;
use super::driver::{Driven, Driver, try_lock};
use super::flight::Flight;
use super::line::{Line, refusal};
use super::task::{Collectively, Several, Task};
use super::{Handle, Way};
use crate::engine::{Patience, Port, Step};
use crate::error::{Error, Result};
use crate::tensor::GiveBack;

/// What keeps an owned tensor alive.
type Keep = Arc<dyn Send + Sync>;

/// A communicator's operations in flight. Its lock is held for at most a chunk of work a lane, and never while waiting.
pub(crate) struct Queue {
    driver: Arc<Driver>,
    /// Operations that have not ended. Changes under the lock.
    pending: AtomicUsize,
    core: Mutex<Core>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("pending", &self.pending).finish_non_exhaustive()
    }
}

/// Which operations run one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneOf {
    Collectives,
    /// Messages to a rank.
    To(usize),
    /// Messages from a rank.
    From(usize),
}

struct Core {
    /// Absent while the communicator has it.
    line: Option<Box<Line>>,
    lanes: Vec<Lane>,
    /// Operations submitted so far.
    submitted: u64,
    /// Whether the driver has this queue among what has something to do.
    active: bool,
    over: Option<Over>,
    /// Operations that have ended since this was last asked, with what kept their memory alive.
    spent: Vec<Queued>,
}

struct Lane {
    of: LaneOf,
    /// The first of them runs.
    queued: VecDeque<Queued>,
    patience: Patience,
}

struct Queued {
    flight: Arc<Flight>,
    task: Box<dyn Task>,
    begun: bool,
    /// Keeps its tensor alive until it is dropped itself.
    _hold: Option<Keep>,
}

/// However an operation leaves the queue, its flight ends: nobody waits for what does not exist any more.
impl Drop for Queued {
    fn drop(&mut self) {
        if !self.flight.is_over() {
            let error = "kolo lost this operation; that is a bug, please report it";
            self.flight.finish(Err(Error::Poisoned(error.into())));
        }
    }
}

/// The end of the communicator.
struct Over {
    /// What later submissions get.
    error: Error,
    /// Whether the other hosts know, and how long it is worth trying to tell them.
    told: bool,
    linger_until: Duration,
}

impl Queue {
    pub(crate) fn new(driver: Arc<Driver>) -> Arc<Self> {
        let core = Core { line: None, lanes: Vec::new(), submitted: 0, active: false, over: None, spent: Vec::new() };
        let queue = Arc::new(Self { driver, pending: AtomicUsize::new(0), core: Mutex::new(core) });
        queue.driver.adopt(Arc::downgrade(&queue) as _);
        queue
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(|poisoned| self.condemn(poisoned))
    }

    /// A thread panicked inside the lock, a defect of kolo: what is in there is half done, so the communicator ends.
    #[cold]
    fn condemn<'a>(&self, poisoned: PoisonError<MutexGuard<'a, Core>>) -> MutexGuard<'a, Core> {
        let mut core = poisoned.into_inner();
        let error =
            "kolo panicked while it advanced an operation of this communicator; that is a bug, please report it";
        core.end_all(&Error::Poisoned(error.into()), None, self.driver.now());
        self.core.clear_poison();
        self.driver.ended(1);
        core
    }

    /// Whoever waits for the communicator's operations does it here.
    pub(super) fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// Takes in what the operations run on.
    pub(crate) fn admit(self: &Arc<Self>, mut line: Box<Line>) {
        let now = self.driver.now();
        let mut core = self.lock();
        if std::mem::take(&mut line.refused) {
            core.push(LaneOf::Collectives, Queued::refusal(true), now);
        }
        core.line = Some(line);
        self.release(core, now);
    }

    /// Submits an operation whose result `result` gives back. Its memory is the queue's until its flight is over.
    ///
    /// # Errors
    /// What ended the communicator. All else comes from the handle.
    pub(crate) fn submit<R>(
        self: &Arc<Self>,
        of: LaneOf,
        what: &str,
        task: Box<dyn Task>,
        hold: Option<Keep>,
        result: Arc<dyn GiveBack<R>>,
    ) -> Result<Handle<R>> {
        let now = self.driver.now();
        let mut core = self.lock();
        if let Some(over) = &core.over {
            let error = over.error.clone();
            drop(core);
            return Err(error);
        }
        core.submitted += 1;
        let flight = Arc::new(Flight::new(&title(what, core.submitted)));
        let queued = Queued { flight: Arc::clone(&flight), task, begun: false, _hold: hold };
        self.enter(core, of, queued, now);
        Ok(Handle { way: Way::Ordered(Arc::clone(self)), flight, result })
    }

    /// What the next operation to be submitted will be called.
    pub(crate) fn next_title(&self, what: &str) -> String {
        title(what, self.lock().submitted + 1)
    }

    /// Submits an operation of several steps, as [`submit`](Self::submit).
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub(crate) fn embark<R>(
        self: &Arc<Self>,
        what: &str,
        mut course: Box<Course>,
        result: Arc<dyn GiveBack<R>>,
    ) -> Result<Handle<R>> {
        let first = course.first()?;
        self.submit(LaneOf::Collectives, what, Box::new(Several::new(course, first)), None, result)
    }

    /// Works out what follows a step of the first collective, and gives it back. Outside the lock.
    fn go_on(self: &Arc<Self>, flight: &Arc<Flight>, mut course: Box<Course>) {
        let lost = Lost(self);
        let next = course.go_on();
        std::mem::forget(lost);
        let mut core = self.lock();
        // Else it has been given up meanwhile, or all has ended.
        if let Some(queued) = core.first_collective().filter(|queued| Arc::ptr_eq(&queued.flight, flight)) {
            queued.task.resume(course, next);
        }
        self.release(core, self.driver.now());
    }

    /// Takes this rank's turn with a call that it cannot make.
    pub(crate) fn refuse(self: &Arc<Self>) {
        let core = self.lock();
        if core.over.is_none() {
            self.enter(core, LaneOf::Collectives, Queued::refusal(false), self.driver.now());
        }
    }

    fn enter(self: &Arc<Self>, mut core: MutexGuard<'_, Core>, of: LaneOf, queued: Queued, now: Duration) {
        core.push(of, queued, now);
        // The peers learn of it now, and what is quick is done. A worker of rayon does not poll.
        if rayon::current_thread_index().is_none() {
            core.poll(now, self.driver.port());
        }
        self.release(core, now);
        self.driver.hand_over();
    }

    /// Waits until nothing is in flight, and takes out what operations run on.
    ///
    /// # Errors
    /// The job's first failure.
    pub(crate) fn take_line(self: &Arc<Self>) -> Result<Box<Line>> {
        self.driver.wait(|| self.pending.load(Ordering::SeqCst) == 0, Duration::MAX)?;
        let now = self.driver.now();
        let mut core = self.lock();
        let line = core.line.take();
        self.release(core, now);
        line.ok_or_else(|| Error::Poisoned("kolo lost this communicator; that is a bug, please report it".into()))
    }

    /// The communicator is dropped: waits until all its operations have ended.
    pub(crate) fn close(self: &Arc<Self>) {
        let ended = self.driver.wait(|| self.pending.load(Ordering::SeqCst) == 0, Duration::MAX);
        self.end(&ended.err().unwrap_or_else(|| Error::Poisoned("its communicator was dropped".into())));
    }

    /// The communicator is dropped by a panic, which must not wait: what is in flight goes on without it. Its peers are not told
    /// to stop: they are to hear of the panic, and of nothing that follows from it.
    pub(crate) fn leave(self: &Arc<Self>) {
        self.driver.hand_over();
    }

    /// Ends every operation in flight with `error`, and lets go of everything shared.
    fn end(self: &Arc<Self>, error: &Error) {
        let now = self.driver.now();
        let mut core = self.lock();
        if core.pending() > 0 {
            core.end_all(error, None, now);
        }
        let line = core.line.take();
        let tells = core.over.as_ref().is_some_and(|over| !over.told);
        self.release(core, now);
        if let Some(mut line) = line.filter(|_| tells) {
            line.take_leave();
        }
    }

    /// Gives an operation up, and the communicator with it, on every rank. Its memory is not touched any more.
    pub(super) fn cancel(self: &Arc<Self>, flight: &Flight) {
        let now = self.driver.now();
        let mut core = self.lock();
        if !flight.is_over() {
            let text = format!("'{}' was given up while other ranks count on it{ADVICE}", flight.name());
            core.end_all(&Error::Poisoned(text.into()), None, now);
        }
        self.release(core, now);
        self.driver.hand_over();
    }

    /// Advances the operations unless another thread is doing so. Returns what it came to, and when to look again.
    pub(super) fn try_poll(self: &Arc<Self>, now: Duration) -> Option<(Step, Option<Duration>)> {
        let mut core = try_lock(&self.core, |poisoned| self.condemn(poisoned))?;
        if !core.active {
            return Some((Step::Pending, None));
        }
        let moved = core.poll(now, self.driver.port());
        let wake_at = core.wake_at(now);
        let due = core.take_due();
        let ended = self.release(core, now);
        let goes_on = due.is_some();
        if let Some((flight, course)) = due {
            self.go_on(&flight, course);
        }
        Some((if moved || ended || goes_on { Step::Progress } else { Step::Pending }, wake_at))
    }

    #[cfg(test)]
    pub(super) fn panic_inside(&self) {
        let _core = self.lock();
        panic!("on purpose, with the lock");
    }

    /// Lets go of the core: accounts for what happened in there. Returns whether operations have ended.
    fn release(self: &Arc<Self>, mut core: MutexGuard<'_, Core>, now: Duration) -> bool {
        let spent = std::mem::take(&mut core.spent);
        self.pending.store(core.pending(), Ordering::SeqCst);
        let active = !core.is_idle(now);
        // Under the core's lock, so that the driver's list and the flag change together.
        if active != core.active {
            core.active = active;
            let queue = Arc::clone(self) as Arc<dyn Driven>;
            if active { self.driver.activate(queue) } else { self.driver.retire(&*queue) }
        }
        drop(core);
        self.driver.ended(spent.len());
        // Tensors whose handles are gone: dropping them is user code. And what courses have, which may be much.
        !spent.is_empty()
    }
}

impl Driven for Queue {
    fn try_poll(self: Arc<Self>, now: Duration) -> Option<(Step, Option<Duration>)> {
        Self::try_poll(&self, now)
    }

    /// Only operations in flight here have something to say to other hosts.
    fn attend(self: Arc<Self>) {}

    fn shut(self: Arc<Self>, error: &Error) {
        self.end(error);
    }
}

impl Queued {
    /// The place of a refused call. Nobody waits for it, or hears of the mismatch that it is for.
    fn refusal(begun: bool) -> Self {
        Self {
            flight: Arc::new(Flight::new("a refused call")),
            task: Box::new(Collectively::One(Some(refusal()))),
            begun,
            _hold: None,
        }
    }
}

impl Lane {
    /// Begins the first operation, or moves it on.
    fn step(&mut self, line: &mut Line, now: Duration, port: &Port) -> Result<Step> {
        let Some(first) = self.queued.front_mut() else { return Ok(Step::Pending) };
        if !std::mem::replace(&mut first.begun, true) {
            self.patience = Patience::default();
            self.patience.renew(now);
            first.task.begin(line)?;
        }
        let step = first.task.poll(line)?;
        if step == Step::Pending {
            if self.patience.is_stalled(now) {
                first.task.stalled(line, Instant::now())?;
            }
            self.patience.check(port, now, || first.task.waits_for(line))?;
        } else {
            self.patience.renew(now);
        }
        Ok(step)
    }
}

impl Core {
    /// Operations that have not ended.
    fn pending(&self) -> usize {
        self.lanes.iter().map(|lane| lane.queued.len()).sum()
    }

    /// Whether no poll could do anything.
    fn is_idle(&self, now: Duration) -> bool {
        let told = self.over.as_ref().is_none_or(|over| over.told || now >= over.linger_until);
        self.pending() == 0 && (told || self.line.is_none())
    }

    /// When to look again at the latest: messages of other hosts ring no bell while they move. One that nothing was heard of
    /// for long begins with a ring.
    fn wake_at(&self, now: Duration) -> Option<Duration> {
        let line = self.line.as_ref()?;
        if self.over.is_some() {
            return Some(now + UNDER_WAY);
        }
        let expects = |lane: &&Lane| lane.queued.front().is_some_and(|first| first.task.expects_messages(line));
        let patience = |lane: &Lane| if lane.patience.is_stalled(now) { EXPECTED } else { UNDER_WAY };
        self.lanes.iter().filter(expects).map(patience).min().map(|longest| now + longest)
    }

    fn push(&mut self, of: LaneOf, queued: Queued, now: Duration) {
        let lane = match self.lanes.iter().position(|lane| lane.of == of) {
            Some(lane) => &mut self.lanes[lane],
            None => {
                let mut patience = Patience::default();
                patience.renew(now);
                self.lanes.push(Lane { of, queued: VecDeque::new(), patience });
                let last = self.lanes.len() - 1;
                &mut self.lanes[last]
            }
        };
        lane.queued.push_back(queued);
    }

    /// One step of every lane. Returns whether anything moved.
    fn poll(&mut self, now: Duration, port: &Port) -> bool {
        let Some(line) = &mut self.line else { return false };
        if let Some(over) = &mut self.over {
            over.told = over.told || line.channel.take_leave();
            return false;
        }
        if self.lanes.is_empty() {
            return false;
        }
        if let Err(failure) = port.check() {
            self.end_all(&failure, None, now);
            return true;
        }
        let mut moved = false;
        for at in 0..self.lanes.len() {
            let Some(line) = &mut self.line else { return moved };
            match self.lanes[at].step(line, now, port) {
                Ok(Step::Pending) => continue,
                Ok(Step::Progress) => {}
                Ok(Step::Ready(())) => self.end_ready(at),
                Err(error @ Error::Mismatch(_)) => self.end_first(at, Err(error)),
                Err(error) => {
                    self.end_all(&error, Some(at), now);
                    return true;
                }
            }
            moved = true;
        }
        self.lanes.retain(|lane| !lane.queued.is_empty());
        moved
    }

    /// The collective whose turn it is.
    fn first_collective(&mut self) -> Option<&mut Queued> {
        self.lanes.iter_mut().find(|lane| lane.of == LaneOf::Collectives)?.queued.front_mut()
    }

    /// Takes out what must be worked out before the first collective moves on.
    fn take_due(&mut self) -> Option<(Arc<Flight>, Box<Course>)> {
        let first = self.first_collective()?;
        Some((Arc::clone(&first.flight), first.task.take_due()?))
    }

    /// Ends the first operation of a lane, which is ready.
    fn end_ready(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        let Some((result, declines)) = lane.queued.front_mut().map(|first| first.task.outcome()) else { return };
        self.end_first(at, result);
        if declines {
            // In the place of the step that the others go on to.
            self.lanes[at].queued.push_front(Queued::refusal(false));
        }
    }

    /// Ends the first operation of a lane. Nothing touches its memory any more.
    fn end_first(&mut self, at: usize, result: Result<()>) {
        if let Some(queued) = self.lanes[at].queued.pop_front() {
            self.end(queued, result);
        }
    }

    fn end(&mut self, queued: Queued, result: Result<()>) {
        queued.flight.finish(result);
        self.spent.push(queued);
    }

    /// Ends the communicator with `error` of the first operation of the lane `at`, or of none, here and on the peers: no memory
    /// of any operation is touched any more.
    fn end_all(&mut self, error: &Error, at: Option<usize>, now: Duration) {
        let others = for_others(error);
        if let Some(line) = &mut self.line {
            // First: the flights' owners may touch the memory as soon as they see that the flights are over.
            line.give_up(error);
            if line.channel.poisoned().is_none() {
                line.channel.give_up(error.clone());
            }
        }
        self.over.get_or_insert_with(|| Over {
            error: others.clone(),
            told: matches!(error, Error::Failed(_)),
            linger_until: now + LINGER,
        });
        for (index, lane) in std::mem::take(&mut self.lanes).into_iter().enumerate() {
            for (place, queued) in lane.queued.into_iter().enumerate() {
                let own = place == 0 && at == Some(index);
                self.end(queued, Err(if own { error.clone() } else { others.clone() }));
            }
        }
    }
}

/// Ends the communicator when what follows a step is lost by a panic, a defect of kolo.
struct Lost<'a>(&'a Arc<Queue>);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        let error = "kolo panicked between two steps of an operation; that is a bug, please report it";
        let now = self.0.driver.now();
        let mut core = self.0.lock();
        core.end_all(&Error::Poisoned(error.into()), None, now);
        self.0.release(core, now);
        self.0.driver.hand_over();
    }
}

/// What an operation is called: what it does, and its number among the asynchronous ones.
fn title(what: &str, number: u64) -> String {
    format!("{what} {number}")
}

/// What `error`, which ended the communicator, is to the operations that it does not speak of.
fn for_others(error: &Error) -> Error {
    if let Error::Failed(_) = error {
        return error.clone();
    }
    let text = format!("an earlier operation of this communicator failed: {error}");
    let advice = if text.ends_with(ADVICE) { "" } else { ADVICE };
    Error::Poisoned((text + advice).into())
}

/// What to do about it.
const ADVICE: &str = "; make a new one on every rank";
