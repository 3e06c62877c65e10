//! The flight recorder: what it costs, and what the files of a job say. Neither is a job of its own.

use crate::cli::{FlightArgs, FlightCostArgs};
use crate::report::JsonFile;
use anyhow::{Result, ensure};
use kolo::flight::{self, Diagnosis, Divergence, End, Operation, Standing};
use serde::Serialize;

/// Reads the flight records of a job and prints where its ranks part.
pub(crate) fn diagnose(args: &FlightArgs) -> Result<()> {
    let json = JsonFile::create(args.json.as_deref(), true)?;
    let read = flight::read(&args.paths)?;
    for (path, why) in &read.unreadable {
        println!("{}: {why}", path.display());
    }
    ensure!(!read.recordings.is_empty(), "none of the files can be read");
    let diagnosis = flight::diagnose(&read.recordings)?;
    println!("{diagnosis}");
    json.write(&[Job::of(&diagnosis, read.unreadable.len())])
}

/// Measures what a record costs here.
pub(crate) fn cost(args: &FlightCostArgs) -> Result<()> {
    let json = JsonFile::create(args.json.as_deref(), true)?;
    let cost = flight::cost(args.directory.as_deref(), args.rounds as usize)?;
    let records = [
        CostRecord { case: "flight-cost communicator", ns: cost.ordered, counter: cost.counter },
        CostRecord { case: "flight-cost named", ns: cost.named, counter: cost.counter },
    ];
    println!("# median of {} rounds; clock: {}", args.rounds, if cost.counter { "counter" } else { "system" });
    println!("# {:>26} {:>10}", "case", "ns/record");
    for record in &records {
        println!("  {:>26} {:>10.1}", record.case, record.ns);
    }
    json.write(&records)
}

#[derive(Clone, Debug, Serialize)]
struct CostRecord {
    case: &'static str,
    ns: f64,
    counter: bool,
}

/// A diagnosis as JSON. The names of the fields are stable.
#[derive(Clone, Debug, Serialize)]
struct Job {
    case: &'static str,
    job: String,
    size: u32,
    absent: Vec<u32>,
    unreadable_files: usize,
    ranks: Vec<Rank>,
    divergences: Vec<Parting>,
}

#[derive(Clone, Debug, Serialize)]
struct Rank {
    rank: u32,
    host: String,
    pid: u32,
    process: &'static str,
    end: &'static str,
    failure: Option<String>,
    recorded: usize,
    in_flight: usize,
    age_us: Option<f64>,
    last: Option<Record>,
}

#[derive(Clone, Debug, Serialize)]
struct Record {
    number: u64,
    set: u32,
    kind: &'static str,
    name: Option<String>,
    dtype: Option<String>,
    op: Option<String>,
    bytes: u64,
    peer: Option<u32>,
    place: Option<u64>,
    state: &'static str,
    /// Seconds since 1970.
    submitted_s: f64,
    agreed_us: Option<f64>,
    started_us: Option<f64>,
    ended_us: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct Parting {
    how: &'static str,
    set: u32,
    ranks: Vec<u32>,
    what: String,
    since_s: f64,
    culprits: Vec<u32>,
    views: Vec<Opinion>,
}

#[derive(Clone, Debug, Serialize)]
struct Opinion {
    rank: u32,
    state: Option<&'static str>,
    what: String,
}

impl Job {
    fn of(diagnosis: &Diagnosis, unreadable_files: usize) -> Self {
        Self {
            case: "flight",
            job: format!("{:032x}", diagnosis.job),
            size: diagnosis.size,
            absent: diagnosis.absent.clone(),
            unreadable_files,
            ranks: diagnosis.ranks.iter().map(Rank::of).collect(),
            divergences: diagnosis.divergences.iter().map(Parting::of).collect(),
        }
    }
}

impl Rank {
    fn of(standing: &Standing) -> Self {
        let (end, failure) = match &standing.end {
            End::Left => ("left", None),
            End::Found(failure) => ("failed", Some(failure.to_string())),
            _ => ("open", None),
        };
        Self {
            rank: standing.rank,
            host: standing.host.clone(),
            pid: standing.pid,
            process: standing.process.name(),
            end,
            failure,
            recorded: standing.recorded,
            in_flight: standing.in_flight,
            age_us: standing.age.map(|age| age.as_secs_f64() * 1e6),
            last: standing.last.as_ref().map(Record::of),
        }
    }
}

impl Record {
    fn of(operation: &Operation) -> Self {
        let micros = |span: Option<std::time::Duration>| span.map(|span| span.as_secs_f64() * 1e6);
        Self {
            number: operation.number,
            set: operation.set,
            kind: operation.kind,
            name: operation.name.clone(),
            dtype: operation.dtype.map(|dtype| dtype.to_string()),
            op: operation.op.map(|op| op.to_string()),
            bytes: operation.bytes,
            peer: operation.peer,
            place: operation.place,
            state: operation.stage.name(),
            submitted_s: operation.submitted.as_secs_f64(),
            agreed_us: micros(operation.agreed),
            started_us: micros(operation.started),
            ended_us: micros(operation.ended),
        }
    }
}

impl Parting {
    fn of(divergence: &Divergence) -> Self {
        let opinion = |view: &flight::View| Opinion {
            rank: view.rank,
            state: view.stage.map(|stage| stage.name()),
            what: view.what.clone(),
        };
        Self {
            how: divergence.how.name(),
            set: divergence.set.id,
            ranks: divergence.set.ranks.clone(),
            what: divergence.what.clone(),
            since_s: divergence.since.as_secs_f64(),
            culprits: divergence.culprits.clone(),
            views: divergence.views.iter().map(opinion).collect(),
        }
    }
}
