//! What a lock of a set guards: its operations, and everything that a poll advances.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::running::{LISTED, Running, list};
use super::tickets::{Entry, Tickets};
use super::warning::Warnings;
use super::wires::Wires;
use crate::coordinator::{Action, Batch, Coordinator, Event, Params, Ticket, Topology};
use crate::engine::{BLAMED, Built, Channel, Doubt, Port, Step, Team};
use crate::error::{Error, Result};
use crate::event::Stage;

/// How long a set that is over tries to hand its last messages to other hosts.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// While nothing moves, how often to ask whether the ranks that are waited for still exist.
const LOOK: Duration = Duration::from_millis(100);
/// Messages between hosts move only while both ends look. While some are under way, how long to sleep between looks.
pub(super) const UNDER_WAY: Duration = Duration::from_micros(500);
/// The same while another host may begin to speak: that rings a bell, but the bell may be faster than the message.
pub(super) const EXPECTED: Duration = Duration::from_millis(5);

pub(super) struct Core {
    pub(super) tickets: Tickets,
    /// Absent once the rank has left: what reaches peers does not outlive the rank, though handles may.
    pub(super) parts: Option<Box<Parts>>,
    /// Whether the driver has this set among those with something to do.
    pub(super) active: bool,
    /// Until when the set is active though it has nothing to do for this rank: others wait, and need its word.
    pub(super) attends_until: Duration,
    pub(super) over: Option<Over>,
    /// A join that waits for the operations of several steps: the coordinator has not heard of it.
    join: Option<(Ticket, Option<Duration>)>,
}

/// What a poll advances.
pub(super) struct Parts {
    pub(super) channel: Channel,
    pub(super) coordinator: Coordinator,
    pub(super) wires: Wires,
    /// Agreed batches that wait for their turn in the channel.
    pub(super) batches: VecDeque<Batch>,
    pub(super) running: Option<Running>,
    actions: Vec<Action>,
    /// All have joined: the join, the log entry that says so, and who was the last. It ends after the batches before it.
    joined: Option<(Ticket, u64, u32)>,
    /// A rank gave up or is gone, and everything it had published before is read since.
    heard_all: bool,
    /// When to look again whether others are gone.
    look_at: Duration,
    doubt: Doubt,
    warnings: Warnings,
}

/// The end of the set.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) error: Error,
    /// How long it is worth trying to tell other hosts.
    linger_until: Duration,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let channel = self.parts.as_ref().map(|parts| &parts.channel);
        f.debug_struct("Core").field("channel", &channel).field("over", &self.over).finish_non_exhaustive()
    }
}

impl Core {
    pub(super) fn new(tickets: Tickets, built: Built, params: Params) -> Result<Self> {
        let Built { channel, negotiation, .. } = built;
        let team = channel.team();
        let topology = Topology {
            hosts: team.hosts().iter().map(|host| host.iter().map(|&rank| rank as u32).collect()).collect(),
            global: team.globals().to_vec(),
            me: team.rank() as u32,
        };
        let parts = Parts {
            coordinator: Coordinator::new(params, topology)?,
            wires: Wires::new(channel.arena(), team, negotiation),
            channel,
            batches: VecDeque::new(),
            running: None,
            actions: Vec::new(),
            joined: None,
            heard_all: false,
            look_at: Duration::ZERO,
            doubt: Doubt::default(),
            warnings: Warnings::default(),
        };
        let parts = Some(Box::new(parts));
        Ok(Self { tickets, parts, active: false, attends_until: Duration::ZERO, over: None, join: None })
    }

    /// Whether this rank has joined, and only ends what it had begun.
    pub(super) fn joins_later(&self) -> bool {
        self.join.is_some()
    }

    /// Whether no poll could do anything, for this rank or for others.
    pub(super) fn is_idle(&self, now: Duration) -> bool {
        let Some(parts) = &self.parts else { return true };
        match &self.over {
            Some(over) => parts.wires.is_flushed() || now >= over.linger_until,
            None => self.tickets.is_empty() && parts.is_idle() && now >= self.attends_until,
        }
    }

    pub(super) fn wake_at(&self, now: Duration, team: &Team) -> Option<Duration> {
        let parts = self.parts.as_ref()?;
        let moves = parts.running.is_some() || !(parts.wires.is_flushed() && parts.channel.is_flushed());
        let remote = (!team.is_local()).then(|| now + if moves { UNDER_WAY } else { EXPECTED });
        [parts.wires.tick_at(), remote].into_iter().flatten().min()
    }

    /// Tells the coordinator something that happened on this rank, and does what it asks for at once.
    pub(super) fn tell(&mut self, now: Duration, event: Event<'_>, port: &Port) {
        let Some(parts) = self.parts.as_mut().filter(|_| self.over.is_none()) else { return };
        if let Event::Join { ticket, deadline } = event
            && !self.tickets.courses.is_empty()
        {
            self.join = Some((ticket, deadline));
            return;
        }
        parts.coordinator.step(now, event, &mut parts.actions);
        parts.wires.touch();
        self.perform(now, port);
    }

    /// One round of negotiation and one step of data. Returns whether anything moved.
    pub(super) fn poll(&mut self, now: Duration, port: &Port) -> bool {
        let Some(parts) = &mut self.parts else { return false };
        if let Some(over) = &mut self.over {
            if parts.flush_last().is_err() {
                over.linger_until = Duration::ZERO;
            }
            return false;
        }
        if let Some((ticket, deadline)) = self.join.take_if(|_| self.tickets.courses.is_empty()) {
            self.tell(now, Event::Join { ticket, deadline }, port);
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

    pub(super) fn negotiate(&mut self, now: Duration, port: &Port) -> Result<bool> {
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
                let Parts { coordinator, wires, actions, batches, running, .. } = &mut **parts;
                match wires.act(now, action, coordinator, actions, &mut rang) {
                    None => {}
                    Some(Action::Run(batch)) => {
                        // Else it starts at once, which says as much.
                        if running.is_some() || !batches.is_empty() {
                            let agreed = Stage::Agreed(batch.index);
                            batch.items.iter().for_each(|item| self.tickets.reached(item.ticket, agreed, now));
                        }
                        batches.push_back(batch);
                    }
                    Some(Action::Joined { ticket, index, last }) => parts.joined = Some((ticket, index, last)),
                    Some(Action::Fail { ticket, mut error }) => {
                        if let Error::Timeout { missing, .. } = &mut error {
                            *missing = with_standings(missing, coordinator.late(), port);
                        }
                        if let Some(entry) = self.tickets.remove(ticket) {
                            self.tickets.end(entry, Err(error), now);
                        }
                    }
                    Some(Action::Poison(error)) => {
                        let culprit = parts.coordinator.culprit();
                        self.poison_for(&for_others(&error), culprit, now, port);
                    }
                    Some(Action::Warn { text, ranks, news }) => {
                        parts.warnings.say(&text, &ranks, news, now, &port.standing);
                    }
                    Some(Action::Summon) => port.summon(),
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
            if let Some((ticket, _, last)) =
                parts.joined.take_if(|(_, index, _)| parts.batches.front().is_none_or(|batch| batch.index > *index))
            {
                self.end_join(ticket, last, now);
                return Ok(true);
            }
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
                    self.tickets.end(entry, Ok(()), now);
                }
                Ok(true)
            }
        }
    }

    fn end_join(&mut self, ticket: Ticket, last: u32, now: Duration) {
        if let Some(entry) = self.tickets.remove(ticket) {
            if let Some(place) = &entry.last {
                place.is(last);
            }
            self.tickets.end(entry, Ok(()), now);
        }
    }

    fn begin(&mut self, batch: Batch, now: Duration) -> Result<()> {
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let started = Stage::Started(batch.index);
        batch.items.iter().for_each(|item| self.tickets.reached(item.ticket, started, now));
        let ranks = parts.channel.team().size();
        let mut entries: Vec<Entry> = batch.items.iter().filter_map(|item| self.tickets.remove(item.ticket)).collect();
        let gone = entries.len() < batch.items.len();
        for request in &batch.sat_out {
            entries.push(Entry::sat_out(request, ranks)?);
        }
        // From here on the end of the set ends them.
        let running = parts.running.insert(Running::new(entries, &batch, now));
        parts.coordinator.recycle_batch(batch);
        if gone {
            // A ticket that is gone was cancelled after the ranks had agreed.
            return Err(Error::Poisoned("an operation was given up after the ranks had agreed to run it".into()));
        }
        running.begin(&mut parts.channel)
    }

    pub(super) fn cancel(&mut self, ticket: Ticket, now: Duration, port: &Port) {
        if self.join.take_if(|(join, _)| *join == ticket).is_none() {
            self.tell(now, Event::Withdraw { ticket }, port);
        }
        let Some(parts) = &mut self.parts else { return };
        let waits = parts.batches.iter().any(|batch| batch.items.iter().any(|item| item.ticket == ticket));
        let runs = parts.running.iter().flat_map(|running| &running.entries).find(|entry| entry.ticket == Some(ticket));
        if let Some(entry) = runs {
            let error = too_late(entry.flight.name());
            self.poison(&error, now, port);
        } else if let Some(entry) = self.tickets.remove(ticket) {
            let name = Arc::clone(entry.flight.name());
            self.tickets.end(entry, Err(Error::Cancelled(Arc::clone(&name))), now);
            if waits {
                self.poison(&too_late(&name), now, port);
            }
        }
    }

    /// Ends the set on this rank if the others cannot go on. Asked when nothing moves.
    fn heed_others(&mut self, now: Duration, port: &Port) -> Result<bool> {
        let Some(parts) = &mut self.parts else { return Ok(false) };
        let culprit = parts.culprit();
        if culprit.is_none() && now < parts.look_at {
            return Ok(false);
        }
        parts.look_at = now + LOOK;
        parts.wires.lose_patience();
        let waits = parts.waits_for();
        if culprit.is_some() {
            parts.doubt.settle();
        }
        let ranks = waits.as_ref().map_or(&[][..], |(_, ranks)| ranks);
        let gone = port.gone(ranks, &mut parts.doubt);
        if culprit.is_none() && gone.is_none() {
            parts.heard_all = false;
            return Ok(false);
        }
        if !std::mem::replace(&mut parts.heard_all, true) {
            // Whatever they had said before is there by now: an error of the log says more than their silence.
            return Ok(true);
        }
        port.check()?;
        let what = waits.map_or_else(|| "the next operation".to_owned(), |(what, _)| what);
        let (error, rank) = match (gone, culprit) {
            (Some(absence), culprit) => {
                let rank = culprit.unwrap_or(absence.rank);
                (Error::Gone { what: what.into(), missing: absence.to_string().into() }, rank)
            }
            (None, culprit) => {
                let rank = culprit.unwrap_or_default();
                let text = format!(
                    "{what} cannot end: rank {rank} left, did not come, or gave up an operation of this set; make a new \
                     process set, or end the job"
                );
                (Error::Poisoned(text.into()), rank)
            }
        };
        self.poison_for(&error, Some(rank), now, port);
        Ok(true)
    }

    /// Ends the set, here and on the peers: no memory of any operation is touched any more.
    pub(super) fn poison(&mut self, error: &Error, now: Duration, port: &Port) {
        self.poison_for(error, None, now, port);
    }

    /// As [`poison`](Self::poison), because of the global rank `rank`, or of this one.
    fn poison_for(&mut self, error: &Error, rank: Option<u32>, now: Duration, port: &Port) {
        if self.over.is_some() {
            return;
        }
        // Of a failure every rank hears as such. That this one gives up because of it would only hide it.
        if let Some(parts) = self.parts.as_mut().filter(|_| port.check().is_ok()) {
            let team = parts.channel.team();
            let rank = parts.culprit().or(rank).unwrap_or_else(|| team.global(team.rank()));
            // Operations that this rank has done its part of go on elsewhere.
            let arena = parts.channel.arena();
            if arena.poisoned_member(arena.me()).is_none() {
                arena.poison(parts.channel.undone(), rank);
            }
            parts.wires.say_farewell(rank, arena.first_poisoned().unwrap_or(1));
            port.ring();
        }
        self.end_all(error, now);
    }

    pub(super) fn end_all(&mut self, error: &Error, now: Duration) {
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
            self.tickets.end(entry, Err(error.clone()), now);
        }
        let error_of = |name: &str| match error {
            // Nothing that was in flight can end without the rank.
            Error::Gone { missing, .. } => {
                Error::Gone { what: format!("tensor '{name}'").into(), missing: Arc::clone(missing) }
            }
            _ => others.clone(),
        };
        for entry in self.tickets.drain() {
            let error = error_of(entry.flight.name());
            self.tickets.end(entry, Err(error), now);
        }
        // Those between two steps.
        for (id, name) in self.tickets.courses.names() {
            self.tickets.end_course(id, Err(error_of(&name)));
        }
        self.join = None;
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

    /// The global rank because of which another member or host has given up what this rank waits for.
    fn culprit(&self) -> Option<u32> {
        let operation = match &self.running {
            // They may have done their part of it.
            Some(_) => self.channel.begun(),
            None if self.batches.is_empty() => u64::MAX,
            None => return None,
        };
        self.channel.arena().poisoned(operation).or_else(|| self.wires.farewell(operation))
    }

    /// What the set waits for, and the global ranks without which it cannot go on.
    fn waits_for(&self) -> Option<(String, Vec<u32>)> {
        if let Some(running) = &self.running {
            return Some((running.describe(), self.channel.missing()));
        }
        // No operation can end without all ranks of the set.
        let count = self.coordinator.pending();
        let names: Vec<&str> = self.coordinator.names_in_flight().take(LISTED).collect();
        (count > 0).then(|| (list(&names, count), self.channel.team().globals().to_vec()))
    }

    /// Sends what waits to be sent, when nothing else is done any more.
    pub(super) fn flush_last(&mut self) -> Result<()> {
        self.channel.take_leave();
        self.wires.ignore_leaders()?;
        self.wires.flush(&mut self.coordinator).map(|_| ())
    }
}

/// Says of each rank that was late what it does.
fn with_standings(missing: &str, late: &[u32], port: &Port) -> Arc<str> {
    let standings = late.iter().take(BLAMED).map(|&rank| format!("; {}", (port.standing)(rank)));
    standings.fold(missing.to_owned(), |text, standing| text + &standing).into()
}

/// What `error`, which ended the set, is to the operations that it does not speak of.
fn for_others(error: &Error) -> Error {
    match error {
        Error::Failed(_) | Error::Poisoned(_) => error.clone(),
        other => Error::Poisoned(format!("the set can no longer be used: {other}").into()),
    }
}

pub(super) fn too_late(name: &str) -> Error {
    Error::Poisoned(
        format!("'{name}' was given up after the ranks had agreed to run it; make a new process set, or end the job")
            .into(),
    )
}
