//! Rounds of faults: in each, a job of four ranks works, one thing goes wrong at a moment drawn from a seed, and the rest is
//! judged. `cargo xtask faults` runs it; the suite `faults` runs a short form.
//!
//! This binary has two lives: started by a launcher it is a rank ([`worker`]), else it conducts the rounds.

#[cfg(feature = "mpi")]
#[path = "rounds/fault.rs"]
mod fault;
#[cfg(feature = "mpi")]
#[path = "rounds/judge.rs"]
mod judge;
#[cfg(feature = "mpi")]
#[path = "rounds/round.rs"]
mod round;
#[cfg(feature = "mpi")]
#[path = "rounds/table.rs"]
mod table;
#[cfg(feature = "mpi")]
#[path = "rounds/worker.rs"]
mod worker;

use std::process::ExitCode;

/// Nothing here can run without a launcher's MPI.
#[cfg(not(feature = "mpi"))]
fn main() -> ExitCode {
    println!("built without MPI: no rounds");
    ExitCode::SUCCESS
}

#[cfg(feature = "mpi")]
fn main() -> ExitCode {
    if xtask::mpi::rank().is_some() {
        return worker::main();
    }
    match conduct(std::env::args().skip(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How many rounds `cargo test` runs.
#[cfg(feature = "mpi")]
const FEW: usize = 12;

#[cfg(feature = "mpi")]
#[derive(Debug, Default)]
struct Options {
    rounds: Option<usize>,
    seed: Option<u64>,
    /// The only round to run.
    round: Option<usize>,
}

#[cfg(feature = "mpi")]
impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(word) = words.next() {
            let mut number = || {
                let text = words.next().unwrap_or_default();
                text.parse::<u64>().map_err(|_| format!("{word} takes a number, not {text:?}"))
            };
            match word.as_str() {
                "--rounds" => options.rounds = Some(number()? as usize),
                "--seed" => options.seed = Some(number()?),
                "--round" => options.round = Some(number()? as usize),
                // What `cargo test` passes to every test binary.
                "--quiet" | "--nocapture" | "--test-threads=1" => {}
                other => return Err(format!("unknown option {other:?}; there are --rounds N, --seed S and --round R")),
            }
        }
        Ok(options)
    }
}

/// Runs the rounds; false when one has failed.
#[cfg(feature = "mpi")]
fn conduct(words: impl Iterator<Item = String>) -> Result<bool, String> {
    let options = Options::parse(words)?;
    let seed = options.seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()));
    let networks = xtask::network::Network::available();
    if let Err(why) = &networks {
        println!("skipped: rounds on hosts out of namespaces: {why:#}");
    }
    let wanted = match options.round {
        Some(round) => round..round + 1,
        None => 0..options.rounds.unwrap_or(FEW),
    };
    println!("seed {seed}");
    let mut table = table::Table::default();
    for number in wanted {
        let round = round::Round::draw(seed, number, networks.is_ok());
        let outcome = round.run();
        println!("{number:4}  {round}: {outcome}");
        if !outcome.failures.is_empty() {
            println!("      again: cargo xtask faults --seed {seed} --round {number}\n{}", outcome.evidence);
        }
        table.add(round.fault, &outcome);
    }
    print!("{table}");
    Ok(table.failed() == 0)
}
