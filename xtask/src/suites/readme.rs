//! README.md keeps its word: Rust blocks are doctests of the library, shell blocks marked `<!-- run -->` are run here.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Context;
use crate::workspace::root;

/// Stands on the line before the fence of a block that is run; readers do not see it.
const MARK: &str = "<!-- run -->";

/// The line of src/lib.rs that makes the Rust blocks doctests.
const DOCTEST: &str = "include_str!(\"../README.md\")";

pub(crate) fn run(context: &Context) -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md")).context("cannot read README.md")?;
    let library = fs::read_to_string(root().join("src/lib.rs")).context("cannot read src/lib.rs")?;
    ensure!(library.contains(DOCTEST), "src/lib.rs lacks {DOCTEST}: the Rust code in README.md is not compiled");
    let blocks = marked_blocks(&readme)?;
    ensure!(!blocks.is_empty(), "no block of README.md is marked {MARK}");
    for block in blocks {
        context.run(Command::new("bash").args(["-euo", "pipefail", "-c", &block]).current_dir(root()))?;
        context.count(1);
    }
    Ok(())
}

fn marked_blocks(text: &str) -> Result<Vec<String>> {
    let mut lines = text.lines();
    let mut blocks = Vec::new();
    while let Some(line) = lines.next() {
        if line.trim() != MARK {
            continue;
        }
        let fence = lines.next().unwrap_or_default();
        ensure!(
            matches!(fence, "```sh" | "```bash" | "```console"),
            "{MARK} must stand right before ```sh, not {fence:?}"
        );
        blocks.push(lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n"));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_blocks_are_run() {
        let text =
            "# x\n```sh\nrm -r /\n```\ntext\n<!-- run -->\n```sh\necho a\necho b\n```\n```rust\nlet a = 1;\n```\n";
        assert_eq!(marked_blocks(text).unwrap(), ["echo a\necho b"]);
        assert!(marked_blocks("<!-- run -->\n\n```sh\na\n```\n").is_err());
    }
}
