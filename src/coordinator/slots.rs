//! The agreed slot table: changes only when an entry is processed, hence equal on every rank at equal positions.

use std::collections::VecDeque;
use std::sync::Arc;

use super::NONE;
use super::request::{Request, Spec};

/// One cached name.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// What a set bit asks for; `None` while the slot is free.
    pub(super) request: Option<Arc<Request>>,
    /// The request's, beside it for speed.
    pub(super) spec: Option<Spec>,
    pub(super) elements: u64,
    pub(super) bytes: u64,
    /// Index into the name table, `NONE` while free.
    pub(super) name: u32,
    /// Value of the run clock after its last run.
    pub(super) last_run: u64,
    /// Position after the entry that last ran, assigned or freed it; 0 at first. A message with `as_of` below it is void.
    pub(super) touched: u64,
    /// This rank's submission that set the bit, or is taking it back. Not agreed.
    pub(super) local: u32,
}

#[derive(Debug)]
pub(super) struct Slots {
    table: Vec<Slot>,
    /// One bit a slot: it has a request.
    pub(super) assigned: Vec<u64>,
    /// One bit a slot: parity of its runs.
    pub(super) consumed: Vec<u64>,
    /// Freed slots in the order of freeing, with the position after the entry that freed them.
    freed: VecDeque<(u32, u64)>,
    /// Slots from here on were never used.
    high: u32,
    /// Names run so far.
    pub(super) clock: u64,
}

/// Walks the slots that a proposal may hand out, without taking them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Free {
    freed: usize,
    fresh: u32,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        let empty =
            Slot { request: None, spec: None, elements: 0, bytes: 0, name: NONE, last_run: 0, touched: 0, local: NONE };
        Self {
            table: vec![empty; capacity],
            assigned: vec![0; capacity.div_ceil(64)],
            consumed: vec![0; capacity.div_ceil(64)],
            freed: VecDeque::new(),
            high: 0,
            clock: 0,
        }
    }

    pub(super) fn words_in_use(&self) -> usize {
        (self.high as usize).div_ceil(64)
    }

    pub(super) fn get(&self, slot: u32) -> &Slot {
        &self.table[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.table[slot as usize]
    }

    /// Whether `slot` is one and holds a request. Slots that peers name go through here before [`Slots::get`].
    pub(super) fn is_assigned(&self, slot: u32) -> bool {
        self.assigned.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// The next slot that every rank has let go of, when `as_of` is the smallest position that the ranks reported.
    pub(super) fn next_free(&self, free: &mut Free, as_of: u64) -> Option<u32> {
        // Freed in log order, so the first is the oldest: if it is too young, all are.
        if let Some((slot, at)) = self.freed.get(free.freed)
            && as_of >= *at
        {
            free.freed += 1;
            return Some(*slot);
        }
        let slot = self.high + free.fresh;
        ((slot as usize) < self.table.len()).then(|| {
            free.fresh += 1;
            slot
        })
    }

    /// Freed slots that the walk could not hand out yet.
    pub(super) fn too_young(&self, free: &Free) -> usize {
        self.freed.len() - free.freed
    }

    /// Gives a free slot to a name; false if it is not free.
    pub(super) fn assign(&mut self, slot: u32, name: u32, request: &Arc<Request>) -> bool {
        if slot == self.high && (slot as usize) < self.table.len() {
            self.high += 1;
        } else if let Some(at) = self.freed.iter().position(|(freed, _)| *freed == slot) {
            self.freed.remove(at);
        } else {
            return false;
        }
        self.assigned[slot as usize / 64] |= 1 << (slot % 64);
        self.get_mut(slot).name = name;
        self.set_request(slot, request);
        true
    }

    /// What a bit of the slot asks for from now on.
    pub(super) fn set_request(&mut self, slot: u32, request: &Arc<Request>) {
        let entry = self.get_mut(slot);
        entry.elements = request.elements();
        entry.bytes = request.bytes();
        entry.spec = Some(request.spec);
        entry.request = Some(Arc::clone(request));
    }

    /// Frees the slot by the entry before `position`, and returns what it held.
    pub(super) fn free(&mut self, slot: u32, position: u64) -> Option<Arc<Request>> {
        self.assigned[slot as usize / 64] &= !(1 << (slot % 64));
        self.freed.push_back((slot, position));
        let entry = self.get_mut(slot);
        entry.touched = position;
        entry.name = NONE;
        entry.local = NONE;
        entry.request.take()
    }

    /// The slot ran in the entry before `position`.
    pub(super) fn ran(&mut self, slot: u32, position: u64) {
        self.clock += 1;
        let clock = self.clock;
        let entry = self.get_mut(slot);
        entry.last_run = clock;
        entry.touched = position;
    }

    /// Assigned slots that did not run for `age` runs and that `keep` does not hold, least recently run first, into `victims`.
    pub(super) fn victims(&self, age: u64, keep: impl Fn(u32) -> bool, victims: &mut Vec<u32>) {
        victims.clear();
        victims
            .extend((0..self.high).filter(|slot| {
                self.is_assigned(*slot) && self.clock - self.get(*slot).last_run >= age && !keep(*slot)
            }));
        victims.sort_unstable_by_key(|slot| (self.get(*slot).last_run, *slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, ReduceOp};

    #[test]
    fn a_freed_slot_waits_until_every_rank_is_past_its_end() {
        let request = Arc::new(Request::allreduce("a", DType::F32, vec![2], ReduceOp::Sum));
        let mut slots = Slots::new(64);
        for slot in 0..64 {
            assert_eq!(slots.next_free(&mut Free::default(), 0), Some(slot));
            assert!(slots.assign(slot, slot, &request));
        }
        assert_eq!(slots.next_free(&mut Free::default(), u64::MAX), None);
        slots.free(9, 5);
        slots.free(3, 6);
        assert_eq!(slots.next_free(&mut Free::default(), 4), None);
        let mut free = Free::default();
        assert_eq!(slots.next_free(&mut free, 5), Some(9));
        assert_eq!(slots.next_free(&mut free, 5), None);
        assert_eq!(slots.next_free(&mut free, 6), Some(3));
        assert!(slots.assign(3, 1, &request));
        assert!(!slots.assign(3, 1, &request), "taken");
        assert!(!slots.assign(64, 1, &request), "no such slot");
    }

    #[test]
    fn the_least_recently_run_goes_first() {
        let request = Arc::new(Request::allreduce("a", DType::F32, vec![2], ReduceOp::Sum));
        let mut slots = Slots::new(64);
        for slot in 0..4 {
            slots.assign(slot, slot, &request);
            slots.ran(slot, 1);
        }
        slots.ran(0, 2);
        let mut victims = Vec::new();
        slots.victims(0, |slot| slot == 2, &mut victims);
        assert_eq!(victims, [1, 3, 0]);
        slots.victims(2, |_| false, &mut victims);
        assert_eq!(victims, [1, 2]);
    }
}
