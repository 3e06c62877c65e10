//! `cargo xtask`: the project's tasks, in Rust, so that they run wherever kolo builds.

mod conformance;
mod demo;
mod emulator;
mod fuzzing;
mod ptx;
mod setup;
mod soak;
mod suites;
mod workspace;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

const HELP: &str = "\
The tasks of this repository. All but ptx install an MPI, libclang and g++ first, if they are missing.

cargo xtask demo [-- [-np N] [ARGUMENTS]]
    Trains on the digits data with N ranks (2 if not given). ARGUMENTS go to examples/03_digits.rs: try `-- --help`.

cargo xtask test [--full] [--keep-going] [--only SUITE]... [--list]
    Runs the test suites, each within a time budget, up to the first that fails. The last line counts the suites.
    --full        also the long suites, and goes on after one has failed; this is what CI runs
    --keep-going  goes on after one has failed without the long suites, too
    --only SUITE  runs this suite (repeatable), long or not
    --list        names the suites with their budgets

cargo xtask conformance [--seed S] [--share N] [--all] [--only WORDS]
    Runs every collective, with every type and op and in every form, on ranks of every kind, against references on fresh
    random data. Prints the seed and the matrix of cases by operation and type; the last line counts them.
    --seed S      the data and the choice of cases again, as KOLO_SEED=S does
    --share N     one in N of the usual cases (3 if not given)
    --all         all cases, also those that usually leave it to others like them: most of an hour
    --only WORDS  only cases whose key holds these words: a case that fails prints its key

cargo xtask emulator
    Builds the CUDA driver on host memory, for programs on machines without a GPU, and prints how they find it.

cargo xtask faults [--rounds N] [--seed S] [--round R]
    Breaks N jobs of 4 ranks (200 if not given), each in one way at a random moment, and judges how they take it: on one
    host, on 2 pretended ones and, as root, on 2 hosts made out of namespaces. The last line counts the failures.
    --seed S   the moments and the order: a round that fails prints its seed
    --round R  only this round

cargo xtask fuzz [--seconds N]
    Feeds damaged and random bytes to everything that reads what others wrote, for N seconds in all (60 if not given), from
    new seeds. A failure prints its seed, and KOLO_SEED runs that one again.

cargo xtask ptx [--check]
    Compiles kernels/*.cu to kernels/prebuilt/*.ptx, with a compiler that pip fetches into the target directory.
    --check  only says whether what stands there is what the sources compile to

cargo xtask soak [--rounds N]
    Runs jobs of 4 ranks for N rounds of 50 tensors (10000 if not given), on one host and on two pretended ones: memory,
    threads, descriptors and segments of each rank must stay flat.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((task, rest)) if task == "conformance" => conformance::task(rest),
        Some((task, rest)) if task == "demo" => demo::run(rest),
        Some((task, rest)) if task == "test" => suites::run(rest),
        Some((task, rest)) if task == "emulator" => emulator::task(rest),
        Some((task, rest)) if task == "faults" => faults(rest),
        Some((task, rest)) if task == "fuzz" => fuzzing::task(rest),
        Some((task, rest)) if task == "ptx" => ptx::task(rest),
        Some((task, rest)) if task == "soak" => soak::task(rest),
        Some((task, _)) if matches!(task.as_str(), "help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        Some((task, _)) => bail!("there is no task {task:?}\n\n{HELP}"),
        None => bail!("which task?\n\n{HELP}"),
    }
}

/// The rounds are a test binary, which speaks for itself.
fn faults(words: &[String]) -> Result<ExitCode> {
    setup::ensure()?;
    setup::ensure_network_programs()?;
    let all = ["--rounds", "200"].map(str::to_owned);
    let rounds = if words.iter().any(|word| word.starts_with("--round")) { &[][..] } else { &all[..] };
    let mut command = workspace::cargo(&["test", "--quiet", "--test", suites::ROUNDS, "--"]);
    command.args(rounds).args(words);
    let status = command.status().with_context(|| format!("cannot start {}", workspace::typed(&command)))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
