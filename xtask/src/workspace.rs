//! Where things are, and the cargo that started us.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::emulator;

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ stands in the repository")
}

/// The directory cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// The packages that are built and tested together. The emulator is not among them: it takes a compiler of C++ and most of a
/// minute, and nothing but its own suite and the tests on it need it.
pub(crate) const WORKSPACE: &[&str] = &["--workspace", "--exclude", emulator::PACKAGE];

/// `cargo WORDS..`, in the root of the repository.
pub(crate) fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(root());
    command
}

/// A command as one would type it, for messages.
pub(crate) fn typed(command: &Command) -> String {
    let own = |(key, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>)| {
        Some(format!("{}={:?}", key.display(), value?.to_string_lossy()))
    };
    let program = Path::new(command.get_program());
    let program = program.strip_prefix(root()).unwrap_or(program);
    let program = if program.ends_with("cargo") { Path::new("cargo") } else { program };
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    let settings = command.get_envs().filter(|(key, _)| *key != "XTASK_RUN").filter_map(own);
    settings.chain([program.display().to_string()]).chain(words).collect::<Vec<_>>().join(" ")
}
