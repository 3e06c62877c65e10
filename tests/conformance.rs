//! Every collective, of every type, in every form, on ranks of every kind, against references on fresh random data.
//! `cargo xtask conformance` runs all of it; `cargo test` a small share.
//!
//! A case is a distinct tuple of operation, type, op, count and kind of data, factors, form (by order or by name, in place or
//! apart, blocking or asynchronous, alone or together with others), algorithm, memory, shape or spread of rows, root, set of
//! ranks, and place (how many ranks on which hosts, threads or processes, the settings of the job). Its key holds them all. It
//! counts once, however many ranks and runs it has.
//!
//! Each operation has a file. A rank's body is the same whether ranks are threads of this process ([`place`]) or processes:
//! this binary has two lives, started by a launcher it is a rank. `numbers` are drawn from the seed and from what is reduced,
//! but not from how: so the same sum is done in every form, on every layout of hosts and in several runs, and where
//! `docs/types.md` promises its bits, all of them must have the same ([`tally`]).

#[path = "conformance/allgather.rs"]
mod allgather;
#[path = "conformance/allreduce.rs"]
mod allreduce;
#[path = "conformance/alltoall.rs"]
mod alltoall;
#[path = "conformance/barrier.rs"]
mod barrier;
#[path = "conformance/batch.rs"]
mod batch;
#[path = "conformance/bench.rs"]
mod bench;
#[path = "conformance/broadcast.rs"]
mod broadcast;
#[path = "conformance/gather.rs"]
mod gather;
#[path = "conformance/group.rs"]
mod group;
#[path = "conformance/join.rs"]
mod join;
#[path = "conformance/memory.rs"]
mod memory;
#[path = "conformance/object.rs"]
mod object;
#[path = "conformance/place.rs"]
mod place;
#[path = "conformance/point_to_point.rs"]
mod point_to_point;
#[path = "conformance/reduce.rs"]
mod reduce;
#[path = "conformance/reduce_scatter.rs"]
mod reduce_scatter;
#[path = "conformance/report.rs"]
mod report;
#[path = "conformance/sample.rs"]
mod sample;
#[path = "conformance/scatter.rs"]
mod scatter;
#[path = "conformance/self_check.rs"]
mod self_check;
#[path = "conformance/sparse.rs"]
mod sparse;
#[path = "conformance/tally.rs"]
mod tally;
#[path = "conformance/value.rs"]
mod value;
#[path = "conformance/want.rs"]
mod want;

use std::process::ExitCode;
use std::time::Instant;

use kolo::{Kolo, Result, bf16, f16};
use xtask::mpi::{Flavour, Launcher};
use xtask::network::Network;

use bench::{Bench, Task, Team};
use place::{Kind, PLACES, Place};
use report::Report;
use tally::Tally;

/// `cargo test` runs one in so many cases.
const FEW: u64 = 40;

fn main() -> ExitCode {
    if xtask::mpi::rank().is_some() {
        return Place::run_rank(work);
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

#[derive(Debug)]
struct Options {
    seed: Option<u64>,
    share: u64,
    all: bool,
    only: String,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> std::result::Result<Self, String> {
        let seed = std::env::var("KOLO_SEED").ok().filter(|text| !text.is_empty());
        let number = |what: &str, text: &str| {
            text.parse::<u64>().map_err(|_| format!("{what} takes a whole number, not {text:?}"))
        };
        let mut options = Self { seed: None, share: FEW, all: false, only: String::new() };
        options.seed = seed.map(|text| number("KOLO_SEED", &text)).transpose()?;
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_default();
            match word.as_str() {
                "--seed" => options.seed = Some(number(&word, &value())?),
                "--share" => options.share = number(&word, &value())?.max(1),
                "--all" => options.all = true,
                "--only" => options.only = value(),
                // What `cargo test` passes to every test binary.
                "--quiet" | "--nocapture" | "--test-threads=1" => {}
                other => {
                    let known = "there are --seed S, --share N, --all and --only WORDS";
                    return Err(format!("unknown option {other:?}; {known}"));
                }
            }
        }
        Ok(options)
    }
}

/// Runs all jobs; false when a case has failed.
fn conduct(words: impl Iterator<Item = String>) -> std::result::Result<bool, String> {
    let options = Options::parse(words)?;
    self_check::run();
    let seed =
        options.seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64));
    println!("seed {seed}");
    let mut tally = Tally::default();
    for (index, place) in PLACES.iter().enumerate() {
        let names_place = |place: &Place| options.only.ends_with(&format!(", {place}"));
        if PLACES.iter().any(names_place) && !names_place(place) {
            continue;
        }
        if let Some(why) = cannot_run(place) {
            println!("skipped: {place}: {why}");
            continue;
        }
        let directory = tempfile::tempdir().map_err(|error| format!("no directory for {place}: {error}"))?;
        let (share, all, only) = (options.share, options.all, options.only.clone());
        let task = Task { seed, share, all, only, directory: directory.path().to_owned() };
        let (begin, before) = (Instant::now(), (tally.cases(), tally.failed()));
        let (reports, why) = place.run(index, &task, work);
        tally.add(&reports);
        if let Some(why) = why {
            tally.job_failed(place, &why);
        }
        let (cases, failed) = (tally.cases() - before.0, tally.failed() - before.1);
        println!("{:5.1} s  {cases:6} new cases, {failed} failed: {place}", begin.elapsed().as_secs_f64());
    }
    print!("{}{tally}", tally.failures(seed));
    Ok(tally.failed() == 0 && tally.cases() > 0)
}

/// Why a job cannot run here.
fn cannot_run(place: &Place) -> Option<String> {
    if place.kind == Kind::Threads {
        return None;
    }
    if cfg!(not(feature = "mpi")) {
        return Some("built without MPI".to_owned());
    }
    if place.kind == Kind::Processes {
        return None;
    }
    match Launcher::find() {
        Ok(launcher) if launcher.flavour() != Flavour::OpenMpi4 => {
            Some(format!("jobs across namespaces are started by Open MPI up to 4.x, not {}", launcher.flavour()))
        }
        Ok(_) => Network::available().err().map(|why| format!("{why:#}")),
        // The jobs before have failed for it.
        Err(why) => Some(format!("{why:#}")),
    }
}

/// What a rank does, whatever it is: all cases of all sets that it is in.
fn work(kolo: &Kolo, task: &Task, place: &Place) -> (Report, Result<()>) {
    let mut bench = Bench { kolo, task, place, report: Report::default() };
    let outcome =
        Team::all(kolo, place).and_then(|mut teams| teams.iter_mut().try_for_each(|team| operations(&mut bench, team)));
    if let Err(error) = &outcome {
        bench.check(Err(format!("an error: {error}")));
    }
    (bench.report, outcome)
}

macro_rules! each_number {
    ($module:ident, $bench:expr, $team:expr) => {
        $module::run::<f16>($bench, $team)?;
        $module::run::<bf16>($bench, $team)?;
        $module::run::<f32>($bench, $team)?;
        $module::run::<f64>($bench, $team)?;
        $module::run::<i8>($bench, $team)?;
        $module::run::<i16>($bench, $team)?;
        $module::run::<i32>($bench, $team)?;
        $module::run::<i64>($bench, $team)?;
        $module::run::<u8>($bench, $team)?;
        $module::run::<u16>($bench, $team)?;
        $module::run::<u32>($bench, $team)?;
        $module::run::<u64>($bench, $team)?;
    };
}

/// Also the type that only moves.
macro_rules! each_value {
    ($module:ident, $bench:expr, $team:expr) => {
        each_number!($module, $bench, $team);
        $module::run::<bool>($bench, $team)?;
    };
}

/// Every operation. A new one is a file, and a line here.
fn operations(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    each_number!(allreduce, bench, team);
    each_number!(group, bench, team);
    each_value!(allgather, bench, team);
    each_value!(broadcast, bench, team);
    each_number!(reduce, bench, team);
    each_value!(gather, bench, team);
    each_value!(scatter, bench, team);
    each_number!(reduce_scatter, bench, team);
    each_value!(alltoall, bench, team);
    each_value!(point_to_point, bench, team);
    each_value!(batch, bench, team);
    each_number!(sparse, bench, team);
    object::run(bench, team)?;
    each_number!(join, bench, team);
    barrier::run(bench, team)
}
