//! Files of flight records, damaged all over; `damage.rs` has what must be said of which damage.

use xtask::fuzz::{Random, fuzz};

use super::super::{Recording, diagnose};
use super::{RECORDS, named, ordered, recorder, world};
use crate::error::Failure;
use crate::event::{Begun, Event, Sink, Stage, Verb};
use crate::os::counting::frugal;

/// The parts of a file that hold something, one behind the other: damage should meet them, and not the zeros between.
const PARTS: [(usize, usize); 3] = [(0, 2048), (4096, 64 * 40), (4096 + 64 * RECORDS, 1024)];

fn file(random: &mut Random) -> Vec<u8> {
    let (rank, size) = (random.below(3), 3);
    let recorder = recorder(rank, size);
    world(&recorder, 3);
    for place in 0..random.below(30) as u64 {
        let name = random.text(6);
        let begun = match random.below(3) {
            0 => ordered(place, place),
            1 => named(&name, place),
            _ => Begun { verb: *random.of(Verb::ALL), peer: Some(random.below(4) as u32), ..ordered(place, 1) },
        };
        let mark = recorder.begun(&begun);
        for _ in 0..random.below(3) {
            let place = random.number();
            let stages = [Stage::Agreed(place), Stage::Started(place), Stage::Done, Stage::Failed, Stage::Cancelled];
            recorder.reached(mark, *random.of(&stages[..2]), None);
            if random.once_in(2) {
                recorder.reached(mark, *random.of(&stages[2..]), None);
                break;
            }
        }
    }
    match random.below(3) {
        0 => recorder.event(&Event::Left { rank: rank as u32 }),
        1 => recorder.event(&Event::Failed(Failure::new(random.below(4) as u32, random.text(5), random.text(30)))),
        _ => {}
    }
    let bytes = recorder.bytes();
    PARTS.iter().flat_map(|&(at, len)| bytes[at..at + len].to_vec()).collect()
}

/// The file of which these are the parts.
fn whole(mut parts: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; super::super::layout::file_bytes(RECORDS)];
    for (at, len) in PARTS {
        let (part, rest) = parts.split_at(len.min(parts.len()));
        bytes[at..at + part.len()].copy_from_slice(part);
        parts = rest;
    }
    bytes
}

#[test]
fn fuzz_flight_records() {
    // A file takes longer to make than to read.
    let files: Vec<Vec<u8>> = (0..32).map(|seed| file(&mut Random::new(seed))).collect();
    let valid = |random: &mut Random| random.of(&files).clone();
    fuzz("flight records", &[], valid, |parts| {
        let bytes = whole(parts);
        let Ok(recording) = frugal(&bytes, || Recording::from_bytes(&bytes)) else { return false };
        assert!(recording.operations.is_sorted_by_key(|operation| operation.number));
        assert!(recording.operations.len() + recording.unreadable as usize <= RECORDS + 4);
        // With itself as its only peer, whatever it says.
        let other = Recording { rank: (recording.rank + 1) % recording.size.max(1), ..recording.clone() };
        for recordings in [vec![recording.clone()], vec![recording, other]] {
            if let Ok(diagnosis) = diagnose(&recordings) {
                let text = diagnosis.to_string();
                assert!(text.len() < 1 << 20 && !text.chars().any(|c| c.is_control() && c != '\n'), "{text}");
            }
        }
        true
    });
}
