//! This rank's own submissions that neither ran nor failed, in the order of submission.

use std::sync::Arc;
use std::time::Duration;

use super::NONE;
use super::api::Ticket;
use super::request::Request;

/// How a submission stands.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Its slot's bit is set.
    Bit(u32),
    /// Its frame is published.
    Frame(Arc<Request>),
    /// A frame says that the call was refused here. There is no ticket.
    Invalid,
    /// Withdrawn: the bit is taken back, the log has not confirmed.
    WithdrawnBit,
    /// Withdrawn: a frame says so, the log has not confirmed.
    WithdrawnFrame,
    /// Waits for the name's earlier, invalid or withdrawn submission to end.
    Parked(Parked),
}

/// What a parked submission will be.
#[derive(Clone, Debug)]
pub(super) enum Parked {
    Request(Arc<Request>),
    Invalid(Box<str>),
}

#[derive(Clone, Debug)]
pub(super) struct Local {
    /// `None`: the call was refused and already has its error.
    pub(super) ticket: Option<Ticket>,
    /// Index into the name table.
    pub(super) name: u32,
    pub(super) form: Form,
    pub(super) urgent: bool,
    pub(super) since: Duration,
    pub(super) deadline: Duration,
    /// The decider was told that the deadline has passed.
    pub(super) expired: bool,
    prev: u32,
    next: u32,
}

impl Local {
    pub(super) fn new(ticket: Option<Ticket>, name: u32, form: Form, since: Duration, deadline: Duration) -> Self {
        Self { ticket, name, form, urgent: false, since, deadline, expired: false, prev: NONE, next: NONE }
    }

    /// Published, and waiting for the peers.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(self.form, Form::Bit(_) | Form::Frame(_))
    }
}

/// A list threaded through a slab: removal from the middle keeps the order and costs nothing.
#[derive(Debug)]
pub(super) struct Locals {
    slab: Vec<Local>,
    vacant: Vec<u32>,
    head: u32,
    tail: u32,
    tickets: usize,
    unfinished: usize,
    urgent: usize,
}

impl Locals {
    pub(super) fn new() -> Self {
        Self { slab: Vec::new(), vacant: Vec::new(), head: NONE, tail: NONE, tickets: 0, unfinished: 0, urgent: 0 }
    }

    /// How many have a ticket.
    pub(super) fn tickets(&self) -> usize {
        self.tickets
    }

    /// How many are published and wait for the peers.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Whether somebody blocks on any.
    pub(super) fn any_urgent(&self) -> bool {
        self.urgent > 0
    }

    pub(super) fn get(&self, index: u32) -> &Local {
        &self.slab[index as usize]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Local {
        &mut self.slab[index as usize]
    }

    pub(super) fn push(&mut self, mut local: Local) -> u32 {
        local.prev = self.tail;
        local.next = NONE;
        self.tickets += usize::from(local.ticket.is_some());
        self.unfinished += usize::from(local.is_unfinished());
        self.urgent += usize::from(local.urgent);
        let index = match self.vacant.pop() {
            Some(index) => {
                self.slab[index as usize] = local;
                index
            }
            None => {
                self.slab.push(local);
                self.slab.len() as u32 - 1
            }
        };
        match self.tail {
            NONE => self.head = index,
            tail => self.slab[tail as usize].next = index,
        }
        self.tail = index;
        index
    }

    pub(super) fn remove(&mut self, index: u32) -> Local {
        let local = std::mem::replace(
            &mut self.slab[index as usize],
            Local::new(None, NONE, Form::Invalid, Duration::ZERO, Duration::ZERO),
        );
        match local.prev {
            NONE => self.head = local.next,
            prev => self.slab[prev as usize].next = local.next,
        }
        match local.next {
            NONE => self.tail = local.prev,
            next => self.slab[next as usize].prev = local.prev,
        }
        self.tickets -= usize::from(local.ticket.is_some());
        self.unfinished -= usize::from(local.is_unfinished());
        self.urgent -= usize::from(local.urgent);
        self.vacant.push(index);
        local
    }

    pub(super) fn set_form(&mut self, index: u32, form: Form) -> Form {
        let local = &mut self.slab[index as usize];
        let before = local.is_unfinished();
        let old = std::mem::replace(&mut local.form, form);
        self.unfinished = self.unfinished + usize::from(local.is_unfinished()) - usize::from(before);
        old
    }

    pub(super) fn set_urgent(&mut self, index: u32) {
        let local = &mut self.slab[index as usize];
        self.urgent += usize::from(!local.urgent);
        local.urgent = true;
    }

    /// Indices in the order of submission.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let index = at;
            (index != NONE).then(|| {
                at = self.slab[index as usize].next;
                index
            })
        })
    }

    /// The submission of a ticket. Waits begin with the oldest, so the walk is short.
    pub(super) fn find(&self, ticket: Ticket) -> Option<u32> {
        self.iter().find(|index| self.get(*index).ticket == Some(ticket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_removal_and_reuse() {
        let mut locals = Locals::new();
        let local = |n| Local::new(Some(Ticket(n)), 0, Form::Bit(0), Duration::ZERO, Duration::ZERO);
        let indices: Vec<u32> = (0..5).map(|n| locals.push(local(n))).collect();
        for removed in [2, 0, 4] {
            locals.remove(indices[removed]);
        }
        locals.push(local(5));
        locals.set_urgent(indices[3]);
        locals.set_form(indices[1], Form::Invalid);
        let tickets: Vec<u64> = locals.iter().filter_map(|i| locals.get(i).ticket).map(|t| t.0).collect();
        assert_eq!(tickets, [1, 3, 5]);
        assert_eq!((locals.tickets(), locals.unfinished(), locals.any_urgent()), (3, 2, true));
        assert_eq!(locals.find(Ticket(3)), Some(indices[3]));
        locals.remove(indices[3]);
        assert!(!locals.any_urgent());
        assert_eq!(locals.find(Ticket(3)), None);
    }
}
