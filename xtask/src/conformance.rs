//! `cargo xtask conformance`: every collective in every form, against references.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use xtask::process::{self, Echo};

use crate::setup;
use crate::workspace::{cargo, typed};

/// The test binary that does it.
pub(crate) const TEST: &str = "conformance";
/// However slow the machine, and however many cases are asked for.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// Runs the cases that `words` ask for; the binary knows its options.
pub(crate) fn task(words: &[String]) -> Result<ExitCode> {
    setup::ensure()?;
    setup::ensure_network_programs()?;
    let mut command = command();
    command.args(words);
    println!("$ {}", typed(&command));
    let finished = process::run(&mut command, LIMIT, Echo::Live)?;
    ensure!(finished.left_behind.is_empty(), "it left processes behind: {:?}", finished.left_behind);
    Ok(if finished.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that runs the usual cases: of each operation some, others in each run.
pub(crate) fn command() -> Command {
    cargo(&["test", "--quiet", "--test", TEST, "--", "--share", "3"])
}

/// What the line "20000 cases, 0 failed" says.
pub(crate) fn cases(output: &str) -> Result<u64> {
    let count = |line: &str| line.split_once(" cases, ")?.0.parse().ok();
    output.lines().rev().find_map(count).context("it did not count its cases")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts() {
        let output = "  1.4 s    8713 new cases, 0 failed: threads 1\nmatrix\n20000 cases, 0 failed\n";
        assert_eq!(cases(output).unwrap(), 20_000);
        assert!(cases("  1.4 s    8713 new cases, 0 failed: threads 1\n").is_err());
    }
}
