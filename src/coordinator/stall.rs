//! Who is missing what: warnings, deadlines, and the data behind them (README, section 9).

use std::sync::Arc;
use std::time::Duration;

use super::api::Action;
use super::frame::{self, Target};
use super::join::JOIN;
use super::locals::Form;
use super::peers::{Expired, Owned};
use super::{Coordinator, NONE};
use crate::error::{Error, ranks_in_words};

/// Time between scans while something is pending.
const PERIOD: Duration = Duration::from_millis(250);
/// How long nothing may change before disjoint names are reported, and a name be pending before others are asked.
const QUIET: Duration = Duration::from_millis(500);
/// Who goes on waiting summons the leaders so often. Shorter than they attend.
const SUMMONS: Duration = Duration::from_secs(1);
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
    /// Set ranks of which this one does not know.
    pub(crate) unknown: Vec<u32>,
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
    /// There is more to look at, though nothing changed on any rank.
    learned: bool,
    last_change: Duration,
    slots: Vec<Since>,
    warned: String,
    /// When this rank may summon the leaders again.
    summon_at: Duration,
    /// The global ranks because of which the set ended.
    late: Vec<u32>,
}

impl Watch {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            scan_at: None,
            paused_until: Duration::ZERO,
            changed: false,
            learned: false,
            last_change: Duration::ZERO,
            slots: vec![Since { touched: 0, at: None }; capacity],
            warned: String::new(),
            summon_at: Duration::ZERO,
            late: Vec::new(),
        }
    }

    pub(super) fn next_scan(&self) -> Option<Duration> {
        self.scan_at
    }

    /// Since when nothing has moved, and patience was not asked for either.
    pub(super) fn quiet_since(&self) -> Duration {
        self.last_change.max(self.paused_until)
    }

    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Something is known that had happened before.
    pub(super) fn learned(&mut self) {
        self.learned = true;
    }

    pub(super) fn pause(&mut self, until: Duration) {
        self.paused_until = until.max(self.paused_until);
    }

    /// Scan at `at`, if not earlier.
    pub(super) fn scan_soon(&mut self, at: Duration) {
        self.scan_at = Some(self.scan_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// A submission with this deadline began.
    pub(super) fn pending(&mut self, now: Duration, deadline: Duration) {
        self.changed = true;
        self.scan_soon(now.saturating_add(PERIOD.min(deadline)));
    }
}

impl Coordinator {
    /// The names that wait for ranks, as far as this rank knows: all of them at a decider, its own elsewhere, and at a
    /// leader those that a bit of its host stands for.
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
        if !self.decides {
            for index in self.locals.iter().filter(|index| matches!(self.locals.get(*index).form, Form::Frame(_))) {
                let local = self.locals.get(index);
                // Not once more where others have set a bit of the name.
                if stalled.iter().all(|known: &Stalled| known.name != self.names.get(local.name).name) {
                    stalled.push(self.stalled(now, local.name, Some(local.since)));
                }
            }
        }
        if let Some((present, missing, unknown)) = self.join_attendance() {
            let waited = now.saturating_sub(self.stall.quiet_since());
            stalled.push(Stalled { name: JOIN.into(), waited, present, missing, unknown });
        }
        stalled.sort_by(|a, b| b.waited.cmp(&a.waited).then_with(|| a.name.cmp(&b.name)));
        Report { stalled }
    }

    /// As [`report`](Self::report), and what it shows has an age from now on.
    pub(crate) fn look(&mut self, now: Duration) -> Report {
        if self.over.is_none() {
            self.date(now);
        }
        self.report(now)
    }

    fn stalled(&self, now: Duration, id: u32, since: Option<Duration>) -> Stalled {
        let name = self.names.get(id);
        let (present, missing, unknown) = self.attendance(id);
        // This rank's own submission is known to the moment.
        let mine = Some(name.local).filter(|index| *index != NONE).map(|index| self.locals.get(index).since);
        let since = match (since, mine) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b).unwrap_or(now),
        };
        let since = since.max(self.stall.paused_until);
        Stalled { name: Arc::clone(&name.name), waited: now.saturating_sub(since), present, missing, unknown }
    }

    /// The ranks that submitted the name, those that did not, and those of which that is not known. Joined ranks are
    /// none of them.
    pub(super) fn attendance(&self, id: u32) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
        let local = self.names.get(id).local;
        let (mut present, mut missing, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for rank in 0..self.size() as u32 {
            let own_frame = rank == self.topology.me && local != NONE && self.locals.get(local).is_unfinished();
            if self.joins.is_joined(rank) {
                continue;
            }
            let list = if own_frame || self.is_present(id, rank) {
                &mut present
            } else if self.is_known(rank) {
                &mut missing
            } else {
                &mut unknown
            };
            list.push(rank);
        }
        (present, missing, unknown)
    }

    /// The ranks that speak for these.
    pub(super) fn leaders_of(&self, ranks: &[u32]) -> Vec<u32> {
        let mut hosts: Vec<u32> = ranks.iter().map(|rank| self.host_of[*rank as usize]).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let mut leaders: Vec<u32> = hosts.iter().map(|host| self.topology.hosts[*host as usize][0]).collect();
        leaders.sort_unstable();
        leaders
    }

    /// Slots of a word that are pending on any rank that this one knows of.
    pub(super) fn pending_bits(&self, word: usize) -> u64 {
        let members = if self.watches_peers() { 0..self.members } else { self.my_member..self.my_member + 1 };
        let local = members.fold(0, |any, member| any | self.bits_of(member, word));
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
        let changed = std::mem::take(&mut self.stall.changed);
        if changed {
            self.stall.last_change = now;
        }
        if std::mem::take(&mut self.stall.learned) | changed && self.stall.scan_at.is_none() {
            self.stall.scan_at = Some(now.saturating_add(PERIOD));
        }
        if self.stall.scan_at.is_none_or(|at| now < at) {
            return;
        }
        let pending = self.date(now);
        let waits = pending || self.joins.any() || self.pending() > 0;
        self.stall.scan_at = waits.then(|| now.saturating_add(PERIOD));
        if self.is_other_leader() {
            self.watch_old(now);
        }
        if now >= self.stall.paused_until {
            if self.decides {
                self.warn(now, actions);
            }
            self.summon(now, actions);
        }
        self.check_deadlines(now, actions);
        self.check_join(now, actions);
    }

    /// Lets the first leader know who set the bits that wait for some of this host: it may not know of them at all.
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

    /// Calls for the leaders of all hosts once this rank has waited for long: only they know who is late.
    fn summon(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.topology.hosts.len() == 1 || now < self.stall.summon_at {
            return;
        }
        let old = |index: u32| {
            let local = self.locals.get(index);
            let since = local.since.max(self.stall.paused_until);
            local.ticket.is_some() && now.saturating_sub(since) >= QUIET
        };
        if self.locals.iter().any(old) || self.joins.ticket().is_some() {
            self.stall.summon_at = now.saturating_add(SUMMONS);
            actions.push(Action::Summon);
        }
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

    fn warn(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let quiet = now.saturating_sub(self.stall.last_change) >= QUIET;
        let mut report = self.report(now);
        let all = report.stalled.len();
        report.stalled.retain(|stalled| !(stalled.missing.is_empty() && stalled.unknown.is_empty()));
        let complete = report.stalled.len() < all;
        let old = QUIET.min(self.params.stall_warn);
        if report.stalled.iter().all(|stalled| stalled.waited < old) || !self.is_counted(now, actions) {
            return;
        }
        let late = report.stalled.iter().any(|stalled| stalled.waited >= self.params.stall_warn);
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
        let disjoint = quiet && !complete && waiting.iter().all(|waits| *waits);
        if speaker != Some(self.topology.me) || !(disjoint || late) {
            return;
        }
        let chosen = |stalled: &&Stalled| disjoint || stalled.waited >= self.params.stall_warn;
        let chosen: Vec<&Stalled> = report.stalled.iter().filter(chosen).collect();
        let text = self.warning(disjoint, &chosen);
        let news = text != self.stall.warned;
        if news {
            self.stall.warned.clone_from(&text);
        }
        let late = chosen.iter().take(LISTED).flat_map(|stalled| stalled.missing.iter().chain(&stalled.unknown));
        let mut ranks: Vec<u32> = late.map(|rank| self.topology.global[*rank as usize]).collect();
        ranks.sort_unstable();
        ranks.dedup();
        actions.push(Action::Warn { text, ranks, news });
    }

    fn warning(&self, disjoint: bool, chosen: &[&Stalled]) -> String {
        let mut text = if disjoint {
            "every rank waits, but for different tensors:".to_owned()
        } else {
            format!("tensors wait for ranks for {:?} or longer:", self.params.stall_warn)
        };
        for stalled in chosen.iter().take(LISTED) {
            text += &format!("\n  '{}': submitted by {}", stalled.name, self.ranks(&stalled.present));
            if !stalled.missing.is_empty() {
                text += &format!("; not by {}", self.ranks(&stalled.missing));
            }
            if !stalled.unknown.is_empty() {
                let silent = self.leaders_of(&stalled.unknown);
                text += &format!(
                    "; not known of {}, as {} not answer for {}",
                    self.ranks(&stalled.unknown),
                    self.subject(&silent, "does", "do"),
                    if silent.len() == 1 { "its host" } else { "their hosts" }
                );
            }
        }
        if chosen.len() > LISTED {
            text += &format!("\n  and {} more", chosen.len() - LISTED);
        }
        text + "\ncheck that every rank submits the same names"
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
                let waited = now.saturating_sub(since);
                let (_, missing, unknown) = self.attendance(local.name);
                let error = if self.decides {
                    self.timeout_error(&name, waited, &missing, &self.leaders_of(&unknown))
                } else {
                    self.no_answer(&name, waited)
                };
                self.note_late(&missing, &unknown);
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
        self.locals.get_mut(index).expired = true;
        let local = self.locals.get(index);
        let id = local.name;
        let slot = match &local.form {
            Form::Bit(slot) => Some(*slot),
            Form::Frame(_) => None,
            // The peers know the refused call before it, and are late for that one.
            Form::Parked(_) if matches!(self.locals.get(self.names.get(id).local).form, Form::Invalid) => None,
            // Waits for the log, not for a peer: only the log's silence can end it.
            Form::Invalid | Form::WithdrawnBit | Form::WithdrawnFrame | Form::Parked(_) => return,
        };
        if self.topology.hosts.len() > 1 {
            // The deadline may be shorter than the time after which a wait is a long one.
            actions.push(Action::Summon);
        }
        if self.decides {
            let of = slot.map_or_else(|| Owned::Name((&*self.names.get(id).name).into()), Owned::Slot);
            self.expired.push(Expired { rank: self.topology.me, waited, as_of: self.next, of, census: None });
            self.dirty = true;
            return;
        }
        let mut bytes = self.spare_bytes.pop().unwrap_or_default();
        let target = slot.map_or_else(|| Target::Name(&self.names.get(id).name), Target::Slot);
        frame::put_expired(&mut bytes, self.next, waited.as_micros() as u64, target);
        self.publish(bytes, actions);
    }

    /// Keeps the ranks because of which the set ends.
    pub(super) fn note_late(&mut self, missing: &[u32], silent: &[u32]) {
        let late = missing.iter().chain(silent);
        self.stall.late = late.map(|rank| self.topology.global[*rank as usize]).collect();
    }

    /// The global ranks because of which a deadline passed.
    pub(crate) fn late(&self) -> &[u32] {
        &self.stall.late
    }

    /// The error of a name that `missing` did not submit, while the leaders `silent` did not answer for their hosts.
    pub(super) fn timeout_error(&self, name: &str, waited: Duration, missing: &[u32], silent: &[u32]) -> Error {
        let mut parts = Vec::new();
        if !missing.is_empty() {
            parts.push(format!("{} did not submit it", self.ranks(missing)));
        }
        if !silent.is_empty() {
            let host = if silent.len() == 1 { "its host" } else { "their hosts" };
            parts.push(format!("{} not answer for {host}", self.subject(silent, "does", "do")));
        }
        let text = format!(
            "{}; check that every rank reaches this call, or raise the deadline (KOLO_DEADLINE)",
            parts.join("; ")
        );
        Error::Timeout { what: format!("tensor '{name}'").into(), waited, missing: text.into() }
    }

    /// The error of a name when neither the first leader nor this host's has put an end to it.
    fn no_answer(&self, name: &str, waited: Duration) -> Error {
        let mut leaders = vec![self.topology.hosts[0][0], self.topology.hosts[self.my_host][0]];
        leaders.retain(|rank| *rank != self.topology.me);
        leaders.dedup();
        let text = format!(
            "{} not answer, and without {} nobody knows who is late; see what {} does, it may be stopped or gone",
            self.subject(&leaders, "does", "do"),
            if leaders.len() == 1 { "it" } else { "them" },
            if leaders.len() == 1 { "it" } else { "each" },
        );
        Error::Timeout { what: format!("tensor '{name}'").into(), waited, missing: text.into() }
    }

    /// Ranks with the verb that fits their number: `rank 3 does`, `ranks 0, 3 do`.
    fn subject(&self, ranks: &[u32], one: &str, many: &str) -> String {
        format!("{} {}", self.ranks(ranks), if ranks.len() == 1 { one } else { many })
    }

    /// Set ranks as words, in global ranks: `rank 3`, `ranks 0-2, 7`.
    fn ranks(&self, ranks: &[u32]) -> String {
        let global: Vec<u32> = ranks.iter().map(|rank| self.topology.global[*rank as usize]).collect();
        ranks_in_words(&global)
    }
}
