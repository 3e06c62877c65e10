//! What local threads do: submit, refuse, withdraw.

use std::sync::Arc;
use std::time::Duration;

use super::api::{Action, Ticket};
use super::called::check_name;
use super::frame::{self, Target};
use super::locals::{Form, Local, Parked};
use super::request::Request;
use super::{Coordinator, NONE};
use crate::error::Error;

impl Coordinator {
    pub(super) fn submit(
        &mut self,
        now: Duration,
        ticket: Ticket,
        request: &Request,
        urgent: bool,
        deadline: Option<Duration>,
        actions: &mut Vec<Action>,
    ) {
        if let Some(error) = self.refusal(&request.name) {
            return actions.push(Action::Fail { ticket, error });
        }
        let deadline = deadline.unwrap_or(self.params.stall_deadline);
        let known = self.names.find(&request.name);
        if let Some(id) = known {
            let name = self.names.get(id);
            if name.local != NONE || name.parked != NONE {
                if name.parked != NONE || self.locals.get(name.local).is_unfinished() {
                    let error = Error::argument(format!(
                        "'{}' is already in flight on this rank; wait for it first, or use another name",
                        request.name
                    ));
                    actions.push(Action::Fail { ticket, error });
                    return;
                }
                // The earlier submission is invalid or withdrawn; the log has not said so yet.
                if let Err(error) = request.validate(self.size()) {
                    actions.push(Action::Fail { ticket, error });
                    return;
                }
                let form = Form::Parked(Parked::Request(Arc::new(request.clone())));
                let index = self.add(now, Some(ticket), id, form, urgent, deadline);
                self.names.get_mut(id).parked = index;
                return;
            }
            if name.slot != NONE && self.slots.get(name.slot).request.as_deref() == Some(request) {
                let slot = name.slot;
                let index = self.add(now, Some(ticket), id, Form::Bit(slot), urgent, deadline);
                self.names.get_mut(id).local = index;
                self.set_bit(slot, index, actions);
                return;
            }
        }
        if let Err(error) = request.validate(self.size()) {
            self.submit_failed(now, &request.name, &error.to_string(), actions);
            actions.push(Action::Fail { ticket, error });
            return;
        }
        let id = self.names.intern(&request.name);
        let form = Form::Frame(Arc::new(request.clone()));
        let index = self.add(now, Some(ticket), id, form, urgent, deadline);
        self.names.get_mut(id).local = index;
        self.publish_request(index, actions);
    }

    fn add(
        &mut self,
        now: Duration,
        ticket: Option<Ticket>,
        id: u32,
        form: Form,
        urgent: bool,
        deadline: Duration,
    ) -> u32 {
        self.window.submitted(now, self.locals.unfinished() > 0);
        self.stall.pending(now, deadline);
        self.dirty = true;
        let mut local = Local::new(ticket, id, form, now, deadline);
        local.urgent = urgent;
        self.locals.push(local)
    }

    pub(super) fn submit_failed(&mut self, now: Duration, name: &str, reason: &str, actions: &mut Vec<Action>) {
        // A name that cannot be sent cannot be another rank's name either. And nobody waits for a rank that has joined.
        if check_name(name).is_err() || self.refusal(name).is_some() {
            return;
        }
        let id = self.names.intern(name);
        let entry = self.names.get(id);
        let (local, parked) = (entry.local, entry.parked);
        if local == NONE {
            let index = self.add(now, None, id, Form::Invalid, false, Duration::MAX);
            self.names.get_mut(id).local = index;
            self.publish_invalid(id, reason, actions);
        } else if parked == NONE && matches!(self.locals.get(local).form, Form::WithdrawnBit | Form::WithdrawnFrame) {
            let index = self.add(now, None, id, Form::Parked(Parked::Invalid(reason.into())), false, Duration::MAX);
            self.names.get_mut(id).parked = index;
        }
        // Else the name is in flight here, or already announced as invalid: the peers will meet that submission.
    }

    pub(super) fn withdraw(&mut self, ticket: Ticket, actions: &mut Vec<Action>) {
        if self.withdraw_join(ticket, actions) {
            return;
        }
        let Some(index) = self.locals.find(ticket) else { return };
        let local = self.locals.get(index);
        let id = local.name;
        let mut bytes = match &local.form {
            Form::Bit(_) | Form::Frame(_) => self.bytes(),
            Form::Parked(_) => {
                self.locals.remove(index);
                self.names.get_mut(id).parked = NONE;
                let error = Error::Cancelled(Arc::clone(&self.names.get(id).name));
                actions.push(Action::Fail { ticket, error });
                return self.publish_join(actions);
            }
            Form::Invalid | Form::WithdrawnBit | Form::WithdrawnFrame => return,
        };
        self.serial += 1;
        if let Form::Bit(slot) = self.locals.get(index).form {
            self.locals.set_form(index, Form::WithdrawnBit);
            self.flip(slot, actions);
            frame::put_withdraw(&mut bytes, self.next, self.serial, Target::Slot(slot));
        } else {
            self.locals.set_form(index, Form::WithdrawnFrame);
            let name = &self.names.get(id).name;
            frame::put_withdraw(&mut bytes, self.next, self.serial, Target::Name(name));
        }
        self.publish(bytes, actions);
    }

    /// Publishes a submission again, or one that was parked. Its name has no other.
    pub(super) fn resubmit(&mut self, index: u32, actions: &mut Vec<Action>) {
        let id = self.locals.get(index).name;
        self.names.get_mut(id).local = index;
        // What it asked for, if its deadline has passed, went with the form that it had.
        self.locals.get_mut(index).expired = false;
        self.dirty = true;
        let request = match &self.locals.get(index).form {
            Form::Frame(request) | Form::Parked(Parked::Request(request)) => Arc::clone(request),
            Form::Parked(Parked::Invalid(reason)) => {
                let reason = reason.clone();
                self.locals.set_form(index, Form::Invalid);
                self.publish_invalid(id, &reason, actions);
                return;
            }
            Form::Bit(_) | Form::Invalid | Form::WithdrawnBit | Form::WithdrawnFrame => return,
        };
        let slot = self.names.get(id).slot;
        if slot != NONE && self.slots.get(slot).request.as_deref() == Some(&*request) {
            self.locals.set_form(index, Form::Bit(slot));
            self.set_bit(slot, index, actions);
        } else {
            self.locals.set_form(index, Form::Frame(request));
            self.publish_request(index, actions);
        }
    }

    fn set_bit(&mut self, slot: u32, index: u32, actions: &mut Vec<Action>) {
        self.slots.get_mut(slot).local = index;
        self.flip(slot, actions);
    }

    pub(super) fn flip(&mut self, slot: u32, actions: &mut Vec<Action>) {
        let word = slot as usize / 64;
        let bits = &mut self.bits[word * self.members + self.my_member];
        *bits ^= 1 << (slot % 64);
        actions.push(Action::SetBits { word, bits: *bits });
        self.dirty = true;
    }

    fn publish_request(&mut self, index: u32, actions: &mut Vec<Action>) {
        let mut bytes = self.bytes();
        if let Form::Frame(request) = &self.locals.get(index).form {
            frame::put_request(&mut bytes, self.next, request);
            self.publish(bytes, actions);
        }
    }

    fn publish_invalid(&mut self, id: u32, reason: &str, actions: &mut Vec<Action>) {
        let mut bytes = self.bytes();
        frame::put_invalid(&mut bytes, self.next, &self.names.get(id).name, reason);
        self.publish(bytes, actions);
    }

    /// Publishes a frame, and takes it in like a peer's.
    pub(super) fn publish(&mut self, bytes: Vec<u8>, actions: &mut Vec<Action>) {
        if self.watches_peers() {
            self.frame(self.topology.me, &bytes, actions);
        }
        actions.push(Action::PublishRequest(bytes));
    }
}
