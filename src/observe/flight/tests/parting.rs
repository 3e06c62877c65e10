//! Ranks that part in every way there is, and what a reader makes of it.

use std::time::Duration;

use super::super::{Diagnosis, How, Reached, Recorder, diagnose};
use super::{named, ordered, recorder, recording, world};
use crate::event::{Begun, Event, Mark, Sink, Stage, Verb};

const SIZE: u32 = 3;

fn ranks() -> Vec<Recorder> {
    let ranks: Vec<Recorder> = (0..SIZE as usize).map(|rank| recorder(rank, SIZE as usize)).collect();
    ranks.iter().for_each(|rank| world(rank, SIZE));
    ranks
}

fn compare(ranks: &[Recorder]) -> Diagnosis {
    let recordings: Vec<_> = ranks.iter().map(recording).collect();
    let diagnosis = diagnose(&recordings).expect("one job");
    assert!(diagnosis.to_string().contains("ranks recorded"));
    diagnosis
}

/// All ranks do `begun` to its end.
fn all(ranks: &[Recorder], begun: &Begun<'_>, place: u64) {
    for rank in ranks {
        let mark = rank.begun(begun);
        if begun.place.is_none() {
            rank.reached(mark, Stage::Started(place), None);
        }
        rank.reached(mark, Stage::Done, None);
    }
}

#[track_caller]
fn first(ranks: &[Recorder], how: How, what: &str, culprits: &[u32]) -> Diagnosis {
    let diagnosis = compare(ranks);
    let first = diagnosis.divergences.first().unwrap_or_else(|| panic!("{diagnosis}"));
    assert_eq!((first.how, first.culprits.as_slice()), (how, culprits), "{diagnosis}");
    assert!(first.what.contains(what), "{diagnosis}");
    diagnosis
}

#[test]
fn ranks_that_did_the_same_did_not_part() {
    let ranks = ranks();
    (0..200).for_each(|place| all(&ranks, &ordered(place, 4), place));
    (0..40).for_each(|place| all(&ranks, &named("x", 4), place));
    let diagnosis = compare(&ranks);
    assert!(diagnosis.divergences.is_empty(), "{diagnosis}");
    assert!(diagnosis.to_string().ends_with("that others have not done"));
    assert_eq!((diagnosis.absent.len(), diagnosis.ranks.len()), (0, 3));
}

#[test]
fn a_rank_that_does_not_come_to_a_call_is_the_culprit() {
    let ranks = ranks();
    (0..500).for_each(|place| all(&ranks, &ordered(place, 4), place));
    ranks[0].begun(&ordered(500, 8));
    ranks[2].begun(&ordered(500, 8));
    let diagnosis = first(&ranks, How::Missing, "operation 500 (allreduce sum of 8 f32)", &[1]);
    let views = &diagnosis.divergences[0].views;
    assert_eq!(views[0].stage, Some(Reached::Running));
    assert_eq!(views[1].stage, None);
    assert_eq!(views[1].what, "last: operation 499 (allreduce sum of 4 f32), done");
    assert_eq!(diagnosis.ranks[1].in_flight, 0);
    let text = diagnosis.to_string();
    assert!(text.contains("first divergence: operation 500") && text.contains("culprit: rank 1"), "{text}");
}

#[test]
fn a_rank_that_never_used_a_set_is_missing_from_its_first_operation() {
    let ranks = ranks();
    ranks[0].begun(&ordered(1, 8));
    ranks[1].begun(&ordered(1, 8));
    let diagnosis = first(&ranks, How::Missing, "operation 1", &[2]);
    assert_eq!(diagnosis.divergences[0].views[2].what, "nothing in this set");
}

#[test]
fn who_asks_for_something_else_is_found_by_the_majority() {
    let ranks = ranks();
    all(&ranks, &ordered(0, 4), 0);
    ranks[0].begun(&ordered(1, 8));
    ranks[1].begun(&ordered(1, 9));
    ranks[2].begun(&ordered(1, 8));
    let diagnosis = first(&ranks, How::Different, "operation 1", &[1]);
    assert_eq!(diagnosis.divergences[0].views[1].what, "allreduce sum of 9 f32");
    // Three views: nobody can tell.
    let three = self::ranks();
    (0..3).for_each(|rank| {
        three[rank].begun(&ordered(0, rank as u64));
    });
    first(&three, How::Different, "operation 0", &[]);
}

#[test]
fn a_mistake_that_all_survived_is_no_divergence() {
    let ranks = ranks();
    for (rank, recorder) in ranks.iter().enumerate() {
        for begun in [ordered(0, rank as u64), named("x", rank as u64)] {
            let mark = recorder.begun(&begun);
            recorder.reached(mark, Stage::Failed, None);
        }
    }
    all(&ranks, &ordered(1, 4), 1);
    all(&ranks, &named("y", 4), 0);
    assert!(compare(&ranks).divergences.is_empty());
}

#[test]
fn gathered_tensors_may_differ_in_length() {
    let ranks = ranks();
    for (rank, recorder) in ranks.iter().enumerate() {
        recorder.begun(&Begun { verb: Verb::Allgather, op: 0, ..ordered(0, rank as u64) });
    }
    first(&ranks, How::Unfinished, "operation 0", &[]);
}

#[test]
fn a_rank_that_died_inside_is_told_by_those_who_saw_it_fail() {
    let ranks = ranks();
    let marks: Vec<Mark> = ranks.iter().map(|rank| rank.begun(&ordered(0, 4))).collect();
    ranks[0].reached(marks[0], Stage::Failed, None);
    ranks[2].reached(marks[2], Stage::Failed, None);
    first(&ranks, How::Unfinished, "operation 0", &[1]);
}

#[test]
fn a_name_that_one_rank_does_not_submit_is_what_the_others_wait_for() {
    let ranks = ranks();
    for step in 0..30 {
        all(&ranks, &named("conv.weight", 64), 2 * step);
        all(&ranks, &named("conv.bias", 4), 2 * step + 1);
    }
    for rank in [0, 1] {
        ranks[rank].begun(&named("conv.weight", 64));
    }
    let diagnosis = first(&ranks, How::Missing, "'conv.weight' (allreduce sum of 64 f32)", &[2]);
    assert_eq!(diagnosis.divergences[0].views[2].what, "last: 'conv.bias' (allreduce sum of 4 f32), done");
    // The same once the job has failed: the operations in flight end with an error.
    let text = diagnosis.to_string();
    assert!(text.contains("absent    last: 'conv.bias'"), "{text}");
}

#[test]
fn disjoint_names_are_shown_one_by_one() {
    let ranks = ranks();
    let now = crate::os::time::monotonic();
    for (rank, name) in ["a", "b", "a"].into_iter().enumerate() {
        // Far apart: each file has its own idea of when it was made.
        let at = Some(now + Duration::from_secs(10 * rank as u64));
        ranks[rank].begun(&Begun { at, ..named(name, 4) });
    }
    let diagnosis = first(&ranks, How::Missing, "'a'", &[1]);
    assert_eq!(diagnosis.divergences.len(), 2);
    assert_eq!(diagnosis.divergences[1].culprits, [0, 2]);
}

#[test]
fn a_rank_that_has_read_less_of_the_log_is_not_waited_for_by_name() {
    let ranks = ranks();
    all(&ranks, &named("x", 4), 0);
    let marks: Vec<Mark> = ranks.iter().map(|rank| rank.begun(&named("y", 4))).collect();
    ranks[0].reached(marks[0], Stage::Started(1), None);
    ranks[1].reached(marks[1], Stage::Started(1), None);
    // Rank 2 was killed before it read the entry: it is missing at that place, and nobody lacks the name.
    let diagnosis = first(&ranks, How::Missing, "'y'", &[2]);
    assert_eq!(diagnosis.divergences.iter().filter(|divergence| divergence.culprits != [2]).count(), 0, "{diagnosis}");
}

#[test]
fn a_batch_of_tensors_is_one_place() {
    let ranks = ranks();
    for rank in &ranks[..2] {
        for name in ["a", "b", "c"] {
            let mark = rank.begun(&named(name, 4));
            rank.reached(mark, Stage::Agreed(7), None);
            rank.reached(mark, Stage::Started(7), None);
        }
    }
    first(&ranks, How::Missing, "and 2 more", &[2]);
}

#[test]
fn a_message_that_nobody_sends_is_the_senders_fault() {
    let ranks = ranks();
    let message = |verb, peer, place| Begun { verb, op: 0, peer: Some(peer), ..ordered(place, 3) };
    let mark = ranks[0].begun(&message(Verb::Send, 1, 0));
    ranks[0].reached(mark, Stage::Done, None);
    let mark = ranks[1].begun(&message(Verb::Receive, 0, 0));
    ranks[1].reached(mark, Stage::Done, None);
    ranks[1].begun(&message(Verb::Receive, 2, 1));
    let diagnosis = first(&ranks, How::Missing, "receive of 3 f32 from rank 2", &[2]);
    assert_eq!(diagnosis.divergences[0].views.len(), 2);
    // It is on its way: nobody's fault yet.
    ranks[2].begun(&message(Verb::Send, 1, 0));
    first(&ranks, How::Unfinished, "3 f32", &[]);
}

#[test]
fn a_rank_without_a_file_is_named_and_not_accused() {
    let ranks = ranks();
    ranks[0].begun(&named("x", 4));
    ranks[1].begun(&named("x", 4));
    let recordings: Vec<_> = ranks[..2].iter().map(recording).collect();
    let diagnosis = diagnose(&recordings).expect("one job");
    assert_eq!(diagnosis.absent, [2]);
    assert!(diagnosis.divergences[0].culprits.is_empty(), "{diagnosis}");
    assert!(diagnosis.to_string().contains("no file of rank 2"), "{diagnosis}");
}

#[test]
fn sets_of_one_number_and_other_ranks_are_apart() {
    let ranks: Vec<Recorder> = (0..4).map(|rank| recorder(rank, 4)).collect();
    for (rank, recorder) in ranks.iter().enumerate() {
        let pair = if rank < 2 { vec![0, 1] } else { vec![2, 3] };
        recorder.event(&Event::Set { id: 2, named: false, ranks: pair });
    }
    (0..3).for_each(|place| all(&ranks[..2], &ordered(place, 4), place));
    ranks[2].begun(&ordered(0, 9));
    let diagnosis = first(&ranks, How::Missing, "operation 0", &[3]);
    assert_eq!(diagnosis.divergences.len(), 1, "{diagnosis}");
}

#[test]
fn recordings_of_two_jobs_or_twice_one_rank_are_refused() {
    let ranks = ranks();
    let one = recording(&ranks[0]);
    let text = diagnose(&[one.clone(), one.clone()]).expect_err("twice").to_string();
    assert!(text.contains("two files of rank 0"), "{text}");
    let other = super::Recording { job: 7, ..recording(&ranks[1]) };
    let text = diagnose(&[one, other]).expect_err("two jobs").to_string();
    assert!(text.contains("0000000000000007"), "{text}");
    assert!(diagnose(&[]).is_err());
}
