//! The suites that run finished programs: the examples, and the downstream crate.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::Context;
use crate::workspace::{cargo, root, target};

/// Every example, with its arguments. The network of the demo trains in full: it checks its own accuracy and bits.
const EXAMPLES: &[(&str, &[&str])] =
    &[("01_hello", &[]), ("02_named_tensors", &[]), ("03_digits", &["--progress", "lines"])];

const RANKS: usize = 2;

pub(crate) fn run(context: &Context) -> Result<()> {
    let listed = EXAMPLES.iter().map(|(name, _)| (*name).to_owned()).collect();
    same(&listed, &found()?)?;
    context.run(&mut cargo(&["build", "--quiet", "--release", "--examples"]))?;
    for (name, arguments) in EXAMPLES {
        let program = target().join("release/examples").join(name);
        context.run(context.launcher.command(RANKS).arg(program).args(*arguments).current_dir(root()))?;
        context.count(1);
    }
    Ok(())
}

fn found() -> Result<BTreeSet<String>> {
    let directory = root().join("examples");
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists() {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(names)
}

fn same(listed: &BTreeSet<String>, found: &BTreeSet<String>) -> Result<()> {
    let unlisted: Vec<_> = found.difference(listed).collect();
    ensure!(unlisted.is_empty(), "not in EXAMPLES of {}, so nothing runs them: {unlisted:?}", file!());
    let gone: Vec<_> = listed.difference(found).collect();
    ensure!(gone.is_empty(), "in EXAMPLES of {}, but not in examples/: {gone:?}", file!());
    Ok(())
}

/// tests/downstream: a package outside the workspace, with a lock file and a build of its own.
pub(crate) fn downstream(context: &Context) -> Result<()> {
    let manifest = root().join("tests/downstream/Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    let name = name.with_context(|| format!("{} names no package", manifest.display()))?;
    // The same target directory: what both resolve alike is compiled once.
    let mut build = cargo(&["build", "--quiet", "--release", "--manifest-path"]);
    context.run(build.arg(&manifest).env("CARGO_TARGET_DIR", target()))?;
    context.run(context.launcher.command(RANKS).arg(target().join("release").join(name)).current_dir(root()))?;
    context.count(1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_that_nobody_runs_is_an_error() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert!(same(&set(&["a", "b"]), &set(&["a", "b"])).is_ok());
        let error = same(&set(&["a"]), &set(&["a", "b"])).unwrap_err().to_string();
        assert!(error.contains("[\"b\"]") && error.contains("nothing runs them"), "{error}");
        assert!(same(&set(&["a", "b"]), &set(&["a"])).unwrap_err().to_string().contains("not in examples/"));
    }
}
