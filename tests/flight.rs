//! What ranks leave when they are killed, and what is left when they are not.
#![cfg(feature = "mpi")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kolo::ReduceOp;
use kolo::flight::{Diagnosis, End, How, Process, Reached, diagnose, read};
use rustix::process::{Signal, getpid, kill_process};
use xtask::harness::{Job, mpirun};
use xtask::mpi;

/// Far above what a job takes, for machines that are busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);
const STEPS: usize = 300;
/// A file that is there once a stopped rank has been seen.
const SEEN: &str = "TEST_SEEN";

/// A job of this test whose records lie in `directory`.
fn job(ranks: usize, hosts: &str, directory: &Path) -> Job {
    let job = mpirun(ranks).env("KOLO_FLIGHT_DIR", directory).env("KOLO_FLIGHT_RECORDS", "256").timeout(PATIENCE);
    if hosts.is_empty() { job } else { job.hosts(hosts) }
}

fn jobs_in(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).expect("listed").map(|entry| entry.expect("read").path()).collect()
}

fn diagnosis(directory: &Path) -> Diagnosis {
    let read = read([directory]).expect("the job's files");
    assert!(read.unreadable.is_empty(), "{:?}", read.unreadable);
    diagnose(&read.recordings).expect("one job")
}

/// The diagnosis once the job's processes are gone: a launcher may return before the last has.
fn once_ended(directory: &Path) -> Diagnosis {
    let end = Instant::now() + PATIENCE;
    loop {
        let diagnosis = diagnosis(directory);
        assert!(Instant::now() < end, "processes stay: {diagnosis}");
        if diagnosis.ranks.iter().all(|standing| standing.process == Process::Ended) {
            return diagnosis;
        }
        std::thread::yield_now();
    }
}

/// Trains, more or less: the ranks of `TEST_VICTIM` end `how` says, at a step, between two tensors or within one.
fn train(how: impl Fn()) -> ExitCode {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let (victim, named) = (variable("TEST_VICTIM"), variable("TEST_API") == "named");
    kolo::run(|kolo| -> kolo::Result<()> {
        let mut all = kolo.communicator()?;
        for step in 0..=STEPS {
            let mut weight = vec![kolo.rank() as f32; 3000];
            if named {
                kolo.allreduce("conv.weight", &mut weight, ReduceOp::Sum)?;
            } else {
                all.allreduce(&mut weight, ReduceOp::Sum)?;
            }
            if step == STEPS && victim == kolo.rank().to_string() {
                how();
            }
            let mut bias = vec![step as f64; 7];
            if named {
                kolo.allreduce("conv.bias", &mut bias, ReduceOp::Average)?;
            } else {
                all.allreduce(&mut bias, ReduceOp::Average)?;
            }
        }
        Ok(())
    })
}

/// The ranks of a test: they train until the victim goes its way.
fn rank(how: impl Fn()) -> ! {
    std::process::exit(i32::from(train(how) != ExitCode::SUCCESS))
}

/// Kills itself once the others wait for it: a launcher may end them at once, wherever they are.
fn die() {
    let directory = PathBuf::from(std::env::var_os("KOLO_FLIGHT_DIR").expect("set for the job"));
    let me = xtask::mpi::rank().expect("a rank") as u32;
    let end = Instant::now() + PATIENCE;
    let waits = |standing: &kolo::flight::Standing| standing.last.as_ref().is_some_and(|last| last.bytes == 56);
    loop {
        // They may be writing.
        let seen = read([&directory]).ok().and_then(|found| diagnose(&found.recordings).ok());
        if seen.is_some_and(|seen| seen.ranks.iter().all(|standing| standing.rank == me || waits(standing))) {
            break;
        }
        assert!(Instant::now() < end, "the others do not come to wait");
        std::thread::yield_now();
    }
    kill_process(getpid(), Signal::KILL).expect("it may kill itself");
    std::thread::sleep(PATIENCE * 2);
}

#[test]
fn the_victim_of_a_kill_and_the_operation_are_named() {
    if mpi::rank().is_some() {
        rank(die);
    }
    for (victim, ranks, hosts, api) in
        [(1, 2, "", "named"), (2, 4, "2,2", "named"), (0, 3, "", "communicator"), (3, 4, "2,2", "communicator")]
    {
        let directory = tempfile::tempdir().expect("a directory");
        let finished = job(ranks, hosts, directory.path())
            .env("TEST_VICTIM", victim.to_string())
            .env("TEST_API", api)
            .try_self("the_victim_of_a_kill_and_the_operation_are_named");
        let what = format!("rank {victim} of {ranks} on '{hosts}', {api}: {}", finished.output);
        assert!(!finished.success() && !finished.timed_out(), "{what}");
        let diagnosis = once_ended(directory.path());
        let what = format!("{what}\n{diagnosis}");
        assert_eq!((diagnosis.size as usize, diagnosis.absent.len()), (ranks, 0), "{what}");
        let first = diagnosis.divergences.first().unwrap_or_else(|| panic!("{what}"));
        assert_eq!((first.how, &first.culprits[..]), (How::Missing, &[victim][..]), "{what}");
        let operation =
            if api == "named" { "'conv.bias' (allreduce average of 7 f64)" } else { "allreduce average of 7 f64" };
        assert!(first.what.contains(operation), "{what}");
        let place = 2 * STEPS as u64 + 2;
        assert!(api == "named" || first.what.contains(&format!("operation {place} ")), "{what}");
        for standing in &diagnosis.ranks {
            let last = standing.last.as_ref().unwrap_or_else(|| panic!("{what}"));
            if standing.rank == victim {
                assert_eq!((&standing.end, last.stage, last.bytes), (&End::Open, Reached::Done, 12_000), "{what}");
            } else {
                assert_eq!(
                    (standing.in_flight > 0, last.stage.in_flight()),
                    (last.stage.in_flight(), standing.in_flight > 0)
                );
                assert_eq!(last.bytes, 56, "{what}");
            }
            assert!(standing.age.is_some_and(|age| age < PATIENCE), "{what}");
        }
        let found = diagnosis.ranks.iter().find_map(|standing| match &standing.end {
            End::Found(failure) => Some(failure.clone()),
            _ => None,
        });
        // Under a launcher that ends the others at once, nobody may have had the time to find it, or to tell afterwards.
        let Some(failure) = found else {
            assert!(mpi::silenced_by_hydra(&finished.output), "{what}");
            continue;
        };
        assert_eq!(failure.rank, victim, "{what}");
        let path = jobs_in(directory.path()).pop().expect("one job");
        let told = finished.output.contains(&format!("kolo-bench flight {}", path.display()));
        assert!(told || (mpi::silenced_by_hydra(&finished.output) && !finished.output.contains("kolo: ")), "{what}");
    }
}

#[test]
fn a_stopped_rank_is_seen_in_a_job_that_hangs() {
    if mpi::rank().is_some() {
        // It goes on once the reader has looked: the signal may reach another thread first, and this one does not get far.
        rank(|| {
            kill_process(getpid(), Signal::STOP).expect("it may stop itself");
            let seen = PathBuf::from(std::env::var_os(SEEN).expect("the test says where"));
            while !seen.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
    let marks = tempfile::tempdir().expect("a directory");
    let (seen, mark) = (marks.path().join("seen"), marks.path().join("seen"));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    // The job has a deadline, and waits for its turn among those of the other tests: the reader lasts as long as it does.
    let over = Arc::new(AtomicBool::new(false));
    let seen_over = Arc::clone(&over);
    let reader = std::thread::spawn(move || {
        let mut last = String::new();
        loop {
            assert!(!seen_over.load(Ordering::Acquire), "the job never hung; seen last: {last}");
            std::thread::sleep(Duration::from_millis(5));
            // The job may not have begun, or be writing.
            let seen = read([&path]).map_err(|error| error.to_string());
            let seen = seen.and_then(|found| diagnose(&found.recordings).map_err(|error| error.to_string()));
            last = seen.as_ref().map_or_else(String::clone, ToString::to_string);
            let Ok(diagnosis) = seen else { continue };
            let stopped = |standing: &&kolo::flight::Standing| standing.process == Process::Stopped;
            let Some(rank) = diagnosis.ranks.iter().find(stopped) else { continue };
            if diagnosis.divergences.first().is_some_and(|first| first.culprits == [1] && first.how == How::Missing) {
                let pid = rustix::process::Pid::from_raw(rank.pid.cast_signed()).expect("a process");
                fs::write(&mark, b"").expect("a mark");
                kill_process(pid, Signal::CONT).expect("it may go on");
                return diagnosis.to_string();
            }
        }
    });
    let finished = job(2, "", directory.path())
        .env("TEST_VICTIM", "1")
        .env("TEST_API", "named")
        .env(SEEN, &seen)
        .try_self("a_stopped_rank_is_seen_in_a_job_that_hangs");
    over.store(true, Ordering::Release);
    let printed = reader.join().expect("the reader found it");
    assert!(finished.success(), "{}\n{printed}", finished.output);
    assert!(
        printed.contains("stopped") && printed.contains("'conv.bias'") && printed.contains("culprit: rank 1"),
        "{printed}"
    );
    assert!(jobs_in(directory.path()).is_empty(), "an orderly end removes the files");
}

#[test]
fn an_orderly_end_leaves_nothing_unless_it_is_asked_to() {
    if mpi::rank().is_some() {
        rank(|| {});
    }
    for (setting, ranks, hosts, stays) in
        [("on", 3, "", false), ("on", 4, "2,2", false), ("keep", 2, "", true), ("off", 2, "", false)]
    {
        let directory = tempfile::tempdir().expect("a directory");
        job(ranks, hosts, directory.path())
            .env("KOLO_FLIGHT", setting)
            .run_self("an_orderly_end_leaves_nothing_unless_it_is_asked_to");
        let jobs = jobs_in(directory.path());
        assert_eq!(jobs.len(), usize::from(stays), "{setting}: {jobs:?}");
        for job in jobs {
            assert_eq!(fs::metadata(&job).expect("it is there").permissions().mode() & 0o777, 0o700);
            let diagnosis = diagnosis(&job);
            assert!(diagnosis.divergences.is_empty(), "{diagnosis}");
            assert!(diagnosis.ranks.iter().all(|standing| standing.end == End::Left), "{diagnosis}");
        }
    }
}

#[test]
fn without_a_directory_the_job_goes_on_and_says_so_once() {
    if mpi::rank().is_some() {
        rank(|| {});
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    fs::create_dir(&real).expect("made");
    std::os::unix::fs::symlink(&real, &link).expect("made");
    let printed = job(3, "", &link).run_self("without_a_directory_the_job_goes_on_and_says_so_once");
    assert_eq!(printed.matches("flight records of rank 0, 1, 2 are lost").count(), 1, "{printed}");
    assert!(printed.contains("a link is not followed") && printed.contains("KOLO_FLIGHT_DIR"), "{printed}");
    assert!(jobs_in(&real).is_empty(), "nothing is written through a link");
}

#[test]
fn a_rank_that_left_is_in_the_records_of_who_needed_it() {
    if mpi::rank().is_some() {
        let code = kolo::run(|kolo| -> kolo::Result<()> {
            let mut data = [1.0_f32];
            kolo.allreduce("first", &mut data, ReduceOp::Sum)?;
            if kolo.rank() == 1 {
                return Ok(());
            }
            kolo.allreduce("second", &mut data, ReduceOp::Sum)
        });
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let finished = job(2, "", directory.path()).try_self("a_rank_that_left_is_in_the_records_of_who_needed_it");
    assert!(!finished.success(), "{}", finished.output);
    let diagnosis = diagnosis(directory.path());
    assert_eq!(diagnosis.ranks[1].end, End::Left, "{diagnosis}");
    assert!(diagnosis.divergences[0].what.contains("'second'"), "{diagnosis}");
    assert_eq!(diagnosis.divergences[0].culprits, [1], "{diagnosis}");
}
