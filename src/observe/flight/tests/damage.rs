//! Files that are cut off, damaged, or made by somebody who means ill: errors, and never a panic.

use proptest::prelude::*;

use super::super::{Diagnosis, Recording, diagnose};
use super::{named, ordered, recorder, world};
use crate::event::{Begun, Sink, Stage, Verb};

fn file(rank: usize) -> Vec<u8> {
    let recorder = recorder(rank, 3);
    world(&recorder, 3);
    for place in 0..20 {
        let mark = recorder.begun(&ordered(place, place + 1));
        recorder.reached(mark, Stage::Done, None);
        let name = format!("layer{place}");
        let mark = recorder.begun(&named(&name, 7));
        recorder.reached(mark, Stage::Started(place), None);
        if place < 18 + rank as u64 {
            recorder.reached(mark, Stage::Done, None);
        }
    }
    recorder.begun(&Begun { verb: Verb::Send, op: 0, peer: Some(2), ..ordered(1, 3) });
    recorder.bytes()
}

/// Reads all, compares what can be read, and prints it.
fn survive(files: &[Vec<u8>]) -> Option<Diagnosis> {
    let read: Vec<Recording> = files.iter().filter_map(|bytes| Recording::from_bytes(bytes).ok()).collect();
    let diagnosis = diagnose(&read).ok();
    if let Some(diagnosis) = &diagnosis {
        assert!(!diagnosis.to_string().is_empty());
    }
    diagnosis
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        prop_assert!(Recording::from_bytes(&bytes).is_err());
    }

    #[test]
    fn damage_in_the_header_the_records_or_the_table_is_survived(
        damage in prop::collection::vec((0_usize..3, any::<prop::sample::Index>(), any::<u64>()), 1..40),
    ) {
        let mut files: Vec<Vec<u8>> = (0..3).map(file).collect();
        for (rank, place, value) in damage {
            // Half of it where the bytes that matter are: the header and the first records.
            let words = files[rank].len() / 8;
            let at = if value % 2 == 0 { place.index(words) } else { 1 + place.index(700) };
            files[rank][at * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
        survive(&files);
    }

    #[test]
    fn one_changed_byte_is_survived(place in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let mut files: Vec<Vec<u8>> = (0..3).map(file).collect();
        let at = place.index(files[1].len());
        files[1][at] ^= 1 << bit;
        survive(&files);
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_an_error() {
    let whole = file(0);
    for len in (0..whole.len()).step_by(whole.len() / 97) {
        let text = Recording::from_bytes(&whole[..len]).expect_err("cut off").to_string();
        assert!(text.contains("cut off") || text.contains("no file of flight records"), "{len}: {text}");
    }
    let mut longer = whole.clone();
    longer.resize(whole.len() + 5000, 0);
    Recording::from_bytes(&longer).expect("whole pages are longer");
}

#[test]
fn what_is_wrong_is_said() {
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = file(0);
        change(&mut bytes);
        Recording::from_bytes(&bytes).expect_err("wrong").to_string()
    };
    assert!(error(&|bytes| bytes[7] = 9).contains("version 9, and this program reads 1"));
    assert!(error(&|bytes| bytes[..8].fill(0)).contains("never begun"));
    assert!(error(&|bytes| bytes[0] = b'X').contains("no file of flight records"));
    assert!(error(&|bytes| bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes())).contains("claims to hold"));
    assert!(error(&|bytes| bytes[8..16].copy_from_slice(&65_u64.to_le_bytes())).contains("65 records"));
    assert!(error(&|bytes| bytes[56..60].fill(0xff)).contains("rank 4294967295 of 3"));
}

#[test]
fn a_damaged_record_is_counted_and_the_rest_is_read() {
    let mut bytes = file(0);
    let whole = Recording::from_bytes(&bytes).expect("good").operations.len();
    // The state of the record in line 5 becomes one that there is not.
    bytes[4096 + 5 * 64] = 200;
    let read = Recording::from_bytes(&bytes).expect("the rest is good");
    assert_eq!((read.operations.len(), read.unreadable), (whole - 1, 1));
}

#[test]
fn a_set_of_all_ranks_there_could_be_is_not_listed() {
    let mut bytes = file(0);
    let table = 4096 + 64 * super::RECORDS;
    // The first entry is that of set 1: its count of ranks.
    bytes[table + 20..table + 24].fill(0xff);
    let read = Recording::from_bytes(&bytes).expect("the rest is good");
    assert_eq!((read.sets.len(), read.unreadable), (1, 1));
    // A job of all ranks there could be.
    bytes[60..64].fill(0xff);
    let text = survive(&[bytes]).expect("one rank of very many").to_string();
    assert!(text.contains("and 4032 more"), "{text}");
}
