//! `cargo xtask test`: named suites, each within a time budget of its own.

mod cargo;
mod emulator;
mod examples;
mod floors;
mod hosts;
mod mpich;
mod package;
mod ptx;
mod readme;
mod source;
mod table;
mod unsafety;
mod words;

use std::cell::{Cell, RefCell};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::mpi::Launcher;
use xtask::process::{self, Echo};

use crate::{setup, workspace};
pub(crate) use cargo::ROUNDS;
use table::{SUITES, Suite};

/// What all default suites together may take, on 2 cores; and all suites with `--full`.
const DEFAULT_LIMIT: Duration = Duration::from_secs(15 * 60);
const FULL_LIMIT: Duration = Duration::from_secs(75 * 60);

/// What a suite gets.
pub(crate) struct Context {
    /// The launcher of the installed MPI.
    pub(crate) launcher: Launcher,
    deadline: Cell<Instant>,
    budget: Cell<Duration>,
    tests: Cell<u64>,
    /// Why the suite does not run here.
    skipped: RefCell<Option<String>>,
}

impl Context {
    /// Runs `command`, showing it and what it prints, until the suite's budget is used up.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        self.output(command).map(drop)
    }

    /// As [`Context::run`], and returns what the command printed.
    pub(crate) fn output(&self, command: &mut Command) -> Result<String> {
        let typed = workspace::typed(command);
        println!("$ {typed}");
        let finished = process::run(command, self.left(), Echo::Live).with_context(|| format!("cannot run {typed}"))?;
        self.count(tests_passed(&finished.output));
        if finished.timed_out() {
            bail!("over its budget of {} s in: {typed}", self.budget.get().as_secs());
        }
        ensure!(finished.success(), "{} from: {typed}", finished.ending());
        ensure!(finished.left_behind.is_empty(), "{typed} left processes behind: {:?}", finished.left_behind);
        Ok(finished.output)
    }

    /// What is left of the suite's budget.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.get().saturating_duration_since(Instant::now())
    }

    /// Adds to what the suite has checked.
    pub(crate) fn count(&self, more: u64) {
        self.tests.set(self.tests.get() + more);
    }

    /// Says that the suite cannot run here, and why. It counts as skipped then, and neither as passed nor as failed.
    pub(crate) fn skip(&self, why: String) {
        println!("skipped: {why}");
        self.skipped.replace(Some(why));
    }

    /// Fails if nothing has been counted: a filter that matches no test passes, and proves nothing.
    pub(crate) fn need_tests(&self) -> Result<()> {
        ensure!(self.tests.get() > 0, "no test ran: does a name or a path still match?");
        Ok(())
    }
}

/// Adds up the "test result: ok. 12 passed; .." lines.
fn tests_passed(output: &str) -> u64 {
    let passed = |line: &str| {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        counts.split_once(" passed")?.0.parse::<u64>().ok()
    };
    output.lines().filter_map(passed).sum()
}

#[derive(Debug, Default)]
struct Options {
    full: bool,
    keep_going: bool,
    list: bool,
    only: Vec<String>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--full" => options.full = true,
                "--keep-going" => options.keep_going = true,
                "--list" => options.list = true,
                "--only" => {
                    let name = words.next().context("--only takes the name of a suite; --list shows them")?;
                    let known = SUITES.iter().any(|suite| suite.name == name);
                    ensure!(known, "there is no suite {name:?}; --list shows them");
                    options.only.push(name.clone());
                }
                other => bail!("unknown option {other:?}; `cargo xtask help` shows them"),
            }
        }
        Ok(options)
    }

    fn wants(&self, suite: &Suite) -> bool {
        if self.only.is_empty() { self.full || !suite.long } else { self.only.iter().any(|name| name == suite.name) }
    }

    /// Whether a suite that fails leaves the others to run. A full run is long, so that one has to tell of all.
    fn goes_on(&self) -> bool {
        self.keep_going || self.full
    }

    fn limit(&self) -> Duration {
        if self.full || !self.only.is_empty() { FULL_LIMIT } else { DEFAULT_LIMIT }
    }
}

pub(crate) fn run(words: &[String]) -> Result<ExitCode> {
    let options = Options::parse(words)?;
    let wanted = SUITES.iter().filter(|suite| options.wants(suite));
    if options.list {
        for suite in SUITES {
            let when = if suite.long { "--full" } else { "" };
            println!("{:10} {:5} s  {when:6}  {}", suite.name, suite.seconds, suite.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let launcher = setup::ensure()?;
    let now = Instant::now();
    let context = Context {
        launcher,
        deadline: Cell::new(now),
        budget: Cell::new(Duration::ZERO),
        tests: Cell::new(0),
        skipped: RefCell::new(None),
    };
    let started = Instant::now();
    let mut lines = Vec::new();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for suite in wanted {
        let left = options.limit().saturating_sub(started.elapsed());
        let (line, outcome) = run_one(suite, &context, options.full, left);
        println!("{line}\n");
        lines.push(line);
        match outcome {
            Outcome::Passed => passed += 1,
            Outcome::Failed => failed += 1,
            Outcome::Skipped => skipped += 1,
        }
        if failed > 0 && !options.goes_on() {
            break;
        }
    }
    println!("{}", lines.join("\n"));
    println!("{:.1} s of {} s in all", started.elapsed().as_secs_f64(), options.limit().as_secs());
    let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    println!("{passed} passed, {failed} failed{skipped}");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Runs one suite; returns its line and what came of it.
fn run_one(suite: &Suite, context: &Context, full: bool, left: Duration) -> (String, Outcome) {
    println!("== {}: {}", suite.name, suite.what);
    let budget = Duration::from_secs(suite.budget(full)).min(left);
    let started = Instant::now();
    context.deadline.set(started + budget);
    context.budget.set(budget);
    context.tests.set(0);
    context.skipped.replace(None);
    let result = (suite.run)(context);
    let elapsed = started.elapsed();
    let result = result.and_then(|()| {
        ensure!(elapsed <= budget, "over its budget");
        Ok(())
    });
    let (outcome, word, why) = match (&result, context.skipped.take()) {
        (Err(error), _) => (Outcome::Failed, "FAILED", format!(": {error:#}")),
        (Ok(()), Some(why)) => (Outcome::Skipped, "SKIPPED", format!(": {why}")),
        (Ok(()), None) => (Outcome::Passed, "ok", String::new()),
    };
    let counted = format!("{} {}", context.tests.get(), suite.counts);
    let seconds = format!("{:6.1} s of {:4} s", elapsed.as_secs_f64(), suite.budget(full));
    (format!("{word:7} {:10} {seconds}  {counted}{why}", suite.name), outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_fit_the_limits() {
        let sum = |full| {
            let suites = SUITES.iter().filter(|suite| full || !suite.long);
            Duration::from_secs(suites.map(|suite| suite.budget(full)).sum())
        };
        assert!(sum(false) <= DEFAULT_LIMIT, "{:?}", sum(false));
        assert!(sum(true) <= FULL_LIMIT, "{:?}", sum(true));
    }

    #[test]
    fn summaries_are_added_up() {
        let output = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored\nnoise\n\
                      test result: FAILED. 5 passed; 1 failed; 0 ignored\n";
        assert_eq!(tests_passed(output), 7);
        assert_eq!(tests_passed("test result: garbage\n"), 0);
    }

    #[test]
    fn options_select_suites() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let count = |line: &str| {
            let options = Options::parse(&words(line)).unwrap();
            SUITES.iter().filter(|suite| options.wants(suite)).count()
        };
        assert_eq!(count("--full"), SUITES.len());
        assert!(count("") < SUITES.len());
        assert_eq!(count("--only fmt --only seeds"), 2);
        assert!(Options::parse(&words("--only nothing")).is_err());
        assert!(Options::parse(&words("--fast")).is_err());
    }
}
