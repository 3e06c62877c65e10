//! Bytes from elsewhere never panic: they are used, or they poison the set with a reason.

use super::*;
use crate::coordinator::sim::Random;
use crate::coordinator::{called, frame};

/// Real traffic, to be damaged.
struct Traffic {
    frames: Vec<Vec<u8>>,
    entries: Vec<Vec<u8>>,
    messages: Vec<Vec<u8>>,
}

fn traffic() -> Traffic {
    let params = Params { capacity: 2, evict_after: 0, window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[2, 2], params);
    let mut messages = Vec::new();
    for round in 0..6 {
        for name in 0..4 {
            for rank in 0..4 {
                let n = if round == 3 && rank == 1 { 5 } else { 4 };
                net.submit(rank, round * 8 + name, &f32s(&format!("name{name}"), n));
            }
        }
        net.step(1, Event::SubmitFailed { name: "bad", reason: "no" });
        net.step(3, Event::Withdraw { ticket: Ticket(round * 8) });
        for rank in 0..4 {
            net.round(rank);
            messages.extend(net.channels.iter().flatten().flatten().cloned());
        }
        net.settle();
    }
    assert!(!messages.is_empty());
    Traffic { frames: net.rings.concat(), entries: net.logs[0].clone(), messages }
}

fn damage(random: &mut Random, from: &[Vec<u8>]) -> Vec<u8> {
    if random.chance(1, 8) {
        return (0..random.below(60)).map(|_| random.any() as u8).collect();
    }
    let mut bytes = from[random.below(from.len())].clone();
    for _ in 0..random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] = random.any() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, random.any() as u8),
        }
    }
    bytes
}

#[test]
fn damaged_bytes_never_panic() {
    let Traffic { frames, entries, messages } = traffic();
    let mut random = Random::new(7);
    for case in 0..3000u64 {
        let layout: &[usize] = if random.chance(1, 2) { &[4] } else { &[2, 2] };
        let params = Params { capacity: 2, evict_after: 0, window: Duration::ZERO, ..Params::default() };
        let mut net = Net::new(layout, params);
        let rank = random.below(4);
        for name in 0..4 {
            net.submit(rank, name, &f32s(&format!("name{name}"), 4));
        }
        for index in 0..20 {
            net.now += Duration::from_secs(random.any() % 40);
            let (word, bits) = (random.below(3), random.any());
            match random.below(6) {
                0 | 1 => {
                    let bytes = damage(&mut random, &frames);
                    net.step(rank, Event::PeerRequest { member: random.below(5), bytes: &bytes });
                }
                2 => {
                    let bytes = damage(&mut random, &entries);
                    let index = net.ranks[rank].next;
                    net.step(rank, Event::Entry { index, bytes: &bytes });
                }
                3 => {
                    let bytes = damage(&mut random, &messages);
                    net.step(rank, Event::HostMessage { host: random.below(3), bytes: &bytes });
                }
                4 => {
                    net.step(rank, Event::PeerBits { member: random.below(5), word, bits });
                }
                _ => {
                    net.step(rank, Event::Withdraw { ticket: Ticket(case % 4) });
                    net.submit(rank, 100 + index, &f32s("name1", 4));
                }
            }
            net.step(rank, Event::Tick);
            net.ranks[rank].report(net.now);
        }
    }
}

#[test]
fn damaged_bytes_poison_with_a_reason() {
    let mut net = Net::one_host(2);
    net.submit(0, 1, &f32s("a", 1));
    net.step(0, Event::PeerRequest { member: 1, bytes: &[99, 1, 2] });
    assert!(net.poisons[0][0].to_string().contains("rank 11 published 3 bytes that are no request"));
    assert!(matches!(&net.failed[0][..], [(Ticket(1), Error::Poisoned(_))]));
    let mut net = Net::one_host(2);
    net.step(0, Event::Entry { index: 0, bytes: &[1, 77] });
    assert!(net.poisons[0][0].to_string().contains("log entry 0 cannot be used: it cannot be read"));
    let mut net = Net::new(&[1, 1], Params::default());
    net.step(0, Event::HostMessage { host: 1, bytes: &[9] });
    assert!(net.poisons[0][0].to_string().starts_with("rank 11 sent a message that makes no sense"));
    let mut net = Net::one_host(2);
    net.step(0, Event::Entry { index: 3, bytes: &[1] });
    assert!(net.poisons[0][0].to_string().contains("log entry 3 came when 0 was due"));
}

#[test]
fn random_bytes_are_no_frames_that_could_not_be_published() {
    let mut random = Random::new(3);
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random.below(40)).map(|_| (random.any() % 5) as u8).collect();
        if let Some(frame::Frame { body: frame::Body::Submission { name, .. }, .. }) = frame::parse(&bytes) {
            assert!(!name.is_empty() && name.len() <= called::MAX_STEP_NAME);
        }
        Request::decode(&bytes);
    }
}
