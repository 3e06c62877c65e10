//! `cargo xtask fuzz`: the fuzzing tests, for a bounded time and from new seeds.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::fuzz::SECONDS;
use xtask::process::{self, Echo};

use crate::setup;
use crate::workspace::{WORKSPACE, cargo, typed};

/// What the names of fuzzing tests begin with.
const PREFIX: &str = "fuzz_";
/// Beyond the time of the tests: for compiling, on a busy machine.
const COMPILE: Duration = Duration::from_secs(1800);

/// Runs it for the time that `words` ask for.
pub(crate) fn task(words: &[String]) -> Result<ExitCode> {
    let seconds = match words {
        [] => 60,
        [option, seconds] if option == "--seconds" => {
            seconds.parse().with_context(|| format!("--seconds takes a whole number, not {seconds:?}"))?
        }
        other => bail!("unknown options {other:?}; `cargo xtask help` shows them"),
    };
    setup::ensure()?;
    let (cases, tests) = run(seconds, COMPILE + Duration::from_secs(seconds * 2))?;
    println!("{cases} cases in {tests} tests, 0 failed");
    Ok(ExitCode::SUCCESS)
}

/// Runs all fuzzing tests for `seconds` in all; returns the numbers of cases and of tests.
pub(crate) fn run(seconds: u64, limit: Duration) -> Result<(u64, u64)> {
    let words = [&["test", "--quiet", "--lib", "--bins"], WORKSPACE, &[PREFIX, "--", "--test-threads=1"]].concat();
    let mut list = cargo(&words);
    list.arg("--list");
    let listed = process::run(&mut list, limit, Echo::Quiet).with_context(|| format!("cannot run {}", typed(&list)))?;
    ensure!(listed.success(), "{}\n{}", listed.ending(), listed.output);
    let is_test = |line: &&str| line.contains(PREFIX) && line.ends_with(": test");
    let tests = listed.output.lines().filter(is_test).count() as u64;
    ensure!(tests > 0, "there is no fuzzing test: does the prefix {PREFIX:?} still hold?");
    let mut command = cargo(&words);
    command.args(["--nocapture"]).env(SECONDS, (seconds / tests).max(1).to_string());
    println!("$ {}=.. {}", SECONDS, typed(&command));
    let finished = process::run(&mut command, limit, Echo::Live)?;
    ensure!(finished.success(), "{}; the seed stands above", finished.ending());
    Ok((cases(&finished.output), tests))
}

/// Adds up the "fuzz frames: 1200 cases, 300 read" lines.
fn cases(output: &str) -> u64 {
    let count =
        |line: &str| line.split_once("fuzz ")?.1.split_once(": ")?.1.split_once(" cases")?.0.parse::<u64>().ok();
    output.lines().filter_map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_added_up() {
        assert_eq!(cases("running 2 tests\nfuzz a b: 20 cases, 3 read\n.fuzz c: 5 cases, 1 read\ntest result: ok"), 25);
        assert_eq!(cases("fuzz: no"), 0);
    }

    #[test]
    fn options_are_checked() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(task(&words("--seconds many")).is_err());
        assert!(task(&words("--forever")).is_err());
    }
}
