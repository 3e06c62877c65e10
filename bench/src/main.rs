//! kolo-bench: what kolo's allreduce takes, and what its peers take in the same minute on the same memory.
//!
//! `docs/benchmarking.md` describes the method, the columns and the fields.

mod buffers;
mod cases;
mod cli;
mod control;
mod cpu;
mod data;
#[cfg(test)]
mod fuzz;
mod machine;
mod measure;
mod peer;
mod presets;
mod report;
mod sizes;
mod stats;

use anyhow::Result;
use cases::Job;
use cli::{Cli, Command};
use control::Control;
use kolo::{Builder, Kolo};
use machine::Machines;
use peer::Mpi;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Warnings of a stall are what a user waits for here.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let parsed = Cli::from_args(std::env::args_os());
    let builder = match &parsed {
        Ok(cli) => settings(cli),
        Err(error) if error.use_stderr() && under_launcher() => Builder::new(),
        Err(error) => {
            if error.use_stderr() || launched_rank().is_none_or(|rank| rank == "0") {
                error.exit();
            }
            return ExitCode::SUCCESS;
        }
    };
    // What needs no other rank joins no job: it reads what jobs left.
    if let Ok(cli) = &parsed
        && let Some(outcome) = alone(cli)
    {
        return match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    // Every rank has the same bad arguments: the runtime prints one of them, where each would print its own.
    builder.run(|kolo| match parsed {
        Ok(cli) => run(kolo, &cli).map_err(|error| format!("{error:#}")),
        Err(error) => Err(error.to_string()),
    })
}

/// What the command line asks of the runtime.
fn settings(cli: &Cli) -> Builder {
    let mut builder = Builder::new();
    if let Some(algorithm) = cli.algorithm() {
        builder = builder.knob("KOLO_ALGORITHM", algorithm.name());
    }
    // Shared buffers need a reserve that holds them; one that the user chose stays.
    if let Some(bytes) = cli.shared_bytes().filter(|_| std::env::var_os("KOLO_SHARED_RESERVE").is_none()) {
        builder = builder.shared_reserve(bytes);
    }
    builder
}

/// Does what is no job.
fn alone(cli: &Cli) -> Option<Result<()>> {
    match &cli.command {
        Command::Flight(args) => Some(cases::flight::diagnose(args)),
        Command::FlightCost(args) => Some(cases::flight::cost(args)),
        _ => None,
    }
}

/// Runs the case.
fn run(kolo: &Kolo, cli: &Cli) -> Result<()> {
    let mut control = Control::new(kolo)?;
    let machines = Machines::survey(&mut control, kolo.host())?;
    let mpi = if cli.has_peer() { Some(attach(&machines)?) } else { None };
    if kolo.rank() == 0 {
        println!("{}", machines.header(&peer::library_version()));
    }
    let mut job = Job { kolo, control, machines, mpi };
    match &cli.command {
        Command::Allreduce(args) => cases::allreduce::run(&mut job, args)?,
        Command::List(args) => cases::list::run(&mut job, args)?,
        Command::Idle(args) => cases::quiet::idle(&mut job, args)?,
        Command::Late(args) => cases::quiet::late(&mut job, args)?,
        Command::Flight(args) => cases::flight::diagnose(args)?,
        Command::FlightCost(args) => cases::flight::cost(args)?,
    }
    if let Some(mpi) = job.mpi.take() {
        mpi.free()?;
    }
    Ok(())
}

/// The peer, if it can be measured fairly here.
fn attach(machines: &Machines) -> Result<Mpi> {
    let mpi = Mpi::attach()?;
    if let Some((ranks, cores)) = machines.oversubscribed() {
        peer::check_waiting(ranks, cores)?;
    }
    Ok(mpi)
}

/// The rank that an MPI launcher gave this process.
fn launched_rank() -> Option<String> {
    ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"].iter().find_map(|name| std::env::var(name).ok())
}

fn under_launcher() -> bool {
    launched_rank().is_some()
}
