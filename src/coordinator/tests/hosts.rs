//! Several hosts.

use super::*;

fn quick() -> Params {
    Params { window: Duration::ZERO, ..Params::default() }
}

#[test]
fn hosts_vote_and_run_in_one_order() {
    for layout in [&[1, 1][..], &[2, 3], &[1, 2, 1, 2]] {
        let mut net = Net::new(layout, quick());
        for round in 0..3 {
            for name in 0..4 {
                net.submit_all(round * 4 + name, &f32s(&name.to_string(), 4));
            }
            net.settle();
        }
        for rank in 0..net.size() {
            assert_eq!(net.ran(rank), net.ran(0));
            assert_eq!(net.ran(rank).concat(), (0..12).collect::<Vec<u64>>());
        }
        assert!(net.logs.iter().all(|log| *log == net.logs[0]));
    }
}

#[test]
fn only_leaders_need_the_peers() {
    let net = Net::new(&[2, 2], quick());
    let watching: Vec<bool> = net.ranks.iter().map(Coordinator::watches_peers).collect();
    assert_eq!(watching, [true, false, true, false]);
    assert!(Net::one_host(2).ranks.iter().all(Coordinator::watches_peers));
}

#[test]
fn one_rank_of_a_remote_host_changes_the_shape() {
    let mut net = Net::new(&[1, 3], quick());
    net.submit_all(0, &f32s("a", 4));
    net.settle();
    for rank in 0..4 {
        net.submit(rank, 1, &f32s("a", if rank == 2 { 5 } else { 4 }));
        net.settle();
    }
    for rank in 0..4 {
        let Error::Mismatch(mismatch) = &net.failed[rank][0].1 else { panic!("{:?}", net.failed[rank]) };
        assert_eq!(mismatch.views[2], (12, f32s("a", 5).describe()));
        assert_eq!(mismatch.views[3], (13, f32s("a", 4).describe()));
        net.failed[rank].clear();
    }
    net.submit_all(2, &f32s("a", 4));
    net.settle();
    net.all_ran(&[&[0], &[2]]);
}

#[test]
fn a_vote_that_crosses_an_eviction_is_void() {
    let params = Params { capacity: 1, evict_after: 0, ..quick() };
    let mut net = Net::new(&[1, 1], params);
    net.submit_all(0, &f32s("a", 4));
    net.settle();
    net.submit_all(1, &f32s("b", 4));
    net.round(1);
    // The first leader takes b's frame and evicts a, while the other host votes for a.
    let frame = net.channels[1][0].pop_front().unwrap();
    net.step(0, Event::HostMessage { host: 1, bytes: &frame });
    net.held = true;
    net.submit(1, 2, &f32s("a", 4));
    net.round(1);
    net.round(0);
    net.round(0);
    assert_eq!(net.ran(0), [[0], [1]]);
    net.held = false;
    net.settle();
    net.submit(0, 2, &f32s("a", 4));
    net.settle();
    net.all_ran(&[&[0], &[1], &[2]]);
}

#[test]
fn a_remote_withdrawal_takes_the_vote_back() {
    let mut net = Net::new(&[1, 2], quick());
    net.submit_all(0, &f32s("a", 4));
    net.settle();
    net.submit(1, 1, &f32s("a", 4));
    net.submit(2, 1, &f32s("a", 4));
    net.settle();
    net.step(2, Event::Withdraw { ticket: Ticket(1) });
    net.settle();
    assert!(matches!(&net.failed[2][..], [(Ticket(1), Error::Cancelled(_))]));
    net.submit(0, 1, &f32s("a", 4));
    net.settle();
    assert_eq!(net.batches[0].len(), 1, "host 1 votes no more");
    net.submit(2, 2, &f32s("a", 4));
    net.settle();
    assert_eq!(net.ran(2), [[0], [2]]);
    assert_eq!(net.ran(1), [[0], [1]]);
}

#[test]
fn the_first_leader_names_remote_ranks_that_are_missing() {
    let mut net = Net::new(&[1, 3], quick());
    net.submit_all(0, &f32s("a", 1));
    net.submit_all(1, &f32s("b", 1));
    net.settle();
    for (rank, name) in ["a", "a", "b", "a"].into_iter().enumerate() {
        net.submit(rank, 2, &f32s(name, 1));
    }
    net.pass(2000);
    let text = net.warnings[0].concat();
    assert!(text.contains("'a': submitted by ranks 10-11, 13; not by rank 12"), "{text}");
    assert!(text.contains("'b': submitted by rank 12; not by ranks 10-11, 13"), "{text}");
    assert!(net.warnings[1..].concat().is_empty());
}
