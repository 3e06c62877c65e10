//! Tests that start themselves under `mpirun`.
//!
//! A test case is one function with two lives. Started by `cargo test` it is the *parent*: for each number of ranks it runs
//! `mpirun -np N <this binary> --exact <this case>`, with a deadline, and fails with everything the job printed. Started by
//! a launcher it is a *rank*: it runs the body and ends its process.
//!
//! Without a launcher a case fails; it never passes by not running. `KOLO_TEST_MPIRUN` names another `mpirun`, for a
//! build against another MPI.
//!
//! Hosts are pretended ones of one machine. With `KOLO_TEST_NETWORK=1` they are those of a
//! [`Network`], and cases run on their lists of hosts only.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::mpi::{self, Flavour, Launcher};
use crate::network::Network;
use crate::process::{self, Echo, Finished};

/// The variable that names the launcher of the tests.
pub const MPIRUN: &str = "KOLO_TEST_MPIRUN";

/// The variable that makes hosts out of namespaces, in place of pretended ones.
pub const NETWORK: &str = "KOLO_TEST_NETWORK";

/// Jobs run one after the other, whatever the number of test threads: several would only share the same cores.
static ONE_JOB: Mutex<()> = Mutex::new(());

/// A job to be started: see [`mpirun`].
#[derive(Clone, Debug)]
#[must_use = "a job starts with one of its `run_*` methods"]
pub struct Job {
    ranks: usize,
    environment: Vec<(OsString, OsString)>,
    timeout: Duration,
    /// Ranks on each host of a network that is made for this job.
    spread: Vec<usize>,
    across: Option<Across>,
}

/// How a job starts that runs across the hosts of a [`Network`](crate::network::Network).
#[derive(Clone, Debug)]
struct Across {
    flavour: Flavour,
    /// What stands before the launcher: it starts elsewhere.
    before: Vec<OsString>,
    /// What the launcher has to know of the hosts.
    arguments: Vec<OsString>,
}

/// A job of `ranks` ranks, to be run within a minute.
pub fn mpirun(ranks: usize) -> Job {
    Job { ranks, environment: Vec::new(), timeout: Duration::from_secs(60), spread: Vec::new(), across: None }
}

impl Job {
    /// Spreads the ranks over hosts: "2,2" is two hosts of two ranks. They are pretended, or with [`NETWORK`] real.
    pub fn hosts(mut self, hosts: &str) -> Self {
        if !on_networks() || hosts.is_empty() {
            return self.env("KOLO_HOSTS", hosts);
        }
        self.spread = spread(hosts);
        self
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

    /// Has `before` lead the launcher's command, which must be one of `flavour`, and `arguments` follow it.
    pub(crate) fn started_by(mut self, flavour: Flavour, before: Vec<OsString>, arguments: Vec<OsString>) -> Self {
        self.across = Some(Across { flavour, before, arguments });
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
        self.watch_self(case, |_| {})
    }

    /// As [`try_self`](Self::try_self), and calls `heard` with each line that the job prints, as it comes.
    ///
    /// # Panics
    /// As [`try_self`](Self::try_self).
    #[track_caller]
    pub fn watch_self(&self, case: &str, heard: impl FnMut(&str)) -> Finished {
        let binary = env::current_exe().expect("the path of the running test binary");
        self.watch_program(binary, &["--exact", case, "--nocapture", "--quiet"], heard)
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
        self.watch_program(program, arguments, |_| {})
    }

    /// As [`try_program`](Self::try_program), and calls `heard` with each line that the job prints, as it comes.
    ///
    /// # Panics
    /// As [`try_program`](Self::try_program).
    #[track_caller]
    pub fn watch_program(&self, program: impl Into<PathBuf>, arguments: &[&str], heard: impl FnMut(&str)) -> Finished {
        let network = (!self.spread.is_empty()).then(|| Network::new(self.spread.len()).expect("hosts"));
        let across = network.as_ref().map(|network| network.place(self.clone(), &self.spread));
        let mut command = across.as_ref().unwrap_or(self).command(&program.into(), arguments);
        // A case that failed has poisoned nothing but this lock.
        let _turn = ONE_JOB.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = process::run_with(&mut command, self.timeout, Echo::Quiet, heard);
        finished.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// The command that starts `program` with `arguments` in every rank.
    ///
    /// # Panics
    /// When there is no launcher.
    #[track_caller]
    pub fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = self.launcher();
        command.arg(program).args(arguments);
        self.prepare(&mut command);
        command
    }

    /// The launcher with all of its own arguments.
    fn launcher(&self) -> Command {
        let launcher = match env::var_os(MPIRUN) {
            Some(program) => Launcher::at(program),
            None => Launcher::find(),
        };
        let launcher = launcher.unwrap_or_else(|error| panic!("{error:#}"));
        let plain = launcher.command(self.ranks);
        let Some(Across { flavour, before, arguments }) = &self.across else { return plain };
        assert_eq!(launcher.flavour(), *flavour, "only this launcher can start jobs across hosts");
        let mut command = Command::new(&before[0]);
        command.args(&before[1..]).arg(plain.get_program()).args(plain.get_args()).args(arguments);
        command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command
    }

    fn prepare(&self, command: &mut Command) {
        // A test says all of its settings: none comes from the shell that runs the tests.
        let setting = |key: &str| key.starts_with("KOLO_") && key != NETWORK;
        for (key, _) in env::vars_os().filter(|(key, _)| setting(&key.to_string_lossy())) {
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
    /// The lists of hosts to run it on, besides.
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
        let jobs = self.jobs(on_networks());
        if jobs.is_empty() {
            println!("{case} runs on no hosts");
        }
        for job in jobs {
            // What the ranks have to say, how many cases they ran for one; `cargo test` shows it with --nocapture.
            print!("{}", job.run_self(case));
        }
    }

    fn jobs(&self, on_networks: bool) -> Vec<Job> {
        let with = |job: Job| {
            let job = self.environment.iter().fold(job, |job, (key, value)| job.env(key, value));
            // Across a network more is copied, by the kernel, on the same cores.
            job.timeout(if on_networks { self.timeout * 3 } else { self.timeout })
        };
        let spread = self.hosts.iter().map(|hosts| mpirun(spread(hosts).iter().sum()).hosts(hosts));
        let ranks = if on_networks { &[] } else { self.ranks };
        ranks.iter().map(|&ranks| mpirun(ranks)).chain(spread).map(with).collect()
    }
}

/// The ranks of each host of a list like "2,2".
fn spread(hosts: &str) -> Vec<usize> {
    hosts.split(',').map(|ranks| ranks.trim().parse().expect("hosts are numbers: \"2,2\"")).collect()
}

/// Whether hosts are those of networks.
pub fn on_networks() -> bool {
    env::var_os(NETWORK).is_some_and(|value| value == "1")
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
        let jobs = case.jobs(false);
        assert_eq!(jobs.iter().map(|job| job.ranks).collect::<Vec<_>>(), [1, 3, 4, 5]);
        assert!(jobs.iter().all(|job| job.timeout == Duration::from_secs(9)));
        assert!(jobs[2].environment.contains(&("KOLO_HOSTS".into(), "2,2".into())));
        assert!(jobs.iter().all(|job| job.environment.contains(&("KOLO_ALGORITHM".into(), "ring".into()))));
        assert_eq!(case.jobs(true).len(), 2, "only those across hosts");
    }
}
