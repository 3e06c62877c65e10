//! Warnings, deadlines and the report.

use super::*;

#[test]
fn disjoint_names_are_listed_within_a_second_and_only_once() {
    let mut net = Net::one_host(3);
    net.submit(0, 1, &f32s("loss", 1));
    net.submit(1, 1, &f32s("loss", 1));
    net.submit(2, 1, &f32s("lost", 1));
    net.pass(1000);
    let expected = "every rank waits, but for different tensors:\
        \n  'loss': submitted by ranks 10-11; not by rank 12\
        \n  'lost': submitted by rank 12; not by ranks 10-11\
        \ncheck that every rank submits the same names";
    assert_eq!(net.warnings[0], [expected]);
    assert!(net.warnings[1].is_empty() && net.warnings[2].is_empty(), "one rank speaks");
    net.pass(3000);
    assert_eq!(net.warnings[0].len(), 1, "not again while nothing changes");
    net.submit(2, 2, &f32s("other", 1));
    net.pass(1000);
    assert_eq!(net.warnings[0].len(), 2);
    net.submit(2, 3, &f32s("loss", 1));
    net.settle();
    assert_eq!(net.ran(0), [[1]]);
}

#[test]
fn cached_names_are_compared_too() {
    let mut net = Net::one_host(2);
    net.submit_all(0, &f32s("a", 1));
    net.submit_all(1, &f32s("b", 1));
    net.settle();
    net.submit(0, 2, &f32s("a", 1));
    net.submit(1, 2, &f32s("b", 1));
    net.pass(1000);
    assert!(net.warnings[0][0].contains("'a': submitted by rank 10; not by rank 11"), "{:?}", net.warnings);
    let report = net.ranks[1].report(net.now);
    assert_eq!(report.stalled.len(), 2);
    assert_eq!(report.stalled[0].missing.len(), 1);
}

#[test]
fn a_late_rank_is_no_news_before_the_warning_is_due() {
    let mut net = Net::one_host(2);
    net.submit(1, 1, &f32s("a", 1));
    net.pass(2000);
    assert!(net.warnings.concat().is_empty());
    net.later(58_000);
    net.pass(500);
    assert!(net.warnings[0].is_empty(), "rank 0 has nothing pending and may sleep");
    assert!(net.warnings[1][0].starts_with("tensors wait for ranks for 60s or longer:\n  'a': submitted by rank 11"));
}

#[test]
fn the_deadline_names_tensor_and_ranks_everywhere_and_poisons() {
    let params = Params { stall_deadline: Duration::from_secs(5), window: Duration::ZERO, ..Params::default() };
    for layout in [&[3][..], &[1, 2], &[2, 1], &[1, 1, 1]] {
        let mut net = Net::new(layout, params.clone());
        net.submit_all(0, &f32s("cached", 1));
        net.settle();
        for cached in [false, true] {
            let name = if cached { "cached" } else { "new" };
            if cached {
                net = Net::new(layout, params.clone());
                net.submit_all(0, &f32s("cached", 1));
                net.settle();
            }
            net.submit(0, 1, &f32s(name, 1));
            net.submit(2, 1, &f32s(name, 1));
            net.submit(1, 2, &f32s("x", 1));
            net.pass(5500);
            for rank in [0, 2] {
                let text = &net.failures(rank)[0].1;
                assert!(text.starts_with(&format!("tensor '{name}': gave up after 5")), "{layout:?}: {text}");
                assert!(text.contains("rank 11 did not submit it"), "{layout:?}: {text}");
            }
            assert!(matches!(&net.failed[1][..], [(Ticket(2), Error::Poisoned(_))]), "{layout:?}");
            assert!(net.poisons.iter().all(|poisons| matches!(&poisons[..], [Error::Timeout { .. }])));
        }
    }
}

#[test]
fn a_silent_log_is_given_up_by_itself() {
    let params = Params { stall_deadline: Duration::from_secs(5), window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[1, 1], params);
    net.asleep[0] = true;
    net.submit(1, 1, &f32s("a", 1));
    net.pass(6900);
    assert!(net.failed[1].is_empty());
    net.pass(500);
    assert!(net.failures(1)[0].1.contains("the rank that decides does not answer"), "{:?}", net.failures(1));
}

#[test]
fn a_deadline_of_a_call_and_a_pause() {
    let mut net = Net::one_host(2);
    let request = f32s("a", 1);
    net.step(0, Event::Pause { until: net.now + Duration::from_secs(3) });
    let deadline = Some(Duration::from_millis(100));
    net.step(0, Event::Submit { ticket: Ticket(1), request: &request, urgent: true, deadline });
    net.pass(3000);
    assert!(net.failed[0].is_empty());
    net.pass(200);
    assert!(matches!(&net.failed[0][..], [(Ticket(1), Error::Timeout { .. })]));
}

#[test]
fn steps_that_always_have_something_pending_are_not_stalls() {
    let params = Params { stall_warn: Duration::from_secs(2), window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[2], params);
    net.submit(0, 0, &f32s("a", 1));
    for ticket in 1..200 {
        net.pass(50);
        net.submit(1, ticket - 1, &f32s("a", 1));
        net.settle();
        net.submit(0, ticket, &f32s("a", 1));
    }
    assert!(net.warnings.concat().is_empty(), "{:?}", net.warnings);
    assert_eq!(net.batches[0].len(), 199);
}
