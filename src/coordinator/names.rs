//! Names that are cached, submitted here, or pending by frame anywhere; and the frames of each rank.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::NONE;
use super::frame::View;
use super::request::Request;
use super::wire::Take;

/// A distinct view of a name.
#[derive(Debug)]
pub(super) enum Seen {
    Request { bytes: Box<[u8]>, request: Arc<Request> },
    Invalid(Box<str>),
}

impl Seen {
    fn is(&self, view: View<'_>) -> bool {
        match (self, view) {
            (Self::Request { bytes, .. }, View::Request(other)) => **bytes == *other,
            (Self::Invalid(reason), View::Invalid(other)) => **reason == *other,
            _ => false,
        }
    }
}

/// Set in a head whose rank took the frame back without the log's confirmation yet.
const WITHDRAWN: u32 = 1 << 31;

/// The frames of one name that the log has not consumed (README, section 3, *Frames*).
#[derive(Debug)]
pub(super) struct Frames {
    /// Oldest frame of each rank: index of its view, or `NONE`.
    heads: Vec<u32>,
    pub(super) views: Vec<Seen>,
    /// Frames behind a head: their ranks are ahead of this one's log position.
    later: VecDeque<(u32, u32)>,
    /// Ranks whose frame was consumed before it was read here, with how many.
    debts: Vec<(u32, u32)>,
    /// Heads that are not withdrawn.
    live: usize,
    held: usize,
    /// When a scan first saw the present heads.
    pub(super) since: Option<Duration>,
}

impl Frames {
    fn new(size: usize) -> Self {
        Self {
            heads: vec![NONE; size],
            views: Vec::new(),
            later: VecDeque::new(),
            debts: Vec::new(),
            live: 0,
            held: 0,
            since: None,
        }
    }

    /// How many ranks are pending by frame.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// The view of a rank that is pending by frame.
    pub(super) fn view(&self, rank: u32) -> Option<&Seen> {
        let head = self.heads[rank as usize];
        (head != NONE && head & WITHDRAWN == 0).then(|| &self.views[head as usize])
    }

    pub(super) fn is_withdrawn(&self, rank: u32) -> bool {
        let head = self.heads[rank as usize];
        head != NONE && head & WITHDRAWN != 0
    }

    /// Whether a withdrawn frame of the rank waits for the log, at the head or behind it.
    pub(super) fn has_withdrawn(&self, rank: u32) -> bool {
        self.is_withdrawn(rank) || self.later.iter().any(|(r, view)| *r == rank && view & WITHDRAWN != 0)
    }

    /// The one request of all ranks, if every rank is pending by frame with the same; those that have `joined` are not, or
    /// there is none.
    pub(super) fn agreed(&self, joined: impl Fn(u32) -> bool) -> Option<&Arc<Request>> {
        if self.live == self.heads.len() {
            return self.request(&self.heads);
        }
        let at_work: Vec<u32> =
            (0..).zip(&self.heads).filter(|(rank, _)| !joined(*rank)).map(|(_, head)| *head).collect();
        self.request(&at_work).filter(|_| self.live == at_work.len())
    }

    /// What all of `heads` ask for.
    fn request(&self, heads: &[u32]) -> Option<&Arc<Request>> {
        let first = heads.first()?;
        match self.views.get(*first as usize)? {
            Seen::Request { request, .. } if heads.iter().all(|head| head == first) => Some(request),
            _ => None,
        }
    }

    fn set_head(&mut self, rank: u32, head: u32) {
        self.heads[rank as usize] = head;
        self.held += 1;
        self.live += usize::from(head & WITHDRAWN == 0);
    }

    fn is_idle(&self) -> bool {
        self.held == 0 && self.later.is_empty() && self.debts.is_empty()
    }

    /// A frame was read.
    fn arrive(&mut self, rank: u32, name: &Arc<str>, view: View<'_>) {
        if let Some(at) = self.debts.iter().position(|(debtor, _)| *debtor == rank) {
            self.debts[at].1 -= 1;
            if self.debts[at].1 == 0 {
                self.debts.swap_remove(at);
            }
            return;
        }
        let index = self.views.iter().position(|seen| seen.is(view)).unwrap_or_else(|| {
            self.views.push(match view {
                View::Request(bytes) => match Request::take_view(name, &mut Take::new(bytes)) {
                    Some(request) => Seen::Request { bytes: bytes.into(), request: Arc::new(request) },
                    // Parsed frames hold views that can be read; stay total all the same.
                    None => Seen::Invalid("it cannot be read".into()),
                },
                View::Invalid(reason) => Seen::Invalid(reason.into()),
            });
            self.views.len() - 1
        }) as u32;
        if self.heads[rank as usize] == NONE {
            self.set_head(rank, index);
        } else {
            self.later.push_back((rank, index));
        }
    }

    /// The log consumed the rank's oldest frame.
    fn consume(&mut self, rank: u32) {
        let head = std::mem::replace(&mut self.heads[rank as usize], NONE);
        self.since = None;
        if head == NONE {
            match self.debts.iter_mut().find(|(debtor, _)| *debtor == rank) {
                Some((_, count)) => *count += 1,
                None => self.debts.push((rank, 1)),
            }
            return;
        }
        self.held -= 1;
        self.live -= usize::from(head & WITHDRAWN == 0);
        if let Some(at) = self.later.iter().position(|(r, _)| *r == rank)
            && let Some((_, next)) = self.later.remove(at)
        {
            self.set_head(rank, next);
        }
        if self.held == 0 && self.later.is_empty() {
            self.views.clear();
        }
    }

    /// The rank's newest frame is taken back.
    fn withdraw(&mut self, rank: u32) {
        if let Some((_, view)) = self.later.iter_mut().rev().find(|(r, _)| *r == rank) {
            *view |= WITHDRAWN;
            return;
        }
        let head = &mut self.heads[rank as usize];
        if *head != NONE && *head & WITHDRAWN == 0 {
            *head |= WITHDRAWN;
            self.live -= 1;
        }
    }
}

#[derive(Debug)]
pub(super) struct Name {
    pub(super) name: Arc<str>,
    pub(super) slot: u32,
    /// This rank's submission that is published, invalid or withdrawn.
    pub(super) local: u32,
    /// This rank's submission that waits for it.
    pub(super) parked: u32,
    /// At deciders only.
    pub(super) frames: Option<Box<Frames>>,
    listed: bool,
}

/// The table. The map is only ever looked up, never walked.
#[derive(Debug)]
pub(super) struct Names {
    size: usize,
    by_name: HashMap<Arc<str>, u32>,
    slab: Vec<Name>,
    vacant: Vec<u32>,
    /// Names that have frames, in the order in which they got them.
    pub(super) framed: Vec<u32>,
}

impl Names {
    pub(super) fn new(size: usize) -> Self {
        Self { size, by_name: HashMap::new(), slab: Vec::new(), vacant: Vec::new(), framed: Vec::new() }
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub(super) fn get(&self, id: u32) -> &Name {
        &self.slab[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut Name {
        &mut self.slab[id as usize]
    }

    /// Finds the name or makes it.
    pub(super) fn intern(&mut self, name: &str) -> u32 {
        if let Some(id) = self.find(name) {
            return id;
        }
        let name: Arc<str> = name.into();
        let entry =
            Name { name: Arc::clone(&name), slot: NONE, local: NONE, parked: NONE, frames: None, listed: false };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.slab[id as usize] = entry;
                id
            }
            None => {
                self.slab.push(entry);
                self.slab.len() as u32 - 1
            }
        };
        self.by_name.insert(name, id);
        id
    }

    /// Forgets the name if nothing needs it any more.
    pub(super) fn tidy(&mut self, id: u32) {
        let entry = &mut self.slab[id as usize];
        if entry.frames.as_ref().is_some_and(|frames| frames.is_idle()) {
            entry.frames = None;
        }
        if entry.frames.is_none() && entry.listed {
            entry.listed = false;
            self.framed.retain(|framed| *framed != id);
        }
        let entry = &self.slab[id as usize];
        if entry.slot == NONE && entry.local == NONE && entry.parked == NONE && entry.frames.is_none() {
            // Only once: a vacant entry's name is no longer in the map.
            if self.by_name.get(&entry.name) == Some(&id) {
                self.by_name.remove(&entry.name);
                self.vacant.push(id);
            }
        }
    }

    fn frames(&mut self, id: u32) -> &mut Frames {
        let size = self.size;
        let entry = &mut self.slab[id as usize];
        if !entry.listed {
            entry.listed = true;
            self.framed.push(id);
        }
        entry.frames.get_or_insert_with(|| Box::new(Frames::new(size)))
    }

    /// A submission frame of `rank` was read.
    pub(super) fn arrive(&mut self, rank: u32, name: &str, view: View<'_>) -> u32 {
        let id = self.intern(name);
        let name = Arc::clone(&self.get(id).name);
        self.frames(id).arrive(rank, &name, view);
        self.tidy(id);
        id
    }

    /// The log consumed a frame of `rank`. The caller tidies.
    pub(super) fn consume(&mut self, id: u32, rank: u32) {
        self.frames(id).consume(rank);
    }

    /// The newest frame of `rank` is taken back; false if none is pending.
    pub(super) fn withdraw(&mut self, rank: u32, name: &str) -> bool {
        let Some(frames) = self.find(name).and_then(|id| self.slab[id as usize].frames.as_mut()) else { return false };
        frames.withdraw(rank);
        frames.has_withdrawn(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, ReduceOp};

    fn view(dims: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        Request::allreduce("a", DType::F32, vec![dims], ReduceOp::Sum).encode_view(&mut bytes);
        bytes
    }

    #[test]
    fn the_kth_frame_meets_the_kth_item_in_either_order() {
        let (one, two) = (view(1), view(2));
        let mut names = Names::new(2);
        let id = names.arrive(0, "a", View::Request(&one));
        names.arrive(0, "a", View::Request(&two));
        names.consume(id, 1);
        names.arrive(1, "a", View::Request(&one));
        let frames = names.get(id).frames.as_ref().unwrap();
        assert_eq!(frames.live(), 1, "rank 1's frame paid its debt, rank 0's second one queues");
        names.consume(id, 0);
        names.arrive(1, "a", View::Request(&two));
        assert_eq!(names.get(id).frames.as_ref().unwrap().agreed(|_| false).unwrap().shape, [2]);
        names.consume(id, 0);
        names.consume(id, 1);
        names.tidy(id);
        assert_eq!(names.find("a"), None, "nothing is left behind");
        assert!(names.framed.is_empty());
    }

    #[test]
    fn a_withdrawn_frame_does_not_count() {
        let one = view(1);
        let mut names = Names::new(2);
        let id = names.arrive(0, "a", View::Request(&one));
        names.arrive(1, "a", View::Request(&one));
        assert!(names.withdraw(1, "a"));
        names.arrive(1, "a", View::Request(&one));
        assert!(names.get(id).frames.as_ref().unwrap().agreed(|_| false).is_none());
        names.consume(id, 1);
        assert!(names.get(id).frames.as_ref().unwrap().agreed(|_| false).is_some());
        assert!(!names.withdraw(0, "b"));
    }

    #[test]
    fn one_invalid_view_is_no_agreement() {
        let one = view(1);
        let mut names = Names::new(2);
        let id = names.arrive(0, "a", View::Request(&one));
        names.arrive(1, "a", View::Invalid("no"));
        let frames = names.get(id).frames.as_ref().unwrap();
        assert_eq!(frames.live(), 2);
        assert!(frames.agreed(|_| false).is_none());
    }
}
