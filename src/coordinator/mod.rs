//! Agrees which named tensors run next, in one order on every rank. README.md beside this file states the protocol.
//!
//! Pure: `step(now, event) -> actions`. No clock, thread, lock, FFI or shared memory; no order of a hash map is observable.

mod api;
mod apply;
mod called;
mod census;
mod decide;
mod entry;
mod frame;
mod hosts;
mod join;
mod kind;
mod locals;
mod message;
mod names;
mod peers;
mod request;
mod slots;
mod stall;
mod submit;
mod window;
mod wire;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
pub(crate) use api::MAX_FRAME;
pub(crate) use api::{Action, Batch, BatchItem, Event, Params, Ticket, Topology};
pub(crate) use called::{check_user_name, step_name, without_step};
pub(crate) use join::{JOIN, has_joined};
pub(crate) use kind::Kind;
pub(crate) use request::{Device, Group, Request, Spec};
pub(crate) use stall::Stalled;

use crate::error::{Error, Result};

/// No index: slots, names and submissions are counted by `u32`.
const NONE: u32 = u32::MAX;

/// Negotiation of one process set on one rank.
#[derive(Debug)]
pub(crate) struct Coordinator {
    params: Params,
    topology: Topology,
    /// Set rank -> host.
    host_of: Vec<u32>,
    /// Set rank -> member of its host.
    member_of: Vec<u32>,
    my_host: usize,
    my_member: usize,
    /// Members of this host.
    members: usize,
    /// Whether this rank may propose.
    decides: bool,

    /// Log position: entries processed.
    next: u64,
    slots: slots::Slots,
    names: names::Names,
    locals: locals::Locals,
    /// Set once: the error that every later submission gets.
    over: Option<Error>,

    /// Ready words of this host as last read: `[word * members + member]`.
    bits: Vec<u64>,
    /// Position that each rank's last frame reported.
    as_of: Vec<u64>,
    /// Serial of this rank's last withdrawal.
    serial: u64,
    /// Highest serial of each rank's withdrawals in the log.
    withdrawn: Vec<u64>,
    withdrawals: Vec<peers::Withdrawal>,
    expired: Vec<peers::Expired>,
    /// Submissions to publish once the entry in hand is processed.
    resubmit: Vec<u32>,

    /// The index of the proposal or install that was not read back yet.
    proposed: Option<u64>,
    hosts: hosts::Hosts,
    census: census::Census,
    joins: join::Joins,
    window: window::Window,
    scratch: decide::Scratch,
    stall: stall::Watch,
    /// Something changed since proposals were last considered.
    dirty: bool,
    /// The last `WakeAt`.
    wake: Option<Duration>,
    spare_bytes: Vec<Vec<u8>>,
    spare_batches: Vec<Vec<BatchItem>>,
}

impl Coordinator {
    /// The state before anything was submitted. Equal `params` and `topology` (but for `me`) on every rank.
    ///
    /// # Errors
    /// [`Error::Argument`] if a parameter is out of bounds or the topology is not a partition of the ranks.
    pub(crate) fn new(params: Params, topology: Topology) -> Result<Self> {
        check(&params, &topology)?;
        let size = topology.global.len();
        let (mut host_of, mut member_of) = (vec![0; size], vec![0; size]);
        for (host, members) in topology.hosts.iter().enumerate() {
            for (member, rank) in members.iter().enumerate() {
                host_of[*rank as usize] = host as u32;
                member_of[*rank as usize] = member as u32;
            }
        }
        let my_host = host_of[topology.me as usize] as usize;
        let my_member = member_of[topology.me as usize] as usize;
        let members = topology.hosts[my_host].len();
        let decides = topology.hosts.len() == 1 || (my_host, my_member) == (0, 0);
        let words = params.capacity.div_ceil(64);
        Ok(Self {
            host_of,
            member_of,
            my_host,
            my_member,
            members,
            decides,
            next: 0,
            slots: slots::Slots::new(params.capacity),
            names: names::Names::new(size),
            locals: locals::Locals::new(),
            over: None,
            bits: vec![0; words * members],
            as_of: vec![0; size],
            serial: 0,
            withdrawn: vec![0; size],
            withdrawals: Vec::new(),
            expired: Vec::new(),
            resubmit: Vec::new(),
            proposed: None,
            hosts: hosts::Hosts::new(topology.hosts.len(), words),
            census: census::Census::new(topology.hosts.len()),
            joins: join::Joins::new(size),
            window: window::Window::default(),
            scratch: decide::Scratch::new(words),
            stall: stall::Watch::new(params.capacity),
            dirty: false,
            wake: None,
            spare_bytes: Vec::new(),
            spare_batches: Vec::new(),
            params,
            topology,
        })
    }

    /// Takes one event in and appends what has to be done, in order.
    pub(crate) fn step(&mut self, now: Duration, event: Event<'_>, actions: &mut Vec<Action>) {
        if self.over.is_some() {
            return self.refuse(event, actions);
        }
        match event {
            Event::Submit { ticket, request, urgent, deadline } => {
                self.submit(now, ticket, request, urgent, deadline, actions);
            }
            Event::SubmitFailed { name, reason } => self.submit_failed(now, name, reason, actions),
            Event::Urgent { ticket } => {
                if let Some(index) = self.locals.find(ticket) {
                    self.locals.set_urgent(index);
                    self.dirty = true;
                }
            }
            Event::Join { ticket, deadline } => self.join(now, ticket, deadline, actions),
            Event::Withdraw { ticket } => self.withdraw(ticket, actions),
            Event::PeerRequest { member, bytes } => self.peer_frame(member, bytes, actions),
            Event::PeerBits { member, word, bits } => self.peer_bits(member, word, bits),
            Event::Entry { index, bytes } => self.entry(index, bytes, actions),
            Event::ProposeFailed { index } => {
                if self.proposed == Some(index) {
                    self.proposed = None;
                    self.dirty = true;
                }
            }
            Event::HostMessage { host, bytes } => self.host_message(host, bytes, actions),
            Event::Pause { until } => self.stall.pause(until),
            Event::Failed(failure) => self.end(Error::Failed(Arc::new(failure.clone())), actions),
            Event::Poisoned(error) => self.end(poisoned(error), actions),
            Event::Tick => self.tick(now, actions),
        }
    }

    /// Whether this member needs the rings and words of its host's other members.
    pub(crate) fn watches_peers(&self) -> bool {
        self.my_member == 0 || self.decides
    }

    /// Words that can be anything but zero.
    pub(crate) fn words_in_use(&self) -> usize {
        self.slots.words_in_use()
    }

    /// Local submissions that neither ran nor failed.
    pub(crate) fn pending(&self) -> usize {
        self.locals.tickets() + usize::from(self.joins.ticket().is_some())
    }

    /// The names of those submissions, the oldest first.
    pub(crate) fn names_in_flight(&self) -> impl Iterator<Item = &str> {
        let with_ticket = self.locals.iter().map(|index| self.locals.get(index)).filter(|local| local.ticket.is_some());
        let join = self.joins.ticket().map(|_| JOIN);
        with_ticket.map(|local| &*self.names.get(local.name).name).chain(join)
    }

    /// Whether this rank has nothing outstanding: no submission, and no refused or withdrawn one that the log has yet to
    /// confirm.
    pub(crate) fn is_quiet(&self) -> bool {
        self.locals.iter().next().is_none() && self.joins.ticket().is_none()
    }

    /// Takes back the bytes of an action, to be reused.
    pub(crate) fn recycle_bytes(&mut self, mut bytes: Vec<u8>) {
        if self.spare_bytes.len() < 64 {
            bytes.clear();
            self.spare_bytes.push(bytes);
        }
    }

    /// Takes back a batch, to be reused.
    pub(crate) fn recycle_batch(&mut self, mut batch: Batch) {
        if self.spare_batches.len() < 64 {
            batch.items.clear();
            self.spare_batches.push(batch.items);
        }
    }

    fn size(&self) -> usize {
        self.host_of.len()
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.spare_bytes.pop().unwrap_or_default()
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.settle_census(now);
        self.scan(now, actions);
        if self.over.is_some() {
            return;
        }
        self.count_expired(now, actions);
        if self.proposed.is_none() {
            if self.decides {
                self.decide(now, actions);
            } else {
                self.install(actions);
            }
        }
        self.report_to_first(actions);
        let wake = match (self.window.until(), self.stall.next_scan()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if let Some(wake) = wake
            && self.wake.is_none_or(|earlier| earlier <= now || wake < earlier)
        {
            self.wake = Some(wake);
            actions.push(Action::WakeAt(wake));
        }
    }

    /// The set ends: every pending ticket fails.
    fn end(&mut self, error: Error, actions: &mut Vec<Action>) {
        let mut tickets: Vec<_> = self.locals.iter().filter_map(|index| self.locals.get(index).ticket).collect();
        tickets.extend(self.joins.take());
        actions.extend(tickets.into_iter().map(|ticket| Action::Fail { ticket, error: error.clone() }));
        self.locals = locals::Locals::new();
        self.over = Some(error);
    }

    /// The set ends by this rank's own finding, which the others must hear of.
    fn poison(&mut self, text: String, actions: &mut Vec<Action>) {
        let error = Error::Poisoned(text.into());
        actions.push(Action::Poison(error.clone()));
        self.end(error, actions);
    }

    /// What remains to be done once the set is over.
    fn refuse(&mut self, event: Event<'_>, actions: &mut Vec<Action>) {
        match (event, &self.over) {
            (Event::Submit { ticket, .. } | Event::Join { ticket, .. }, Some(error)) => {
                actions.push(Action::Fail { ticket, error: error.clone() });
            }
            // A failure says more than that the set was poisoned.
            (Event::Failed(failure), Some(Error::Poisoned(_))) => {
                self.over = Some(Error::Failed(Arc::new(failure.clone())));
            }
            _ => {}
        }
    }
}

/// The error of everything that was pending when `error` ended the set.
fn poisoned(error: &Error) -> Error {
    match error {
        Error::Failed(_) | Error::Poisoned(_) => error.clone(),
        other => Error::Poisoned(format!("the set can no longer be used: {other}").into()),
    }
}

fn check(params: &Params, topology: &Topology) -> Result<()> {
    let size = topology.global.len();
    let mut seen = vec![false; size];
    for rank in topology.hosts.iter().flatten() {
        match seen.get_mut(*rank as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Error::argument(format!("set rank {rank} is twice in the topology, or not below {size}"))),
        }
    }
    if size == 0 || seen.contains(&false) || topology.hosts.iter().any(Vec::is_empty) {
        return Err(Error::argument("the topology leaves out a rank, or has a host without ranks"));
    }
    if topology.me as usize >= size {
        return Err(Error::argument(format!("this rank is {} in a set of {size}", topology.me)));
    }
    if params.capacity == 0 || params.capacity > 1 << 16 {
        return Err(Error::argument(format!("{} cached names: use 1 to 65536", params.capacity)));
    }
    let least = Params::MIN_ENTRY.max(2048 + size / 4);
    if params.max_entry < least || params.max_message < params.max_entry + 64 {
        return Err(Error::argument(format!(
            "entries of {} bytes in messages of {}: {size} ranks need at least {least}, and messages 64 bytes more",
            params.max_entry, params.max_message
        )));
    }
    Ok(())
}
