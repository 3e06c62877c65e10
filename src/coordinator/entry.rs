//! Items of a log entry, as bytes. An entry is a version byte and items until its end.

use super::called::MAX_STEP_NAME;
use super::frame::{MAX_REASON, Target};
use super::request::Request;
use super::wire::{Put, Take};

/// First byte of every entry.
pub(super) const VERSION: u8 = 1;

const EVICT: u8 = 1;
const WITHDRAW: u8 = 2;
const FAIL: u8 = 3;
const RUN: u8 = 4;
const TIMEOUT: u8 = 5;
const JOINED: u8 = 6;

/// An item as read. A `Run` is followed by `count` items for [`take_run_item`].
#[derive(Debug)]
pub(super) enum Item<'a> {
    Evict {
        slot: u32,
    },
    Withdraw {
        rank: u32,
        serial: u64,
        target: Target<'a>,
    },
    Fail {
        name: &'a str,
        groups: Vec<Group>,
    },
    Run {
        count: u32,
    },
    /// `missing` did not submit the name; of ranks of the hosts that `silent` lead nothing is known.
    Timeout {
        name: &'a str,
        micros: u64,
        missing: Vec<u32>,
        silent: Vec<u32>,
    },
    /// `rank` has joined.
    Joined {
        rank: u32,
    },
}

/// What ranks with the same view of a failed name said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// They set the bit of the name's slot: the slot's request.
    Bit,
    /// They published this request.
    Request(Request),
    /// Their call was refused for this reason.
    Invalid(String),
    /// They published something that the entry had no room for.
    Other,
    /// They have joined, and said nothing of the name.
    Joined,
}

/// Ranks with one view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) said: Said,
    /// Ascending.
    pub(super) ranks: Vec<u32>,
}

/// One tensor of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RunItem {
    /// Every rank that has not joined has the slot's bit pending.
    Cached { slot: u32 },
    /// Every rank that has not joined has an equal frame pending; the request gets the slot, if one is given.
    New { request: Request, slot: Option<u32> },
}

pub(super) fn put_evict(out: &mut Vec<u8>, slot: u32) {
    out.u8(EVICT);
    out.varint(slot.into());
}

pub(super) fn put_withdraw(out: &mut Vec<u8>, rank: u32, serial: u64, target: Target<'_>) {
    out.u8(WITHDRAW);
    out.varint(rank.into());
    out.varint(serial);
    target.encode(out);
}

pub(super) fn put_timeout(out: &mut Vec<u8>, name: &str, micros: u64, missing: &[u32], silent: &[u32], size: usize) {
    out.u8(TIMEOUT);
    out.str(name);
    out.varint(micros);
    put_ranks(out, missing, size);
    put_ranks(out, silent, size);
}

pub(super) fn put_joined(out: &mut Vec<u8>, rank: u32) {
    out.u8(JOINED);
    out.varint(rank.into());
}

pub(super) fn put_fail(out: &mut Vec<u8>, name: &str, groups: &[Group], size: usize) {
    out.u8(FAIL);
    out.str(name);
    out.varint(groups.len() as u64);
    for group in groups {
        match &group.said {
            Said::Bit => out.u8(0),
            Said::Request(request) => {
                out.u8(1);
                request.encode_view(out);
            }
            Said::Invalid(reason) => {
                out.u8(2);
                out.str(reason);
            }
            Said::Other => out.u8(3),
            Said::Joined => out.u8(4),
        }
        put_ranks(out, &group.ranks, size);
    }
}

/// Begins a batch; returns where [`end_run`] writes the number of its items.
pub(super) fn begin_run(out: &mut Vec<u8>) -> usize {
    out.u8(RUN);
    out.extend_from_slice(&[0; 4]);
    out.len() - 4
}

pub(super) fn end_run(out: &mut [u8], at: usize, count: u32) {
    out[at..at + 4].copy_from_slice(&count.to_le_bytes());
}

pub(super) fn put_cached(out: &mut Vec<u8>, slot: u32) {
    out.varint(u64::from(slot) << 2);
}

pub(super) fn put_new(out: &mut Vec<u8>, request: &Request, slot: Option<u32>) {
    match slot {
        Some(slot) => out.varint(u64::from(slot) << 2 | 1),
        None => out.varint(2),
    }
    request.encode(out);
}

pub(super) fn take_item<'a>(take: &mut Take<'a>, size: usize) -> Option<Item<'a>> {
    match take.u8()? {
        EVICT => Some(Item::Evict { slot: take.u32()? }),
        WITHDRAW => {
            let rank = take.bounded(size as u64 - 1)? as u32;
            Some(Item::Withdraw { rank, serial: take.varint()?, target: Target::take(take)? })
        }
        FAIL => {
            let name = take.str(MAX_STEP_NAME)?;
            let count = take.bounded(size as u64)?;
            // Grown as read: a count in hostile bytes allocates nothing.
            let mut groups = Vec::new();
            let mut total = 0;
            for _ in 0..count {
                let said = match take.u8()? {
                    0 => Said::Bit,
                    1 => Said::Request(Request::take_view(name, take)?),
                    2 => Said::Invalid(take.str(MAX_REASON)?.to_owned()),
                    3 => Said::Other,
                    4 => Said::Joined,
                    _ => return None,
                };
                let ranks = take_ranks(take, size)?;
                total += ranks.len();
                // A few bytes stand for all ranks, and no rank is in two groups.
                if total > size {
                    return None;
                }
                groups.push(Group { said, ranks });
            }
            (total == size).then_some(Item::Fail { name, groups })
        }
        RUN => Some(Item::Run { count: u32::from_le_bytes(take.slice(4)?.try_into().ok()?) }),
        TIMEOUT => {
            let (name, micros) = (take.str(MAX_STEP_NAME)?, take.varint()?);
            Some(Item::Timeout { name, micros, missing: take_ranks(take, size)?, silent: take_ranks(take, size)? })
        }
        JOINED => Some(Item::Joined { rank: take.bounded(size as u64 - 1)? as u32 }),
        _ => None,
    }
}

pub(super) fn take_run_item(take: &mut Take<'_>) -> Option<RunItem> {
    let head = take.varint()?;
    let slot = u32::try_from(head >> 2).ok()?;
    match head & 3 {
        0 => Some(RunItem::Cached { slot }),
        1 => Some(RunItem::New { request: Request::take(take)?, slot: Some(slot) }),
        2 if slot == 0 => Some(RunItem::New { request: Request::take(take)?, slot: None }),
        _ => None,
    }
}

/// A set of ranks: as ranges or as a bitmap, whichever is shorter.
pub(super) fn put_ranks(out: &mut Vec<u8>, ranks: &[u32], size: usize) {
    let start = out.len();
    out.u8(0);
    let runs = ranks.chunk_by(|a, b| a + 1 == *b);
    out.varint(runs.clone().count() as u64);
    let mut next = 0;
    for run in runs {
        out.varint((run[0] - next).into());
        out.varint(run.len() as u64);
        next = run[run.len() - 1] + 1;
    }
    let bitmap = size.div_ceil(8);
    if out.len() - start > 1 + bitmap {
        out.truncate(start);
        out.u8(1);
        let at = out.len();
        out.resize(at + bitmap, 0);
        for rank in ranks {
            out[at + *rank as usize / 8] |= 1 << (rank % 8);
        }
    }
}

/// Ascending ranks below `size`.
pub(super) fn take_ranks(take: &mut Take<'_>, size: usize) -> Option<Vec<u32>> {
    let mut ranks = Vec::new();
    match take.u8()? {
        0 => {
            let runs = take.bounded(size as u64)?;
            let mut next = 0u64;
            for _ in 0..runs {
                let first = next.checked_add(take.bounded(size as u64)?)?;
                next = first.checked_add(take.bounded(size as u64)?)?;
                if next > size as u64 {
                    return None;
                }
                ranks.extend(first as u32..next as u32);
            }
        }
        1 => {
            let bitmap = take.slice(size.div_ceil(8))?;
            for (at, byte) in bitmap.iter().enumerate() {
                ranks.extend((0..8).filter(|bit| byte >> bit & 1 == 1).map(|bit| at as u32 * 8 + bit));
            }
            if ranks.last().is_some_and(|last| *last as usize >= size) {
                return None;
            }
        }
        _ => return None,
    }
    Some(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, ReduceOp};

    #[test]
    fn rank_sets_round_trip_in_the_shorter_form() {
        for size in [1usize, 7, 8, 9, 1000] {
            let odd: Vec<u32> = (0..size as u32).filter(|rank| rank % 2 == 1).collect();
            for ranks in [vec![], vec![0], (0..size as u32).collect(), odd] {
                let mut out = Vec::new();
                put_ranks(&mut out, &ranks, size);
                assert!(out.len() <= 1 + size.div_ceil(8).max(4));
                let mut take = Take::new(&out);
                assert_eq!(take_ranks(&mut take, size), Some(ranks));
                assert!(take.is_empty());
            }
        }
        assert_eq!(take_ranks(&mut Take::new(&[1, 0b100]), 2), None, "a rank beyond the set");
        assert_eq!(take_ranks(&mut Take::new(&[0, 1, 1, 2]), 2), None, "a range beyond the set");
    }

    #[test]
    fn items_round_trip() {
        let request = Request::allreduce("a", DType::F32, vec![2], ReduceOp::Sum);
        let groups = vec![
            Group { said: Said::Bit, ranks: vec![0] },
            Group { said: Said::Request(request.clone()), ranks: vec![1, 2] },
            Group { said: Said::Invalid("no".into()), ranks: vec![3] },
            Group { said: Said::Joined, ranks: vec![4] },
        ];
        let mut out = Vec::new();
        put_evict(&mut out, 5);
        put_withdraw(&mut out, 2, 9, Target::Name("a"));
        put_fail(&mut out, "a", &groups, 5);
        put_timeout(&mut out, "a", 77, &[1], &[2], 5);
        put_joined(&mut out, 4);
        let at = begin_run(&mut out);
        put_cached(&mut out, 70_000);
        put_new(&mut out, &request, Some(3));
        put_new(&mut out, &request, None);
        end_run(&mut out, at, 3);

        let mut take = Take::new(&out);
        assert!(matches!(take_item(&mut take, 5), Some(Item::Evict { slot: 5 })));
        assert!(matches!(
            take_item(&mut take, 5),
            Some(Item::Withdraw { rank: 2, serial: 9, target: Target::Name("a") })
        ));
        assert!(matches!(take_item(&mut take, 5), Some(Item::Fail { name: "a", groups: read }) if read == groups));
        assert!(matches!(take_item(&mut take, 5), Some(Item::Timeout { micros: 77, missing, silent, .. })
                if missing == [1] && silent == [2]));
        assert!(matches!(take_item(&mut take, 5), Some(Item::Joined { rank: 4 })));
        assert!(matches!(take_item(&mut take, 5), Some(Item::Run { count: 3 })));
        assert_eq!(take_run_item(&mut take), Some(RunItem::Cached { slot: 70_000 }));
        assert_eq!(take_run_item(&mut take), Some(RunItem::New { request: request.clone(), slot: Some(3) }));
        assert_eq!(take_run_item(&mut take), Some(RunItem::New { request, slot: None }));
        assert!(take.is_empty());
    }
}
