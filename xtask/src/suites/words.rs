//! What must not stand in the repository: unfinished work, and what holds on one machine only.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Context;
use crate::workspace::root;

/// A word, and what to do instead. The words are put together here so that this file passes its own check.
const WORDS: &[(&str, &str)] = &[
    (concat!("todo", "!("), "finish it, or leave it out"),
    (concat!("unimplemented", "!("), "finish it, or leave it out"),
    (concat!("FIX", "ME"), "fix it, or open an issue"),
    (concat!("TO", "DO"), "do it, or open an issue"),
    (concat!("XX", "X"), "say in words what is odd"),
    (concat!("#[ign", "ore"), "a test that does not run proves nothing: move it to a long suite"),
    (concat!("crates", ".io"), "name no registry host: a mirror may stand in for it"),
    (concat!("debian", ".org"), "name no registry host: a mirror may stand in for it"),
    (concat!("pypi", ".org"), "name no registry host: a mirror may stand in for it"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/wo", "rk/"), "a path of one machine"),
];

/// Lock files name the registry, and data is no text.
const SKIPPED: &[&str] = &["Cargo.lock", ".gz", ".ptx", "LICENSE-APACHE"];

pub(crate) fn run(context: &Context) -> Result<()> {
    let mut list = Command::new("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let output = list.output().context("cannot start git, which knows the files of the repository")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let mut complaints = Vec::new();
    for name in String::from_utf8(output.stdout)?.lines() {
        if SKIPPED.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        // A file that was deleted but not yet committed is still listed.
        let Ok(bytes) = fs::read(root().join(name)) else { continue };
        complaints.extend(check(name, &String::from_utf8_lossy(&bytes)));
        context.count(1);
    }
    ensure!(complaints.is_empty(), "words that do not belong here:\n  {}", complaints.join("\n  "));
    Ok(())
}

fn check(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let hits = WORDS.iter().filter(|(word, _)| line.contains(word));
        complaints.extend(hits.map(|(word, advice)| format!("{name}:{}: {word}: {advice}", number + 1)));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_with_its_line() {
        let text = format!("fine\nalso {} fine\n", WORDS[2].0);
        assert_eq!(check("a.rs", &text), [format!("a.rs:2: {}: {}", WORDS[2].0, WORDS[2].1)]);
        assert!(check("a.rs", "nothing here\n").is_empty());
    }
}
