//! `cargo xtask`: the project's tasks, in Rust, so that they run wherever kolo builds.

mod demo;
mod setup;
mod suites;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
The tasks of this repository. Both install an MPI and libclang first, if they are missing.

cargo xtask demo [-- [-np N] [ARGUMENTS]]
    Trains on the digits data with N ranks (2 if not given). ARGUMENTS go to examples/03_digits.rs: try `-- --help`.

cargo xtask test [--full] [--keep-going] [--only SUITE]... [--list]
    Runs the test suites, each within a time budget, up to the first that fails. The last line counts the suites.
    --full        also the long suites; this is what CI runs
    --keep-going  runs the other suites after one has failed
    --only SUITE  runs this suite (repeatable), long or not
    --list        names the suites with their budgets
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
        Some((task, rest)) if task == "demo" => demo::run(rest),
        Some((task, rest)) if task == "test" => suites::run(rest),
        Some((task, _)) if matches!(task.as_str(), "help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        Some((task, _)) => bail!("there is no task {task:?}\n\n{HELP}"),
        None => bail!("which task?\n\n{HELP}"),
    }
}
