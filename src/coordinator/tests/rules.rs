//! Caching, fusion, mismatches, withdrawal, eviction.

use super::*;
use crate::coordinator::{Device, Kind};

#[test]
fn the_first_time_in_full_then_by_a_bit() {
    let mut net = Net::one_host(3);
    let request = f32s("a", 4);
    net.submit_all(1, &request);
    net.settle();
    net.all_ran(&[&[1]]);
    let frames = net.rings[0].len();
    net.submit_all(2, &request);
    net.settle();
    net.all_ran(&[&[1], &[2]]);
    assert_eq!(net.rings[0].len(), frames, "no second frame");
    assert_eq!(net.logs[0][1].len(), 7, "a cached run is a few bytes");
    assert_eq!(net.batches[0][1].items[0].elements, 4);
}

#[test]
fn nothing_runs_before_the_last_rank() {
    let mut net = Net::one_host(3);
    net.submit(0, 1, &f32s("a", 4));
    net.submit(2, 1, &f32s("a", 4));
    net.settle();
    assert!(net.batches.iter().all(Vec::is_empty));
    net.submit(1, 1, &f32s("a", 4));
    net.settle();
    net.all_ran(&[&[1]]);
}

#[test]
fn equal_operations_fuse_up_to_the_limit_in_order() {
    let params = Params { fusion_bytes: 40, window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[2], params);
    let max = Request::allreduce("max", DType::F32, vec![2], ReduceOp::Max);
    let requests = [f32s("a", 5), max, f32s("b", 5), f32s("c", 5), f32s("big", 100), f32s("d", 0)];
    for (ticket, request) in requests.iter().enumerate() {
        net.submit(0, ticket as u64, request);
    }
    // The order of the other rank does not matter when rank 0 proposes.
    for (ticket, request) in requests.iter().enumerate().rev() {
        net.submit(1, ticket as u64, request);
    }
    net.settle();
    net.all_ran(&[&[0, 2], &[1], &[3], &[4], &[5]]);
    let batch = &net.batches[1][0];
    assert_eq!(batch.bytes, 40);
    assert_eq!(batch.spec.kind, Kind::Allreduce { op: ReduceOp::Sum });
    assert!(net.logs[0].len() == 1, "one entry holds them all");
}

#[test]
fn empty_and_scalar_tensors_are_tensors() {
    let mut net = Net::one_host(2);
    for round in 0..3 {
        net.submit_all(2 * round, &f32s("empty", 0));
        net.submit_all(2 * round + 1, &Request::allreduce("scalar", DType::F32, vec![], ReduceOp::Sum));
        net.settle();
    }
    net.all_ran(&[&[0, 1], &[2, 3], &[4, 5]]);
    assert_eq!(net.batches[0][0].items.iter().map(|item| item.elements).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn every_difference_is_a_mismatch_with_all_views_and_the_name_goes_on() {
    let base = f32s("a", 4);
    let mut scaled = base.clone();
    scaled.spec.postscale = 0.5;
    let mut cuda = base.clone();
    cuda.spec.device = Device::Cuda;
    let others = [
        f32s("a", 5),
        Request::allreduce("a", DType::F16, vec![4], ReduceOp::Sum),
        Request::allreduce("a", DType::F32, vec![4], ReduceOp::Max),
        Request::broadcast("a", DType::F32, vec![4], 1),
        scaled,
        cuda,
    ];
    for cached in [false, true] {
        for other in &others {
            let mut net = Net::one_host(3);
            if cached {
                net.submit_all(0, &base);
                net.settle();
            }
            net.submit(0, 1, &base);
            net.submit(1, 1, other);
            net.submit(2, 1, &base);
            net.settle();
            for rank in 0..3 {
                let [(Ticket(1), Error::Mismatch(mismatch))] = &net.failed[rank][..] else {
                    panic!("{:?}", net.failed[rank])
                };
                let views = [(10, base.describe()), (11, other.describe()), (12, base.describe())];
                assert_eq!((mismatch.name.as_str(), &mismatch.views[..]), ("a", &views[..]));
                net.failed[rank].clear();
                net.batches[rank].clear();
            }
            net.submit_all(2, &base);
            net.settle();
            net.submit_all(3, other);
            net.settle();
            net.all_ran(&[&[2], &[3]]);
        }
    }
}

#[test]
fn roots_are_compared() {
    let mut net = Net::one_host(2);
    net.submit(0, 1, &Request::broadcast("b", DType::U8, vec![3], 0));
    net.submit(1, 1, &Request::broadcast("b", DType::U8, vec![3], 1));
    net.settle();
    let text = &net.failures(0)[0].1;
    assert!(text.contains("(operation):") && text.contains("  rank 11  broadcast from 1\n"), "{text}");
    assert!(text.contains("equal on all: u8, [3], host memory\n"), "{text}");
}

#[test]
fn a_shape_that_all_ranks_change_is_assigned_again() {
    let mut net = Net::one_host(2);
    for (ticket, n) in [4, 4, 9, 9].into_iter().enumerate() {
        net.submit_all(ticket as u64, &f32s("a", n));
        net.settle();
    }
    net.all_ran(&[&[0], &[1], &[2], &[3]]);
    assert_eq!(net.rings[0].len(), 2, "one frame a shape");
    assert_eq!(net.ranks[0].words_in_use(), 1);
}

#[test]
fn a_refused_call_tells_the_peers_and_the_next_one_waits_for_it() {
    let mut net = Net::one_host(2);
    net.step(1, Event::SubmitFailed { name: "a", reason: "the buffer has 3 elements, not 4" });
    net.submit(1, 7, &f32s("a", 4));
    net.settle();
    net.submit(0, 1, &f32s("a", 4));
    net.settle();
    let failures = net.failures(0);
    assert!(failures[0].1.contains("rank 11: refused there: the buffer has 3 elements"), "{failures:?}");
    assert!(net.failed[1].is_empty());
    net.submit(0, 2, &f32s("a", 4));
    net.settle();
    assert_eq!((net.ran(0), net.ran(1)), (vec![vec![2]], vec![vec![7]]));
}

#[test]
fn an_impossible_request_fails_here_at_once_and_there_as_a_mismatch() {
    let mut net = Net::one_host(2);
    net.submit(0, 1, &Request::broadcast("b", DType::U8, vec![3], 2));
    assert!(matches!(&net.failed[0][..], [(Ticket(1), Error::Argument(_))]));
    net.submit(1, 1, &Request::broadcast("b", DType::U8, vec![3], 0));
    net.settle();
    assert!(net.failures(1)[0].1.contains("rank 10: refused there: 'b': root 2"), "{:?}", net.failures(1));
}

#[test]
fn a_name_in_flight_is_refused_by_name() {
    let mut net = Net::one_host(2);
    net.submit(0, 1, &f32s("a", 4));
    net.submit(0, 2, &f32s("a", 4));
    assert!(net.failures(0)[0].1.contains("'a' is already in flight"));
    net.submit(1, 1, &f32s("a", 4));
    net.settle();
    assert_eq!((net.ran(0), net.ran(1)), (vec![vec![1]], vec![vec![1]]));
}

#[test]
fn a_withdrawn_name_is_cancelled_and_can_be_submitted_again_at_once() {
    for cached in [false, true] {
        let mut net = Net::one_host(2);
        if cached {
            net.submit_all(0, &f32s("a", 4));
            net.settle();
        }
        net.submit(0, 1, &f32s("a", 4));
        net.settle();
        net.step(0, Event::Withdraw { ticket: Ticket(1) });
        // Parked: in another shape, to see that the old submission is gone.
        net.submit(0, 2, &f32s("a", 5));
        net.submit(1, 2, &f32s("a", 5));
        net.settle();
        assert!(matches!(&net.failed[0][..], [(Ticket(1), Error::Cancelled(name))] if &**name == "a"));
        assert_eq!(net.ran(0).last(), Some(&vec![2]));
        assert_eq!(net.ran(1).last(), Some(&vec![2]));
        assert!(net.poisons[0].is_empty());
    }
}

#[test]
fn a_parked_submission_can_be_withdrawn_without_anyone() {
    let mut net = Net::one_host(2);
    net.submit(0, 1, &f32s("a", 4));
    net.step(0, Event::Withdraw { ticket: Ticket(1) });
    net.submit(0, 2, &f32s("a", 4));
    net.step(0, Event::Withdraw { ticket: Ticket(2) });
    assert!(matches!(&net.failed[0][..], [(Ticket(2), Error::Cancelled(_))]));
    net.settle();
    assert_eq!(net.failed[0].len(), 2);
    assert_eq!(net.ranks[0].pending(), 0);
}

#[test]
fn a_failure_confirms_one_withdrawal_and_not_the_next() {
    let mut net = Net::one_host(2);
    net.submit(0, 1, &f32s("a", 4));
    net.submit(1, 1, &f32s("a", 5));
    net.asleep[0] = true;
    net.settle();
    net.step(0, Event::Withdraw { ticket: Ticket(1) });
    net.submit(0, 2, &f32s("a", 4));
    // No tick between the failure, which publishes the parked submission, and its withdrawal.
    let entry = net.logs[0][0].clone();
    net.position[0] = 1;
    net.step(0, Event::Entry { index: 0, bytes: &entry });
    net.step(0, Event::Withdraw { ticket: Ticket(2) });
    net.asleep[0] = false;
    net.settle();
    assert!(
        matches!(&net.failed[0][..], [(Ticket(1), Error::Cancelled(_)), (Ticket(2), Error::Cancelled(_))]),
        "{:?}",
        net.failed[0]
    );
    assert!(net.poisons.concat().is_empty());
    net.failed = vec![Vec::new(); 2];
    net.submit_all(3, &f32s("a", 4));
    net.settle();
    net.all_ran(&[&[3]]);
}

#[test]
fn withdrawing_what_was_agreed_poisons() {
    let mut net = Net::one_host(2);
    net.submit_all(1, &f32s("a", 4));
    net.submit(0, 2, &f32s("other", 4));
    net.asleep[0] = true;
    net.settle();
    assert_eq!(net.ran(1), [[1]]);
    net.step(0, Event::Withdraw { ticket: Ticket(1) });
    net.asleep[0] = false;
    net.settle();
    assert!(net.poisons[0][0].to_string().contains("'a' was cancelled on rank 10 after"), "{:?}", net.poisons[0]);
    let mut tickets: Vec<u64> = net.failures(0).iter().map(|(ticket, _)| *ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, [1, 2], "every ticket ends");
    net.submit(0, 3, &f32s("b", 1));
    assert!(matches!(net.failed[0].last(), Some((Ticket(3), Error::Poisoned(_)))));
}

#[test]
fn more_names_than_slots_run_and_slots_change_hands() {
    let params = Params { capacity: 2, evict_after: 3, window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[2], params);
    let mut ticket = 0;
    for round in 0..8 {
        for name in 0..5 {
            net.submit_all(ticket, &f32s(&format!("{}-{name}", round / 4), 4));
            ticket += 1;
        }
        net.settle();
    }
    for rank in 0..2 {
        let ran: usize = net.batches[rank].iter().map(|batch| batch.items.len()).sum();
        assert_eq!(ran as u64, ticket);
        assert!(net.failed[rank].is_empty());
    }
}

#[test]
fn a_bit_that_meets_an_eviction_becomes_a_full_request() {
    let params = Params { capacity: 1, evict_after: 0, window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[3], params);
    net.submit_all(0, &f32s("a", 4));
    net.settle();
    // Rank 2 sets a's bit while it does not know yet that b evicts a.
    net.submit_all(1, &f32s("b", 4));
    for rank in [0, 1, 0] {
        net.round(rank);
    }
    net.submit(2, 2, &f32s("a", 4));
    assert_eq!(net.words[2][0], 1);
    net.settle();
    assert_eq!(net.words[2][0], 0, "flipped back");
    assert_eq!(net.rings[2].len(), 3, "a, b, and a again");
    net.submit(0, 2, &f32s("a", 4));
    net.submit(1, 2, &f32s("a", 4));
    net.settle();
    net.all_ran(&[&[0], &[1], &[2]]);
}

#[test]
fn what_does_not_fit_an_entry_comes_in_the_next() {
    let params = Params { max_entry: 4096, window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[2], params);
    for ticket in 0..40 {
        net.submit_all(ticket, &f32s(&format!("{ticket}{}", "x".repeat(400)), 4));
    }
    net.settle();
    assert!(net.logs[0].len() >= 4);
    assert!(net.logs[0].iter().all(|entry| entry.len() <= 4096));
    for rank in 0..2 {
        assert_eq!(net.ran(rank).concat(), (0..40).collect::<Vec<u64>>());
    }
}

#[test]
fn a_mismatch_of_many_views_is_shortened_to_fit() {
    let params = Params { max_entry: 4096, window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[40], params);
    for rank in 0..40 {
        let mut dims = vec![1 << 40, 0];
        dims.extend(vec![rank + (1 << 42); 28]);
        net.submit(rank, 1, &Request::allreduce("n".repeat(500), DType::F32, dims, ReduceOp::Sum));
    }
    net.settle();
    let Error::Mismatch(mismatch) = &net.failed[3][0].1 else { panic!("{:?}", net.failed[3]) };
    assert_eq!(mismatch.views.len(), 40);
    assert!(mismatch.views[0].1.starts_with("allreduce sum of f32["));
    assert_eq!(mismatch.views[39].1, "something else");
}

#[test]
fn the_window_waits_for_company_unless_somebody_blocks() {
    let mut net = Net::new(&[1], Params::default());
    for round in 0..2 {
        net.submit_all(2 * round, &f32s("a", 1));
        net.submit_all(2 * round + 1, &f32s("b", 1));
        net.settle();
    }
    net.batches[0].clear();
    // A peer keeps `c` unfinished: one rank alone cannot, so take two.
    let mut net = Net::new(&[2], Params::default());
    net.submit_all(1, &f32s("a", 1));
    net.submit(0, 2, &f32s("c", 1));
    net.submit(1, 2, &f32s("d", 1));
    net.settle();
    assert!(net.batches[0].is_empty(), "a is ready, but others are in flight");
    let mut urgent = Net::new(&[2], Params::default());
    urgent.submit_all(1, &f32s("a", 1));
    urgent.submit(0, 2, &f32s("c", 1));
    urgent.submit(1, 2, &f32s("d", 1));
    urgent.step(0, Event::Urgent { ticket: Ticket(1) });
    urgent.settle();
    urgent.all_ran(&[&[1]]);
    net.now += Duration::from_micros(200);
    net.settle();
    net.all_ran(&[&[1]]);
}

#[test]
fn a_proposal_without_a_buffer_is_made_again() {
    let mut alone = Coordinator::new(Params::default(), Topology::one_host(1, 0)).unwrap();
    let mut actions = Vec::new();
    let request = f32s("a", 1);
    let now = Duration::from_secs(1);
    let event = Event::Submit { ticket: Ticket(1), request: &request, urgent: true, deadline: None };
    alone.step(now, event, &mut actions);
    for _ in 0..2 {
        actions.clear();
        alone.step(now, Event::Tick, &mut actions);
        assert!(matches!(actions[0], Action::Propose { index: 0, .. }));
        actions.clear();
        alone.step(now, Event::Tick, &mut actions);
        assert!(actions.is_empty(), "one proposal at a time");
        alone.step(now, Event::ProposeFailed { index: 0 }, &mut actions);
    }
}

#[test]
fn a_failure_ends_everything_with_the_failure() {
    let mut net = Net::one_host(2);
    net.submit(0, 1, &f32s("a", 4));
    net.submit(0, 2, &f32s("b", 4));
    let failure = crate::error::Failure::new(11, "node1", "killed by signal 9");
    net.step(0, Event::Failed(&failure));
    net.submit(0, 3, &f32s("c", 4));
    for (_, text) in net.failures(0) {
        assert_eq!(text, "rank 11 on node1 failed: killed by signal 9");
    }
    assert_eq!(net.failed[0].len(), 3);
    assert!(net.poisons[0].is_empty());
}

#[test]
fn topologies_and_parameters_are_checked() {
    let new = |params: Params, hosts: Vec<Vec<u32>>| {
        Coordinator::new(params, Topology { hosts, global: vec![0, 1], me: 0 }).map(|_| ())
    };
    assert!(new(Params::default(), vec![vec![0, 1]]).is_ok());
    for hosts in [vec![vec![0]], vec![vec![0, 1], vec![]], vec![vec![0, 0]], vec![vec![0, 2]], vec![vec![0, 1, 1]]] {
        assert!(new(Params::default(), hosts).is_err());
    }
    assert!(new(Params { capacity: 0, ..Params::default() }, vec![vec![0, 1]]).is_err());
    assert!(new(Params { max_entry: 100, ..Params::default() }, vec![vec![0, 1]]).is_err());
    assert!(new(Params { max_message: 100, ..Params::default() }, vec![vec![0, 1]]).is_err());
}
