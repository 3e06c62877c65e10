//! The harness itself: that cases run in every rank, and that a case that goes wrong fails and says why.

#[macro_use]
mod common;

use std::process::ExitCode;
use std::time::Duration;

use xtask::harness::mpirun;
use xtask::mpi;

mpi_test!(every_rank_runs_the_case, np = [1, 2, 4], || {
    println!("rank {} of {}", mpi::rank().expect("a rank"), mpi::size().expect("a size"));
    ExitCode::SUCCESS
});

mpi_test!(settings_reach_every_rank, np = [2], hosts = ["2,1"], env = [("KOLO_DEADLINE", "5s")], seconds = 30, || {
    assert_eq!(std::env::var("KOLO_DEADLINE").as_deref(), Ok("5s"));
    let hosts = std::env::var("KOLO_HOSTS").ok();
    assert_eq!(hosts.as_deref(), (mpi::size() == Some(3)).then_some("2,1"));
    ExitCode::SUCCESS
});

/// Runs this very test again under mpirun, where each rank does `body`.
fn in_ranks(body: impl FnOnce()) -> bool {
    let under_mpirun = mpi::rank().is_some();
    if under_mpirun {
        body();
    }
    under_mpirun
}

#[test]
fn each_rank_prints_once() {
    if in_ranks(|| println!("here is rank {}", mpi::rank().unwrap())) {
        return;
    }
    let output = mpirun(3).run_self("each_rank_prints_once");
    for rank in 0..3 {
        assert_eq!(output.matches(&format!("here is rank {rank}\n")).count(), 1, "{output}");
    }
}

#[test]
fn a_rank_that_panics_fails_the_case_with_its_words() {
    if in_ranks(|| assert_ne!(mpi::rank(), Some(1), "rank 1 was told to fail")) {
        return;
    }
    let finished = mpirun(2).try_self("a_rank_that_panics_fails_the_case_with_its_words");
    assert!(!finished.success());
    assert!(finished.output.contains("rank 1 was told to fail"), "{}", finished.output);
}

#[test]
fn a_rank_that_hangs_is_killed_at_the_deadline() {
    if in_ranks(|| {
        loop {
            println!("rank {} hangs", mpi::rank().unwrap());
            std::thread::park();
        }
    }) {
        return;
    }
    let finished = mpirun(2).timeout(Duration::from_secs(3)).try_self("a_rank_that_hangs_is_killed_at_the_deadline");
    assert!(finished.timed_out(), "{}", finished.output);
    assert!(finished.left_behind.len() >= 3, "mpirun and both ranks: {:?}", finished.left_behind);
    assert!(
        finished.output.contains("rank 0 hangs") && finished.output.contains("rank 1 hangs"),
        "{}",
        finished.output
    );
}
