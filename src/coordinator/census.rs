//! A census: the first leader asks the others what is pending on their hosts, so that it can name ranks (README,
//! section 9).

use std::collections::VecDeque;
use std::time::Duration;

use super::Coordinator;
use super::api::Action;
use super::message;

/// How long the first leader waits for an answer. Shorter than any grace, so that a deadline still ends in an entry.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer counts as news.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Census {
    /// At the first leader: the number of the last one, from 1.
    last: u64,
    /// Those that are under way, and when they began.
    begun: VecDeque<(u64, Duration)>,
    /// The highest that each host has answered.
    counted: Vec<u64>,
    /// The highest that is over: all hosts have answered it, or had their time.
    over: u64,
    /// When that began.
    over_since: Option<Duration>,
    /// At another leader: the one to answer.
    due: Option<u64>,
}

impl Census {
    pub(super) fn new(hosts: usize) -> Self {
        Self { counted: vec![0; hosts], ..Self::default() }
    }

    /// Whether the census of this number is over.
    pub(super) fn is_over(&self, number: u64) -> bool {
        self.over >= number
    }

    /// Whether `host` let the last census pass without an answer.
    pub(super) fn is_silent(&self, host: usize) -> bool {
        self.counted[host] < self.over
    }

    /// A host answered.
    pub(super) fn count(&mut self, host: usize, number: u64) {
        let counted = &mut self.counted[host];
        // Nobody answers what was not asked.
        *counted = number.min(self.last).max(*counted);
    }

    /// The first leader asks.
    pub(super) fn ask(&mut self, number: u64) {
        self.due = Some(number);
    }

    /// What this leader has yet to answer.
    pub(super) fn due(&self) -> Option<u64> {
        self.due
    }

    pub(super) fn take_due(&mut self) -> Option<u64> {
        self.due.take()
    }

    /// When the oldest one ends without an answer.
    pub(super) fn ends_at(&self) -> Option<Duration> {
        self.begun.front().map(|(_, at)| at.saturating_add(PATIENCE))
    }

    /// Ends what all hosts but `mine` have answered, or had time to; whether there was any.
    fn settle(&mut self, now: Duration, mine: usize) -> bool {
        let others = self.counted.iter().enumerate().filter(|(host, _)| *host != mine);
        let counted = others.map(|(_, counted)| *counted).min().unwrap_or(u64::MAX);
        let mut ended = false;
        while let Some((number, at)) = self.begun.front().copied()
            && (number <= counted || now >= at.saturating_add(PATIENCE))
        {
            self.begun.pop_front();
            (self.over, self.over_since, ended) = (number, Some(at), true);
        }
        ended
    }
}

impl Coordinator {
    /// Whether this rank learns by a census, and not by its own eyes, what is pending.
    fn counts_others(&self) -> bool {
        self.decides && self.topology.hosts.len() > 1
    }

    /// Begins a census, unless one began at this very moment; its number.
    fn begin_census(&mut self, now: Duration, actions: &mut Vec<Action>) -> u64 {
        if self.census.begun.back().is_none_or(|(_, at)| *at != now) {
            self.census.last += 1;
            self.census.begun.push_back((self.census.last, now));
            for host in (0..self.topology.hosts.len()).filter(|host| *host != self.my_host) {
                let mut bytes = self.spare_bytes.pop().unwrap_or_default();
                message::put_census(&mut bytes, self.census.last);
                actions.push(Action::SendHost { host, bytes });
            }
        }
        self.census.last
    }

    /// Ends what is answered. At a tick, before anything is concluded from it.
    pub(super) fn settle_census(&mut self, now: Duration) {
        if self.census.settle(now, self.my_host) {
            self.dirty = true;
            self.stall.scan_soon(now);
        }
    }

    /// Whether it is known of every host what is pending there; asks if not.
    pub(super) fn is_counted(&mut self, now: Duration, actions: &mut Vec<Action>) -> bool {
        if !self.counts_others() {
            return true;
        }
        let fresh = self.census.over_since.is_some_and(|at| now.saturating_sub(at) <= FRESH);
        if !fresh && self.census.begun.is_empty() {
            self.begin_census(now, actions);
        }
        fresh
    }

    /// Has the others counted before a deadline that has passed becomes an entry.
    pub(super) fn count_expired(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.counts_others() && self.expired.iter().any(|expired| expired.census.is_none()) {
            let number = self.begin_census(now, actions);
            for expired in &mut self.expired {
                expired.census.get_or_insert(number);
            }
            if let Some(at) = self.census.ends_at() {
                self.stall.scan_soon(at);
            }
        }
    }

    /// Whether it is known of `rank` what is pending there.
    pub(super) fn is_known(&self, rank: u32) -> bool {
        let host = self.host_of[rank as usize] as usize;
        // Another leader passes frames on without keeping them.
        rank == self.topology.me || (self.decides && (host == self.my_host || !self.census.is_silent(host)))
    }
}
