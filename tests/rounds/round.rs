//! One round: who is to suffer what, where, and how it is done.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use xtask::harness::{Job, mpirun};
use xtask::network::Network;
use xtask::random::Random;
use xtask::record::{self, Record};

use super::fault::{Fault, Nature};
use super::judge::{Judge, Outcome};
use super::worker::{AT_WORK, FAULT, FINISH, SEED, VICTIM};

const RANKS: usize = 4;

/// How long a job may live. Far above the limits of `docs/failures.md`, and of what a busy machine makes of
/// them, so that what passes it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the ranks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    OneHost,
    Pretended,
    Network,
}

/// What was done from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    pub(crate) at: Duration,
    /// When the last rank was gone, where the launcher cannot say.
    pub(crate) over: Option<Duration>,
}

/// A round that is to be run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) fault: Fault,
    pub(crate) place: Place,
    pub(crate) victim: usize,
    pub(crate) seed: u64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::OneHost => "one host",
            Place::Pretended => "2 pretended hosts",
            Place::Network => "2 namespace hosts",
        };
        write!(f, "{} of rank {}, {place}", self.fault, self.victim)
    }
}

impl Round {
    /// Round `number` of a seed. All rounds that there are come in an order of the seed's, and then again.
    pub(crate) fn draw(seed: u64, number: usize, networks: bool) -> Self {
        let mut rounds = Vec::new();
        for fault in Fault::ALL {
            for place in [Place::OneHost, Place::Pretended, Place::Network] {
                if (place == Place::Network && !networks) || (fault == Fault::Cut && place != Place::Network) {
                    continue;
                }
                rounds.extend((0..RANKS).map(|victim| Self { fault, place, victim, seed: 0 }));
            }
        }
        let mut random = Random::new(seed);
        for at in (1..rounds.len()).rev() {
            rounds.swap(at, random.below(at + 1));
        }
        let mut random = Random::new(seed ^ (number as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self { seed: random.any(), ..rounds[number % rounds.len()] }
    }

    /// Runs and judges it.
    pub(crate) fn run(&self) -> Outcome {
        let directory = tempfile::tempdir().expect("a directory");
        let notes = directory.path().join("notes");
        fs::create_dir(&notes).expect("a directory");
        let (record, finish) = (Record::new(notes), directory.path().join("finish"));
        let network = (self.place == Place::Network).then(|| Network::new(2).expect("hosts"));
        let job = match (&network, self.place) {
            (Some(network), _) => network.mpirun(&[2, 2]),
            (None, Place::Pretended) => mpirun(RANKS).hosts("2,2"),
            (None, _) => mpirun(RANKS),
        };
        let job = self.settings(job, &record, &finish);
        let before = segments();
        let mut struck = None;
        let mut told = Vec::new();
        let binary = std::env::current_exe().expect("the path of this binary");
        let finished = job.watch_program(binary, &[], |line| {
            if line.starts_with("kolo: ") {
                told.push((record::now(), line.trim_end().to_owned()));
            }
            if line.contains(AT_WORK) && struck.is_none() {
                struck = self.strike(&record, &finish, network.as_ref());
            }
        });
        let ended = record::now();
        // What the launcher's shutdown may take is over by now.
        let left = segments().difference(&before).cloned().collect();
        let notes = record.read().expect("notes");
        Judge { round: self, finished, told, notes, struck, ended, left }.judge()
    }

    fn settings(&self, job: Job, record: &Record, finish: &Path) -> Job {
        let (key, value) = record.setting();
        // No failure may be seen by a deadline that passes, but for the one that is seen by nothing else.
        let (warning, deadline) = if self.fault == Fault::Stop { ("500ms", "2s") } else { ("10min", "10min") };
        job.env(key, value)
            .env(SEED, self.seed.to_string())
            .env(FAULT, self.fault.to_string())
            .env(VICTIM, self.victim.to_string())
            .env(FINISH, finish)
            .env("KOLO_STALL_WARNING", warning)
            .env("KOLO_DEADLINE", deadline)
            .timeout(PATIENCE)
    }

    /// What is done from outside, at a moment of the seed's.
    fn strike(&self, record: &Record, finish: &Path, network: Option<&Network>) -> Option<Strike> {
        if !matches!(self.fault.nature(), Nature::FromOutside | Nature::Harmless) {
            return None;
        }
        let mut random = Random::new(self.seed);
        std::thread::sleep(Duration::from_micros(random.below(200_000) as u64));
        let (_, victim) = *record.ranks().iter().find(|(rank, _)| *rank == self.victim).expect("the victim runs");
        let mut strike = Strike { at: record::now(), over: None };
        match self.fault {
            Fault::Kill => signal(victim, Signal::KILL),
            Fault::Stop => signal(victim, Signal::STOP),
            Fault::StopAndContinue => {
                signal(victim, Signal::STOP);
                // Across hosts the longer ones are silences of a second and more.
                std::thread::sleep(Duration::from_millis(random.below(2500) as u64));
                signal(victim, Signal::CONT);
                fs::write(finish, "").expect("a file");
            }
            _ => {
                let network = network.expect("hosts with links");
                network.cut(self.victim / 2).expect("cut");
                let end = Instant::now() + PATIENCE / 2;
                while Instant::now() < end && !record.ranks().is_empty() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                strike.over = record.ranks().is_empty().then(record::now);
                // The launcher has no limit as short as kolo's.
                network.mend(self.victim / 2).expect("mended");
            }
        }
        Some(strike)
    }
}

fn signal(process: Pid, signal: Signal) {
    // The process is the launcher's child, and nobody but us kills it.
    kill_process(process, signal).expect("the victim runs");
}

/// kolo's segments in this machine's shared memory, but for those of unit tests that may run meanwhile.
fn segments() -> HashSet<String> {
    let entries = fs::read_dir("/dev/shm").expect("/dev/shm");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("kolo") && !name.starts_with("kolo-test")).collect()
}
