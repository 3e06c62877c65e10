//! `cargo xtask soak`: a job of 4 ranks, on one host and on two, that runs for long; what it holds must not grow.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use std::time::Duration;
use xtask::process::{self, Echo};

use crate::setup;
use crate::workspace::{cargo, typed};

/// The test binary that does it.
pub(crate) const TEST: &str = "soak";
/// Rounds of the task, and of the suite, which has a minute.
const ROUNDS: u64 = 10_000;
pub(crate) const SUITE_ROUNDS: u64 = 10_000;
/// However slow the machine.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// Runs it for as many rounds as `words` ask for.
pub(crate) fn task(words: &[String]) -> Result<ExitCode> {
    let rounds = match words {
        [] => ROUNDS,
        [option, rounds] if option == "--rounds" => rounds
            .parse()
            .ok()
            .filter(|rounds| *rounds >= 100)
            .with_context(|| format!("--rounds takes a whole number of 100 or more, not {rounds:?}"))?,
        other => bail!("unknown options {other:?}; `cargo xtask help` shows them"),
    };
    setup::ensure()?;
    let mut command = command(rounds);
    println!("$ {}", typed(&command));
    let finished = process::run(&mut command, LIMIT, Echo::Live)?;
    let (checks, failed) = checks(&finished.output);
    println!("{checks} checks, {failed} failed");
    ensure!(finished.success() && checks > 0, "the job did not run to its end: {}", finished.ending());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that soaks for so many rounds.
pub(crate) fn command(rounds: u64) -> Command {
    let mut command = cargo(&["test", "--quiet", "--test", TEST, "--", "--nocapture"]);
    command.env("KOLO_TEST_ROUNDS", rounds.to_string());
    command
}

/// Adds up the "16 checks, 0 failed" lines.
pub(crate) fn checks(output: &str) -> (u64, u64) {
    let count = |line: &str| {
        let (checks, failed) = line.split_once(" checks, ")?;
        Some((checks.trim().parse::<u64>().ok()?, failed.strip_suffix(" failed")?.parse::<u64>().ok()?))
    };
    output.lines().filter_map(count).fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_added_up() {
        assert_eq!(checks("# table\n16 checks, 0 failed\nnoise\n16 checks, 3 failed\n"), (32, 3));
        assert_eq!(checks("no checks, none failed"), (0, 0));
    }

    #[test]
    fn options_are_checked() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(task(&words("--rounds 7")).is_err());
        assert!(task(&words("--long")).is_err());
    }
}
