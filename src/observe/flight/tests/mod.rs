//! From what layers report to what a reader finds, without processes; `tests/flight.rs` of the package has those.

mod damage;
mod fuzz;
mod parting;

use std::sync::Arc;
use std::time::Duration;

use super::{End, Reached, Recorder, Recording, Whose};
use crate::error::Failure;
use crate::event::{Begun, Event, Mark, Sink, Stage, Verb};
use crate::os::time::Ticker;
use crate::tensor::{DType, ReduceOp};

pub(super) const RECORDS: usize = 64;

pub(super) fn recorder(rank: usize, size: usize) -> Recorder {
    let neighbours: Vec<usize> = (0..size).collect();
    let whose = Whose { job: 0xabcd, epoch: 1, rank, size, host: "here", neighbours: &neighbours };
    let recorder = Recorder::in_memory(&whose, RECORDS).expect("memory");
    recorder.event(&Event::Joined { rank: rank as u32 });
    recorder
}

pub(super) fn recording(recorder: &Recorder) -> Recording {
    Recording::from_bytes(&recorder.bytes()).expect("a good file")
}

/// A named sum of `count` f32 in set 1.
pub(super) fn named(name: &str, count: u64) -> Begun<'_> {
    let (verb, dtype, op) = (Verb::Allreduce, DType::F32 as u8, ReduceOp::Sum as u8);
    Begun { set: 1, name, verb, dtype, op, peer: None, bytes: 4 * count, place: None, at: None }
}

/// A sum of `count` f32 at `place` of communicator 2.
pub(super) fn ordered(place: u64, count: u64) -> Begun<'static> {
    Begun { set: 2, place: Some(place), ..named("", count) }
}

pub(super) fn world(recorder: &Recorder, size: u32) {
    recorder.event(&Event::Set { id: 1, named: true, ranks: (0..size).collect() });
    recorder.event(&Event::Set { id: 2, named: false, ranks: (0..size).collect() });
}

#[test]
fn what_is_reported_is_read_back() {
    let recorder = recorder(1, 3);
    world(&recorder, 3);
    let mark = recorder.begun(&named("grad", 10));
    recorder.reached(mark, Stage::Agreed(5), None);
    recorder.reached(mark, Stage::Started(5), None);
    recorder.reached(mark, Stage::Done, None);
    let broadcast = Begun { verb: Verb::Broadcast, op: 0, peer: Some(2), ..ordered(1, 3) };
    recorder.begun(&broadcast);
    let read = recording(&recorder);
    assert_eq!((read.job, read.epoch, read.rank, read.size, read.host.as_str()), (0xabcd, 1, 1, 3, "here"));
    assert_eq!((read.pid, &read.end, read.wrapped), (std::process::id(), &End::Open, false));
    assert_eq!((read.lost, read.unreadable, read.unnamed), (0, 0, 0));
    assert_eq!(read.sets.len(), 2);
    assert_eq!((read.sets[0].id, read.sets[0].named, &read.sets[0].ranks[..]), (1, true, &[0, 1, 2][..]));
    let [grad, root] = &read.operations[..] else { panic!("{:?}", read.operations) };
    assert_eq!((grad.name.as_deref(), grad.kind, grad.bytes), (Some("grad"), "allreduce", 40));
    assert_eq!((grad.dtype, grad.op, grad.peer), (Some(DType::F32), Some(ReduceOp::Sum), None));
    assert_eq!((grad.place, grad.stage), (Some(5), Reached::Done));
    assert!(grad.agreed <= grad.started && grad.started <= grad.ended && grad.agreed.is_some());
    assert_eq!((root.name.as_deref(), root.hash, root.place, root.peer), (None, 0, Some(1), Some(2)));
    assert_eq!((root.stage, root.ended), (Reached::Running, None));
}

#[test]
fn times_are_those_of_the_clock_on_either_ticker() {
    for ticker in [Ticker::new(), Ticker::portable()] {
        let whose = Whose { job: 1, epoch: 1, rank: 0, size: 1, host: "here", neighbours: &[0] };
        let recorder = Recorder::with_ticker(&whose, RECORDS, ticker).expect("memory");
        let begin = crate::os::time::real();
        let pause = || {
            let end = crate::os::time::monotonic() + Duration::from_millis(20);
            while crate::os::time::monotonic() < end {}
        };
        let begun = crate::os::time::monotonic();
        let mark = recorder.begun(&ordered(0, 1));
        pause();
        recorder.reached(mark, Stage::Done, None);
        let spent = crate::os::time::monotonic() - begun;
        recorder.event(&Event::Left { rank: 0 });
        let read = recording(&recorder);
        let operation = &read.operations[0];
        let span = operation.ended.expect("done");
        // The rate comes from anchors around, each as exact as two clocks read one after the other: be generous.
        assert!(
            span >= Duration::from_millis(15) && span <= spent + Duration::from_millis(10),
            "{span:?} of {spent:?}"
        );
        let off = operation.submitted.abs_diff(begin);
        assert!(off < Duration::from_secs(5), "{off:?}");
        assert_eq!(read.end, End::Left);
    }
}

#[test]
fn moments_that_the_reporter_knows_are_kept() {
    let recorder = recorder(0, 1);
    let now = crate::os::time::monotonic();
    let (real, later) = (crate::os::time::real(), |millis| Some(now + Duration::from_millis(millis)));
    let mark = recorder.begun(&Begun { at: later(0), ..named("x", 1) });
    recorder.reached(mark, Stage::Agreed(0), later(20));
    recorder.reached(mark, Stage::Started(0), later(30));
    recorder.reached(mark, Stage::Failed, later(50));
    let operation = &recording(&recorder).operations[0];
    let spans = [operation.agreed, operation.started, operation.ended].map(|span| span.expect("reached").as_millis());
    // 27 bits count.
    assert!(spans == [20, 30, 50] || spans == [19, 29, 49], "{spans:?}");
    assert!(operation.submitted.abs_diff(real) < Duration::from_secs(5));
    assert_eq!(operation.last(), operation.submitted + operation.ended.expect("ended"));
}

#[test]
fn the_ring_forgets_the_oldest_but_not_what_is_in_flight() {
    let recorder = recorder(0, 1);
    let stuck = recorder.begun(&named("stuck", 1));
    for place in 0..1000 {
        let mark = recorder.begun(&ordered(place, 1));
        recorder.reached(mark, Stage::Done, None);
    }
    let read = recording(&recorder);
    assert_eq!(read.operations.len(), RECORDS);
    assert!(read.wrapped);
    assert_eq!((read.operations[0].name.as_deref(), read.operations[0].stage), (Some("stuck"), Reached::Submitted));
    let places: Vec<u64> = read.operations[1..].iter().filter_map(|operation| operation.place).collect();
    assert_eq!(places, (1000 - RECORDS as u64 + 1..1000).collect::<Vec<_>>());
    recorder.reached(stuck, Stage::Cancelled, None);
    assert_eq!(recording(&recorder).operations[0].stage, Reached::Cancelled);
}

#[test]
fn with_all_in_flight_the_rest_is_counted() {
    let recorder = recorder(0, 1);
    let marks: Vec<Mark> = (0..RECORDS + 5).map(|number| recorder.begun(&ordered(number as u64, 1))).collect();
    assert_eq!(marks.iter().filter(|mark| **mark == Mark::NONE).count(), 5);
    // What has no record may be reported on.
    marks.iter().for_each(|mark| recorder.reached(*mark, Stage::Done, None));
    let read = recording(&recorder);
    assert_eq!((read.lost, read.operations.len()), (5, RECORDS));
}

#[test]
fn a_failure_is_in_the_file_of_who_found_it() {
    let recorder = recorder(0, 2);
    let failure = Failure::new(1, "there", "its process (pid 7) was killed\u{1b}[31m");
    recorder.event(&Event::Failed(failure));
    let End::Found(found) = recording(&recorder).end else { panic!("a failure") };
    assert_eq!((found.rank, found.host.as_str()), (1, "there"));
    assert_eq!(found.cause, "its process (pid 7) was killed\\u{1b}[31m", "nothing that a terminal obeys");
    recorder.event(&Event::Failed(Failure::new(0, "x".repeat(500), "y".repeat(5000))));
    assert!(matches!(recording(&recorder).end, End::Found(_)));
}

#[test]
fn names_of_all_threads_are_in_the_table() {
    let recorder = Arc::new(recorder(0, 1));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let recorder = Arc::clone(&recorder);
            scope.spawn(move || {
                for number in 0..500 {
                    let mark = recorder.begun(&named(&format!("name{}", number % 50 + thread % 2), 1));
                    recorder.reached(mark, Stage::Started(number), None);
                    recorder.reached(mark, Stage::Done, None);
                }
            });
        }
    });
    let read = recording(&recorder);
    assert_eq!((read.operations.len(), read.unreadable, read.unnamed), (RECORDS, 0, 0));
    assert!(
        read.operations.iter().all(|operation| operation.name.as_deref().is_some_and(|name| name.starts_with("name")))
    );
}
