//! A set of ranks that negotiate: named operations from their submission to their end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::driver::Driver;
use super::running::Running;
use super::tickets::{Entry, Tickets};
use super::wires::Wires;
use crate::coordinator::{Action, Batch, Coordinator, Event, Params, Request, Ticket, Topology};
use crate::engine::{Built, Channel, Port, Step, Team};
use crate::error::{Error, Result};
use crate::event;

/// How long a set that is over, or whose rank leaves, tries to hand its last messages to other hosts.
const LINGER: Duration = Duration::from_secs(1);
/// While nothing moves, how often to ask whether the ranks that are waited for still exist.
const LOOK: Duration = Duration::from_millis(100);
/// Messages between hosts move only while both ends look. While some are under way, how long to sleep between looks.
const UNDER_WAY: Duration = Duration::from_micros(500);
/// The same while another host may begin to speak: that rings a bell, but the bell may be faster than the message.
const EXPECTED: Duration = Duration::from_millis(5);

/// The named operations of one set on one rank.
///
/// One lock holds everything that a poll touches. It is held for at most a chunk of work, never while waiting and never
/// in user code, so whoever needs it may simply take it. Whoever has held it goes on to drive, or tells the driver: a
/// thread that found it locked may have gone to sleep (README.md, "wake-ups").
#[derive(Debug)]
pub(crate) struct NamedSet {
    pub(crate) driver: Arc<Driver>,
    team: Arc<Team>,
    core: Mutex<Core>,
}

struct Core {
    tickets: Tickets,
    /// Absent once the rank has left: what reaches peers does not outlive the rank, though handles may.
    parts: Option<Box<Parts>>,
    /// Whether the driver has this set among those with something to do.
    active: bool,
    over: Option<Over>,
}

/// What a poll advances.
struct Parts {
    channel: Channel,
    coordinator: Coordinator,
    wires: Wires,
    /// Agreed batches that wait for their turn in the channel.
    batches: VecDeque<Batch>,
    running: Option<Running>,
    actions: Vec<Action>,
    /// A rank gave up, and everything it had published before is read since.
    heard_poison: bool,
    /// When to look again whether others are gone.
    look_at: Duration,
}

/// The end of the set.
#[derive(Debug)]
struct Over {
    error: Error,
    /// How long it is worth trying to tell other hosts.
    linger_until: Duration,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let channel = self.parts.as_ref().map(|parts| &parts.channel);
        f.debug_struct("Core").field("channel", &channel).field("over", &self.over).finish_non_exhaustive()
    }
}

impl NamedSet {
    pub(crate) fn new(driver: Arc<Driver>, built: Built, params: Params) -> Result<Arc<Self>> {
        let Built { channel, negotiation, .. } = built;
        let team = Arc::clone(channel.team());
        let topology = Topology {
            hosts: team.hosts().iter().map(|host| host.iter().map(|&rank| rank as u32).collect()).collect(),
            global: team.globals().to_vec(),
            me: team.rank() as u32,
        };
        let parts = Parts {
            coordinator: Coordinator::new(params, topology)?,
            wires: Wires::new(channel.arena(), &team, negotiation),
            channel,
            batches: VecDeque::new(),
            running: None,
            actions: Vec::new(),
            heard_poison: false,
            look_at: Duration::ZERO,
        };
        let core = Core { tickets: Tickets::default(), parts: Some(Box::new(parts)), active: false, over: None };
        let set = Arc::new(Self { driver, team, core: Mutex::new(core) });
        set.driver.adopt(&set);
        Ok(set)
    }

    pub(crate) fn team(&self) -> &Team {
        &self.team
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
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
        let flight = Arc::clone(&entry.flight);
        let now = self.driver.now();
        let mut core = self.lock();
        if let Some(over) = &core.over {
            return Err(over.error.clone());
        }
        let Some(ticket) = core.tickets.insert(entry) else {
            let name = &request.name;
            return Err(Error::argument(format!(
                "'{name}' is already in flight on this rank; wait for it first, or use another name"
            )));
        };
        core.tell(now, Event::Submit { ticket, request, urgent, deadline }, self.driver.port());
        let outcome = flight.outcome();
        self.release(core, now);
        // A waiting caller drives, and hands over when it stops.
        if !urgent {
            self.driver.hand_over();
        }
        match outcome {
            Some(Err(error)) => Err(error),
            _ => Ok(ticket),
        }
    }

    /// Tells the peers that submit `name` that this rank's call was refused.
    pub(crate) fn refuse(self: &Arc<Self>, name: &str, reason: &str) {
        let now = self.driver.now();
        let mut core = self.lock();
        core.tell(now, Event::SubmitFailed { name, reason }, self.driver.port());
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
        let mut core = match self.core.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(poisoned)) => self.condemn(poisoned),
            Err(TryLockError::WouldBlock) => return None,
        };
        if !core.active {
            return Some((Step::Pending, None));
        }
        let moved = core.poll(now, self.driver.port());
        let wake_at = core.wake_at(now, &self.team);
        let ended = self.release(core, now);
        let step = if moved || ended { Step::Progress } else { Step::Pending };
        Some((step, wake_at))
    }

    /// Ends every operation in flight with `error`; the set takes no more, and lets go of everything shared.
    pub(crate) fn shut(self: &Arc<Self>, error: &Error) {
        let now = self.driver.now();
        let mut core = self.lock();
        core.end_all(error, now);
        let parts = core.parts.take();
        self.release(core, now);
        let Some(mut parts) = parts else { return };
        // What the other leaders have to know: a host whose leader agreed to an end and left would leave them waiting.
        let begin = Instant::now();
        while !parts.wires.is_flushed() && begin.elapsed() < LINGER && parts.flush_last().is_ok() {
            std::thread::yield_now();
        }
    }

    #[cfg(test)]
    pub(super) fn is_running(&self) -> bool {
        self.lock().parts.as_ref().is_some_and(|parts| parts.running.is_some())
    }

    #[cfg(test)]
    pub(super) fn panic_inside(&self) {
        let _core = self.lock();
        panic!("on purpose, with the lock");
    }

    /// Lets go of the core: accounts for what happened in there. Returns whether operations have ended.
    fn release(self: &Arc<Self>, mut core: MutexGuard<'_, Core>, now: Duration) -> bool {
        let (ended, spent) = core.tickets.take_ended();
        let active = !core.is_idle(now);
        // Under the core's lock, so that the driver's list and the flag change together.
        if active != core.active {
            core.active = active;
            if active { self.driver.activate(self) } else { self.driver.retire(self) }
        }
        drop(core);
        self.driver.ended(ended);
        // Tensors whose handles are gone: dropping them is user code.
        drop(spent);
        ended > 0
    }
}

impl Core {
    /// Whether no poll could do anything, for this rank or for others.
    fn is_idle(&self, now: Duration) -> bool {
        let Some(parts) = &self.parts else { return true };
        match &self.over {
            Some(over) => parts.wires.is_flushed() || now >= over.linger_until,
            None => self.tickets.is_empty() && parts.is_idle(),
        }
    }

    fn wake_at(&self, now: Duration, team: &Team) -> Option<Duration> {
        let parts = self.parts.as_ref()?;
        let moves = parts.running.is_some() || !(parts.wires.is_flushed() && parts.channel.is_flushed());
        let remote = (!team.is_local()).then(|| now + if moves { UNDER_WAY } else { EXPECTED });
        [parts.wires.tick_at(), remote].into_iter().flatten().min()
    }

    /// Tells the coordinator something that happened on this rank, and does what it asks for at once.
    fn tell(&mut self, now: Duration, event: Event<'_>, port: &Port) {
        let Some(parts) = self.parts.as_mut().filter(|_| self.over.is_none()) else { return };
        parts.coordinator.step(now, event, &mut parts.actions);
        parts.wires.touch();
        self.perform(now, port);
    }

    /// One round of negotiation and one step of data. Returns whether anything moved.
    fn poll(&mut self, now: Duration, port: &Port) -> bool {
        let Some(parts) = &mut self.parts else { return false };
        if let Some(over) = &mut self.over {
            if parts.flush_last().is_err() {
                over.linger_until = Duration::ZERO;
            }
            return false;
        }
        let outcome = port.check().and_then(|()| {
            let talked = self.negotiate(now, port)?;
            let moved = self.advance(now)?;
            Ok(talked || moved)
        });
        let outcome = match outcome {
            Ok(false) => self.heed_others(now, port),
            other => other,
        };
        outcome.unwrap_or_else(|error| {
            self.poison(&error, now, port);
            true
        })
    }

    fn negotiate(&mut self, now: Duration, port: &Port) -> Result<bool> {
        let Some(parts) = &mut self.parts else { return Ok(false) };
        let Parts { coordinator, wires, actions, .. } = &mut **parts;
        wires.pause(port.control.paused_until(), now, coordinator, actions);
        let mut rang = false;
        let moved = wires.round(now, coordinator, actions, &mut rang);
        // Also after an error: what the coordinator said before it counts.
        self.perform(now, port);
        if let Some(parts) = &mut self.parts {
            rang |= parts.wires.flush(&mut parts.coordinator)?;
        }
        if rang {
            port.ring();
        }
        moved
    }

    /// Does what the coordinator asked for.
    fn perform(&mut self, now: Duration, port: &Port) {
        let mut rang = false;
        while let Some(parts) = self.parts.as_mut().filter(|parts| !parts.actions.is_empty()) {
            let mut todo = std::mem::take(&mut parts.actions);
            for action in todo.drain(..) {
                let Some(parts) = &mut self.parts else { return };
                let Parts { coordinator, wires, actions, batches, .. } = &mut **parts;
                match wires.act(now, action, coordinator, actions, &mut rang) {
                    None => {}
                    Some(Action::Run(batch)) => batches.push_back(batch),
                    Some(Action::Fail { ticket, error }) => {
                        if let Some(entry) = self.tickets.remove(ticket) {
                            self.tickets.end(entry, Err(error));
                        }
                    }
                    Some(Action::Poison(error)) => self.poison(&for_others(&error), now, port),
                    Some(Action::Warn(text)) => event::tell_warning(&text),
                    Some(other) => unreachable!("the wires carry {other:?}"),
                }
            }
            // The buffer is used again.
            if let Some(parts) = self.parts.as_mut().filter(|parts| parts.actions.is_empty()) {
                parts.actions = todo;
            }
        }
        if rang {
            port.ring();
        }
    }

    /// Moves the running batch on by a chunk, or begins the next.
    fn advance(&mut self, now: Duration) -> Result<bool> {
        let (Some(parts), None) = (&mut self.parts, &self.over) else { return Ok(false) };
        let Some(running) = &mut parts.running else {
            parts.channel.progress()?;
            let Some(batch) = parts.batches.pop_front() else { return Ok(false) };
            self.begin(batch, now)?;
            return Ok(true);
        };
        match parts.channel.poll()? {
            Step::Pending => {
                running.check(now, &parts.channel)?;
                Ok(false)
            }
            Step::Progress => {
                running.moved = now;
                Ok(true)
            }
            Step::Ready(()) if running.go_on(&mut parts.channel)? => {
                running.moved = now;
                Ok(true)
            }
            Step::Ready(()) => {
                for entry in parts.running.take().into_iter().flat_map(|running| running.entries) {
                    self.tickets.end(entry, Ok(()));
                }
                Ok(true)
            }
        }
    }

    fn begin(&mut self, batch: Batch, now: Duration) -> Result<()> {
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let entries: Vec<Entry> = batch.items.iter().filter_map(|item| self.tickets.remove(item.ticket)).collect();
        let gone = entries.len() < batch.items.len();
        // From here on the end of the set ends them.
        let running = parts.running.insert(Running::new(entries, &batch, now));
        parts.coordinator.recycle_batch(batch);
        if gone {
            // A ticket that is gone was cancelled after the ranks had agreed.
            return Err(Error::Poisoned("an operation was given up after the ranks had agreed to run it".into()));
        }
        running.begin(&mut parts.channel)
    }

    fn cancel(&mut self, ticket: Ticket, now: Duration, port: &Port) {
        self.tell(now, Event::Withdraw { ticket }, port);
        let Some(parts) = &mut self.parts else { return };
        let waits = parts.batches.iter().any(|batch| batch.items.iter().any(|item| item.ticket == ticket));
        let runs = parts.running.iter().flat_map(|running| &running.entries).find(|entry| entry.ticket == ticket);
        if let Some(entry) = runs {
            let error = too_late(entry.flight.name());
            self.poison(&error, now, port);
        } else if let Some(entry) = self.tickets.remove(ticket) {
            let name = Arc::clone(entry.flight.name());
            self.tickets.end(entry, Err(Error::Cancelled(Arc::clone(&name))));
            if waits {
                self.poison(&too_late(&name), now, port);
            }
        }
    }

    /// Ends the set on this rank if the others cannot go on. Asked when nothing moves.
    fn heed_others(&mut self, now: Duration, port: &Port) -> Result<bool> {
        let Some(parts) = &mut self.parts else { return Ok(false) };
        let poisoned = parts.culprit();
        if poisoned.is_none() && now < parts.look_at {
            return Ok(false);
        }
        parts.look_at = now + LOOK;
        let what = parts.waits_for();
        if !parts.heard_poison {
            let gone = what.as_ref().is_some_and(|(_, ranks)| ranks.iter().any(|&rank| is_gone(port, rank)));
            parts.heard_poison = poisoned.is_some() || gone;
            // Whatever they had said before is there by now: an error of the log says more than their silence.
            return Ok(parts.heard_poison);
        }
        if let Some((what, ranks)) = what {
            port.expect(&what, &ranks)?;
        }
        let Some(rank) = poisoned else {
            parts.heard_poison = false;
            return Ok(false);
        };
        let text = format!("rank {rank} gave up an operation of this set; make a new process set, or end the job");
        Err(Error::Poisoned(text.into()))
    }

    /// Ends the set, here and on the peers: no memory of any operation is touched any more.
    fn poison(&mut self, error: &Error, now: Duration, port: &Port) {
        if self.over.is_some() {
            return;
        }
        if let Some(parts) = self.parts.as_mut().filter(|_| !matches!(error, Error::Failed(_))) {
            let team = parts.channel.team();
            let rank = parts.culprit().unwrap_or_else(|| team.global(team.rank()));
            // All operations: the set has no others to finish.
            parts.channel.arena().poison(1, rank);
            parts.wires.say_farewell(rank);
            port.ring();
        }
        self.end_all(error, now);
    }

    fn end_all(&mut self, error: &Error, now: Duration) {
        let others = for_others(error);
        self.over.get_or_insert_with(|| Over { error: others.clone(), linger_until: now + LINGER });
        let mut running = None;
        if let Some(parts) = &mut self.parts {
            // First: the flights' owners may touch the memory as soon as they see that the flights are over.
            parts.channel.poison(error.clone());
            parts.batches.clear();
            running = parts.running.take();
            let end = match error {
                Error::Failed(failure) => Event::Failed(failure),
                error => Event::Poisoned(error),
            };
            // What it would have the set do ends with the set: all tickets are taken out below.
            parts.coordinator.step(now, end, &mut Vec::new());
        }
        for entry in running.into_iter().flat_map(|running| running.entries) {
            self.tickets.end(entry, Err(error.clone()));
        }
        for entry in self.tickets.drain() {
            self.tickets.end(entry, Err(others.clone()));
        }
    }
}

impl Parts {
    fn is_idle(&self) -> bool {
        self.running.is_none()
            && self.batches.is_empty()
            && self.coordinator.is_quiet()
            && self.wires.is_flushed()
            && self.channel.is_flushed()
    }

    /// The global rank because of which another member or host has given up.
    fn culprit(&self) -> Option<u32> {
        self.channel.arena().poisoned(u64::MAX).or_else(|| self.wires.farewell())
    }

    /// What the set waits for, and the global ranks without which it cannot go on.
    fn waits_for(&self) -> Option<(String, Vec<u32>)> {
        if let Some(running) = &self.running {
            return Some((running.describe(), self.channel.missing()));
        }
        // No operation can end without all ranks of the set.
        let pending = self.coordinator.pending() > 0;
        pending.then(|| ("the tensors in flight".to_owned(), self.channel.team().globals().to_vec()))
    }

    /// Sends what waits to be sent, when nothing else is done any more.
    fn flush_last(&mut self) -> Result<()> {
        self.channel.take_leave();
        self.wires.ignore_leaders()?;
        self.wires.flush(&mut self.coordinator).map(|_| ())
    }
}

fn is_gone(port: &Port, rank: u32) -> bool {
    (port.absence)(rank).is_some_and(|absence| absence.is_final())
}

/// What `error`, which ended the set, is to the operations that it does not speak of.
fn for_others(error: &Error) -> Error {
    match error {
        Error::Failed(_) | Error::Poisoned(_) => error.clone(),
        other => Error::Poisoned(format!("the set can no longer be used: {other}").into()),
    }
}

fn too_late(name: &str) -> Error {
    Error::Poisoned(
        format!("'{name}' was given up after the ranks had agreed to run it; make a new process set, or end the job")
            .into(),
    )
}
