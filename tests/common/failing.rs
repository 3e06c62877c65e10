//! Jobs in which one rank goes wrong, and what must be seen of them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses some of it")]

use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use xtask::harness::{mpirun, on_networks};
use xtask::mpi::silenced_by_hydra;

/// Far above the two seconds that a job may live on after a failure, for machines that are busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Which rank goes wrong, of how many, on which hosts.
pub type Layout = (usize, usize, &'static str);

/// Runs test `case` on each layout and returns what each job printed. The job must fail, soon, and leave nothing behind.
#[track_caller]
pub fn failing(case: &str, layouts: &[Layout]) -> Vec<(Layout, String)> {
    let run = |&(victim, ranks, hosts): &Layout| {
        let finished = mpirun(ranks)
            .hosts(hosts)
            .env("TEST_VICTIM", victim.to_string())
            // Longer than the test waits: no failure may be seen by a deadline that passes.
            .env("KOLO_DEADLINE", "10min")
            .timeout(PATIENCE)
            .try_self(case);
        let what = format!("{case}, rank {victim} of {ranks} on hosts '{hosts}': {}", finished.ending());
        assert!(!finished.timed_out() && !finished.success(), "{what}\n{}", finished.output);
        assert!(finished.left_behind.is_empty(), "{what}: {:?} left\n{}", finished.left_behind, finished.output);
        ((victim, ranks, hosts), finished.output)
    };
    layouts.iter().map(run).collect()
}

/// The one message, which must name the victim, its host and all of `parts`.
#[track_caller]
pub fn one_message(outcomes: &[(Layout, String)], parts: &[&str]) {
    for ((victim, ranks, hosts), output) in outcomes {
        let told = told(output);
        let what = format!("rank {victim} of {ranks} on hosts '{hosts}'");
        if told.is_empty() && silenced_by_hydra(output) {
            continue;
        }
        assert_eq!(told.len(), 1, "{what}: {output}");
        let here = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        // The hosts of a network are n0, n1 and so on.
        let host = if on_networks() && !hosts.is_empty() { "n".to_owned() } else { here() };
        assert!(told[0].starts_with(&format!("kolo: rank {victim} on {host}")), "{what}: {output}");
        for part in parts {
            assert!(told[0].contains(part), "{what} should say '{part}': {output}");
        }
    }
}

/// The one message of jobs whose victim left in order, which is legal: whoever waits for it names it.
#[track_caller]
pub fn named_by_others(outcomes: &[(Layout, String)]) {
    for ((victim, ranks, hosts), output) in outcomes {
        let told = told(output);
        let what = format!("rank {victim} of {ranks} on hosts '{hosts}': {output}");
        assert_eq!(told.len(), 1, "{what}");
        assert!(told[0].contains(&format!("rank {victim} on ")) && told[0].contains("has left the job"), "{what}");
        assert!(!told[0].starts_with(&format!("kolo: rank {victim} ")), "leaving is legal: {what}");
    }
}

/// What kolo told the user.
pub fn told(output: &str) -> Vec<&str> {
    output.lines().filter(|line| line.starts_with("kolo: ")).collect()
}

/// Stops this rank. Who waits for it has a deadline, and the launcher ends it afterwards.
pub fn stop() -> kolo::Result<()> {
    kill_process(getpid(), Signal::STOP).expect("it may stop itself");
    std::thread::sleep(PATIENCE * 2);
    Ok(())
}

/// Runs test `case` on 2 ranks, of which rank 1 stops, and returns what the job printed. Rank 0 must fail at its deadline.
#[track_caller]
pub fn stopped(case: &str) -> String {
    let finished = mpirun(2)
        .env("TEST_VICTIM", "1")
        .env("KOLO_STALL_WARNING", "500ms")
        .env("KOLO_DEADLINE", "2s")
        .timeout(PATIENCE)
        .try_self(case);
    assert!(!finished.timed_out() && !finished.success() && finished.left_behind.is_empty(), "{finished:?}");
    finished.output
}

pub fn is_victim(kolo: &kolo::Kolo) -> bool {
    std::env::var("TEST_VICTIM").is_ok_and(|victim| victim == kolo.rank().to_string())
}

/// What healthy ranks do: they work until they hear of the failure.
pub fn work(kolo: &kolo::Kolo) -> kolo::Result<()> {
    loop {
        kolo.check()?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The program of a rank: in the victim `fate`, in others work. Ends the process.
pub fn rank(fate: impl FnOnce(&kolo::Kolo) -> kolo::Result<()>) -> ! {
    let code = kolo::run(|kolo| if is_victim(kolo) { fate(kolo) } else { work(kolo) });
    std::process::exit(i32::from(code != ExitCode::SUCCESS))
}

/// A program in which the victim goes its way at a point where the others wait for it.
pub fn rank_that_others_wait_for(fate: impl FnOnce(&kolo::Kolo) -> kolo::Result<()>) -> ! {
    let code = kolo::run(|kolo| {
        let mut all = kolo.communicator()?;
        all.barrier()?;
        if is_victim(kolo) {
            return fate(kolo);
        }
        let error = all.barrier().expect_err("the victim does not come");
        Err(error)
    });
    std::process::exit(i32::from(code != ExitCode::SUCCESS))
}

/// A test whose ranks do `$fate`; the message must hold `$parts`.
macro_rules! fails {
    ($name:ident, $layouts:expr, [$($part:expr),*], |$kolo:ident| $fate:expr) => {
        #[test]
        fn $name() {
            if xtask::mpi::rank().is_some() {
                failing::rank(|$kolo: &kolo::Kolo| $fate);
            }
            failing::one_message(&failing::failing(stringify!($name), &$layouts), &[$($part),*]);
        }
    };
}
