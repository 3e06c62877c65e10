//! `cargo xtask demo`: from a fresh machine to a trained model.

use std::io::IsTerminal as _;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::{setup, workspace};

/// The main job: trains on data/digits.csv.gz.
pub(crate) const EXAMPLE: &str = "03_digits";

pub(crate) fn run(words: &[String]) -> Result<ExitCode> {
    let words = words.strip_prefix(&["--".to_owned()]).unwrap_or(words);
    let arguments = Arguments::parse(words)?;
    let launcher = setup::ensure()?;

    println!("building {EXAMPLE} in release mode");
    let mut build = workspace::cargo(&["build", "--release", "--quiet", "--example", EXAMPLE]);
    let built = build.status().context("cannot start cargo")?;
    ensure!(built.success(), "{} failed", workspace::typed(&build));

    let mut job = launcher.command(arguments.ranks);
    job.arg(workspace::target().join("release/examples").join(EXAMPLE));
    // Under mpirun a rank cannot see whether its output ends on a terminal.
    if std::io::stdout().is_terminal() {
        job.args(["--progress", "bar"]);
    }
    job.args(&arguments.rest);
    println!("{}", in_short(&arguments));
    // The data is found relative to the repository, the screen is the user's: nothing of the output is captured.
    finish(job.current_dir(workspace::root()))
}

/// The command without what only this machine's launcher needs.
fn in_short(arguments: &Arguments) -> String {
    let words = ["mpirun", "-np", &arguments.ranks.to_string(), "target/release/examples/"].join(" ") + EXAMPLE;
    arguments.rest.iter().fold(words, |line, word| line + " " + word)
}

fn finish(job: &mut Command) -> Result<ExitCode> {
    let status = job.status().with_context(|| format!("cannot start {}", workspace::typed(job)))?;
    // A launcher ended by a signal has no code; 1 is as good as any.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// What stands behind `cargo xtask demo --`.
#[derive(Debug, PartialEq)]
struct Arguments {
    ranks: usize,
    rest: Vec<String>,
}

impl Arguments {
    /// `-np N` is for mpirun, wherever it stands; everything else is the example's.
    fn parse(words: &[String]) -> Result<Self> {
        let mut arguments = Self { ranks: 2, rest: Vec::new() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if !matches!(word.as_str(), "-np" | "--np") {
                arguments.rest.push(word.clone());
                continue;
            }
            let count = words.next().with_context(|| format!("{word} takes the number of ranks: {word} 4"))?;
            let ranks = count.parse().ok().filter(|&ranks| ranks > 0);
            arguments.ranks =
                ranks.with_context(|| format!("{word} takes a number of ranks from 1 on, not {count:?}"))?;
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn np_is_ours_and_the_rest_is_the_examples() {
        let cases = [
            ("", 2, ""),
            ("-np 4", 4, ""),
            ("--np 3 --epochs 1", 3, "--epochs 1"),
            ("--epochs 1 -np 5 -n 7", 5, "--epochs 1 -n 7"),
        ];
        for (line, ranks, rest) in cases {
            let expected = Arguments { ranks, rest: words(rest) };
            assert_eq!(Arguments::parse(&words(line)).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn a_wrong_np_is_an_error_that_shows_the_right_one() {
        for (line, says) in [("-np", "-np 4"), ("-np 0", "from 1 on"), ("--epochs 1 -np x", "\"x\"")] {
            let error = Arguments::parse(&words(line)).unwrap_err().to_string();
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}
