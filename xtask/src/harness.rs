//! Tests that start themselves under `mpirun`.
//!
//! A test case is one function with two lives. Started by `cargo test` it is the *parent*: for each number of ranks it runs
//! `mpirun -np N <this binary> --exact <this case>`, with a deadline, and fails with everything the job printed. Started by
//! a launcher it is a *rank*: it runs the body and ends its process.
//!
//! Without a launcher a case fails; it never passes by not running. `KOLO_TEST_MPIRUN` names another `mpirun`, for a
//! build against another MPI.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::mpi::{self, Launcher};
use crate::process::{self, Echo, Finished};

/// The variable that names the launcher of the tests.
pub const MPIRUN: &str = "KOLO_TEST_MPIRUN";

/// Jobs run one after the other, whatever the number of test threads: several would only share the same cores.
static ONE_JOB: Mutex<()> = Mutex::new(());

/// A job to be started: see [`mpirun`].
#[derive(Clone, Debug)]
#[must_use = "a job starts with one of its `run_*` methods"]
pub struct Job {
    ranks: usize,
    environment: Vec<(OsString, OsString)>,
    timeout: Duration,
}

/// A job of `ranks` ranks, to be run within a minute.
pub fn mpirun(ranks: usize) -> Job {
    Job { ranks, environment: Vec::new(), timeout: Duration::from_secs(60) }
}

impl Job {
    /// Spreads the ranks over pretend hosts: "2,2" is two hosts of two ranks.
    pub fn hosts(self, hosts: &str) -> Self {
        self.env("KOLO_HOSTS", hosts)
    }

    /// Sets an environment variable for every rank.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// Kills the job after `timeout`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs test `case` of this binary in every rank, and returns what the job printed.
    ///
    /// # Panics
    /// When the job fails, takes too long, or leaves processes behind.
    #[track_caller]
    pub fn run_self(&self, case: &str) -> String {
        self.expect_success(case, self.try_self(case))
    }

    /// Runs test `case` of this binary in every rank, for tests that look at how a job fails.
    ///
    /// # Panics
    /// When there is no launcher, or it cannot be started.
    #[track_caller]
    pub fn try_self(&self, case: &str) -> Finished {
        let binary = env::current_exe().expect("the path of the running test binary");
        self.try_program(binary, &["--exact", case, "--nocapture", "--quiet"])
    }

    /// Runs `program` with `arguments` in every rank, and returns what the job printed.
    ///
    /// # Panics
    /// When the job fails, takes too long, or leaves processes behind.
    #[track_caller]
    pub fn run_program(&self, program: impl Into<PathBuf>, arguments: &[&str]) -> String {
        let program = program.into();
        let name = program.display().to_string();
        self.expect_success(&name, self.try_program(program, arguments))
    }

    /// Runs `program` with `arguments` in every rank, for tests that look at how a job fails.
    ///
    /// # Panics
    /// When there is no launcher, or it cannot be started.
    #[track_caller]
    pub fn try_program(&self, program: impl Into<PathBuf>, arguments: &[&str]) -> Finished {
        let launcher = match env::var_os(MPIRUN) {
            Some(program) => Launcher::at(program),
            None => Launcher::find(),
        };
        let mut command = launcher.unwrap_or_else(|error| panic!("{error:#}")).command(self.ranks);
        command.arg(program.into()).args(arguments);
        self.prepare(&mut command);
        // A case that failed has poisoned nothing but this lock.
        let _turn = ONE_JOB.lock().unwrap_or_else(PoisonError::into_inner);
        process::run(&mut command, self.timeout, Echo::Quiet).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn prepare(&self, command: &mut Command) {
        // A test says all of its settings: none comes from the shell that runs the tests.
        for (key, _) in env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("KOLO_")) {
            command.env_remove(key);
        }
        command.env("RUST_BACKTRACE", "0").envs(self.environment.iter().map(|(key, value)| (key, value)));
    }

    #[track_caller]
    fn expect_success(&self, what: &str, finished: Finished) -> String {
        if finished.success() && finished.left_behind.is_empty() {
            return finished.output;
        }
        let mut settings = String::new();
        for (key, value) in &self.environment {
            write!(settings, " {}={}", key.display(), value.display()).expect("a String takes everything");
        }
        let left = match finished.left_behind.as_slice() {
            [] => String::new(),
            pids if finished.timed_out() => format!("; killed {} processes", pids.len()),
            pids => format!("; it left processes {pids:?} behind"),
        };
        panic!(
            "{what} on {} ranks{settings}: {}{left}; it printed:\n{}",
            self.ranks,
            finished.ending(),
            finished.output
        );
    }
}

/// A case of the `mpi_test!` macro.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The path of the test function, as `module_path!()` and its name give it.
    pub path: &'static str,
    /// The numbers of ranks to run it on.
    pub ranks: &'static [usize],
    /// The pretend hosts to run it on; empty: one host for each number of ranks.
    pub hosts: &'static [&'static str],
    /// Settings of every rank.
    pub environment: &'static [(&'static str, &'static str)],
    /// How long one job may take.
    pub timeout: Duration,
}

impl Case {
    /// Runs `body` in every rank of every job of this case; in a rank, never returns.
    ///
    /// # Panics
    /// When a job fails.
    #[track_caller]
    pub fn run(&self, body: impl FnOnce() -> ExitCode) {
        if mpi::rank().is_some() {
            // The process ends here, on the thread that started MPI, and not in the test runner's main thread: MPI is
            // finalised by the thread that initialised it.
            let code = body();
            std::process::exit(i32::from(code != ExitCode::SUCCESS));
        }
        // Test names lack the crate's name, which leads the module path.
        let (_, case) = self.path.split_once("::").expect("a test stands in a crate");
        for job in self.jobs() {
            // What the ranks have to say, how many cases they ran for one; `cargo test` shows it with --nocapture.
            print!("{}", job.run_self(case));
        }
    }

    fn jobs(&self) -> Vec<Job> {
        let with = |job: Job| {
            let job = self.environment.iter().fold(job, |job, (key, value)| job.env(key, value));
            job.timeout(self.timeout)
        };
        let spread = self.hosts.iter().map(|hosts| mpirun(ranks_of(hosts)).hosts(hosts));
        self.ranks.iter().map(|&ranks| mpirun(ranks)).chain(spread).map(with).collect()
    }
}

fn ranks_of(hosts: &str) -> usize {
    hosts.split(',').map(|ranks| ranks.trim().parse::<usize>().expect("hosts are numbers: \"2,2\"")).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_runs_on_every_size_and_every_spread() {
        let case = Case {
            path: "a::b",
            ranks: &[1, 3],
            hosts: &["2,2", "3,1,1"],
            environment: &[("KOLO_ALGORITHM", "ring")],
            timeout: Duration::from_secs(9),
        };
        let jobs = case.jobs();
        assert_eq!(jobs.iter().map(|job| job.ranks).collect::<Vec<_>>(), [1, 3, 4, 5]);
        assert!(jobs.iter().all(|job| job.timeout == Duration::from_secs(9)));
        assert!(jobs[2].environment.contains(&("KOLO_HOSTS".into(), "2,2".into())));
        assert!(jobs.iter().all(|job| job.environment.contains(&("KOLO_ALGORITHM".into(), "ring".into()))));
    }
}
