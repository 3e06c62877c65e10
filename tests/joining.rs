//! Joining a job under a real `mpirun`.
#![cfg(feature = "mpi")]

#[macro_use]
mod common;

use std::process::ExitCode;
use std::time::Duration;

use kolo::{Builder, Error};
use xtask::harness::{mpirun, on_networks};
use xtask::mpi;

mpi_test!(processes_sit_as_mpi_says, np = [1, 2, 3, 4], hosts = ["2,2", "3,1", "1,1,1"], |kolo| {
    assert_eq!(Some(kolo.rank()), mpi::rank());
    assert_eq!(Some(kolo.size()), mpi::size());
    let pretended = std::env::var_os("KOLO_HOSTS").is_some();
    let told = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    if let Some((rank, size)) = told("OMPI_COMM_WORLD_LOCAL_RANK").zip(told("OMPI_COMM_WORLD_LOCAL_SIZE"))
        && !pretended
    {
        assert_eq!([kolo.local_rank(), kolo.local_size()], [rank, size]);
    }
    if !pretended && !on_networks() {
        let seat = [kolo.local_rank(), kolo.local_size(), kolo.cross_rank(), kolo.cross_size()];
        assert_eq!(seat, [kolo.rank(), kolo.size(), 0, 1]);
    }
    let mut buffer = kolo.alloc::<u64>(100)?;
    buffer.fill(kolo.rank() as u64);
    assert!(buffer.iter().all(|word| *word == kolo.rank() as u64));
});

mpi_test!(jobs_follow_each_other_in_one_process, np = [2], hosts = ["1,1"], || {
    for _ in 0..20 {
        let first = Builder::new().shared_reserve(4096).init().expect("a job");
        let second = Builder::new().shared_reserve(4096).init().expect("another job");
        drop(first);
        assert!(second.check().is_ok());
    }
    ExitCode::SUCCESS
});

/// Runs a job that cannot start; returns the lines that kolo wrote.
fn refused(case: &str, ranks: usize) -> Vec<String> {
    let finished = mpirun(ranks).timeout(Duration::from_secs(30)).try_self(case);
    assert!(!finished.success() && !finished.timed_out(), "{}", finished.output);
    finished.output.lines().filter(|line| line.starts_with("kolo: ")).map(str::to_owned).collect()
}

#[test]
fn knobs_that_differ_are_told_once_with_both_values_and_ranks() {
    if let Some(rank) = mpi::rank() {
        let slots = if rank == 2 { 3 } else { 4 };
        let code = Builder::new().knob("KOLO_SLOTS", slots.to_string()).run(|_| Ok::<(), Error>(()));
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
    let told = refused("knobs_that_differ_are_told_once_with_both_values_and_ranks", 3);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("KOLO_SLOTS is '4' on rank 0 and '3' on rank 2"), "{told:?}");
}

#[test]
fn a_rank_that_cannot_start_is_told_once_and_takes_the_others_along() {
    if let Some(rank) = mpi::rank() {
        let slots = if rank == 1 { "few" } else { "4" };
        match Builder::new().knob("KOLO_SLOTS", slots).init() {
            Ok(_) => panic!("rank 1 cannot start"),
            Err(Error::Failed(failure)) => {
                assert_eq!(failure.rank, 1);
                assert!(rank != 1 && failure.cause.contains("KOLO_SLOTS is 'few'"), "{failure}");
            }
            Err(error) => assert!(rank == 1, "{error}"),
        }
        let code = Builder::new().knob("KOLO_SLOTS", slots).run(|_| Ok::<(), Error>(()));
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
    let told = refused("a_rank_that_cannot_start_is_told_once_and_takes_the_others_along", 3);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("kolo: rank 1 on ") && told[0].contains("KOLO_SLOTS is 'few'"), "{told:?}");
}
