//! Messages between host leaders. Towards the first leader: parts, any number in a message. Away from it: one entry, or
//! a census.

use super::entry::{put_ranks, take_ranks};
use super::wire::{Put, Take};

const FRAME: u8 = 1;
const VOTES: u8 = 2;
const DETAILS: u8 = 3;
const ENTRY: u8 = 4;
const CENSUS: u8 = 5;
const COUNTED: u8 = 6;

/// A part as read. `Votes` is followed by `count` calls of [`take_slot`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// A frame of one of the sender's members.
    Frame { rank: u32, bytes: &'a [u8] },
    /// Slots that are ready at every member of the sender's host.
    Votes { as_of: u64, count: u32 },
    /// Members of the sender's host whose bit of the slot is pending.
    Details { as_of: u64, slot: u32, ranks: Vec<u32> },
    /// An entry to install.
    Entry { index: u64, bytes: &'a [u8] },
    /// The first leader wants to know what is pending on the receiver's host, member by member.
    Census { number: u64 },
    /// Everything that the census asked for was sent before this.
    Counted { number: u64 },
}

pub(super) fn put_frame(out: &mut Vec<u8>, rank: u32, bytes: &[u8]) {
    out.u8(FRAME);
    out.varint(rank.into());
    out.varint(bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn put_votes(out: &mut Vec<u8>, as_of: u64, slots: &[u32]) {
    out.u8(VOTES);
    out.varint(as_of);
    out.varint(slots.len() as u64);
    for slot in slots {
        out.varint((*slot).into());
    }
}

pub(super) fn put_details(out: &mut Vec<u8>, as_of: u64, slot: u32, ranks: &[u32], size: usize) {
    out.u8(DETAILS);
    out.varint(as_of);
    out.varint(slot.into());
    put_ranks(out, ranks, size);
}

pub(super) fn put_entry(out: &mut Vec<u8>, index: u64, bytes: &[u8]) {
    out.u8(ENTRY);
    out.varint(index);
    out.extend_from_slice(bytes);
}

pub(super) fn put_census(out: &mut Vec<u8>, number: u64) {
    out.u8(CENSUS);
    out.varint(number);
}

pub(super) fn put_counted(out: &mut Vec<u8>, number: u64) {
    out.u8(COUNTED);
    out.varint(number);
}

pub(super) fn take_part<'a>(take: &mut Take<'a>, size: usize) -> Option<Part<'a>> {
    match take.u8()? {
        FRAME => {
            let rank = take.bounded(size as u64 - 1)? as u32;
            let len = take.varint()?;
            Some(Part::Frame { rank, bytes: take.slice(len.try_into().ok()?)? })
        }
        VOTES => Some(Part::Votes { as_of: take.varint()?, count: take.u32()? }),
        DETAILS => {
            let (as_of, slot) = (take.varint()?, take.u32()?);
            Some(Part::Details { as_of, slot, ranks: take_ranks(take, size)? })
        }
        ENTRY => {
            let index = take.varint()?;
            let bytes = take.rest();
            *take = Take::new(&[]);
            Some(Part::Entry { index, bytes })
        }
        CENSUS => Some(Part::Census { number: take.varint()? }),
        COUNTED => Some(Part::Counted { number: take.varint()? }),
        _ => None,
    }
}

pub(super) fn take_slot(take: &mut Take<'_>) -> Option<u32> {
    take.u32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other() {
        let mut out = Vec::new();
        put_frame(&mut out, 3, b"frame");
        put_votes(&mut out, 9, &[1, 700]);
        put_details(&mut out, 9, 5, &[2, 3], 4);
        put_census(&mut out, 300);
        put_counted(&mut out, 301);
        put_entry(&mut out, 77, b"entry");
        let mut take = Take::new(&out);
        assert_eq!(take_part(&mut take, 4), Some(Part::Frame { rank: 3, bytes: b"frame" }));
        assert_eq!(take_part(&mut take, 4), Some(Part::Votes { as_of: 9, count: 2 }));
        assert_eq!((take_slot(&mut take), take_slot(&mut take)), (Some(1), Some(700)));
        assert_eq!(take_part(&mut take, 4), Some(Part::Details { as_of: 9, slot: 5, ranks: vec![2, 3] }));
        assert_eq!(take_part(&mut take, 4), Some(Part::Census { number: 300 }));
        assert_eq!(take_part(&mut take, 4), Some(Part::Counted { number: 301 }));
        assert_eq!(take_part(&mut take, 4), Some(Part::Entry { index: 77, bytes: b"entry" }));
        assert!(take.is_empty());
        assert_eq!(take_part(&mut Take::new(&[FRAME, 4, 0]), 4), None, "a rank beyond the set");
    }
}
