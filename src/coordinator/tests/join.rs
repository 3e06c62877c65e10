//! Joins: ranks without data, and the others that go on.

use super::*;
use crate::coordinator::{Group, Kind};

fn quick() -> Params {
    Params { window: Duration::ZERO, ..Params::default() }
}

fn join(net: &mut Net, rank: usize, ticket: u64) {
    net.step(rank, Event::Join { ticket: Ticket(ticket), deadline: None });
}

/// Names of what a rank sat out, batch by batch.
fn sat_out(net: &Net, rank: usize) -> Vec<Vec<String>> {
    let names = |batch: &Batch| batch.sat_out.iter().map(|request| request.name.to_string()).collect();
    net.batches[rank].iter().map(names).collect()
}

const LAYOUTS: [&[usize]; 5] = [&[3], &[1, 2], &[2, 1], &[1, 1, 1], &[2, 2]];

#[test]
fn the_others_go_on_and_the_last_to_join_is_known_to_all() {
    for layout in LAYOUTS {
        for first in 0..3 {
            let mut net = Net::new(layout, quick());
            let size = net.size();
            net.submit_all(1, &f32s("a", 4));
            net.settle();
            join(&mut net, first, 50);
            // The second time by a bit, the third changes the shape, the fourth is new.
            for (ticket, request) in [f32s("a", 4), f32s("a", 5), f32s("a", 5), f32s("b", 1)].iter().enumerate() {
                for rank in (0..size).filter(|rank| *rank != first) {
                    net.submit(rank, 10 + ticket as u64, request);
                }
                net.settle();
            }
            for rank in (0..size).filter(|rank| *rank != first) {
                assert_eq!(net.ran(rank).concat(), [1, 10, 11, 12, 13], "{layout:?}, rank {rank}, without {first}");
                assert!(net.batches[rank][1..].iter().all(|batch| batch.contributors as usize == size - 1));
                assert!(net.batches[rank].iter().all(|batch| batch.sat_out.is_empty()));
            }
            assert_eq!(sat_out(&net, first)[1..].concat(), ["a", "a", "a", "b"]);
            assert_eq!(net.batches[first][4].sat_out[0].shape, [1]);
            for rank in (0..size).filter(|rank| *rank != first) {
                assert!(net.joins.iter().all(Vec::is_empty));
                join(&mut net, rank, 50);
                net.settle();
            }
            let last = if first == size - 1 { size - 2 } else { size - 1 };
            let global = net.ranks[0].topology.global[last];
            assert!(net.joins.iter().all(|joins| *joins == [(50, global)]), "{:?}", net.joins);
            // All as before: by bits that some flipped more often than others.
            for ticket in 60..64 {
                net.submit_all(ticket, &f32s("a", 5));
                net.settle();
                assert!((0..size).all(|rank| net.ran(rank).last() == Some(&vec![ticket])), "{layout:?}");
            }
            assert!(net.failed.iter().all(Vec::is_empty) && net.poisons.iter().all(Vec::is_empty));
        }
    }
}

#[test]
fn all_may_join_at_once_and_again() {
    for layout in LAYOUTS {
        let mut net = Net::new(layout, quick());
        for round in 0..4 {
            (0..net.size()).for_each(|rank| join(&mut net, rank, round));
            net.settle();
            let last = net.joins[0][round as usize];
            assert!(net.joins.iter().all(|joins| joins.len() == round as usize + 1 && joins.last() == Some(&last)));
            net.submit_all(100 + round, &f32s("a", 2));
            net.settle();
        }
        assert!((0..net.size()).all(|rank| net.ran(rank).concat() == [100, 101, 102, 103]));
    }
}

#[test]
fn what_was_submitted_before_runs_first() {
    for layout in LAYOUTS {
        let mut net = Net::new(layout, quick());
        net.submit(0, 1, &f32s("a", 4));
        join(&mut net, 0, 2);
        net.settle();
        let error = "'b': this rank has joined, and submits nothing until all ranks have; wait for join to return";
        net.submit(0, 3, &f32s("b", 4));
        assert!(net.failures(0)[0].1.contains(error), "{:?}", net.failures(0));
        join(&mut net, 0, 4);
        assert!(net.failures(0)[1].1.contains("joined already"));
        // The others contribute nothing any more, but this rank's tensor is reduced all the same.
        (1..net.size()).for_each(|rank| join(&mut net, rank, 2));
        net.settle();
        assert_eq!(net.ran(0), [[1]], "{layout:?}");
        assert_eq!(net.batches[0][0].contributors, 1);
        assert!((1..net.size()).all(|rank| sat_out(&net, rank) == [["a"]]), "{layout:?}");
        assert!(net.joins.iter().all(|joins| joins.len() == 1), "{layout:?}");
        assert_eq!(net.joins[0][0].1, net.ranks[0].topology.global[0], "it had to wait for its tensor");
    }
}

#[test]
fn a_joined_root_cannot_answer() {
    for layout in LAYOUTS {
        let mut net = Net::new(layout, quick());
        let cached = Request::broadcast("cached", DType::F32, vec![2], 1);
        net.submit_all(0, &cached);
        net.settle();
        join(&mut net, 1, 9);
        let kinds = [Kind::Broadcast { root: 1 }, Kind::Reduce { op: ReduceOp::Sum, root: 1 }];
        let mut requests: Vec<Request> = kinds.iter().map(|kind| with_kind("new", *kind)).collect();
        requests.push(cached);
        let mut adasum = with_kind("group", Kind::Allreduce { op: ReduceOp::Adasum });
        adasum.group = Some(Group::of(&[vec![2], vec![1]]));
        requests.push(adasum);
        let mut scattered = with_kind("scattered group", Kind::ReduceScatter { op: ReduceOp::Sum });
        scattered.group = Some(Group::of(&[vec![2], vec![1]]));
        requests.push(scattered);
        // It does not know how many rows there are.
        requests.push(with_kind("rows", Kind::AllreduceRows { op: ReduceOp::Sum }));
        requests.push(with_kind("some bytes", Kind::BroadcastRows { root: 0 }));
        for (ticket, request) in requests.iter().enumerate() {
            for rank in (0..net.size()).filter(|rank| *rank != 1) {
                net.submit(rank, 1 + ticket as u64, request);
            }
            net.settle();
        }
        for rank in (0..net.size()).filter(|rank| *rank != 1) {
            assert_eq!(net.failed[rank].len(), 7, "{layout:?}: {:?}", net.failures(rank));
            let global = net.ranks[0].topology.global[1];
            for (_, text) in net.failures(rank) {
                assert!(
                    text.contains("has joined: it has no more data") && text.contains(&global.to_string()),
                    "{text}"
                );
            }
        }
        // Other roots, and the same names, go on.
        for rank in (0..net.size()).filter(|rank| *rank != 1) {
            net.submit(rank, 20, &Request::broadcast("new", DType::F32, vec![2], 0));
        }
        net.settle();
        assert_eq!(net.ran(0).last(), Some(&vec![20]));
    }
}

fn with_kind(name: &str, kind: Kind) -> Request {
    let mut request = f32s(name, 3);
    request.spec.kind = kind;
    request
}

#[test]
fn a_call_refused_before_the_join_fails_the_name() {
    for layout in LAYOUTS {
        for known in [false, true] {
            let mut net = Net::new(layout, quick());
            if known {
                net.submit_all(0, &f32s("a", 4));
                net.settle();
            }
            net.step(1, Event::SubmitFailed { name: "a", reason: "no" });
            join(&mut net, 1, 9);
            net.settle();
            for rank in (0..net.size()).filter(|rank| *rank != 1) {
                net.submit(rank, 1, &f32s("a", 4));
            }
            net.settle();
            for rank in (0..net.size()).filter(|rank| *rank != 1) {
                assert!(net.failures(rank)[0].1.contains("refused there: no"), "{layout:?}: {:?}", net.failures(rank));
                net.submit(rank, 2, &f32s("a", 4));
            }
            net.settle();
            assert_eq!(net.ran(0).last(), Some(&vec![2]), "{layout:?}");
        }
    }
}

#[test]
fn freed_slots_are_used_again_while_a_rank_is_joined() {
    for layout in LAYOUTS {
        let mut net = Net::new(layout, Params { capacity: 2, evict_after: 0, ..quick() });
        join(&mut net, 0, 9);
        for ticket in 0..12 {
            for rank in 1..net.size() {
                net.submit(rank, ticket, &f32s(&format!("t{}", ticket % 5), 4));
            }
            net.settle();
        }
        (1..net.size()).for_each(|rank| join(&mut net, rank, 9));
        net.settle();
        for ticket in 20..32 {
            net.submit_all(ticket, &f32s(&format!("t{}", ticket % 5), 4));
            net.settle();
        }
        let all: Vec<u64> = (0..12).chain(20..32).collect();
        assert!((1..net.size()).all(|rank| net.ran(rank).concat() == all), "{layout:?}");
        assert_eq!(net.ran(0).concat(), (20..32).collect::<Vec<u64>>());
        let evicted = net.ranks.iter().map(|rank| rank.slots.words_in_use()).max();
        assert_eq!(evicted, Some(1), "two slots for all");
    }
}

#[test]
fn a_join_that_nobody_follows_warns_and_ends_by_name() {
    for layout in LAYOUTS {
        let params = Params { stall_warn: Duration::from_secs(2), stall_deadline: Duration::from_secs(6), ..quick() };
        let mut net = Net::new(layout, params);
        let size = net.size();
        join(&mut net, 1, 9);
        // Whatever the others do counts as a sign of life.
        for ticket in 0..6 {
            net.pass(1500);
            for rank in (0..size).filter(|rank| *rank != 1) {
                net.submit(rank, ticket, &f32s("a", 4));
            }
        }
        net.settle();
        assert!(net.warnings.iter().all(Vec::is_empty), "{:?}", net.warnings);
        net.pass(3000);
        let told: Vec<&String> = net.warnings.iter().flatten().collect();
        assert_eq!(told.len(), 1, "{layout:?}: {told:?}");
        assert!(told[0].contains("'kolo.join': submitted by rank ") && told[0].contains("not by "), "{told:?}");
        net.pass(6000);
        let text = net.failures(1).pop().expect("it gives up").1;
        assert!(text.contains("tensor 'kolo.join'") && text.contains(" did not join"), "{text}");
        assert_eq!((net.poisons[1].len(), net.ranks[1].pending()), (1, 0));
    }
}

#[test]
fn a_join_can_be_taken_back_until_it_is_announced() {
    let mut net = Net::new(&[2], quick());
    net.submit(0, 1, &f32s("a", 4));
    join(&mut net, 0, 2);
    net.step(0, Event::Withdraw { ticket: Ticket(2) });
    assert!(matches!(net.failed[0][..], [(Ticket(2), Error::Cancelled(_))]));
    net.submit(1, 1, &f32s("a", 4));
    net.settle();
    net.submit_all(3, &f32s("b", 4));
    net.settle();
    assert_eq!(net.ran(0), [[1], [3]]);
    join(&mut net, 0, 4);
    net.step(0, Event::Withdraw { ticket: Ticket(4) });
    assert_eq!(net.poisons[0].len(), 1);
    assert!(net.poisons[0][0].to_string().contains("the join of rank 10 was given up"), "{}", net.poisons[0][0]);
}

#[test]
fn an_entry_that_makes_no_sense_ends_the_set() {
    let mut net = Net::one_host(2);
    let mut entry = vec![super::super::entry::VERSION];
    super::super::entry::put_joined(&mut entry, 0);
    net.step(0, Event::Entry { index: 0, bytes: &entry });
    assert!(net.poisons[0][0].to_string().contains("has joined, which makes no sense"), "{}", net.poisons[0][0]);
}
