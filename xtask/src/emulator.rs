//! `cargo xtask emulator`: the CUDA driver on host memory, in a folder where it is called libcuda.so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup;
use crate::workspace::{cargo, root, target, typed};

/// The package. It is not built together with the others.
pub(crate) const PACKAGE: &str = "kolo-emulator";

/// The library of kernels, as the build script calls it.
const KERNELS: &str = "libkolo_kernels.so";

pub(crate) fn task(words: &[String]) -> Result<ExitCode> {
    if let Some(word) = words.first() {
        bail!("unknown option {word:?}; `cargo xtask help` shows them");
    }
    setup::ensure()?;
    let folder = install()?;
    println!("{} holds libcuda.so: programs use it with LD_LIBRARY_PATH={}", folder.display(), folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the emulator, and returns the folder to put into `LD_LIBRARY_PATH`.
pub(crate) fn install() -> Result<PathBuf> {
    let mut command = cargo(&["build", "--package", PACKAGE, "--lib", "--message-format", "json-render-diagnostics"]);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {}", typed(&command)))?;
    ensure!(output.status.success(), "{} from: {}", output.status, typed(&command));
    let messages = String::from_utf8(output.stdout).context("cargo writes text")?;
    let library = own_message(&messages, "compiler-artifact")
        .and_then(|message| quoted(message).find(|word| word.ends_with("libkolo_emulator.so")))
        .context("cargo named no library of the emulator")?;
    let kernels = own_message(&messages, "build-script-executed")
        .and_then(|message| message.split_once("\"out_dir\":")?.1.split('"').nth(1))
        .map(|folder| Path::new(folder).join(KERNELS))
        .context("cargo named no folder of the emulator's kernels")?;
    let folder = target().join("emulator");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (from, to) in [(Path::new(library), "libcuda.so"), (&kernels, KERNELS)] {
        copy(from, &folder.join(to))?;
    }
    Ok(folder)
}

/// Puts a copy in place at once: a program that has the old one open keeps it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_extension(format!("{}.new", std::process::id()));
    fs::copy(from, &fresh).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("cannot write {}", to.display()))
}

/// The line in which cargo tells this of the emulator's own library or build script.
fn own_message<'a>(messages: &'a str, reason: &str) -> Option<&'a str> {
    let reason = format!("\"reason\":\"{reason}\"");
    let manifest = root().join("emulator");
    let own = |line: &&str| line.contains(&reason) && line.contains(&manifest.display().to_string());
    messages.lines().filter(own).rfind(|line| !line.contains("custom-build"))
}

/// The texts in a line of JSON. Paths with quotes or backslashes in them are not understood.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('"').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_cargo_are_read() {
        let own = root().join("emulator").display().to_string();
        let messages = format!(
            "{{\"reason\":\"compiler-artifact\",\"manifest_path\":\"/elsewhere/Cargo.toml\",\"filenames\":[\"/t/liba.rlib\"]}}\n\
             {{\"reason\":\"compiler-artifact\",\"manifest_path\":\"{own}/Cargo.toml\",\"target\":{{\"kind\":[\"custom-build\"]}}}}\n\
             {{\"reason\":\"compiler-artifact\",\"manifest_path\":\"{own}/Cargo.toml\",\"filenames\":[\"/t/libkolo_emulator.so\"]}}\n"
        );
        let message = own_message(&messages, "compiler-artifact").unwrap();
        assert!(quoted(message).any(|word| word == "/t/libkolo_emulator.so"));
        assert!(own_message(&messages, "build-script-executed").is_none());
    }
}
