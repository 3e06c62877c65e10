//! What the other ranks say: frames and ready words.

use std::time::Duration;

use super::api::Action;
use super::frame::{self, Body, Target};
use super::{Coordinator, NONE};

/// A withdrawal that the log has not confirmed.
#[derive(Debug)]
pub(super) struct Withdrawal {
    pub(super) rank: u32,
    pub(super) serial: u64,
    pub(super) as_of: u64,
    pub(super) of: Owned,
}

/// A submission that reached its deadline.
#[derive(Debug)]
pub(super) struct Expired {
    pub(super) rank: u32,
    pub(super) waited: Duration,
    pub(super) as_of: u64,
    pub(super) of: Owned,
    /// The census that must be over before ranks are named.
    pub(super) census: Option<u64>,
}

/// [`Target`] that outlives its frame.
#[derive(Debug)]
pub(super) enum Owned {
    Slot(u32),
    Name(Box<str>),
}

impl Owned {
    pub(super) fn borrow(&self) -> Target<'_> {
        match self {
            Self::Slot(slot) => Target::Slot(*slot),
            Self::Name(name) => Target::Name(name),
        }
    }
}

impl From<Target<'_>> for Owned {
    fn from(target: Target<'_>) -> Self {
        match target {
            Target::Slot(slot) => Self::Slot(slot),
            Target::Name(name) => Self::Name(name.into()),
        }
    }
}

impl Coordinator {
    pub(super) fn peer_bits(&mut self, member: usize, word: usize, bits: u64) {
        // A leader knows its own word best; a word beyond the table is nobody's.
        if member == self.my_member || member >= self.members {
            return;
        }
        if let Some(seen) = self.bits.get_mut(word * self.members + member)
            && *seen != bits
        {
            *seen = bits;
            self.dirty = true;
            self.stall.changed();
        }
    }

    pub(super) fn peer_frame(&mut self, member: usize, bytes: &[u8], actions: &mut Vec<Action>) {
        match self.topology.hosts[self.my_host].get(member) {
            Some(rank) if member != self.my_member && self.watches_peers() => self.frame(*rank, bytes, actions),
            _ => {}
        }
    }

    /// A frame of `rank`, from its ring, its leader, or this rank itself.
    pub(super) fn frame(&mut self, rank: u32, bytes: &[u8], actions: &mut Vec<Action>) {
        let Some(frame) = frame::parse(bytes) else {
            let rank = self.topology.global[rank as usize];
            return self.poison(
                format!(
                    "rank {rank} published {} bytes that are no request; do all ranks run the same build?",
                    bytes.len()
                ),
                actions,
            );
        };
        self.dirty = true;
        self.stall.changed();
        if !self.decides {
            return self.forward(rank, bytes, &frame.body, actions);
        }
        let seen = &mut self.as_of[rank as usize];
        *seen = frame.as_of.max(*seen);
        match frame.body {
            Body::Submission { name, view } => {
                self.names.arrive(rank, name, view);
            }
            Body::Withdraw { serial, target } => {
                self.expired.retain(|e| e.rank != rank || e.of.borrow() != target);
                // Not above: the item came before the frame.
                if serial > self.withdrawn[rank as usize] {
                    let pending = match target {
                        Target::Slot(slot) if self.untouched(slot, frame.as_of) => {
                            // A vote that counted the rank must not be used beside the withdrawal.
                            let host = self.host_of[rank as usize] as usize;
                            self.hosts.take_back(slot, host, rank, host == self.my_host);
                            true
                        }
                        // Moot, or this rank is behind and will see: kept until its log says so.
                        Target::Slot(slot) => self.next < frame.as_of && (slot as usize) < self.params.capacity,
                        Target::Name(name) => self.names.withdraw(rank, name),
                    };
                    if pending {
                        // An earlier one of the same target has ended, or the rank could not have submitted it again.
                        self.withdrawals.retain(|w| w.rank != rank || w.of.borrow() != target);
                        let of = target.into();
                        self.withdrawals.push(Withdrawal { rank, serial, as_of: frame.as_of, of });
                    }
                }
            }
            Body::Expired { micros, target } => {
                let waited = Duration::from_micros(micros);
                self.expired.push(Expired { rank, waited, as_of: frame.as_of, of: target.into(), census: None });
            }
            Body::Join => self.joins.arrive(rank),
        }
    }

    /// The submissions of the name have ended: their deadlines must not count for the next ones.
    pub(super) fn forget_expired(&mut self, name: &str) {
        // A rank that is ahead may speak of the next one already.
        self.expired.retain(|e| e.as_of >= self.next || e.of.borrow() != Target::Name(name));
    }

    /// Whether `slot` still is what it was at position `as_of`.
    pub(super) fn untouched(&self, slot: u32, as_of: u64) -> bool {
        self.slots.is_assigned(slot) && self.slots.get(slot).touched <= as_of
    }

    /// Whether the bit of `slot` is known to be pending at `rank`.
    pub(super) fn has_bit(&self, slot: u32, rank: u32) -> bool {
        let (word, mask) = (slot as usize / 64, 1u64 << (slot % 64));
        let host = self.host_of[rank as usize] as usize;
        if host == self.my_host {
            if rank != self.topology.me && !self.watches_peers() {
                return false;
            }
            let member = self.member_of[rank as usize] as usize;
            return self.bits_of(member, word) & mask != 0;
        }
        self.hosts.has_vote(host, word, mask) || self.hosts.details.contains(&(slot, rank))
    }

    /// Whether `rank` is known to be pending on the name, in either form.
    pub(super) fn is_present(&self, id: u32, rank: u32) -> bool {
        let name = self.names.get(id);
        name.frames.as_ref().is_some_and(|frames| frames.view(rank).is_some())
            || (name.slot != NONE && self.has_bit(name.slot, rank))
    }
}
