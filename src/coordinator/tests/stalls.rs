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
    let five = Duration::from_secs(5);
    let params = Params { stall_deadline: five, grace: five, window: Duration::ZERO, ..Params::default() };
    let mut net = Net::new(&[1, 1], params.clone());
    net.asleep[0] = true;
    net.submit(1, 1, &f32s("a", 1));
    net.pass(9900);
    assert!(net.failed[1].is_empty());
    net.pass(500);
    let text = &net.failures(1)[0].1;
    assert!(text.contains("tensor 'a'") && text.contains("rank 10 does not answer"), "{text}");

    // A rank behind two leaders that do not answer names both.
    let mut net = Net::new(&[1, 2], params);
    (net.asleep[0], net.asleep[1]) = (true, true);
    net.submit(2, 1, &f32s("a", 1));
    net.pass(10_500);
    assert!(net.failures(2)[0].1.contains("ranks 10-11 do not answer"), "{:?}", net.failures(2));
}

/// Everybody but `idle` submits a name, at first or again; what the ranks that wait for it are told.
fn with_idle(layout: &[usize], idle: &[usize], cached: bool) -> Net {
    let params = Params {
        stall_warn: Duration::from_secs(2),
        stall_deadline: Duration::from_secs(5),
        window: Duration::ZERO,
        ..Params::default()
    };
    let mut net = Net::new(layout, params);
    if cached {
        net.submit_all(0, &f32s("x", 1));
        net.settle();
    }
    for rank in (0..net.size()).filter(|rank| !idle.contains(rank)) {
        net.submit(rank, 1, &f32s("x", 1));
    }
    net.pass(5500);
    net
}

fn words(ranks: &[usize]) -> String {
    let runs = ranks.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => format!("{}", 10 + one),
        run => format!("{}-{}", 10 + run[0], 10 + run[run.len() - 1]),
    });
    format!("rank{} {}", if ranks.len() == 1 { "" } else { "s" }, runs.collect::<Vec<_>>().join(", "))
}

#[test]
fn whoever_is_idle_is_named_by_warning_and_deadline_and_nobody_else() {
    for layout in [&[3][..], &[2, 2], &[1, 1, 2], &[1, 3], &[3, 2]] {
        let size: usize = layout.iter().sum();
        for (idle, cached) in (1..(1_usize << size) - 1).flat_map(|idle| [(idle, false), (idle, true)]) {
            let (idle, waiting): (Vec<usize>, Vec<usize>) = (0..size).partition(|rank| idle >> rank & 1 == 1);
            let net = with_idle(layout, &idle, cached);
            let what = format!("{layout:?}, {idle:?} idle, cached: {cached}");
            let warning = format!("\n  'x': submitted by {}; not by {}\n", words(&waiting), words(&idle));
            let told = net.warnings.concat();
            assert!(told.len() == 1 && told[0].contains(&warning), "{what}: {told:?}");
            for rank in waiting {
                let text = &net.failures(rank)[0].1;
                assert!(text.starts_with("tensor 'x': gave up after 5"), "{what}: {text}");
                assert!(text.contains(&format!("; {} did not submit it;", words(&idle))), "{what}: {text}");
                assert!(layout.len() == 1 || net.summons[rank] > 0, "{what}: nobody would call the idle leaders");
            }
        }
    }
}

#[test]
fn a_deadline_too_short_for_a_warning_names_nobody_who_came() {
    for layout in [&[2, 2][..], &[1, 3], &[1, 1, 2]] {
        let mut net = Net::new(layout, Params { window: Duration::ZERO, ..Params::default() });
        let request = f32s("x", 1);
        net.submit_all(0, &request);
        net.settle();
        // Rank 2 stays away; the leader of its host, or another member of it, is there.
        let deadline = Some(Duration::from_millis(40));
        for rank in [0, 1, 3] {
            net.step(rank, Event::Submit { ticket: Ticket(1), request: &request, urgent: true, deadline });
        }
        net.pass(200);
        for rank in [0, 1, 3] {
            let text = &net.failures(rank)[0].1;
            assert!(text.contains("; rank 12 did not submit it;"), "{layout:?}: {text}");
        }
    }
}

#[test]
fn ranks_behind_a_silent_leader_are_not_called_late() {
    let params = Params {
        stall_warn: Duration::from_secs(2),
        stall_deadline: Duration::from_secs(5),
        window: Duration::ZERO,
        ..Params::default()
    };
    let mut net = Net::new(&[2, 2, 1], params);
    net.asleep[2] = true;
    net.submit(0, 1, &f32s("x", 1));
    net.submit(3, 1, &f32s("x", 1));
    net.submit(4, 1, &f32s("x", 1));
    net.pass(6500);
    let warning =
        "'x': submitted by ranks 10, 14; not by rank 11; not known of ranks 12-13, as rank 12 does not answer";
    assert!(net.warnings.concat().last().is_some_and(|text| text.contains(warning)), "{:?}", net.warnings);
    let wanted = "rank 11 did not submit it; rank 12 does not answer for its host;";
    for rank in [0, 4] {
        assert!(net.failures(rank)[0].1.contains(wanted), "{:?}", net.failures(rank));
    }
}

#[test]
fn disjoint_names_of_several_hosts_are_listed_by_the_first_leader() {
    for layout in [&[2, 2][..], &[1, 1, 2]] {
        let mut net = Net::new(layout, Params { window: Duration::ZERO, ..Params::default() });
        for name in ["a", "b", "c", "d"] {
            net.submit_all(0, &f32s(name, 1));
            net.settle();
        }
        for (rank, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            net.submit(rank, 1, &f32s(name, 1));
        }
        net.pass(1000);
        assert_eq!(net.warnings[0].len(), 1, "{layout:?}: {:?}", net.warnings);
        for (rank, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let others: Vec<usize> = (0..4).filter(|other| *other != rank).collect();
            let line = format!("'{name}': submitted by {}; not by {}", words(&[rank]), words(&others));
            assert!(net.warnings[0][0].contains(&line), "{layout:?}: {}", net.warnings[0][0]);
        }
        assert!(net.warnings[1..].concat().is_empty(), "one rank speaks");
    }
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

#[test]
fn a_refused_call_ends_nothing_but_what_waits_behind_it_has_its_deadline() {
    let five = Duration::from_secs(5);
    let params = Params { stall_deadline: five, window: Duration::ZERO, ..Params::default() };
    for (layout, rank) in [&[3][..], &[1, 2], &[2, 1], &[1, 1, 1]].into_iter().flat_map(|l| [(l, 0), (l, 1), (l, 2)]) {
        let what = format!("{layout:?}, rank {rank}");
        let mut net = Net::new(layout, params.clone());
        net.step(rank, Event::SubmitFailed { name: "x", reason: "no" });
        net.pass(15_000);
        assert!(net.poisons.concat().is_empty(), "{what}: nobody waits: {:?}", net.poisons);
        net.submit(rank, 1, &f32s("x", 1));
        net.pass(5500);
        let others: Vec<usize> = (0..3).filter(|other| *other != rank).collect();
        let text = &net.failures(rank)[0].1;
        assert!(text.starts_with("tensor 'x': gave up after 5"), "{what}: {text}");
        assert!(text.contains(&format!("; {} did not submit it;", words(&others))), "{what}: {text}");
        assert!(net.poisons.iter().all(|poisons| matches!(&poisons[..], [Error::Timeout { .. }])), "{what}");
    }
}

#[test]
fn a_deadline_that_a_failure_overtook_counts_for_what_waited_behind_it() {
    let mut net = Net::new(&[1, 1], Params { window: Duration::ZERO, ..Params::default() });
    let request = f32s("x", 1);
    net.step(1, Event::SubmitFailed { name: "x", reason: "no" });
    let deadline = Some(Duration::from_millis(40));
    net.step(1, Event::Submit { ticket: Ticket(1), request: &request, urgent: true, deadline });
    net.held = true;
    net.later(60);
    net.round(1);
    net.submit(0, 1, &request);
    net.held = false;
    net.settle();
    assert!(matches!(&net.failed[0][..], [(Ticket(1), Error::Mismatch(_))]), "{:?}", net.failed);
    net.pass(400);
    let failures = net.failures(1);
    assert!(failures[0].1.contains("; rank 10 did not submit it;"), "{failures:?}");
}

#[test]
fn a_deadline_that_an_entry_overtook_does_not_count_for_the_next_submission() {
    for last in [f32s("x", 1), f32s("x", 2)] {
        let mut net = Net::new(&[2, 1], Params { window: Duration::ZERO, ..Params::default() });
        let request = f32s("x", 1);
        let deadline = Some(Duration::from_millis(40));
        net.submit(0, 1, &request);
        net.step(1, Event::Submit { ticket: Ticket(1), request: &request, urgent: true, deadline });
        net.settle();
        net.later(60);
        net.round(1);
        net.round(0);
        // The census is under way when the name becomes complete.
        net.submit(2, 1, &last);
        net.held = true;
        net.round(2);
        net.held = false;
        net.round(0);
        // Rank 1 is ahead of the first leader, which sees the next submission together with the entry.
        net.round(1);
        net.submit(1, 2, &request);
        net.settle();
        assert!(net.poisons.concat().is_empty(), "{:?}", net.poisons);
        net.submit(0, 2, &request);
        net.submit(2, 2, &request);
        net.settle();
        assert!(net.batches.iter().all(|batches| batches.last().is_some_and(|b| b.items[0].ticket == Ticket(2))));
    }
}

#[test]
fn a_deadline_that_a_withdrawal_overtook_ends_nothing() {
    for cached in [false, true] {
        let mut net = Net::new(&[1, 1], Params { window: Duration::ZERO, ..Params::default() });
        let request = f32s("x", 1);
        if cached {
            net.submit_all(0, &request);
            net.settle();
        }
        let deadline = Some(Duration::from_millis(40));
        net.step(1, Event::Submit { ticket: Ticket(1), request: &request, urgent: true, deadline });
        net.held = true;
        net.later(60);
        net.round(1);
        net.step(1, Event::Withdraw { ticket: Ticket(1) });
        net.submit(1, 2, &request);
        net.held = false;
        net.pass(500);
        assert!(net.poisons.concat().is_empty(), "cached: {cached}: {:?}", net.poisons);
        assert!(matches!(&net.failed[1][..], [(Ticket(1), Error::Cancelled(_))]), "cached: {cached}: {:?}", net.failed);
        net.submit(0, 2, &request);
        net.settle();
        assert_eq!(net.ran(1).last(), Some(&vec![2]));
    }
}
