//! What goes to the registry: complete, nothing besides, and able to build by itself.

use anyhow::{Result, ensure};

use super::Context;
use crate::workspace::cargo;

/// A package without these is broken, or must not be published.
const NEEDED: &[&str] =
    &["Cargo.toml", "build.rs", "src/lib.rs", "README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// Top-level directories whose files a user of the library needs or reads.
const WELCOME: &[&str] = &["src", "examples", "docs", "data"];

pub(crate) fn run(context: &Context) -> Result<()> {
    let list = context.output(&mut cargo(&["package", "--quiet", "--package", "kolo", "--allow-dirty", "--list"]))?;
    check(&list)?;
    context.count(1);
    context.run(&mut cargo(&["package", "--quiet", "--package", "kolo", "--allow-dirty"]))?;
    context.count(1);
    Ok(())
}

fn check(list: &str) -> Result<()> {
    let missing: Vec<_> = NEEDED.iter().filter(|&&needed| !list.lines().any(|file| file == needed)).collect();
    ensure!(missing.is_empty(), "the package lacks {missing:?}");
    let odd: Vec<_> =
        list.lines().filter(|file| file.split_once('/').is_some_and(|(top, _)| !WELCOME.contains(&top))).collect();
    ensure!(odd.is_empty(), "nobody who uses the package needs {odd:?}: add them to `exclude` in Cargo.toml");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_complete_and_lean() {
        let good = NEEDED.join("\n") + "\nsrc/error.rs\nCargo.lock\nrustfmt.toml\n";
        check(&good).unwrap();
        assert!(check("Cargo.toml\n").unwrap_err().to_string().contains("src/lib.rs"));
        let odd = good + "tests/common/mod.rs\n";
        assert!(check(&odd).unwrap_err().to_string().contains("tests/common/mod.rs"));
    }
}
