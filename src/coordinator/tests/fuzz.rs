//! What ranks and hosts say to each other, made to break its readers: nothing panics, nothing takes more memory than its
//! bytes can ask for, and what is read means what was written.

use xtask::fuzz::{Random, fuzz};

use super::super::called::{MAX_NAME, MAX_STEP_NAME, step_name};
use super::super::entry::{self, Group, Item, RunItem, Said};
use super::super::frame::{self, Body, Target, View};
use super::super::message::{self, Part};
use super::super::request::MAX_DIMS;
use super::super::wire::{Put as _, Take};
use super::*;
use crate::coordinator::{Device, Group as Tensors, Kind, MAX_FRAME, Spec};
use crate::os::counting::frugal;
use crate::plan::moves::Move;
use crate::tensor::DType;

/// Ranks of the set: more than a byte tells, and not a multiple of 8.
const SIZE: usize = 301;

fn name(random: &mut Random) -> String {
    let mut name = random.text(1 + random.clone().below(20));
    name.push('n');
    let name = super::super::wire::cut(&name, MAX_NAME);
    if random.once_in(4) { step_name(name, "its rows") } else { name.to_owned() }
}

fn request(random: &mut Random) -> Request {
    let (op, root) = (*random.of(&ReduceOp::ALL), random.number() as u32);
    let kind = match random.below(11) {
        0 => Kind::Allreduce { op },
        1 => Kind::Broadcast { root },
        2 => Kind::Reduce { op, root },
        3 => Kind::ReduceScatter { op },
        4 => Kind::Move(Move::Allgather),
        5 => Kind::Move(Move::Gather { root: root as usize }),
        6 => Kind::Move(Move::Scatter { root: root as usize }),
        7 => Kind::Move(Move::AllToAll),
        8 => Kind::Meet,
        9 => Kind::AllreduceRows { op },
        _ => Kind::BroadcastRows { root },
    };
    let mut scale = || if random.once_in(3) { f64::from_bits(random.any()) } else { 1.0 };
    let (prescale, postscale) = (scale(), scale());
    let device = if random.once_in(4) { Device::Cuda } else { Device::Host };
    let spec = Spec { kind, dtype: *random.of(&DType::ALL), device, prescale, postscale };
    let dims = if random.once_in(8) { MAX_DIMS } else { random.below(5) };
    let shape = (0..dims).map(|_| random.below(if dims > 5 { 2 } else { 1000 })).collect();
    let group = random.once_in(5).then(|| Tensors { tensors: random.number() as u32, digest: random.number() });
    let request = Request { name: name(random).into(), spec, shape, group };
    // Not every operation takes every type.
    if request.validate(usize::MAX).is_ok() { request } else { self::request(random) }
}

fn ranks(random: &mut Random) -> Vec<u32> {
    let odds = 1 + random.below(9);
    (0..SIZE as u32).filter(|_| random.once_in(odds)).collect()
}

fn put_frame(random: &mut Random, out: &mut Vec<u8>) {
    let (as_of, number, slot) = (random.number(), random.number(), random.number() as u32);
    let text = name(random);
    let target = if random.once_in(2) { Target::Slot(slot) } else { Target::Name(&text) };
    match random.below(4) {
        0 => frame::put_request(out, as_of, &request(random)),
        1 => frame::put_invalid(out, as_of, &text, &random.text(30)),
        2 => frame::put_withdraw(out, as_of, number, target),
        _ => frame::put_expired(out, as_of, number, target),
    }
}

fn put_item(random: &mut Random, out: &mut Vec<u8>) {
    let text = name(random);
    match random.below(5) {
        0 => entry::put_evict(out, random.number() as u32),
        1 => entry::put_withdraw(out, random.below(SIZE) as u32, random.number(), Target::Name(&text)),
        2 => entry::put_timeout(out, &text, random.number(), &ranks(random), &ranks(random), SIZE),
        3 => {
            let first: Vec<u32> = (0..SIZE as u32).filter(|rank| rank % 3 == 0).collect();
            let rest = (0..SIZE as u32).filter(|rank| rank % 3 != 0).collect();
            let said = match random.below(4) {
                0 => Said::Bit,
                1 => Said::Request(Request { name: text.as_str().into(), ..request(random) }),
                2 => Said::Invalid(random.text(20)),
                _ => Said::Other,
            };
            let groups = [Group { said, ranks: first }, Group { said: Said::Other, ranks: rest }];
            entry::put_fail(out, &text, &groups, SIZE);
        }
        _ => {
            let at = entry::begin_run(out);
            let count = random.below(4) as u32;
            for _ in 0..count {
                match random.below(3) {
                    0 => entry::put_cached(out, random.number() as u32),
                    1 => entry::put_new(out, &request(random), Some(random.number() as u32)),
                    _ => entry::put_new(out, &request(random), None),
                }
            }
            entry::end_run(out, at, count);
        }
    }
}

fn put_part(random: &mut Random, out: &mut Vec<u8>) {
    match random.below(6) {
        0 => {
            let mut inner = Vec::new();
            put_frame(random, &mut inner);
            message::put_frame(out, random.below(SIZE) as u32, &inner);
        }
        1 => {
            let slots: Vec<u32> = (0..random.below(9)).map(|_| random.number() as u32).collect();
            message::put_votes(out, random.number(), &slots);
        }
        2 => message::put_census(out, random.number()),
        3 => message::put_counted(out, random.number()),
        4 => message::put_details(out, random.number(), random.number() as u32, &ranks(random), SIZE),
        _ => message::put_entry(out, random.number(), &random.bytes(40)),
    }
}

fn made(put: impl Fn(&mut Random, &mut Vec<u8>), most: usize) -> impl Fn(&mut Random) -> Vec<u8> {
    move |random| {
        let mut out = Vec::new();
        (0..=random.below(most)).for_each(|_| put(random, &mut out));
        out
    }
}

#[test]
fn fuzz_frames() {
    fuzz("frames", &[], made(put_frame, 1), |bytes| {
        let Some(read) = frugal(bytes, || frame::parse(bytes)) else { return false };
        let mut again = Vec::new();
        match read.body {
            Body::Submission { name, view: View::Request(view) } => {
                assert!(!name.is_empty() && name.len() <= MAX_STEP_NAME);
                let request = Request::take_view(name, &mut Take::new(view)).expect("what is checked can be read");
                frame::put_request(&mut again, read.as_of, &request);
            }
            Body::Submission { name, view: View::Invalid(why) } => {
                frame::put_invalid(&mut again, read.as_of, name, why)
            }
            Body::Withdraw { serial, target } => frame::put_withdraw(&mut again, read.as_of, serial, target),
            Body::Expired { micros, target } => frame::put_expired(&mut again, read.as_of, micros, target),
            Body::Join => frame::put_join(&mut again, read.as_of),
        }
        let second = frame::parse(&again).expect("what was written is read");
        assert_eq!((read.as_of, again.len() <= MAX_FRAME), (second.as_of, true));
        match (read.body, second.body) {
            (Body::Submission { view: View::Request(one), .. }, Body::Submission { view: View::Request(two), .. }) => {
                let request = |view| Request::take_view("n", &mut Take::new(view));
                assert_eq!(request(one), request(two), "factors of 1 may be spelled out");
            }
            (one, two) => assert_eq!(one, two),
        }
        true
    });
}

#[test]
fn fuzz_requests() {
    let valid = |random: &mut Random| {
        let mut out = Vec::new();
        request(random).encode(&mut out);
        out
    };
    fuzz("requests", &[], valid, |bytes| {
        let Some(request) = frugal(bytes, || Request::decode(bytes)) else { return false };
        let mut again = Vec::new();
        request.encode(&mut again);
        assert_eq!(Request::decode(&again).as_ref(), Some(&request));
        assert!(!request.describe().is_empty());
        // A root beyond the set is the one thing that reading lets pass.
        request.validate(usize::MAX).expect("what is read makes sense");
        true
    });
}

/// Reads all items of an entry.
fn read_items(bytes: &[u8]) -> Option<(Vec<Item<'_>>, Vec<RunItem>)> {
    let mut take = Take::new(bytes);
    let (mut items, mut runs) = (Vec::new(), Vec::new());
    while !take.is_empty() {
        let item = entry::take_item(&mut take, SIZE)?;
        if let Item::Run { count } = item {
            for _ in 0..count {
                runs.push(entry::take_run_item(&mut take)?);
            }
        }
        items.push(item);
    }
    Some((items, runs))
}

#[test]
fn fuzz_entries() {
    fuzz("entries", &[], made(put_item, 4), |bytes| {
        let Some((items, runs)) = frugal(bytes, || read_items(bytes)) else { return false };
        let (mut again, mut runs) = (Vec::new(), runs.iter());
        for item in &items {
            match item {
                Item::Evict { slot } => entry::put_evict(&mut again, *slot),
                Item::Withdraw { rank, serial, target } => entry::put_withdraw(&mut again, *rank, *serial, *target),
                Item::Fail { name, groups } => entry::put_fail(&mut again, name, groups, SIZE),
                Item::Joined { rank } => entry::put_joined(&mut again, *rank),
                Item::Timeout { name, micros, missing, silent } => {
                    entry::put_timeout(&mut again, name, *micros, missing, silent, SIZE);
                }
                Item::Run { count } => {
                    let at = entry::begin_run(&mut again);
                    for run in runs.by_ref().take(*count as usize) {
                        match run {
                            RunItem::Cached { slot } => entry::put_cached(&mut again, *slot),
                            RunItem::New { request, slot } => entry::put_new(&mut again, request, *slot),
                        }
                    }
                    entry::end_run(&mut again, at, *count);
                }
            }
        }
        let (second, _) = read_items(&again).expect("what was written is read");
        assert_eq!(format!("{items:?}"), format!("{second:?}"));
        true
    });
}

/// 5 bytes a group, each of all ranks: the square of their number, if nobody counts.
#[test]
fn groups_of_all_ranks_again_and_again_take_no_memory() {
    const MANY: usize = 4096;
    let all: Vec<u32> = (0..MANY as u32).collect();
    let groups: Vec<Group> = (0..600).map(|_| Group { said: Said::Other, ranks: all.clone() }).collect();
    let mut bytes = Vec::new();
    entry::put_fail(&mut bytes, "n", &groups, MANY);
    assert!(bytes.len() < 600 * 6 + 9, "{}", bytes.len());
    assert!(frugal(&bytes, || entry::take_item(&mut Take::new(&bytes), MANY)).is_none());
}

#[test]
fn fuzz_messages() {
    fuzz("messages", &[], made(put_part, 4), |bytes| {
        frugal(bytes, || {
            let mut take = Take::new(bytes);
            while !take.is_empty() {
                let Some(part) = message::take_part(&mut take, SIZE) else { return false };
                match part {
                    Part::Votes { count, .. } => {
                        for _ in 0..count {
                            if message::take_slot(&mut take).is_none() {
                                return false;
                            }
                        }
                    }
                    Part::Details { ranks, .. } => {
                        assert!(ranks.is_sorted() && ranks.iter().all(|r| (*r as usize) < SIZE))
                    }
                    Part::Frame { rank, .. } => assert!((rank as usize) < SIZE),
                    Part::Entry { .. } => assert!(take.is_empty()),
                    Part::Census { .. } | Part::Counted { .. } => {}
                }
            }
            true
        })
    });
}

#[test]
fn fuzz_numbers_and_texts() {
    let valid = |random: &mut Random| {
        let mut out = Vec::new();
        out.varint(random.number());
        out.str(&random.text(9));
        out.f64(f64::from_bits(random.any()));
        out.varint(random.number());
        out
    };
    fuzz("numbers and texts", &[], valid, |bytes| {
        let mut take = Take::new(bytes);
        let read = (|| Some((take.varint()?, take.str(40)?, take.f64()?, take.u32()?)))();
        let Some((number, text, float, small)) = read else { return false };
        let mut again = Vec::new();
        again.varint(number);
        again.str(text);
        again.f64(float);
        again.varint(small.into());
        let mut take = Take::new(&again);
        assert_eq!((take.varint(), take.str(40)), (Some(number), Some(text)));
        assert_eq!((take.f64().map(f64::to_bits), take.u32()), (Some(float.to_bits()), Some(small)));
        true
    });
}

/// What a whole coordinator makes of bytes from elsewhere: it uses them, or the set is over; it never panics.
#[test]
fn fuzz_coordinators() {
    let valid = |random: &mut Random| {
        let mut out = vec![random.below(3) as u8];
        match out[0] {
            0 => put_frame(random, &mut out),
            1 => {
                out.push(entry::VERSION);
                (0..=random.below(3)).for_each(|_| put_item(random, &mut out));
            }
            _ => (0..=random.below(3)).for_each(|_| put_part(random, &mut out)),
        }
        out
    };
    fuzz("coordinators", &[], valid, |bytes| {
        let Some((kind, bytes)) = bytes.split_first() else { return false };
        let mut net = Net::new(&[2, 2], Params { capacity: 2, evict_after: 0, ..Params::default() });
        for rank in 0..4 {
            net.submit(rank, 1, &f32s("n", 4));
        }
        let next = net.ranks[0].next;
        match kind % 3 {
            0 => net.step(0, Event::PeerRequest { member: 1, bytes }),
            1 => net.step(0, Event::Entry { index: next, bytes }),
            _ => net.step(0, Event::HostMessage { host: 1, bytes }),
        };
        net.step(0, Event::Tick);
        net.ranks[0].report(net.now);
        net.poisons[0].is_empty()
    });
}
