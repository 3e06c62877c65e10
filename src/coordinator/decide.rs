//! What a decider proposes, and when (README, sections 4, 5 and 8).

use std::time::Duration;

use super::api::Action;
use super::entry::{self, Group, Said};
use super::frame::Target;
use super::locals::Form;
use super::names::Seen;
use super::peers::Expired;
use super::request::{Request, Spec};
use super::slots::Free;
use super::{Coordinator, NONE};

/// A batch in the making.
#[derive(Debug)]
struct Open {
    spec: Spec,
    bytes: u64,
    /// Submissions.
    items: Vec<u32>,
}

/// Buffers that outlive a step so that steps need not allocate.
#[derive(Debug)]
pub(super) struct Scratch {
    ready: Vec<u64>,
    pub(super) slots: Vec<u32>,
    failing: Vec<u32>,
    open: Vec<Open>,
    spare: Vec<Vec<u32>>,
}

impl Scratch {
    pub(super) fn new(words: usize) -> Self {
        Self { ready: vec![0; words], slots: Vec::new(), failing: Vec::new(), open: Vec::new(), spare: Vec::new() }
    }
}

impl Coordinator {
    pub(super) fn decide(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if !self.dirty && self.window.until().is_none_or(|until| now < until) {
            return;
        }
        self.dirty = false;
        let complete = self.find_ready() + self.judge_frames();
        self.drop_moot();
        let due = self.expired.iter().any(|expired| self.may_rule(expired));
        let rulings = due || !(self.scratch.failing.is_empty() && self.withdrawals.is_empty());
        if complete == 0 && !rulings {
            return self.window.close();
        }
        let waits = !rulings && complete < self.locals.unfinished() && !self.locals.any_urgent();
        if waits && self.window.holds(now, self.params.window) {
            return;
        }
        self.window.close();
        let mut bytes = self.bytes();
        bytes.push(entry::VERSION);
        self.compose(&mut bytes);
        if bytes.len() == 1 {
            return self.recycle_bytes(bytes);
        }
        self.proposed = Some(self.next);
        actions.push(Action::Propose { index: self.next, bytes });
    }

    /// Slots whose bit is pending on every rank, into `scratch.ready`; how many.
    fn find_ready(&mut self) -> usize {
        let mut count = 0;
        for word in 0..self.slots.words_in_use() {
            let consumed = self.slots.consumed[word];
            let bits = &self.bits[word * self.members..(word + 1) * self.members];
            let mut ready = (bits[self.my_member] ^ consumed) & self.slots.assigned[word];
            if ready != 0 {
                for bits in bits {
                    ready &= bits ^ consumed;
                }
                if self.topology.hosts.len() > 1 {
                    ready &= self.hosts.all_vote(word, self.my_host);
                }
            }
            self.scratch.ready[word] = ready;
            count += ready.count_ones() as usize;
        }
        count
    }

    /// Names pending by frame on some rank and in any form on all: those to fail into `scratch.failing`; how many may run.
    fn judge_frames(&mut self) -> usize {
        let mut agreed = 0;
        self.scratch.failing.clear();
        for at in 0..self.names.framed.len() {
            let id = self.names.framed[at];
            let name = self.names.get(id);
            let Some(frames) = &name.frames else { continue };
            if frames.live() == self.size() {
                match frames.agreed() {
                    Some(_) => agreed += 1,
                    None => self.scratch.failing.push(id),
                }
            } else if frames.live() > 0
                && name.slot != NONE
                && (0..self.size() as u32).all(|rank| self.is_present(id, rank))
            {
                self.scratch.failing.push(id);
            }
        }
        agreed
    }

    /// Forgets withdrawals and expiries that the log has overtaken.
    fn drop_moot(&mut self) {
        let mut withdrawals = std::mem::take(&mut self.withdrawals);
        withdrawals.retain(|w| match w.of.borrow() {
            Target::Slot(slot) => self.next < w.as_of || self.untouched(slot, w.as_of),
            Target::Name(name) => self
                .names
                .find(name)
                .and_then(|id| self.names.get(id).frames.as_ref())
                .is_some_and(|frames| frames.has_withdrawn(w.rank)),
        });
        self.withdrawals = withdrawals;
        let mut expired = std::mem::take(&mut self.expired);
        expired.retain(|e| match e.of.borrow() {
            Target::Slot(slot) => self.next < e.as_of || self.untouched(slot, e.as_of),
            Target::Name(name) => self.names.find(name).is_some_and(|id| self.is_present(id, e.rank)),
        });
        self.expired = expired;
    }

    fn compose(&mut self, out: &mut Vec<u8>) {
        let room = self.params.max_entry;
        for withdrawal in &self.withdrawals {
            let target = withdrawal.of.borrow();
            let due = match target {
                Target::Slot(slot) => self.slots.is_assigned(slot),
                Target::Name(name) => self
                    .names
                    .find(name)
                    .and_then(|id| self.names.get(id).frames.as_ref())
                    .is_some_and(|frames| frames.is_withdrawn(withdrawal.rank)),
            };
            if due && !fits(out, room, |out| entry::put_withdraw(out, withdrawal.rank, withdrawal.serial, target)) {
                return;
            }
        }
        for at in 0..self.scratch.failing.len() {
            if !self.compose_fail(self.scratch.failing[at], room, out) {
                return;
            }
        }
        for expired in self.expired.iter().filter(|expired| self.may_rule(expired)) {
            let id = match expired.of.borrow() {
                Target::Slot(slot) => self.slots.is_assigned(slot).then(|| self.slots.get(slot).name),
                Target::Name(name) => self.names.find(name),
            };
            let Some(id) = id else { continue };
            let micros = expired.waited.as_micros() as u64;
            let (_, missing, unknown) = self.attendance(id);
            // Complete names run; nobody is late any more.
            if missing.is_empty() && unknown.is_empty() {
                continue;
            }
            let silent = self.leaders_of(&unknown);
            let (name, size) = (&self.names.get(id).name, self.size());
            fits(out, room, |out| entry::put_timeout(out, name, micros, &missing, &silent, size));
            // The set ends there.
            return;
        }
        self.compose_runs(room, out);
    }

    /// Whether it is known who is late for what has expired.
    fn may_rule(&self, expired: &Expired) -> bool {
        self.topology.hosts.len() == 1 || expired.census.is_some_and(|number| self.census.is_over(number))
    }

    /// Appends the failure of a name; false if there is no room.
    fn compose_fail(&self, id: u32, room: usize, out: &mut Vec<u8>) -> bool {
        let name = self.names.get(id);
        let Some(frames) = &name.frames else { return true };
        let mut groups: Vec<Group> = Vec::new();
        let (mut bit, mut of_view) = (None, vec![None; frames.views.len()]);
        for rank in 0..self.size() as u32 {
            let seen = frames.view(rank);
            let group = match seen {
                None => &mut bit,
                Some(seen) => {
                    let index = frames.views.iter().position(|view| std::ptr::eq(view, seen));
                    &mut of_view[index.unwrap_or(0)]
                }
            };
            let at = *group.get_or_insert_with(|| {
                let said = match seen {
                    None => Said::Bit,
                    Some(Seen::Request { request, .. }) => Said::Request(Request::clone(request)),
                    Some(Seen::Invalid(reason)) => Said::Invalid(reason.to_string()),
                };
                groups.push(Group { said, ranks: Vec::new() });
                groups.len() - 1
            });
            groups[at].ranks.push(rank);
        }
        let first = out.len() == 1;
        while !fits(out, room, |out| entry::put_fail(out, &name.name, &groups, self.size())) {
            if !first || !merge_last(&mut groups) {
                return false;
            }
        }
        true
    }

    fn compose_runs(&mut self, room: usize, out: &mut Vec<u8>) {
        let mut open = std::mem::take(&mut self.scratch.open);
        self.gather(&mut open);
        let as_of = self.as_of.iter().copied().min().unwrap_or(0);
        let (mut free, mut without_slot, mut full) = (Free::default(), 0, false);
        for batch in &open {
            let start = out.len();
            let at = entry::begin_run(out);
            let mut count = 0;
            for index in &batch.items {
                let local = self.locals.get(*index);
                let fitted = match &local.form {
                    Form::Bit(slot) => fits(out, room, |out| entry::put_cached(out, *slot)),
                    Form::Frame(request) => {
                        let mut slot = Some(self.names.get(local.name).slot).filter(|slot| *slot != NONE);
                        if slot.is_none() {
                            slot = self.slots.next_free(&mut free, as_of);
                            without_slot += usize::from(slot.is_none());
                        }
                        fits(out, room, |out| entry::put_new(out, request, slot))
                    }
                    _ => true,
                };
                if !fitted {
                    full = true;
                    break;
                }
                count += 1;
            }
            if count == 0 {
                out.truncate(start);
            } else {
                entry::end_run(out, at, count);
            }
            if full {
                break;
            }
        }
        for batch in open.drain(..) {
            self.scratch.spare.push(batch.items);
        }
        self.scratch.open = open;
        let wanted = without_slot.saturating_sub(self.slots.too_young(&free));
        if wanted > 0 {
            self.compose_evictions(wanted, room, out);
        }
    }

    /// Sorts what is ready into batches, in the order of submission.
    fn gather(&mut self, open: &mut Vec<Open>) {
        for index in self.locals.iter() {
            let local = self.locals.get(index);
            let (spec, bytes) = match &local.form {
                Form::Bit(slot) if self.scratch.ready[*slot as usize / 64] >> (slot % 64) & 1 == 1 => {
                    let slot = self.slots.get(*slot);
                    let Some(spec) = slot.spec else { continue };
                    (spec, slot.bytes)
                }
                Form::Frame(request) => {
                    let frames = self.names.get(local.name).frames.as_ref();
                    if frames.is_none_or(|frames| frames.agreed().is_none()) {
                        continue;
                    }
                    (request.spec, request.bytes())
                }
                _ => continue,
            };
            // The newest batch of this spec: older ones are full.
            if spec.kind.fuses()
                && let Some(batch) = open.iter_mut().rev().find(|batch| batch.spec == spec)
                && batch.bytes.saturating_add(bytes) <= self.params.fusion_bytes
            {
                batch.bytes += bytes;
                batch.items.push(index);
                continue;
            }
            let mut items = self.scratch.spare.pop().unwrap_or_default();
            items.clear();
            items.push(index);
            open.push(Open { spec, bytes, items });
        }
    }

    fn compose_evictions(&mut self, wanted: usize, room: usize, out: &mut Vec<u8>) {
        let mut victims = std::mem::take(&mut self.scratch.slots);
        let keep = |slot: u32| {
            let (word, mask) = (slot as usize / 64, 1u64 << (slot % 64));
            let bits = &self.bits[word * self.members..(word + 1) * self.members];
            bits.iter().any(|bits| (bits ^ self.slots.consumed[word]) & mask != 0)
                || self.hosts.any_vote(word) & mask != 0
                || self.hosts.has_details(slot)
                || self.names.get(self.slots.get(slot).name).frames.is_some()
        };
        self.slots.victims(self.params.evict_after, keep, &mut victims);
        for slot in victims.iter().take(wanted) {
            if !fits(out, room, |out| entry::put_evict(out, *slot)) {
                break;
            }
        }
        self.scratch.slots = victims;
    }
}

/// Appends, and takes it back if that is more than `room`.
fn fits(out: &mut Vec<u8>, room: usize, put: impl FnOnce(&mut Vec<u8>)) -> bool {
    let start = out.len();
    put(out);
    let fits = out.len() <= room;
    if !fits {
        out.truncate(start);
    }
    fits
}

/// Makes a failure shorter: the last view that is shown is shown no more. False if there is none.
fn merge_last(groups: &mut Vec<Group>) -> bool {
    let Some(at) = groups.iter().rposition(|group| matches!(group.said, Said::Request(_) | Said::Invalid(_))) else {
        return false;
    };
    let mut ranks = groups.remove(at).ranks;
    match groups.iter_mut().find(|group| group.said == Said::Other) {
        Some(other) => {
            other.ranks.append(&mut ranks);
            other.ranks.sort_unstable();
        }
        None => groups.push(Group { said: Said::Other, ranks }),
    }
    true
}
