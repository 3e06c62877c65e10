//! A set of ranks that negotiate: named operations from their submission to their end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::driver::Driver;
use super::tickets::{Entry, Tickets};
use super::wires::Wires;
use crate::coordinator::{Action, Batch, Coordinator, Event, Kind, Params, Request, Ticket, Topology};
use crate::engine::{Built, Channel, Collective, Operation, Pieces, Port, Step, Team};
use crate::error::{Error, Result};
use crate::event;

/// The named operations of one set on one rank.
///
/// One lock holds everything that a poll touches. It is held for at most a chunk of work, never while waiting and never
/// in user code, so whoever needs it may simply take it.
#[derive(Debug)]
pub(crate) struct NamedSet {
    pub(crate) driver: Arc<Driver>,
    team: Arc<Team>,
    core: Mutex<Core>,
    /// Whether a poll could do anything.
    busy: AtomicBool,
}

struct Core {
    channel: Channel,
    coordinator: Coordinator,
    wires: Wires,
    tickets: Tickets,
    /// Agreed batches that wait for their turn in the channel.
    batches: VecDeque<Batch>,
    running: Option<Running>,
    actions: Vec<Action>,
    over: Option<Error>,
}

/// The batch in the channel.
struct Running {
    entries: Vec<Entry>,
    /// When it last moved.
    moved: Duration,
    warned: bool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("channel", &self.channel).field("wires", &self.wires).finish_non_exhaustive()
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
        let coordinator = Coordinator::new(params, topology)?;
        let wires = Wires::new(channel.arena(), &team, negotiation);
        let core = Core {
            channel,
            coordinator,
            wires,
            tickets: Tickets::default(),
            batches: VecDeque::new(),
            running: None,
            actions: Vec::new(),
            over: None,
        };
        let set = Arc::new(Self { driver, team, core: Mutex::new(core), busy: AtomicBool::new(false) });
        set.driver.adopt(&set);
        Ok(set)
    }

    pub(crate) fn team(&self) -> &Team {
        &self.team
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A poll that panicked is a defect of kolo; its set is failed by whoever finds it, not by this lock.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an operation in. `entry`'s memory is the set's until its flight is over.
    ///
    /// # Errors
    /// A wrong or duplicate request, locally; the peers learn of it where they wait for this rank.
    pub(crate) fn submit(
        &self,
        request: &Request,
        entry: Entry,
        urgent: bool,
        deadline: Option<Duration>,
    ) -> Result<Ticket> {
        let flight = Arc::clone(&entry.flight);
        let now = self.driver.now();
        let ticket = {
            let mut core = self.lock();
            if let Some(error) = &core.over {
                return Err(error.clone());
            }
            let ticket = core.tickets.insert(entry);
            let Core { coordinator, actions, wires, .. } = &mut *core;
            coordinator.step(now, Event::Submit { ticket, request, urgent, deadline }, actions);
            wires.touch();
            core.perform(now, self.driver.port());
            self.busy.store(true, Ordering::Release);
            ticket
        };
        // A request that is refused at once ends before it counts as in flight.
        match flight.outcome() {
            Some(Err(error)) => Err(error),
            _ => {
                self.driver.submitted(urgent)?;
                Ok(ticket)
            }
        }
    }

    /// Tells the peers that submit `name` that this rank's call was refused.
    pub(crate) fn refuse(&self, name: &str, reason: &str) {
        let now = self.driver.now();
        let mut core = self.lock();
        let Core { coordinator, actions, wires, .. } = &mut *core;
        coordinator.step(now, Event::SubmitFailed { name, reason }, actions);
        wires.touch();
        core.perform(now, self.driver.port());
    }

    /// Somebody begins to wait for the operation.
    pub(crate) fn urge(&self, ticket: Ticket) {
        let now = self.driver.now();
        let mut core = self.lock();
        let Core { coordinator, actions, wires, .. } = &mut *core;
        coordinator.step(now, Event::Urgent { ticket }, actions);
        wires.touch();
    }

    /// Gives an operation up. When this returns, its memory is not touched any more.
    ///
    /// Before the ranks agreed on it, the name is withdrawn; after that, the set is poisoned.
    pub(crate) fn cancel(&self, ticket: Ticket) {
        let now = self.driver.now();
        let ended = {
            let mut core = self.lock();
            core.cancel(ticket, now, self.driver.port());
            core.tickets.take_ended()
        };
        self.driver.completed(ended);
    }

    /// Advances the set unless another thread is doing so. Returns what it came to, and when to look again.
    pub(crate) fn try_poll(&self, now: Duration) -> Option<(Step, Option<Duration>)> {
        if !self.busy.load(Ordering::Acquire) {
            return Some((Step::Pending, None));
        }
        let mut core = match self.core.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(core)) => core.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let moved = core.poll(now, self.driver.port());
        let ended = core.tickets.take_ended();
        let wake_at = core.wires.tick_at();
        if core.is_idle() {
            self.busy.store(false, Ordering::Release);
        }
        drop(core);
        self.driver.completed(ended);
        let step = if moved || ended > 0 { Step::Progress } else { Step::Pending };
        Some((step, wake_at))
    }

    /// Ends every operation in flight with `error`; the set takes no more.
    pub(crate) fn shut(&self, error: &Error) {
        let ended = {
            let mut core = self.lock();
            core.end_all(error);
            core.tickets.take_ended()
        };
        self.driver.completed(ended);
    }
}

impl Core {
    fn is_idle(&self) -> bool {
        self.tickets.is_empty()
            && self.running.is_none()
            && self.batches.is_empty()
            && self.wires.is_flushed()
            && self.channel.is_flushed()
    }

    /// One round of negotiation and one step of data. Returns whether anything moved.
    fn poll(&mut self, now: Duration, port: &Port) -> bool {
        if self.over.is_some() {
            return false;
        }
        let outcome = port.check().and_then(|()| {
            let talked = self.negotiate(now, port)?;
            let moved = self.advance(now)?;
            Ok(talked || moved)
        });
        let outcome = match outcome {
            Ok(false) => self.heed_poison().map(|()| false),
            other => other,
        };
        outcome.unwrap_or_else(|error| {
            self.poison(&error, port);
            true
        })
    }

    fn negotiate(&mut self, now: Duration, port: &Port) -> Result<bool> {
        let Self { coordinator, wires, actions, .. } = self;
        let moved = wires.round(now, coordinator, actions)?;
        self.perform(now, port);
        if self.wires.flush(&mut self.coordinator)? {
            port.ring();
        }
        Ok(moved)
    }

    /// Does what the coordinator asked for.
    fn perform(&mut self, now: Duration, port: &Port) {
        let mut rang = false;
        while !self.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.actions);
            for action in actions.drain(..) {
                let Self { coordinator, wires, actions, .. } = self;
                match wires.act(now, action, coordinator, actions, &mut rang) {
                    None => {}
                    Some(Action::Run(batch)) => self.batches.push_back(batch),
                    Some(Action::Fail { ticket, error }) => {
                        if let Some(entry) = self.tickets.remove(ticket) {
                            self.tickets.end(&entry, Err(error));
                        }
                    }
                    Some(Action::Poison(error)) => self.poison(&error, port),
                    Some(Action::Warn(text)) => event::tell_warning(&text),
                    Some(other) => unreachable!("the wires carry {other:?}"),
                }
            }
            if self.actions.is_empty() {
                self.actions = actions;
            }
        }
        if rang {
            port.ring();
        }
    }

    /// Moves the running batch on by a chunk, or begins the next.
    fn advance(&mut self, now: Duration) -> Result<bool> {
        let Some(running) = &mut self.running else {
            let Some(batch) = self.batches.pop_front() else { return Ok(false) };
            self.begin(batch, now)?;
            return Ok(true);
        };
        match self.channel.poll()? {
            Step::Pending => {
                running.check(now, &self.channel)?;
                Ok(false)
            }
            Step::Progress => {
                running.moved = now;
                Ok(true)
            }
            Step::Ready(()) => {
                for entry in self.running.take().into_iter().flat_map(|running| running.entries) {
                    self.tickets.end(&entry, Ok(()));
                }
                Ok(true)
            }
        }
    }

    fn begin(&mut self, batch: Batch, now: Duration) -> Result<()> {
        let mut entries: Vec<Entry> = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            // A ticket that is gone was cancelled after the ranks had agreed: the set is over.
            let gone = || Error::Poisoned("an operation was given up after the ranks had agreed to run it".into());
            entries.push(self.tickets.remove(item.ticket).ok_or_else(gone)?);
        }
        let (op, root) = match batch.spec.kind {
            Kind::Allreduce { op } => (Some(op), 0),
            Kind::Broadcast { root } => (None, root as usize),
        };
        let pieces = match entries.as_slice() {
            [entry] => Pieces::One([entry.piece]),
            entries => Pieces::Many(entries.iter().map(|entry| entry.piece).collect()),
        };
        let operation = Operation {
            collective: Collective::Logged { index: batch.index as u32, op, root },
            dtype: batch.spec.dtype,
            count: batch.items.iter().map(|item| item.elements as usize).sum(),
            prescale: batch.spec.prescale,
            postscale: batch.spec.postscale,
            pieces,
        };
        self.running = Some(Running { entries, moved: now, warned: false });
        self.coordinator.recycle_batch(batch);
        self.channel.begin(operation)
    }

    fn cancel(&mut self, ticket: Ticket, now: Duration, port: &Port) {
        let Self { coordinator, wires, actions, .. } = self;
        coordinator.step(now, Event::Withdraw { ticket }, actions);
        wires.touch();
        self.perform(now, port);
        let agreed = self.batches.iter().any(|batch| batch.items.iter().any(|item| item.ticket == ticket));
        match self.tickets.remove(ticket) {
            Some(entry) => {
                let name = Arc::clone(entry.flight.name());
                if agreed {
                    self.poison(&too_late(&name), port);
                }
                self.tickets.end(&entry, Err(Error::Cancelled(name)));
            }
            // Not waiting for its turn and not over: it is in the channel.
            None => {
                if let Some(running) = &self.running
                    && let Some(entry) = running.entries.iter().find(|entry| entry.ticket == ticket)
                {
                    let error = too_late(entry.flight.name());
                    self.poison(&error, port);
                }
            }
        }
    }

    /// Ends the set on this rank if a peer has poisoned it.
    fn heed_poison(&self) -> Result<()> {
        let Some(member) = self.channel.arena().poisoned() else { return Ok(()) };
        let rank = self.channel.global(member);
        Err(Error::Poisoned(
            format!("rank {rank} gave up an operation of this set; make a new process set, or end the job").into(),
        ))
    }

    /// Ends the set, here and on the peers: no memory of any operation is touched any more.
    fn poison(&mut self, error: &Error, port: &Port) {
        if self.over.is_some() {
            return;
        }
        if !matches!(error, Error::Failed(_)) {
            self.channel.arena().poison();
            port.ring();
        }
        self.end_all(error);
    }

    fn end_all(&mut self, error: &Error) {
        self.over.get_or_insert_with(|| error.clone());
        self.channel.poison(error.clone());
        self.batches.clear();
        let running = self.running.take().into_iter().flat_map(|running| running.entries);
        for entry in self.tickets.drain().into_iter().chain(running) {
            self.tickets.end(&entry, Err(error.clone()));
        }
    }
}

fn too_late(name: &str) -> Error {
    Error::Poisoned(
        format!("'{name}' was given up after the ranks had agreed to run it; make a new process set, or end the job")
            .into(),
    )
}

impl Running {
    /// Warns once, then fails, when the batch has not moved for long.
    fn check(&mut self, now: Duration, channel: &Channel) -> Result<()> {
        let port = channel.port();
        let waited = now.saturating_sub(self.moved);
        if waited < port.warning.min(port.deadline) || port.is_paused() {
            return Ok(());
        }
        let names: Vec<&str> = self.entries.iter().take(4).map(|entry| &**entry.flight.name()).collect();
        let more = self.entries.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = format!("reducing '{}'{more}", names.join("', '"));
        let missing = port.blame(&channel.missing());
        if waited >= port.deadline {
            return Err(Error::Timeout { what: what.into(), waited, missing: missing.into() });
        }
        if !self.warned {
            self.warned = true;
            event::tell_warning(&format!("{what}: nothing moved for {waited:.0?}; {missing}"));
        }
        Ok(())
    }
}
