//! What the runtime costs while nothing happens: idle, and waiting for a rank that comes late.

use super::Job;
use super::list::{names, reduce};
use crate::cli::{IdleArgs, LateArgs};
use crate::control::Ranks;
use crate::cpu::{Cost, Meter};
use crate::report::{JsonFile, QuietRecord, quiet_header, quiet_row};
use anyhow::Result;
use kolo::ReduceOp;
use std::time::Duration;

/// Lists reduced before the idle stretch: names are cached, memory is touched, whatever adapts has adapted.
const LISTS: usize = 100;
/// Between the last operation and the measured stretch: what winds down is not idleness yet.
const SETTLE: Duration = Duration::from_millis(200);

/// Measures an idle runtime.
///
/// # Errors
///
/// Those of kolo; `/proc`; a file that cannot be written.
pub(crate) fn idle(job: &mut Job<'_>, args: &IdleArgs) -> Result<()> {
    let json = JsonFile::create(args.json.as_deref(), job.reports())?;
    announce(job, &format!("idle for {} s after {LISTS} lists {}", args.seconds, args.preset.name()));
    let counts = args.preset.counts(size_of::<f32>());
    let names = names(args.preset.name(), counts.len());
    let mut tensors: Vec<Vec<f32>> = counts.iter().map(|count| vec![1.0; *count]).collect();
    for _ in 0..LISTS {
        reduce(job.kolo, &names, &mut tensors, ReduceOp::Average)?;
    }
    job.control.barrier()?;
    std::thread::sleep(SETTLE);
    let meter = Meter::start()?;
    std::thread::sleep(Duration::from_secs_f64(args.seconds));
    let cost = meter.stop(1)?;
    finish(job, json, "idle", cost, "idle")
}

/// Measures what the ranks spend that wait for a late one.
///
/// # Errors
///
/// Those of kolo; `/proc`; a file that cannot be written.
pub(crate) fn late(job: &mut Job<'_>, args: &LateArgs) -> Result<()> {
    let json = JsonFile::create(args.json.as_deref(), job.reports())?;
    let late_rank = job.kolo.size() - 1;
    announce(job, &format!("rank {late_rank} comes {} s late, {} times", args.seconds, args.rounds));
    let is_late = job.kolo.rank() == late_rank && job.kolo.size() > 1;
    let mut data = vec![1.0f32; 1024];
    for _ in 0..LISTS {
        job.kolo.allreduce("late", &mut data, ReduceOp::Average)?;
    }
    let mut sum = Cost { cpu: 0.0, wall: 0.0, wakeups: 0, preemptions: 0, threads: 0 };
    for _ in 0..args.rounds {
        job.control.barrier()?;
        std::thread::sleep(SETTLE);
        let meter = Meter::start()?;
        if is_late {
            std::thread::sleep(Duration::from_secs_f64(args.seconds));
        }
        job.kolo.allreduce("late", &mut data, ReduceOp::Average)?;
        let cost = meter.stop(u64::from(is_late))?;
        sum.cpu += cost.cpu;
        sum.wall += cost.wall;
        sum.wakeups += cost.wakeups;
        sum.preemptions += cost.preemptions;
        sum.threads = cost.threads;
    }
    finish(job, json, "late", sum, if is_late { "late" } else { "waiting" })
}

fn announce(job: &Job<'_>, what: &str) {
    if job.reports() {
        println!("# {what}\n{}", quiet_header());
    }
}

/// Gathers every rank's figures, prints them and writes them.
fn finish(job: &mut Job<'_>, json: JsonFile, case: &str, cost: Cost, role: &str) -> Result<()> {
    let mine = [
        cost.cpu_percent(),
        cost.wakeups as f64 / cost.wall,
        cost.preemptions as f64 / cost.wall,
        cost.threads as f64,
        cost.wall,
        f64::from(u8::from(role == "late")),
    ];
    let ranks = job.kolo.size();
    let records: Vec<QuietRecord> = job
        .control
        .gather(&mine)?
        .iter()
        .enumerate()
        .map(|(rank, all)| QuietRecord {
            case: case.into(),
            rank,
            cpu_percent: all[0],
            wakeups_per_s: all[1],
            role: match (case, all[5] > 0.0) {
                ("idle", _) => "idle".into(),
                (_, true) => "late".into(),
                (_, false) => "waiting".into(),
            },
            preemptions_per_s: all[2],
            threads: all[3] as usize,
            seconds: all[4],
            ranks,
        })
        .collect();
    if job.reports() {
        records.iter().for_each(|record| println!("{}", quiet_row(record)));
        json.write(&records)?;
    }
    Ok(())
}
