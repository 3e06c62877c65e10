//! Jobs across hosts that are namespaces of this machine: with a link that is cut, and with one that is slow.
//!
//! The suite `hosts` runs many cases of other files across such hosts as well. Where they cannot be made, every test here
//! says that it was skipped.
#![cfg(feature = "mpi")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use kolo::{Kolo, ReduceOp, Result};
use xtask::process::Finished;
use xtask::record::{self, Note, Record};
use xtask::{mpi, network};

/// Far above what kolo needs, for machines that are busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Works until something fails, and notes what. The test is told once all ranks work.
fn work(kolo: &Kolo, elements: usize) -> Result<()> {
    let mut all = kolo.communicator()?;
    for step in 0.. {
        let mut data = vec![kolo.rank() as f32; elements];
        let outcome =
            kolo.allreduce("gradient", &mut data, ReduceOp::Sum).and_then(|()| all.allreduce(&mut data, ReduceOp::Max));
        if let Err(error) = outcome {
            record::note(kolo.rank(), "error", &error.to_string());
            return Err(error);
        }
        let sum = (0..kolo.size()).sum::<usize>() as f32;
        assert!(data.iter().all(|value| *value == sum), "step {step}");
        if step == 3 && kolo.rank() == 0 {
            println!("all are at work");
        }
    }
    Ok(())
}

/// In a rank, works. In the test, cuts `host` off from the others in the middle of the job, and connects it again once no
/// rank is left, so that the launcher can end. Returns what came of it.
fn cut(case: &str, spread: &[usize], host: usize, elements: usize) -> Option<(Finished, Vec<Note>)> {
    if mpi::rank().is_some() {
        let code = kolo::run(|kolo| work(kolo, elements));
        std::process::exit(i32::from(code != ExitCode::SUCCESS))
    }
    let network = network::or_skip(case, spread.len())?;
    let directory = tempfile::tempdir().expect("a directory");
    let record = Record::new(directory.path());
    let (key, value) = record.setting();
    // Longer than the test waits: no failure may be seen by a deadline that passes.
    let job = network.mpirun(spread).env(key, value).env("KOLO_DEADLINE", "10min").timeout(PATIENCE * 2);
    let mut is_cut = false;
    let finished = job.watch_self(case, |line| {
        // In a thread of rank 0 its next words follow at once, or never.
        if line.contains("all are at work") && !is_cut {
            network.cut(host).expect("cut");
            is_cut = true;
            await_ends(&record);
            network.mend(host).expect("mended");
        }
    });
    assert!(is_cut, "{finished:?}");
    Some((finished, record.read().expect("notes")))
}

/// Waits until no rank is left.
fn await_ends(record: &Record) {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end && !record.ranks().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Every rank has heard of one that it was cut off from, by rank and host; the job failed and left nothing.
fn check(outcome: Option<(Finished, Vec<Note>)>, spread: &[usize], host: usize) {
    let Some((finished, notes)) = outcome else { return };
    assert!(!finished.success() && !finished.timed_out(), "{finished:?}, {notes:?}");
    assert!(finished.left_behind.is_empty(), "{finished:?}, {notes:?}");
    let seats: Vec<usize> = spread.iter().enumerate().flat_map(|(host, &ranks)| vec![host; ranks]).collect();
    let leaders = (0..spread.len()).map(|host| seats.iter().position(|seat| *seat == host).expect("a rank"));
    let leaders: Vec<usize> = leaders.collect();
    for (rank, &seat) in seats.iter().enumerate() {
        let told: Vec<&Note> = notes.iter().filter(|note| note.rank == rank).collect();
        assert_eq!(told.len(), 1, "rank {rank}: {notes:?}\n{}", finished.output);
        let far = (0..spread.len()).filter(|&far| (far == host) != (seat == host));
        let names_it = |far: usize| told[0].text.contains(&format!("rank {} on n{far} failed", leaders[far]));
        assert!(far.into_iter().any(names_it), "rank {rank}: {}", told[0].text);
        assert!(told[0].text.contains("its host cannot be reached"), "rank {rank}: {}", told[0].text);
    }
    let message = format!("kolo: rank {} on n{host} failed: its host cannot be reached", leaders[host]);
    assert_eq!(finished.output.matches(&message).count(), 1, "{}", finished.output);
}

#[test]
fn a_cut_link_ends_the_job_on_both_sides() {
    check(cut("a_cut_link_ends_the_job_on_both_sides", &[2, 2], 1, 10_000), &[2, 2], 1);
}

#[test]
fn a_cut_link_of_the_first_host_ends_the_job() {
    check(cut("a_cut_link_of_the_first_host_ends_the_job", &[2, 1], 0, 3_000_000), &[2, 1], 0);
}

#[test]
fn a_cut_link_of_one_of_three_hosts_ends_the_job() {
    check(cut("a_cut_link_of_one_of_three_hosts_ends_the_job", &[2, 1, 1], 1, 1), &[2, 1, 1], 1);
}

#[test]
fn a_slow_link_is_no_failure() {
    const CASE: &str = "a_slow_link_is_no_failure";
    if mpi::rank().is_some() {
        let code = kolo::run(|kolo| -> Result<()> {
            for step in 0..3 {
                // Seconds on the wire: longer than a host that is cut off is waited for.
                let mut data = vec![(kolo.rank() + step) as f32; 2_000_000];
                kolo.allreduce("gradient", &mut data, ReduceOp::Sum)?;
                assert!(data.iter().all(|value| *value == (6 + 4 * step) as f32), "step {step}");
            }
            Ok(())
        });
        std::process::exit(i32::from(code != ExitCode::SUCCESS))
    }
    let Some(network) = network::or_skip(CASE, 2) else { return };
    network.rate(1, Some("40mbit")).expect("a slow link");
    let output = network.mpirun(&[2, 2]).timeout(PATIENCE).run_self(CASE);
    assert!(!output.contains("kolo: "), "{output}");
}
