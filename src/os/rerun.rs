//! For tests that need a process of their own: the test binary, started again in a role.

use std::process::{Command, Output};

const ROLE: &str = "KOLO_TEST_ROLE";

/// A command that runs `test` (its full path) again, where [`role`] gives `role`.
pub(crate) fn command(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test binary's path"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

/// The role that this process was started in, if it was started by [`command`].
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// # Panics
/// If the process did not succeed, with all it said.
pub(crate) fn succeed(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
