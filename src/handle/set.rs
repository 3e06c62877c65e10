//! A set of ranks that negotiate: named operations from their submission to their end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::core::{Core, LINGER};
use super::driver::{Driven, Driver, try_lock};
use super::status::Status;
use super::tickets::{Ended, Entry, Tickets};
use crate::coordinator::{Event, Kind, Params, Request, Spec, Ticket, check_user_name, has_joined};
use crate::engine::{Built, Step, Team, reported_move};
use crate::error::{Error, Result};
use crate::event::{Begun, Verb};

/// How long a set looks at what other ranks say after a summons. Who goes on waiting summons again before that.
const ATTENTION: Duration = Duration::from_secs(2);

/// The named operations of one set on one rank.
///
/// One lock holds everything that a poll touches. It is held for at most a chunk of work, never while waiting and never
/// in user code, so whoever needs it may simply take it. Whoever has held it goes on to drive, or tells the driver: a
/// thread that found it locked may have gone to sleep (README.md, "wake-ups").
#[derive(Debug)]
pub(crate) struct NamedSet {
    pub(crate) driver: Arc<Driver>,
    team: Arc<Team>,
    /// Its number, in what is reported.
    id: u32,
    core: Mutex<Core>,
}

impl NamedSet {
    pub(crate) fn new(driver: Arc<Driver>, built: Built, params: Params) -> Result<Arc<Self>> {
        let (team, id) = (Arc::clone(built.channel.team()), built.channel.set());
        let tickets = Tickets::new(Arc::clone(&driver.port().sink), driver.born());
        let core = Core::new(tickets, built, params)?;
        let set = Arc::new(Self { driver, team, id, core: Mutex::new(core) });
        set.driver.adopt(Arc::downgrade(&set) as _);
        if set.speaks() {
            // A summons reaches the background thread alone.
            set.driver.start()?;
        }
        Ok(set)
    }

    pub(crate) fn team(&self) -> &Team {
        &self.team
    }

    /// This rank's number in the job.
    fn global(&self) -> usize {
        self.team.global(self.team.rank()) as usize
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(|poisoned| self.condemn(poisoned))
    }

    /// A thread panicked inside the lock, a defect of kolo: what is in there is half done, so the set ends.
    #[cold]
    fn condemn<'a>(&self, poisoned: PoisonError<MutexGuard<'a, Core>>) -> MutexGuard<'a, Core> {
        let mut core = poisoned.into_inner();
        let error = "kolo panicked while it advanced an operation of this set; that is a bug, please report it";
        core.poison(&Error::Poisoned(error.into()), self.driver.now(), self.driver.port());
        self.core.clear_poison();
        self.driver.ended(1);
        core
    }

    /// Hands an operation in. `entry`'s memory is the set's until its flight is over.
    ///
    /// # Errors
    /// A wrong or duplicate request, locally; the peers learn of it where they wait for this rank.
    pub(crate) fn submit(
        self: &Arc<Self>,
        request: &Request,
        entry: Entry,
        urgent: bool,
        deadline: Option<Duration>,
    ) -> Result<Ticket> {
        if !urgent && let Err(error) = self.driver.start() {
            self.refuse(&request.name, &error.to_string());
            return Err(error);
        }
        let begun = self.begun(request, entry.bytes());
        self.hand_in(entry, begun, urgent, |ticket| Event::Submit { ticket, request, urgent, deadline })
    }

    /// Takes an operation in, reports it as `begun`, and tells the coordinator of it.
    pub(super) fn hand_in<'a>(
        self: &Arc<Self>,
        entry: Entry,
        begun: Begun<'_>,
        waits: bool,
        event: impl FnOnce(Ticket) -> Event<'a>,
    ) -> Result<Ticket> {
        let flight = Arc::clone(&entry.flight);
        let (name, now) = (begun.name, self.driver.now());
        let mut core = self.admit(name, now)?;
        let Some(ticket) = core.tickets.insert(entry, begun, now) else { return Err(in_flight(name)) };
        self.note(name, now);
        core.tell(now, event(ticket), self.driver.port());
        let outcome = flight.outcome();
        self.release(core, now);
        // A waiting caller drives, and hands over when it stops.
        if !waits {
            self.driver.hand_over();
        }
        match outcome {
            Some(Err(error)) => Err(error),
            _ => Ok(ticket),
        }
    }

    /// The core, unless the set takes no new operations.
    pub(super) fn admit(self: &Arc<Self>, name: &str, now: Duration) -> Result<MutexGuard<'_, Core>> {
        let core = self.lock();
        let error = match &core.over {
            Some(over) => over.error.clone(),
            // The coordinator has yet to hear of the join.
            None if core.joins_later() => has_joined(name),
            None => return Ok(core),
        };
        // It may have ended just now, and has yet to tell the other hosts.
        self.release(core, now);
        self.driver.hand_over();
        Err(error)
    }

    /// Notes `name` as what this rank did last.
    pub(super) fn note(&self, name: &str, now: Duration) {
        self.driver.port().control.doings().submit(self.global(), name, self.driver.host_time(now));
    }

    /// Its number, in what is reported.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// What to report of a request on `bytes` bytes.
    pub(super) fn begun<'a>(&self, request: &'a Request, bytes: u64) -> Begun<'a> {
        let Spec { kind, dtype, .. } = request.spec;
        let (verb, op) = match kind {
            Kind::Allreduce { op } => (Verb::Allreduce, op as u8),
            Kind::Broadcast { .. } | Kind::BroadcastRows { .. } => (Verb::Broadcast, 0),
            Kind::Reduce { op, .. } => (Verb::Reduce, op as u8),
            Kind::ReduceScatter { op } => (Verb::ReduceScatter, op as u8),
            Kind::Move(of) => (reported_move(of).0, 0),
            Kind::Meet => (Verb::Allgather, 0),
            Kind::AllreduceRows { op } => (Verb::Allreduce, op as u8),
        };
        Begun {
            set: self.id,
            name: &request.name,
            verb,
            dtype: dtype as u8,
            op,
            peer: kind.root().and_then(|root| self.team.globals().get(root as usize)).copied(),
            bytes,
            place: None,
            at: None,
        }
    }

    /// Tells the peers that submit `name` that this rank's call was refused.
    pub(crate) fn refuse(self: &Arc<Self>, name: &str, reason: &str) {
        let now = self.driver.now();
        let mut core = self.lock();
        // A name that no peer can have, or that no peer waits for this rank with.
        if check_user_name(name).is_ok() && !core.joins_later() {
            core.tell(now, Event::SubmitFailed { name, reason }, self.driver.port());
        }
        self.release(core, now);
        self.driver.hand_over();
    }

    /// Somebody begins to wait for the operation, and drives from here on.
    pub(crate) fn urge(&self, ticket: Ticket) {
        let now = self.driver.now();
        self.lock().tell(now, Event::Urgent { ticket }, self.driver.port());
    }

    /// Gives an operation up. When this returns, its memory is not touched any more.
    ///
    /// Before the ranks agreed on it, the name is withdrawn; after that, the set is poisoned.
    pub(crate) fn cancel(self: &Arc<Self>, ticket: Ticket) {
        let now = self.driver.now();
        let mut core = self.lock();
        core.cancel(ticket, now, self.driver.port());
        self.release(core, now);
        self.driver.hand_over();
    }

    /// Advances the set unless another thread is doing so. Returns what it came to, and when to look again.
    pub(crate) fn try_poll(self: &Arc<Self>, now: Duration) -> Option<(Step, Option<Duration>)> {
        let mut core = try_lock(&self.core, |poisoned| self.condemn(poisoned))?;
        if !core.active {
            return Some((Step::Pending, None));
        }
        let moved = core.poll(now, self.driver.port());
        let wake_at = core.wake_at(now, &self.team);
        let due = core.tickets.courses.take_due();
        let ended = self.release(core, now);
        let goes_on = !due.is_empty();
        self.go_on(due);
        let step = if moved || ended || goes_on { Step::Progress } else { Step::Pending };
        Some((step, wake_at))
    }

    /// Whether ranks of other hosts hear of those of this one by this rank.
    fn speaks(&self) -> bool {
        self.team.member() == 0 && !self.team.is_local()
    }

    /// Somebody waits: for a while, hears what the others have to say and speaks for them, as every leader must.
    pub(super) fn attend(self: &Arc<Self>) {
        if !self.speaks() {
            return;
        }
        let now = self.driver.now();
        let mut core = self.lock();
        core.attends_until = now + ATTENTION;
        if let Some(parts) = &mut core.parts {
            parts.wires.touch();
        }
        self.release(core, now);
    }

    /// Ends every operation in flight with `error`; the set takes no more, and lets go of everything shared.
    pub(crate) fn shut(self: &Arc<Self>, error: &Error) {
        let now = self.driver.now();
        let mut core = self.lock();
        if core.parts.as_ref().is_some_and(|parts| parts.running.is_some() || !parts.batches.is_empty()) {
            // What the ranks have agreed to run will not end without this one: they hear it now, not by its absence.
            core.poison(error, now, self.driver.port());
        } else {
            core.end_all(error, now);
        }
        let parts = core.parts.take();
        self.release(core, now);
        let Some(mut parts) = parts else { return };
        // What the other leaders have to know: a host whose leader agreed to an end and left would leave them waiting.
        let begin = Instant::now();
        while !parts.wires.is_flushed() && begin.elapsed() < LINGER && parts.flush_last().is_ok() {
            std::thread::yield_now();
        }
    }

    /// What this rank knows of the operations that have not ended, and of the set's ranks.
    pub(crate) fn status(self: &Arc<Self>) -> Status {
        let (now, port) = (self.driver.now(), self.driver.port());
        let mut core = self.lock();
        // A rank with nothing in flight does not follow what its peers submit. Negotiation alone, which any thread may
        // advance: no data moves.
        let heard = if core.over.is_none() { core.negotiate(now, port).map(|_| ()) } else { Ok(()) };
        if let Err(error) = heard {
            core.poison(&error, now, port);
        }
        let (mut stalled, mut running) = (Vec::new(), Vec::new());
        if let Some(parts) = &mut core.parts {
            stalled = parts.coordinator.look(now).stalled;
            let entries = parts.running.iter().flat_map(|running| &running.entries);
            running = entries.map(|entry| Arc::clone(entry.flight.name())).collect::<Vec<_>>();
        }
        self.release(core, now);
        self.driver.hand_over();
        Status::new(&self.team, stalled, &running, &|rank| (port.standing)(rank))
    }

    #[cfg(test)]
    pub(super) fn is_running(&self) -> bool {
        self.lock().parts.as_ref().is_some_and(|parts| parts.running.is_some())
    }

    /// Frames that this rank has published: none while all that it submits is cached.
    #[cfg(test)]
    pub(crate) fn published(&self) -> usize {
        self.lock().parts.as_ref().map_or(0, |parts| parts.wires.published)
    }

    #[cfg(test)]
    pub(super) fn panic_inside(&self) {
        let _core = self.lock();
        panic!("on purpose, with the lock");
    }

    /// Lets go of the core: accounts for what happened in there. Returns whether operations have ended.
    pub(super) fn release(self: &Arc<Self>, mut core: MutexGuard<'_, Core>, now: Duration) -> bool {
        let Ended { operations, courses, spent } = core.tickets.take_ended();
        let active = !core.is_idle(now);
        // Under the core's lock, so that the driver's list and the flag change together.
        if active != core.active {
            core.active = active;
            if active { self.driver.activate(Arc::clone(self) as _) } else { self.driver.retire(&**self) }
        }
        drop(core);
        if operations > 0 {
            self.driver.port().control.doings().end(self.global(), operations as u64);
        }
        self.driver.ended(operations + courses);
        // Tensors whose handles are gone: dropping them is user code.
        drop(spent);
        operations + courses > 0
    }
}

/// Why a call is refused whose name is taken.
pub(super) fn in_flight(name: &str) -> Error {
    Error::argument(format!("'{name}' is already in flight on this rank; wait for it first, or use another name"))
}

impl Driven for NamedSet {
    fn try_poll(self: Arc<Self>, now: Duration) -> Option<(Step, Option<Duration>)> {
        Self::try_poll(&self, now)
    }

    fn attend(self: Arc<Self>) {
        Self::attend(&self);
    }

    fn shut(self: Arc<Self>, error: &Error) {
        Self::shut(&self, error);
    }
}
