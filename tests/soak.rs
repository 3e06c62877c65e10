//! A job that runs for long holds no more than one that ran for a while. `cargo xtask soak` runs it longest.
#![cfg(feature = "mpi")]

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kolo::{Kolo, ReduceOp};
use xtask::harness::mpirun;
use xtask::mpi;

/// The tensors of a round.
const TENSORS: usize = 50;
/// Each tenth of the rounds ends with a look at the process.
const TENTHS: usize = 10;
/// Rounds, unless the environment says otherwise.
const ROUNDS: usize = 200;
/// How long a job may take: a thousand times what it takes at rest.
const PATIENCE: Duration = Duration::from_secs(3000);
/// KiB by which resident memory may grow from the first tenth on: what the allocators keep for later, and no more in
/// ten thousand rounds than in two hundred. One page leaked in every tenth round would be 4000.
const SLACK: u64 = 2048;

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Census {
    resident_kib: u64,
    threads: u64,
    descriptors: u64,
    segments: u64,
}

impl Census {
    fn take() -> Self {
        let entries = |path: &str| fs::read_dir(path).expect("/proc is there").count() as u64;
        let status = fs::read_to_string("/proc/self/status").expect("/proc is there");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has some");
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc is there");
        // Private mappings belong to the allocator, which keeps what it likes; they count as resident memory.
        let shared = |line: &&str| line.split(' ').nth(1).is_some_and(|flags| flags.ends_with('s'));
        Self {
            resident_kib: resident.trim().trim_end_matches(" kB").parse().expect("a number"),
            threads: entries("/proc/self/task"),
            descriptors: entries("/proc/self/fd"),
            segments: maps.lines().filter(shared).count() as u64,
        }
    }

    fn words(self) -> [u64; 4] {
        [self.resident_kib, self.threads, self.descriptors, self.segments]
    }
}

/// One round: what a step of a training does, and what programs do now and then.
fn round(kolo: &Kolo, number: usize, names: &[String]) -> kolo::Result<()> {
    let handles: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            // Ranks hand their tensors in in different orders; sizes from 4 bytes to 16 KiB.
            let count = 1 << (index % 13);
            kolo.allreduce_async(name, vec![(kolo.rank() + index + number) as f32; count], ReduceOp::Sum)
        })
        .collect::<kolo::Result<_>>()?;
    let ranks = kolo.size();
    for (index, handle) in handles.into_iter().enumerate() {
        let sums = handle.wait()?;
        let due = (ranks * (ranks - 1) / 2 + ranks * (index + number)) as f32;
        assert!(sums.iter().all(|sum| *sum == due), "tensor {index} of round {number}: {} and not {due}", sums[0]);
    }
    if number.is_multiple_of(10) {
        // A name that is used once, memory that is given back.
        let mut data = kolo.alloc::<f64>(500)?;
        kolo.allreduce(&format!("loss of round {number}"), &mut data, ReduceOp::Average)?;
    }
    if number.is_multiple_of(50) {
        // A communicator for a while.
        let mut all = kolo.communicator()?;
        let mut again = all.dup()?;
        again.allreduce(&mut [1_u64], ReduceOp::Sum)?;
        all.barrier()?;
    }
    Ok(())
}

/// All rounds; then the first rank tells what every rank held after each tenth.
fn soak(kolo: &Kolo, rounds: usize) -> kolo::Result<()> {
    let names: Vec<String> = (0..TENSORS).map(|index| format!("layer{index}.weight")).collect();
    let begin = Instant::now();
    let mut held: Vec<u64> = Vec::new();
    for tenth in 0..TENTHS {
        for number in rounds * tenth / TENTHS..rounds * (tenth + 1) / TENTHS {
            round(kolo, number, &names)?;
        }
        kolo.barrier()?;
        held.extend(Census::take().words());
        // Nobody goes on, and nobody leaves, before all have looked.
        kolo.barrier()?;
    }
    let mut all = kolo.communicator()?;
    let mut everybody = vec![0; held.len() * kolo.size()];
    all.allgather(&held, &mut everybody)?;
    if kolo.rank() == 0 {
        report(&everybody, held.len(), rounds, begin.elapsed());
    }
    Ok(())
}

/// Prints the table and the count of checks; a failed one is in the count.
fn report(everybody: &[u64], each: usize, rounds: usize, elapsed: Duration) {
    let names = ["resident KiB", "threads", "descriptors", "segments"];
    let hosts = std::env::var("KOLO_HOSTS").unwrap_or_else(|_| "one".to_owned());
    println!("# {rounds} rounds of {TENSORS} tensors on hosts '{hosts}' in {:.1} s", elapsed.as_secs_f64());
    println!("# {:>4}  {:<12} {:>12} {:>12} {:>12}", "rank", "what", "first tenth", "most since", "at the end");
    let (mut checks, mut failed) = (0, 0);
    for (rank, held) in everybody.chunks(each).enumerate() {
        for (index, name) in names.into_iter().enumerate() {
            let looks: Vec<u64> = held.iter().skip(index).step_by(names.len()).copied().collect();
            let (first, most, last) = (looks[0], looks.iter().copied().max().unwrap_or(0), looks[looks.len() - 1]);
            let allowed = if index == 0 { first + SLACK } else { first };
            let flat = most <= allowed;
            let word = if flat { "" } else { "  GROWS" };
            println!("  {rank:>4}  {name:<12} {first:>12} {most:>12} {last:>12}{word}");
            checks += 1;
            failed += usize::from(!flat);
        }
    }
    println!("{checks} checks, {failed} failed");
}

#[test]
fn what_a_long_job_holds_is_flat() {
    let rounds = std::env::var("KOLO_TEST_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number of rounds"));
    if mpi::rank().is_some() {
        let code = kolo::run(|kolo| soak(kolo, rounds));
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
    for hosts in ["", "2,2"] {
        let job = mpirun(4).env("KOLO_TEST_ROUNDS", rounds.to_string()).timeout(PATIENCE);
        let job = if hosts.is_empty() { job } else { job.hosts(hosts) };
        let printed = job.run_self("what_a_long_job_holds_is_flat");
        println!("{printed}");
        assert!(printed.contains("16 checks, 0 failed"), "{printed}");
    }
}
