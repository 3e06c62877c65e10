//! Who is missing what: warnings, deadlines, and the data behind them (README, section 9).

use std::sync::Arc;
use std::time::Duration;

use super::api::Action;
use super::frame::{self, Target};
use super::locals::Form;
use super::peers::{Expired, Owned};
use super::{Coordinator, NONE};
use crate::error::Error;

/// Time between scans while something is pending.
const PERIOD: Duration = Duration::from_millis(250);
/// How long nothing may change before disjoint names are reported, and before leaders send details.
const QUIET: Duration = Duration::from_millis(500);
/// Names listed in a warning.
const LISTED: usize = 6;

/// Names that some ranks submitted and others did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The oldest first.
    pub(crate) stalled: Vec<Stalled>,
}

/// One name that waits for ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stalled {
    /// The tensor's name.
    pub(crate) name: Arc<str>,
    /// How long it is known to be pending.
    pub(crate) waited: Duration,
    /// Set ranks that submitted it.
    pub(crate) present: Vec<u32>,
    /// Set ranks that did not.
    pub(crate) missing: Vec<u32>,
}

/// When a slot was first seen pending, since it was last touched.
#[derive(Clone, Copy, Debug)]
struct Since {
    touched: u64,
    at: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Watch {
    scan_at: Option<Duration>,
    paused_until: Duration,
    changed: bool,
    last_change: Duration,
    slots: Vec<Since>,
    warned: String,
}

impl Watch {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            scan_at: None,
            paused_until: Duration::ZERO,
            changed: false,
            last_change: Duration::ZERO,
            slots: vec![Since { touched: 0, at: None }; capacity],
            warned: String::new(),
        }
    }

    pub(super) fn next_scan(&self) -> Option<Duration> {
        self.scan_at
    }

    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    pub(super) fn pause(&mut self, until: Duration) {
        self.paused_until = until.max(self.paused_until);
    }

    /// A submission with this deadline began.
    pub(super) fn pending(&mut self, now: Duration, deadline: Duration) {
        self.changed = true;
        let scan = now.saturating_add(PERIOD.min(deadline));
        self.scan_at = Some(self.scan_at.map_or(scan, |at| at.min(scan)));
    }
}

impl Coordinator {
    /// The names that wait for ranks, as far as this rank knows: all of them at a decider, its own elsewhere.
    pub(crate) fn report(&self, now: Duration) -> Report {
        let mut stalled = Vec::new();
        if self.over.is_some() {
            return Report { stalled };
        }
        for word in 0..self.slots.words_in_use() {
            let mut pending = self.pending_bits(word);
            while pending != 0 {
                let slot = word as u32 * 64 + pending.trailing_zeros();
                pending &= pending - 1;
                let (id, at) = (self.slots.get(slot).name, self.stall.slots[slot as usize]);
                let frames = self.names.get(id).frames.as_ref();
                if frames.is_none_or(|frames| frames.live() == 0) {
                    let at = at.at.filter(|_| at.touched == self.slots.get(slot).touched);
                    stalled.push(self.stalled(now, id, at));
                }
            }
        }
        for id in &self.names.framed {
            if let Some(frames) = self.names.get(*id).frames.as_ref().filter(|frames| frames.live() > 0) {
                stalled.push(self.stalled(now, *id, frames.since));
            }
        }
        if !self.watches_peers() {
            for index in self.locals.iter().filter(|index| matches!(self.locals.get(*index).form, Form::Frame(_))) {
                let local = self.locals.get(index);
                stalled.push(self.stalled(now, local.name, Some(local.since)));
            }
        }
        stalled.sort_by(|a, b| b.waited.cmp(&a.waited).then_with(|| a.name.cmp(&b.name)));
        Report { stalled }
    }

    fn stalled(&self, now: Duration, id: u32, since: Option<Duration>) -> Stalled {
        let name = self.names.get(id);
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        for rank in 0..self.size() as u32 {
            let own_frame =
                rank == self.topology.me && name.local != NONE && self.locals.get(name.local).is_unfinished();
            let list = if own_frame || self.is_present(id, rank) { &mut present } else { &mut missing };
            list.push(rank);
        }
        // This rank's own submission is known to the moment.
        let mine = Some(name.local).filter(|index| *index != NONE).map(|index| self.locals.get(index).since);
        let since = match (since, mine) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b).unwrap_or(now),
        };
        let since = since.max(self.stall.paused_until);
        Stalled { name: Arc::clone(&name.name), waited: now.saturating_sub(since), present, missing }
    }

    /// Slots of a word that are pending on any rank that this one knows of.
    fn pending_bits(&self, word: usize) -> u64 {
        let first = word * self.members;
        let bits = if self.watches_peers() {
            &self.bits[first..first + self.members]
        } else {
            &self.bits[first + self.my_member..=first + self.my_member]
        };
        let local = bits.iter().fold(0, |any, bits| any | (bits ^ self.slots.consumed[word]));
        let mut any = local | self.hosts.any_vote(word);
        for (slot, _) in &self.hosts.details {
            if *slot as usize / 64 == word {
                any |= 1 << (slot % 64);
            }
        }
        any & self.slots.assigned[word]
    }

    /// At a tick: looks for what waits too long, if it is time to.
    pub(super) fn scan(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if std::mem::take(&mut self.stall.changed) {
            self.stall.last_change = now;
            if self.stall.scan_at.is_none() {
                self.stall.scan_at = Some(now.saturating_add(PERIOD));
            }
        }
        if self.stall.scan_at.is_none_or(|at| now < at) {
            return;
        }
        let pending = self.date(now);
        self.stall.scan_at = (pending || self.locals.tickets() > 0).then(|| now.saturating_add(PERIOD));
        if self.is_other_leader() {
            self.watch_old(now);
        }
        if self.decides && now >= self.stall.paused_until {
            self.warn(now, actions);
        }
        self.check_deadlines(now, actions);
    }

    /// Notes when each pending name was first seen; whether there is any.
    fn date(&mut self, now: Duration) -> bool {
        let mut any = false;
        if !self.watches_peers() {
            return any;
        }
        for word in 0..self.slots.words_in_use() {
            let mut pending = self.pending_bits(word);
            any |= pending != 0;
            while pending != 0 {
                let slot = word as u32 * 64 + pending.trailing_zeros();
                pending &= pending - 1;
                let touched = self.slots.get(slot).touched;
                let since = &mut self.stall.slots[slot as usize];
                if since.touched != touched || since.at.is_none() {
                    *since = Since { touched, at: Some(now) };
                }
            }
        }
        for at in 0..self.names.framed.len() {
            let id = self.names.framed[at];
            if let Some(frames) = &mut self.names.get_mut(id).frames {
                any |= frames.live() > 0;
                frames.since.get_or_insert(now);
            }
        }
        any
    }

    /// Lets the first leader know the members of slots that wait for some of this host.
    fn watch_old(&mut self, now: Duration) {
        for word in 0..self.slots.words_in_use() {
            let mut pending = self.pending_bits(word);
            while pending != 0 {
                let slot = word as u32 * 64 + pending.trailing_zeros();
                pending &= pending - 1;
                if self.stall.slots[slot as usize].at.is_some_and(|at| now.saturating_sub(at) >= QUIET) {
                    self.hosts.watch(slot);
                    self.dirty = true;
                }
            }
        }
    }

    fn warn(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let quiet = now.saturating_sub(self.stall.last_change) >= QUIET;
        let report = self.report(now);
        let late = report.stalled.iter().any(|stalled| stalled.waited >= self.params.stall_warn);
        if !(quiet || late) || report.stalled.iter().all(|stalled| stalled.missing.is_empty()) {
            return;
        }
        let mut waiting = vec![false; self.size()];
        for rank in report.stalled.iter().flat_map(|stalled| &stalled.present) {
            waiting[*rank as usize] = true;
        }
        // One rank speaks: on one host the lowest that is pending, as it is surely awake.
        let speaker = if self.topology.hosts.len() > 1 {
            Some(self.topology.me)
        } else {
            waiting.iter().position(|waits| *waits).map(|rank| rank as u32)
        };
        let complete = report.stalled.iter().any(|stalled| stalled.missing.is_empty());
        let disjoint = quiet && !complete && waiting.iter().all(|waits| *waits);
        if speaker != Some(self.topology.me) || !(disjoint || late) {
            return;
        }
        let chosen: Vec<&Stalled> = report
            .stalled
            .iter()
            .filter(|stalled| !stalled.missing.is_empty() && (disjoint || stalled.waited >= self.params.stall_warn))
            .collect();
        let mut text = if disjoint {
            "every rank waits, but for different tensors:".to_owned()
        } else {
            format!("tensors wait for ranks for {:?} or longer:", self.params.stall_warn)
        };
        for stalled in chosen.iter().take(LISTED) {
            let (has, not) = (self.ranks(&stalled.present), self.ranks(&stalled.missing));
            text += &format!("\n  '{}': submitted by {has}; not by {not}", stalled.name);
        }
        if chosen.len() > LISTED {
            text += &format!("\n  and {} more", chosen.len() - LISTED);
        }
        text += "\ncheck that every rank submits the same names";
        if text != self.stall.warned {
            self.stall.warned.clone_from(&text);
            actions.push(Action::Warn(text));
        }
    }

    fn check_deadlines(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let indices: Vec<u32> = self.locals.iter().filter(|i| self.locals.get(*i).ticket.is_some()).collect();
        for index in indices {
            let local = self.locals.get(index);
            let since = local.since.max(self.stall.paused_until);
            let due = since.saturating_add(local.deadline);
            let last = due.saturating_add(self.params.grace);
            if now >= last {
                let name = Arc::clone(&self.names.get(local.name).name);
                let missing = self.stalled(now, local.name, None).missing;
                let missing: &[u32] = if self.decides { &missing } else { &[] };
                let error = self.timeout_error(&name, now.saturating_sub(since), missing);
                let ticket = self.locals.get_mut(index).ticket.take();
                actions.extend(ticket.map(|ticket| Action::Fail { ticket, error: error.clone() }));
                actions.push(Action::Poison(error.clone()));
                return self.end(super::poisoned(&error), actions);
            }
            let next = if now >= due { last } else { due };
            if now >= due && !local.expired {
                let waited = now.saturating_sub(since);
                self.expire(index, waited, actions);
            }
            if let Some(at) = &mut self.stall.scan_at {
                *at = next.min(*at);
            }
        }
    }

    /// Asks for a `Timeout` item.
    fn expire(&mut self, index: u32, waited: Duration, actions: &mut Vec<Action>) {
        let local = self.locals.get_mut(index);
        local.expired = true;
        let id = local.name;
        let slot = match &local.form {
            Form::Bit(slot) => Some(*slot),
            Form::Frame(_) => None,
            // Waits for the log, not for a peer: only the log's silence can end it.
            Form::Invalid | Form::WithdrawnBit | Form::WithdrawnFrame | Form::Parked(_) => return,
        };
        if self.decides {
            let of = slot.map_or_else(|| Owned::Name((&*self.names.get(id).name).into()), Owned::Slot);
            self.expired.push(Expired { rank: self.topology.me, waited, as_of: self.next, of });
            self.dirty = true;
            return;
        }
        let mut bytes = self.spare_bytes.pop().unwrap_or_default();
        let target = slot.map_or_else(|| Target::Name(&self.names.get(id).name), Target::Slot);
        frame::put_expired(&mut bytes, self.next, waited.as_micros() as u64, target);
        self.publish(bytes, actions);
    }

    pub(super) fn timeout_error(&self, name: &str, waited: Duration, missing: &[u32]) -> Error {
        let missing = if missing.is_empty() {
            "the rank that decides does not answer; look for a rank that is stopped or gone".to_owned()
        } else {
            format!(
                "{} did not submit it; check that every rank reaches this call, or raise the deadline (KOLO_DEADLINE)",
                self.ranks(missing)
            )
        };
        Error::Timeout { what: format!("tensor '{name}'").into(), waited, missing: missing.into() }
    }

    /// Set ranks as words, in global ranks: `rank 3`, `ranks 0-2, 7`.
    fn ranks(&self, ranks: &[u32]) -> String {
        let global: Vec<u32> = ranks.iter().map(|rank| self.topology.global[*rank as usize]).collect();
        let runs: Vec<String> = global
            .chunk_by(|a, b| a + 1 == *b)
            .map(|run| match run {
                [one] => one.to_string(),
                [first, .., last] => format!("{first}-{last}"),
                [] => String::new(),
            })
            .collect();
        format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, runs.join(", "))
    }
}
