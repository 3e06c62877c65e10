//! `cargo xtask demo`: from a fresh machine to a trained model.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

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
    job.arg(workspace::target().join("release/examples").join(EXAMPLE)).args(arguments.rest);
    println!("{}", in_short(arguments.ranks, arguments.rest));
    // The data is found relative to the repository, the screen is the user's: nothing of the output is captured.
    finish(job.current_dir(workspace::root()))
}

/// The command without what only this machine's launcher needs.
fn in_short(ranks: usize, rest: &[String]) -> String {
    let words =
        ["mpirun".to_owned(), "-np".to_owned(), ranks.to_string(), format!("target/release/examples/{EXAMPLE}")];
    words.iter().chain(rest).map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn finish(job: &mut Command) -> Result<ExitCode> {
    let status = job.status().with_context(|| format!("cannot start {}", workspace::typed(job)))?;
    // A launcher ended by a signal has no code; 1 is as good as any.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// What stands behind `cargo xtask demo --`.
#[derive(Debug, PartialEq)]
struct Arguments<'a> {
    ranks: usize,
    rest: &'a [String],
}

impl<'a> Arguments<'a> {
    /// `-np N` comes first, as for mpirun; everything after it is the example's.
    fn parse(words: &'a [String]) -> Result<Self> {
        let Some((flag, after)) = words.split_first() else { return Ok(Self { ranks: 2, rest: words }) };
        if !matches!(flag.as_str(), "-np" | "-n" | "--np") {
            if let Some(flag) = words.iter().find(|word| matches!(word.as_str(), "-np" | "--np")) {
                bail!("{flag} comes first: cargo xtask demo -- {flag} 4 {}", words[0]);
            }
            return Ok(Self { ranks: 2, rest: words });
        }
        let (count, rest) =
            after.split_first().with_context(|| format!("{flag} takes the number of ranks: {flag} 4"))?;
        let ranks = count.parse().ok().filter(|&ranks| ranks > 0);
        let ranks = ranks.with_context(|| format!("{flag} takes a number of ranks from 1 on, not {count:?}"))?;
        Ok(Self { ranks, rest })
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
        let cases = [("", 2, 0), ("-np 4", 4, 0), ("-n 3 --epochs 1", 3, 2), ("--epochs 1", 2, 2)];
        for (line, ranks, rest) in cases {
            let words = words(line);
            let arguments = Arguments::parse(&words).unwrap();
            assert_eq!((arguments.ranks, arguments.rest.len()), (ranks, rest), "{line}");
        }
    }

    #[test]
    fn a_wrong_np_is_an_error_that_shows_the_right_one() {
        for (line, says) in
            [("-np", "-np 4"), ("-np 0", "from 1 on"), ("-np x", "\"x\""), ("--epochs 1 -np 2", "first")]
        {
            let error = Arguments::parse(&words(line)).unwrap_err().to_string();
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}
