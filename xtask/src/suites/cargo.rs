//! The suites that are a call of cargo.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Context;
use crate::workspace::{WORKSPACE, cargo, root, target};
use crate::{conformance, fuzzing, setup, soak};

/// The sets of features that are built and linted. Packages besides kolo use its default features, so only kolo itself is
/// built without them.
const FEATURE_SETS: &[&[&str]] = &[WORKSPACE, &["--package", "kolo", "--no-default-features"]];

/// Tests under mpirun that break things on purpose and take their time: a suite of their own.
const FAULTS: &str = "faults";
/// Tests of long waits: they wait, so they go with those. Every MPI has them.
pub(super) const STALLS: &str = "stalls";
/// The faults of operations in order. As the others, they need a launcher that ends ranks that are stopped.
const IN_ORDER_FAULTS: &str = "in_order_faults";
/// Tests that make hosts out of namespaces: another one.
pub(super) const HOSTS: &str = "hosts";
/// Rounds of faults, which belong to the suite of the faults.
pub(crate) const ROUNDS: &str = "rounds";

/// Distinct cases that a run of the suite conformance has at the least.
const CONFORMANCE_CASES: u64 = 20_000;

/// What the suite fuzz takes beyond compiling, in seconds.
const FUZZ_SECONDS: u64 = 60;

pub(crate) fn fmt(context: &Context) -> Result<()> {
    context.run(&mut cargo(&["fmt", "--all", "--check"]))?;
    context.count(1);
    Ok(())
}

pub(crate) fn clippy(context: &Context) -> Result<()> {
    for features in FEATURE_SETS {
        let words = [&["clippy", "--quiet", "--all-targets"], *features, &["--", "--deny", "warnings"]].concat();
        context.run(&mut cargo(&words))?;
        context.count(1);
    }
    Ok(())
}

pub(crate) fn docs(context: &Context) -> Result<()> {
    let mut command = cargo(&["doc", "--quiet", "--no-deps"]);
    context.run(command.args(WORKSPACE).env("RUSTDOCFLAGS", "--deny warnings"))?;
    context.count(1);
    Ok(())
}

/// Compiles what the default suites run. The others compile what is theirs alone.
pub(crate) fn build(context: &Context) -> Result<()> {
    let mut tests = cargo(&["test", "--quiet", "--no-run", "--lib", "--bins"]);
    context.run(tests.args(WORKSPACE).args(mpi_tests()?))?;
    context.run(cargo(&["build", "--quiet", "--release", "--examples"]).args(WORKSPACE))?;
    context.count(2);
    Ok(())
}

pub(crate) fn unit(context: &Context) -> Result<()> {
    context.run(cargo(&["test", "--quiet", "--lib", "--bins", "--no-fail-fast"]).args(WORKSPACE))?;
    context.need_tests()
}

pub(crate) fn doctests(context: &Context) -> Result<()> {
    context.run(cargo(&["test", "--quiet", "--doc", "--no-fail-fast"]).args(WORKSPACE))?;
    context.need_tests()
}

pub(crate) fn mpi(context: &Context) -> Result<()> {
    mpi_with(context, |_| {})
}

/// Runs the tests that start mpirun with the settings that `prepare` adds.
pub(crate) fn mpi_with(context: &Context, prepare: impl Fn(&mut Command)) -> Result<()> {
    // Of the workspace, and not of each package: features are those that all was built with, and nothing is built twice.
    let mut command = cargo(&["test", "--quiet", "--no-fail-fast"]);
    command.args(WORKSPACE).args(mpi_tests()?);
    prepare(&mut command);
    context.run(&mut command)?;
    context.need_tests()
}

/// How cargo is told of the test binaries of the suite mpi.
fn mpi_tests() -> Result<Vec<String>> {
    let names = [test_files("tests")?, test_files("bench/tests")?].concat();
    Ok(names.into_iter().flat_map(|name| ["--test".to_owned(), name]).collect())
}

/// The names of the test binaries in `directory`, without those that have a suite of their own.
fn test_files(directory: &str) -> Result<Vec<String>> {
    let directory = root().join(directory);
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let own_suite = [FAULTS, STALLS, IN_ORDER_FAULTS, HOSTS, ROUNDS, conformance::TEST, soak::TEST];
        names.extend(name.strip_suffix(".rs").filter(|name| !own_suite.contains(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

pub(crate) fn loom(context: &Context) -> Result<()> {
    let mut command = cargo(&["test", "--quiet", "--lib", "--no-default-features", "loom_"]);
    // Other flags rebuild everything: in a directory of their own they rebuild once. The models use a part of the code.
    command.env("RUSTFLAGS", "--cfg kolo_loom --allow dead_code").env("CARGO_TARGET_DIR", target().join("loom"));
    context.run(&mut command)?;
    context.need_tests()
}

/// Only a nightly Rust has the sanitizer's switch.
pub(crate) fn asan(context: &Context) -> Result<()> {
    if !has_toolchain("nightly") {
        context.skip(
            "no nightly Rust is installed, and AddressSanitizer needs one: rustup toolchain install nightly".into(),
        );
        return Ok(());
    }
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "test", "--quiet", "--package", "kolo", "--no-default-features", "--lib"]);
    // With a target named, build scripts and macros are spared the flags.
    command.args(["--target", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)]);
    command.env_remove("RUSTUP_TOOLCHAIN").current_dir(root());
    command.env("RUSTFLAGS", "-Zsanitizer=address").env("CARGO_TARGET_DIR", target().join("asan"));
    // Some tests leak handles on purpose.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    context.run(&mut command)?;
    context.need_tests()
}

/// Whether rustup has this Rust.
fn has_toolchain(name: &str) -> bool {
    let mut installed = Command::new("rustup");
    installed.args(["run", name, "rustc", "--version"]).env_remove("RUSTUP_TOOLCHAIN");
    installed.output().is_ok_and(|output| output.status.success())
}

pub(crate) fn seeds(context: &Context) -> Result<()> {
    // As the suite `unit` built it: what another build would win in time, it costs to compile.
    let mut command = cargo(&["test", "--quiet", "--lib"]);
    context.run(command.args(WORKSPACE).arg("seeded").env("KOLO_SEEDS", "10000"))?;
    context.need_tests()
}

pub(crate) fn faults(context: &Context) -> Result<()> {
    let tests = ["--test", FAULTS, "--test", STALLS, "--test", IN_ORDER_FAULTS, "--", "--test-threads=1"];
    context.run(cargo(&["test", "--quiet"]).args(tests))?;
    context.need_tests()?;
    rounds(context)?;
    // In a mount namespace, where we may give ourselves a small /dev/shm. 64 KiB fits no segment of anybody.
    let script = "mount -t tmpfs -o size=64k shm /dev/shm && exec \"$0\" xtask demo -- -np 3 --epochs 1";
    let user = if rustix::process::geteuid().is_root() { &[][..] } else { &["--user", "--map-root-user"] };
    let cargo = cargo(&[]);
    let mut command = Command::new("unshare");
    command.args(user).args(["--mount", "sh", "-c", script]).arg(cargo.get_program()).current_dir(root());
    context.run(&mut command)?;
    context.count(1);
    Ok(())
}

/// The short form of `cargo xtask faults`.
fn rounds(context: &Context) -> Result<()> {
    setup::ensure_network_programs()?;
    let output = context.output(&mut cargo(&["test", "--quiet", "--test", ROUNDS, "--", "--rounds", "40"]))?;
    let counted = |line: &str| line.split_once(" faults, 0 failed")?.0.parse().ok();
    context.count(output.lines().find_map(counted).context("the rounds did not count their faults")?);
    Ok(())
}

pub(crate) fn conformance(context: &Context) -> Result<()> {
    setup::ensure_network_programs()?;
    let output = context.output(&mut conformance::command())?;
    let cases = conformance::cases(&output)?;
    ensure!(cases >= CONFORMANCE_CASES, "{cases} cases ran, and {CONFORMANCE_CASES} are the least");
    context.count(cases);
    Ok(())
}

pub(crate) fn fuzz(context: &Context) -> Result<()> {
    let (cases, _) = fuzzing::run(FUZZ_SECONDS, context.left())?;
    context.count(cases);
    Ok(())
}

pub(crate) fn soak(context: &Context) -> Result<()> {
    let output = context.output(&mut soak::command(soak::SUITE_ROUNDS))?;
    let (checks, failed) = soak::checks(&output);
    ensure!(checks > 0 && failed == 0, "{checks} checks, {failed} failed");
    context.count(checks);
    Ok(())
}

pub(crate) fn msrv(context: &Context) -> Result<()> {
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    if !has_toolchain(oldest) {
        println!("Rust {oldest} is not installed: clippy's incompatible_msrv, in the suite clippy, stands in for it");
        return Ok(());
    }
    let mut command = Command::new("rustup");
    command.args(["run", oldest, "cargo", "check", "--quiet", "--all-targets"]).args(WORKSPACE);
    command.env_remove("RUSTUP_TOOLCHAIN").env("CARGO_TARGET_DIR", target().join("msrv")).current_dir(root());
    context.run(&mut command)?;
    context.count(1);
    Ok(())
}
