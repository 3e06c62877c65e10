//! The kernels' plain functions (conversions, arithmetic, access to memory), compiled for the host and compared with references.

use std::process::Command;
use std::time::Duration;

use xtask::process::{self, Echo};

use crate::workspace::{root, target};

/// However slow the machine.
const LIMIT: Duration = Duration::from_secs(120);

fn output(command: &mut Command) -> String {
    let finished =
        process::run(command, LIMIT, Echo::Quiet).expect("a program that starts: g++ is among what xtask installs");
    assert!(finished.success(), "{}\n{}", finished.ending(), finished.output);
    finished.output
}

#[test]
fn plain_functions_agree_with_references() {
    let directory = target().join("kernels");
    std::fs::create_dir_all(&directory).expect("a directory to build in");
    // Of this process alone: another run of the tests may be building as well.
    let program = directory.join(format!("plain-{}", std::process::id()));
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]);
    compiler.args(["-DKOLO_HOST", "-Ikernels/tests", "-Ikernels/include", "kernels/tests/plain.cpp", "-o"]);
    output(compiler.arg(&program).current_dir(root()));
    let report = output(&mut Command::new(&program));
    std::fs::remove_file(&program).expect("the program is ours to remove");
    let counted = report.lines().find_map(|line| line.strip_suffix(" checks, 0 failed")?.parse::<u64>().ok());
    assert!(counted.is_some_and(|checks| checks > 10_000_000), "{report}");
}
