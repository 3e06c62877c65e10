//! Ranks that do not come, under a real `mpirun`: whoever waits for them is told which rank lacks which tensor, whatever
//! host and rank it is.
#![cfg(feature = "mpi")]

#[macro_use]
mod common;

use std::process::ExitCode;
use std::time::Duration;

use kolo::{Error, Kolo, Options, RankState, ReduceOp, Status};
use rustix::process::{Pid, Signal, kill_process};
use xtask::harness::mpirun;
use xtask::mpi;

/// Pretend hosts for four ranks.
const LAYOUTS: [&str; 3] = ["", "2,2", "1,1,2"];

/// Ends the process of a rank of a case whose parent looks at what it printed.
fn end(code: ExitCode) -> ! {
    std::process::exit(i32::from(code != ExitCode::SUCCESS))
}

/// `ranks 0, 2-3` for all ranks below `size` but one.
fn all_but(rank: usize, size: usize) -> String {
    let others: Vec<usize> = (0..size).filter(|other| *other != rank).collect();
    let runs = others.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    format!("rank{} {}", if others.len() == 1 { "" } else { "s" }, runs.collect::<Vec<_>>().join(", "))
}

/// Each rank in turn stays away from two tensors, one that the ranks know and one that is new. It has nothing in flight
/// meanwhile, and does nothing for the set.
fn each_rank_stays_away() -> kolo::Result<()> {
    let judge = kolo::init()?;
    for victim in 0..judge.size() {
        let kolo = kolo::init()?;
        kolo.allreduce("known", &mut [1.0_f32], ReduceOp::Sum)?;
        if kolo.rank() != victim {
            let options = Options { deadline: Some(Duration::from_millis(1500)), ..Options::default() };
            let begin = |name| kolo.allreduce_async_with(name, vec![1.0_f32], ReduceOp::Sum, &options);
            for handle in [begin("known")?, begin("new")?] {
                let error = handle.wait().expect_err("a rank stays away");
                let text = error.to_string();
                assert!(matches!(error, Error::Timeout { .. } | Error::Poisoned(_)), "{text}");
                assert!(text.contains(&format!("; rank {victim} did not submit it;")), "rank {victim} is idle: {text}");
            }
        }
        judge.barrier()?;
    }
    Ok(())
}

#[test]
fn an_idle_rank_is_named_by_the_warning_and_at_the_deadline() {
    if mpi::rank().is_some() {
        each_rank_stays_away().expect("the judge works on");
        end(ExitCode::SUCCESS);
    }
    for hosts in LAYOUTS {
        let job = mpirun(4).hosts(hosts).env("KOLO_STALL_WARNING", "300ms");
        let output = job.run_self("an_idle_rank_is_named_by_the_warning_and_at_the_deadline");
        for victim in 0..4 {
            for name in ["known", "new"] {
                let line = format!("'{name}': submitted by {}; not by rank {victim}\n", all_but(victim, 4));
                assert_eq!(output.matches(&line).count(), 1, "on hosts '{hosts}', {line}: {output}");
            }
        }
    }
}

/// Each rank in turn leaves a job that the others go on to use.
fn each_rank_leaves() -> kolo::Result<()> {
    let judge = kolo::init()?;
    for victim in 0..judge.size() {
        let kolo = kolo::init()?;
        kolo.barrier()?;
        if kolo.rank() == victim {
            drop(kolo);
        } else {
            let error = kolo.allreduce("late", &mut [1.0_f32], ReduceOp::Sum).expect_err("a rank is gone");
            let text = error.to_string();
            assert!(matches!(error, Error::Gone { .. } | Error::Poisoned(_)), "{text}");
            assert!(text.contains("'late' cannot end: ") && text.contains(&format!("rank {victim} ")), "{text}");
        }
        judge.barrier()?;
    }
    Ok(())
}

#[test]
fn a_rank_that_left_is_named_on_all_hosts_without_a_deadline() {
    if mpi::rank().is_some() {
        each_rank_leaves().expect("the judge works on");
        end(ExitCode::SUCCESS);
    }
    for hosts in LAYOUTS {
        let job = mpirun(4).hosts(hosts).env("KOLO_DEADLINE", "10min");
        job.run_self("a_rank_that_left_is_named_on_all_hosts_without_a_deadline");
    }
}

/// Rank 3 stays away, asleep at first, then stopped: whoever waits for it is told both, and what it did last.
fn a_late_rank_is_looked_at() -> kolo::Result<()> {
    let (judge, kolo) = (kolo::init()?, kolo::init()?);
    let others = judge.process_set(&[0, 1, 2])?;
    kolo.allreduce("known", &mut [1.0_f32], ReduceOp::Sum)?;
    let Some(others) = others else { return judge.barrier() };
    let options = Options { deadline: Some(Duration::from_secs(10)), ..Options::default() };
    let handle = kolo.allreduce_async_with("late", vec![1.0_f32], ReduceOp::Sum, &options)?;
    if kolo.rank() == 0 {
        let pid = look_until(&kolo, |status| {
            let known = status.pending.first().is_some_and(|late| late.missing == [3] && late.age.as_secs() >= 2);
            let asleep = matches!(status.ranks[3].state, RankState::Running | RankState::Sleeping);
            (known && asleep).then_some(status.ranks[3].pid)
        });
        // Its host may have answered just now: the first warning is told at the next look.
        std::thread::sleep(Duration::from_secs(1));
        let pid = Pid::from_raw(pid as i32).expect("a process");
        kill_process(pid, Signal::STOP).expect("it is stopped");
        look_until(&kolo, |status| (status.ranks[3].state == RankState::Stopped).then_some(()));
    }
    let outcome = handle.wait();
    let status = kolo.status();
    // Nobody lets it go on before all have their error.
    others.allreduce::<u8>("all have seen it", &mut [], ReduceOp::Max)?;
    kill_process(Pid::from_raw(status.ranks[3].pid as i32).expect("a process"), Signal::CONT).expect("it goes on");
    judge.barrier()?;
    let text = outcome.expect_err("rank 3 stays away").to_string();
    for part in ["tensor 'late'", "rank 3 did not submit it", " is stopped; its last operation was 'known', number 1, "]
    {
        assert!(text.contains(part), "rank {}: {text}", kolo.rank());
    }
    assert!(status.pending.is_empty() && status.running.is_empty(), "{status:?}");
    let last = status.ranks[3].last.as_ref().expect("it is known");
    assert_eq!((&*last.name, last.sequence, last.in_flight), ("known", 1, 0));
    Ok(())
}

/// Asks for the status until it has what is wanted.
fn look_until<T>(kolo: &Kolo, wanted: impl Fn(&Status) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(&kolo.status()) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_late_rank_is_shown_with_its_state_and_its_last_operation() {
    if mpi::rank().is_some() {
        a_late_rank_is_looked_at().expect("the judge works on");
        end(ExitCode::SUCCESS);
    }
    for hosts in ["", "2,2"] {
        let job = mpirun(4).hosts(hosts).env("KOLO_STALL_WARNING", "600ms");
        let output = job.run_self("a_late_rank_is_shown_with_its_state_and_its_last_operation");
        let told: Vec<&str> = output.lines().filter(|line| line.starts_with("  rank 3 on ")).collect();
        let context = format!("on hosts '{hosts}': {output}");
        assert_eq!(told.len(), 2, "once, and again when it stopped: {context}");
        assert!(!told[0].contains("is stopped") && told[1].contains("is stopped"), "{context}");
        assert!(told.iter().all(|line| line.contains("its last operation was 'known', number 1, ")), "{context}");
        assert_eq!(output.matches("'late': submitted by ranks 0-2; not by rank 3").count(), 2, "{context}");
    }
}

mpi_test!(the_status_says_what_each_rank_can_know, np = [2], hosts = ["2,2"], |kolo| {
    let handle = (kolo.rank() > 0).then(|| kolo.allreduce_async("late", vec![1_u8], ReduceOp::Sum)).transpose()?;
    // On one host everybody knows of all. With several, the first rank does, once somebody has called it.
    let wanted: [&[usize]; 3] = match (kolo.size(), kolo.rank()) {
        (2, _) => [&[1], &[0], &[]],
        (_, 0) => [&[1, 2, 3], &[0], &[]],
        (_, 1) => [&[1], &[], &[0, 2, 3]],
        (_, 2) => [&[2], &[], &[0, 1, 3]],
        _ => [&[3], &[], &[0, 1, 2]],
    };
    look_until(kolo, |status| {
        let late = status.pending.iter().find(|tensor| tensor.name == "late")?;
        (wanted == [&late.submitted[..], &late.missing, &late.unknown]).then_some(())
    });
    kolo.barrier()?;
    if kolo.rank() == 0 {
        kolo.allreduce("late", &mut [1_u8], ReduceOp::Sum)?;
    }
    handle.map_or(Ok(vec![]), |handle| handle.wait())?;
    let status = kolo.status();
    let ranks: Vec<usize> = status.ranks.iter().map(|rank| rank.rank).collect();
    assert_eq!(ranks, (0..kolo.size()).collect::<Vec<_>>());
    assert!(status.running.is_empty(), "{status:?}");
    kolo.barrier()?;
});

mpi_test!(
    the_root_of_a_broadcast_may_leave_at_once,
    np = [2],
    hosts = ["2,2", "1,1,2"],
    env = [("KOLO_DEADLINE", "10min")],
    seconds = 120,
    || {
        let judge = kolo::init().expect("a job");
        for root in (0..judge.size()).cycle().take(6) {
            let kolo = kolo::init().expect("another one");
            let mut data = [kolo.rank() as u64; 3];
            kolo.broadcast("x", &mut data, root).expect("the root did its part");
            assert_eq!(data, [root as u64; 3]);
            // Whoever is done leaves, while others may not have heard of the operation yet.
            drop(kolo);
        }
        judge.barrier().expect("all are there");
        ExitCode::SUCCESS
    }
);

/// Ranks that wait for different names: a warning lists them, and the deadline ends it on every rank, by name.
#[test]
fn disjoint_names_are_told_and_time_out() {
    if mpi::rank().is_some() {
        let code = kolo::run(|kolo| {
            let name = format!("only {}", kolo.rank());
            let options = Options { deadline: Some(Duration::from_secs(2)), ..Options::default() };
            let outcome = kolo.allreduce_with(&name, &mut [1.0_f32], ReduceOp::Sum, &options);
            let error = outcome.expect_err("nobody else asks for it");
            let text = error.to_string();
            match error {
                Error::Timeout { .. } => {
                    assert!(text.contains("only ") && text.contains("did not submit it"), "{text}")
                }
                Error::Poisoned(_) => assert!(text.contains("only "), "{text}"),
                _ => panic!("{text}"),
            }
            println!("rank {} got: {text}", kolo.rank());
            // The set is over, not the rank.
            assert!(matches!(kolo.barrier(), Err(Error::Poisoned(_))));
            Ok::<(), Error>(())
        });
        end(code);
    }
    for (ranks, hosts) in [(3, ""), (3, "2,1"), (4, "2,2"), (4, "1,1,2")] {
        let job = mpirun(ranks).hosts(hosts);
        let output = job.run_self("disjoint_names_are_told_and_time_out");
        let context = format!("{ranks} ranks on '{hosts}': {output}");
        assert_eq!(output.matches("every rank waits, but for different tensors").count(), 1, "{context}");
        for rank in 0..ranks {
            assert!(output.contains(&format!("'only {rank}': submitted by rank {rank}; not by rank")), "{context}");
            assert!(output.contains(&format!("rank {rank} got: ")), "{context}");
        }
        assert!(output.contains("tensor 'only "), "{context}");
    }
}
