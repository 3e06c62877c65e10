//! What a decider proposes, and when (README, sections 4, 5 and 8).

use std::sync::Arc;
use std::time::Duration;

use super::api::Action;
use super::entry::{self, Group, Said};
use super::frame::Target;
use super::locals::Form;
use super::names::{Frames, Seen};
use super::peers::Expired;
use super::request::{Request, Spec};
use super::slots::Free;
use super::{Coordinator, NONE};

/// A batch in the making.
#[derive(Debug)]
struct Open {
    spec: Spec,
    bytes: u64,
    items: Vec<Pick>,
}

/// A tensor that can run.
#[derive(Clone, Copy, Debug)]
enum Pick {
    /// By its bit.
    Slot(u32),
    /// By the frames of the name with this index.
    Name(u32),
}

/// Buffers that outlive a step so that steps need not allocate.
#[derive(Debug)]
pub(super) struct Scratch {
    ready: Vec<u64>,
    pub(super) slots: Vec<u32>,
    failing: Vec<u32>,
    open: Vec<Open>,
    spare: Vec<Vec<Pick>>,
}

impl Scratch {
    pub(super) fn new(words: usize) -> Self {
        Self { ready: vec![0; words], slots: Vec::new(), failing: Vec::new(), open: Vec::new(), spare: Vec::new() }
    }
}

impl Scratch {
    /// Puts a tensor into the newest batch of its spec, as older ones are full, or opens one.
    fn put(&mut self, open: &mut Vec<Open>, pick: Pick, spec: Spec, bytes: u64, fusion_bytes: u64) {
        if spec.kind.fuses()
            && let Some(batch) = open.iter_mut().rev().find(|batch| batch.spec == spec)
            && batch.bytes.saturating_add(bytes) <= fusion_bytes
        {
            batch.bytes += bytes;
            batch.items.push(pick);
            return;
        }
        let mut items = self.spare.pop().unwrap_or_default();
        items.clear();
        items.push(pick);
        open.push(Open { spec, bytes, items });
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
        let joins = self.joins.due().next().is_some();
        let rulings = due || joins || !(self.scratch.failing.is_empty() && self.withdrawals.is_empty());
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

    /// Slots whose bit is pending on every rank that takes part, into `scratch.ready`; how many. Those that need a joined
    /// rank go into `scratch.failing`.
    fn find_ready(&mut self) -> usize {
        let mut count = 0;
        self.scratch.failing.clear();
        for word in 0..self.slots.words_in_use() {
            let mut ready = self.ready_bits(self.my_member, word) & self.slots.assigned[word];
            if ready != 0 {
                for member in 0..self.members {
                    ready &= self.ready_bits(member, word);
                }
                if self.topology.hosts.len() > 1 {
                    ready &= self.voted_by_all(word);
                }
                if self.joins.any() {
                    ready = self.without_joined(word, ready);
                }
            }
            self.scratch.ready[word] = ready;
            count += ready.count_ones() as usize;
        }
        count
    }

    /// What of `ready` can run without the ranks that have joined.
    fn without_joined(&mut self, word: usize, mut ready: u64) -> u64 {
        let mut left = ready;
        while left != 0 {
            let slot = word as u32 * 64 + left.trailing_zeros();
            left &= left - 1;
            let of = self.slots.get(slot);
            let refused = self.names.get(of.name).frames.as_ref().is_some_and(|frames| frames.live() > 0);
            let rootless = of.request.as_ref().is_some_and(|request| self.needs_joined(request));
            // A call that a joined rank had refused is judged by its frame.
            if rootless && !refused {
                self.scratch.failing.push(of.name);
            }
            if rootless || refused {
                ready &= !(1 << (slot % 64));
            }
        }
        ready
    }

    /// Whether every rank that takes part is pending by frame.
    fn has_all_frames(&self, frames: &Frames) -> bool {
        !self.joins.any()
            || (0..self.size() as u32).all(|rank| self.joins.is_joined(rank) || frames.view(rank).is_some())
    }

    /// Names pending by frame on some rank and in any form on all: those to fail into `scratch.failing`; how many may run.
    fn judge_frames(&mut self) -> usize {
        let mut agreed = 0;
        for at in 0..self.names.framed.len() {
            let id = self.names.framed[at];
            let name = self.names.get(id);
            let Some(frames) = &name.frames else { continue };
            if frames.live() + self.joins.count() >= self.size() && self.has_all_frames(frames) {
                match frames.agreed(|rank| self.joins.is_joined(rank)) {
                    Some(request) if !self.needs_joined(request) => agreed += 1,
                    _ => self.scratch.failing.push(id),
                }
            } else if frames.live() > 0 && name.slot != NONE && self.all_present(id) {
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
        let mut joining = false;
        for rank in self.joins.due() {
            if !fits(out, room, |out| entry::put_joined(out, rank)) {
                return;
            }
            joining = true;
        }
        if joining {
            // All else was judged by who has joined before.
            return;
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
        let views = name.frames.as_ref().map_or(&[][..], |frames| &frames.views);
        let mut groups: Vec<Group> = Vec::new();
        let (mut bit, mut joined, mut of_view) = (None, None, vec![None; views.len()]);
        for rank in 0..self.size() as u32 {
            let seen = name.frames.as_ref().and_then(|frames| frames.view(rank));
            let has_joined = self.joins.is_joined(rank);
            let group = match seen {
                None if has_joined => &mut joined,
                None => &mut bit,
                Some(seen) => {
                    let index = views.iter().position(|view| std::ptr::eq(view, seen));
                    &mut of_view[index.unwrap_or(0)]
                }
            };
            let at = *group.get_or_insert_with(|| {
                let said = match seen {
                    None if has_joined => Said::Joined,
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
        // Joined ranks have let go of all slots.
        let at_work = (0..).zip(&self.as_of).filter(|(rank, _)| !self.joins.is_joined(*rank));
        let as_of = at_work.map(|(_, as_of)| *as_of).min().unwrap_or(0);
        let (mut free, mut without_slot, mut full) = (Free::default(), 0, false);
        for batch in &open {
            let start = out.len();
            let at = entry::begin_run(out);
            let mut count = 0;
            for pick in &batch.items {
                let fitted = match *pick {
                    Pick::Slot(slot) => fits(out, room, |out| entry::put_cached(out, slot)),
                    Pick::Name(id) => {
                        let Some(request) = self.agreed(id) else { continue };
                        let mut slot = Some(self.names.get(id).slot).filter(|slot| *slot != NONE);
                        if slot.is_none() {
                            slot = self.slots.next_free(&mut free, as_of);
                            without_slot += usize::from(slot.is_none());
                        }
                        fits(out, room, |out| entry::put_new(out, request, slot))
                    }
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

    /// Sorts what is ready into batches, in the order of submission; in that of slots and frames if this rank has joined.
    fn gather(&mut self, open: &mut Vec<Open>) {
        if self.joins.is_joined(self.topology.me) {
            return self.gather_for_others(open);
        }
        for index in self.locals.iter() {
            let local = self.locals.get(index);
            let pick = match &local.form {
                Form::Bit(slot) => Pick::Slot(*slot),
                Form::Frame(_) => Pick::Name(local.name),
                _ => continue,
            };
            if let Some((spec, bytes)) = self.ready(pick) {
                self.scratch.put(open, pick, spec, bytes, self.params.fusion_bytes);
            }
        }
    }

    fn gather_for_others(&mut self, open: &mut Vec<Open>) {
        let slots = 0..self.slots.words_in_use() as u32 * 64;
        let picks: Vec<Pick> =
            slots.map(Pick::Slot).chain(self.names.framed.iter().map(|id| Pick::Name(*id))).collect();
        for pick in picks {
            if let Some((spec, bytes)) = self.ready(pick) {
                self.scratch.put(open, pick, spec, bytes, self.params.fusion_bytes);
            }
        }
    }

    /// What a tensor is, if it can run.
    fn ready(&self, pick: Pick) -> Option<(Spec, u64)> {
        match pick {
            Pick::Slot(slot) => {
                let ready =
                    self.scratch.ready.get(slot as usize / 64).is_some_and(|ready| ready >> (slot % 64) & 1 == 1);
                let slot = ready.then(|| self.slots.get(slot))?;
                Some((slot.spec?, slot.bytes))
            }
            Pick::Name(id) => self.agreed(id).map(|request| (request.spec, request.bytes())),
        }
    }

    /// The request of a name that can run by its frames.
    fn agreed(&self, id: u32) -> Option<&Arc<Request>> {
        let frames = self.names.get(id).frames.as_ref()?;
        frames.agreed(|rank| self.joins.is_joined(rank)).filter(|request| !self.needs_joined(request))
    }

    fn compose_evictions(&mut self, wanted: usize, room: usize, out: &mut Vec<u8>) {
        let mut victims = std::mem::take(&mut self.scratch.slots);
        let keep = |slot: u32| {
            let (word, mask) = (slot as usize / 64, 1u64 << (slot % 64));
            (0..self.members).any(|member| self.bits_of(member, word) & mask != 0)
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
