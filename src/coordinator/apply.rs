//! What an entry of the log means. Everything agreed changes here and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use super::api::{Action, Batch, BatchItem};
use super::entry::{self, Group, Item, RunItem, Said};
use super::frame::Target;
use super::locals::{Form, Local};
use super::request::{Request, Spec};
use super::wire::Take;
use super::{Coordinator, NONE};
use crate::error::{Error, Mismatch};

/// Why an entry ends the set.
enum Trouble {
    /// The bytes are no entry, or do not fit what was agreed before.
    Damaged(&'static str),
    /// This rank took the name back, but the ranks had agreed to run it.
    Withdrawn(Arc<str>),
    /// Somebody waited for too long.
    TimedOut(Error),
}

/// What this rank does of a tensor that runs.
enum Turn {
    Mine(BatchItem),
    /// It has joined.
    SatOut(Arc<Request>),
}

type Applied<T> = Result<T, Trouble>;

impl Coordinator {
    pub(super) fn entry(&mut self, index: u64, bytes: &[u8], actions: &mut Vec<Action>) {
        if index != self.next {
            return self.poison(
                format!("log entry {index} came when {} was due: a bug in kolo, please report it", self.next),
                actions,
            );
        }
        self.spread(index, bytes, actions);
        self.next = index + 1;
        self.as_of[self.topology.me as usize] = self.next;
        self.proposed = None;
        self.dirty = true;
        self.stall.changed();
        match self.apply(bytes, actions) {
            Ok(()) => {}
            Err(Trouble::Damaged(what)) => {
                let text = format!("log entry {index} cannot be used: {what}; do all ranks run the same build?");
                return self.poison(text, actions);
            }
            Err(Trouble::Withdrawn(name)) => {
                let me = self.topology.global[self.topology.me as usize];
                let text = format!(
                    "'{name}' was cancelled on rank {me} after the ranks had agreed to run it; \
                     wait for operations instead of dropping their handles"
                );
                return self.poison(text, actions);
            }
            Err(Trouble::TimedOut(error)) => {
                actions.push(Action::Poison(error.clone()));
                return self.end(super::poisoned(&error), actions);
            }
        }
        // Only now: frames claim that the whole entry is processed, with all bits flipped back.
        for at in 0..self.resubmit.len() {
            self.resubmit(self.resubmit[at], actions);
        }
        self.resubmit.clear();
        self.publish_join(actions);
        actions.push(Action::Executed(index));
        if !self.decides {
            self.install(actions);
        }
    }

    fn apply(&mut self, bytes: &[u8], actions: &mut Vec<Action>) -> Applied<()> {
        let mut take = Take::new(bytes);
        if take.u8() != Some(entry::VERSION) {
            return Err(Trouble::Damaged("it has another version"));
        }
        while !take.is_empty() {
            let item = entry::take_item(&mut take, self.size()).ok_or(Trouble::Damaged("it cannot be read"))?;
            match item {
                Item::Run { count } => self.run(count, &mut take, actions)?,
                Item::Evict { slot } => self.evict(slot, actions)?,
                Item::Withdraw { rank, serial, target } => self.confirm(rank, serial, target, actions)?,
                Item::Fail { name, groups } => self.fail(name, &groups, actions)?,
                Item::Joined { rank } if self.joined(rank, actions) => {}
                Item::Joined { .. } => {
                    return Err(Trouble::Damaged("it says of a rank that it has joined, which makes no sense"));
                }
                Item::Timeout { name, micros, missing, silent } => {
                    let waited = Duration::from_micros(micros);
                    self.note_late(&missing, &silent);
                    return Err(self.time_out(name, self.timeout_error(name, waited, &missing, &silent), actions));
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, count: u32, take: &mut Take<'_>, actions: &mut Vec<Action>) -> Applied<()> {
        let mut items = self.spare_batches.pop().unwrap_or_default();
        let mut sat_out = Vec::new();
        match self.run_items(count, take, &mut items, &mut sat_out) {
            Ok((spec, bytes)) => {
                let contributors = (self.size() - self.joins.count()) as u32;
                let index = self.next - 1;
                actions.push(Action::Run(Batch { index, spec, items, sat_out, contributors, bytes }));
                Ok(())
            }
            Err(trouble) => {
                // Taken out already, but they will not run: they fail with the others when the set ends.
                for item in items {
                    let form = Form::Invalid;
                    self.locals.push(Local::new(Some(item.ticket), NONE, form, Duration::ZERO, Duration::MAX));
                }
                Err(trouble)
            }
        }
    }

    fn run_items(
        &mut self,
        count: u32,
        take: &mut Take<'_>,
        items: &mut Vec<BatchItem>,
        sat_out: &mut Vec<Arc<Request>>,
    ) -> Applied<(Spec, u64)> {
        let (mut common, mut bytes) = (None::<Spec>, 0u64);
        for _ in 0..count {
            let item = entry::take_run_item(take).ok_or(Trouble::Damaged("a batch cannot be read"))?;
            let (turn, spec, size) = match item {
                RunItem::Cached { slot } => self.run_cached(slot)?,
                RunItem::New { request, slot } => self.run_new(request, slot)?,
            };
            match turn {
                Turn::Mine(item) => items.push(item),
                Turn::SatOut(request) => sat_out.push(request),
            }
            if *common.get_or_insert(spec) != spec {
                return Err(Trouble::Damaged("a batch mixes operations"));
            }
            bytes = bytes.saturating_add(size);
        }
        Ok((common.ok_or(Trouble::Damaged("a batch is empty"))?, bytes))
    }

    fn run_cached(&mut self, slot: u32) -> Applied<(Turn, Spec, u64)> {
        if !self.slots.is_assigned(slot) {
            return Err(Trouble::Damaged("it runs a slot that is free"));
        }
        self.slots.consumed[slot as usize / 64] ^= 1 << (slot % 64);
        self.joins.run(slot);
        self.hosts.touch(slot);
        self.slots.ran(slot, self.next);
        let joined = self.joins.is_joined(self.topology.me);
        let entry = self.slots.get_mut(slot);
        let index = entry.local;
        let (id, size, elements) = (entry.name, entry.bytes, entry.elements);
        let spec = entry.spec.ok_or(Trouble::Damaged("it runs a slot without a request"))?;
        if let Some(request) = entry.request.as_ref().filter(|_| joined && index == NONE) {
            return Ok((Turn::SatOut(Arc::clone(request)), spec, size));
        }
        if index == NONE {
            return Err(Trouble::Damaged("it runs a tensor that this rank did not submit"));
        }
        let local = self.locals.get(index);
        match (&local.form, local.ticket) {
            (Form::Bit(_), Some(ticket)) => {
                entry.local = NONE;
                self.names.get_mut(id).local = NONE;
                self.locals.remove(index);
                Ok((Turn::Mine(BatchItem { ticket, elements }), spec, size))
            }
            _ => Err(Trouble::Withdrawn(Arc::clone(&self.names.get(id).name))),
        }
    }

    fn run_new(&mut self, request: Request, slot: Option<u32>) -> Applied<(Turn, Spec, u64)> {
        let id = self.names.intern(&request.name);
        if self.decides {
            for rank in (0..self.size() as u32).filter(|rank| !self.joins.is_joined(*rank)) {
                self.names.consume(id, rank);
            }
        }
        self.forget_expired(&request.name);
        let request = Arc::new(request);
        let known = self.names.get(id).slot;
        match slot {
            Some(slot) if slot == known => self.slots.set_request(slot, &request),
            Some(slot) if known == NONE && self.slots.assign(slot, id, &request) => self.names.get_mut(id).slot = slot,
            None if known == NONE => {}
            _ => return Err(Trouble::Damaged("it assigns a slot that is taken")),
        }
        match slot {
            Some(slot) => {
                self.hosts.touch(slot);
                self.slots.ran(slot, self.next);
            }
            None => self.slots.clock += 1,
        }
        let index = std::mem::replace(&mut self.names.get_mut(id).local, NONE);
        if index == NONE && self.joins.is_joined(self.topology.me) {
            self.names.tidy(id);
            let (spec, bytes) = (request.spec, request.bytes());
            return Ok((Turn::SatOut(request), spec, bytes));
        }
        if index == NONE {
            return Err(Trouble::Damaged("it runs a tensor that this rank did not submit"));
        }
        let local = self.locals.get(index);
        match (&local.form, local.ticket) {
            (Form::Frame(mine), Some(ticket)) if *mine == request => {
                self.locals.remove(index);
                self.names.tidy(id);
                let item = BatchItem { ticket, elements: request.elements() };
                Ok((Turn::Mine(item), request.spec, request.bytes()))
            }
            (Form::WithdrawnFrame, _) => Err(Trouble::Withdrawn(Arc::clone(&request.name))),
            _ => Err(Trouble::Damaged("it runs a tensor that this rank submitted otherwise")),
        }
    }

    fn evict(&mut self, slot: u32, actions: &mut Vec<Action>) -> Applied<()> {
        if !self.slots.is_assigned(slot) {
            return Err(Trouble::Damaged("it evicts a slot that is free"));
        }
        let (id, index) = (self.slots.get(slot).name, self.slots.get(slot).local);
        let request = self.free(slot);
        if index != NONE {
            match (&self.locals.get(index).form, request) {
                (Form::Bit(_), Some(request)) => {
                    self.flip(slot, actions);
                    self.locals.set_form(index, Form::Frame(request));
                    self.resubmit.push(index);
                }
                // Nothing can run on the withdrawn bit any more.
                _ => self.finish_withdrawal(index, actions),
            }
        }
        if index == NONE {
            self.names.tidy(id);
        }
        Ok(())
    }

    /// The slot goes back to the free ones.
    fn free(&mut self, slot: u32) -> Option<Arc<Request>> {
        let id = self.slots.get(slot).name;
        self.hosts.touch(slot);
        self.names.get_mut(id).slot = NONE;
        self.slots.free(slot, self.next)
    }

    /// The withdrawn submission is confirmed; one that waited for that comes next.
    fn finish_withdrawal(&mut self, index: u32, actions: &mut Vec<Action>) {
        let local = self.locals.remove(index);
        if let Some(ticket) = local.ticket {
            let error = Error::Cancelled(Arc::clone(&self.names.get(local.name).name));
            actions.push(Action::Fail { ticket, error });
        }
        self.release(local.name);
    }

    /// The name's published submission has ended.
    fn release(&mut self, id: u32) {
        let name = self.names.get_mut(id);
        if name.slot != NONE {
            self.slots.get_mut(name.slot).local = NONE;
        }
        name.local = NONE;
        let parked = std::mem::replace(&mut name.parked, NONE);
        if parked == NONE {
            self.names.tidy(id);
        } else {
            name.local = parked;
            self.resubmit.push(parked);
        }
    }

    fn confirm(&mut self, rank: u32, serial: u64, target: Target<'_>, actions: &mut Vec<Action>) -> Applied<()> {
        let done = &mut self.withdrawn[rank as usize];
        *done = serial.max(*done);
        self.withdrawals.retain(|withdrawal| withdrawal.rank != rank || withdrawal.serial > serial);
        let mine = rank == self.topology.me;
        let index = match target {
            Target::Slot(slot) => {
                if !self.slots.is_assigned(slot) {
                    return Err(Trouble::Damaged("it withdraws from a slot that is free"));
                }
                let host = self.host_of[rank as usize] as usize;
                self.hosts.take_back(slot, host, rank, host == self.my_host);
                self.slots.get(slot).local
            }
            Target::Name(name) => {
                if !self.decides && !mine {
                    return Ok(());
                }
                let id = self.names.intern(name);
                if self.decides {
                    self.names.consume(id, rank);
                }
                let index = self.names.get(id).local;
                if !mine {
                    self.names.tidy(id);
                }
                index
            }
        };
        if mine {
            let form = (index != NONE).then(|| &self.locals.get(index).form);
            match (form, target) {
                (Some(Form::WithdrawnBit), Target::Slot(_)) | (Some(Form::WithdrawnFrame), Target::Name(_)) => {
                    self.finish_withdrawal(index, actions);
                }
                _ => return Err(Trouble::Damaged("it withdraws what this rank did not")),
            }
        }
        Ok(())
    }

    fn fail(&mut self, name: &str, groups: &[Group], actions: &mut Vec<Action>) -> Applied<()> {
        let id = self.names.intern(name);
        let slot = self.names.get(id).slot;
        let cached = (slot != NONE).then(|| self.slots.get(slot).request.clone()).flatten();
        let mut views: Vec<(u32, String)> = Vec::with_capacity(self.size());
        let mut explained = Vec::new();
        for group in groups {
            let text = match &group.said {
                Said::Bit => cached.as_ref().map_or_else(|| "as before".to_owned(), |request| request.describe()),
                Said::Request(request) => request.describe(),
                Said::Invalid(reason) => format!("refused there: {reason}"),
                Said::Other => "something else".to_owned(),
                Said::Joined => "has joined: it has no more data".to_owned(),
            };
            let request = match &group.said {
                Said::Bit => cached.as_deref(),
                Said::Request(request) => Some(request),
                Said::Invalid(_) | Said::Other | Said::Joined => None,
            };
            explained.extend(request.map(|request| (text.clone(), request.fields())));
            for rank in &group.ranks {
                if self.decides && !matches!(group.said, Said::Bit | Said::Joined) {
                    self.names.consume(id, *rank);
                }
                views.push((*rank, text.clone()));
            }
        }
        self.forget_expired(name);
        views.sort_by_key(|(rank, _)| *rank);
        for view in &mut views {
            view.0 = self.topology.global[view.0 as usize];
        }
        let index = self.names.get(id).local;
        if index == NONE && self.joins.is_joined(self.topology.me) {
            if slot != NONE {
                self.free(slot);
            }
            self.names.tidy(id);
            return Ok(());
        }
        if index == NONE {
            return Err(Trouble::Damaged("it fails a tensor that this rank did not submit"));
        }
        if let Form::Bit(slot) = self.locals.get(index).form {
            self.flip(slot, actions);
        }
        if slot != NONE {
            self.free(slot);
        }
        if matches!(self.locals.get(index).form, Form::WithdrawnBit | Form::WithdrawnFrame) {
            self.finish_withdrawal(index, actions);
        } else {
            let local = self.locals.remove(index);
            if let Some(ticket) = local.ticket {
                let mut mismatch = Mismatch::new(name, views);
                explained.into_iter().for_each(|(words, fields)| mismatch.explain(&words, fields));
                actions.push(Action::Fail { ticket, error: Error::Mismatch(Arc::new(mismatch)) });
            }
            self.release(id);
        }
        Ok(())
    }

    fn time_out(&mut self, name: &str, error: Error, actions: &mut Vec<Action>) -> Trouble {
        if let Some(id) = self.names.find(name) {
            let name = self.names.get(id);
            for index in [name.local, name.parked].into_iter().filter(|index| *index != NONE) {
                let ticket = self.locals.remove(index).ticket;
                actions.extend(ticket.map(|ticket| Action::Fail { ticket, error: error.clone() }));
            }
        }
        Trouble::TimedOut(error)
    }
}
