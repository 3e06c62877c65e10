//! Barrier: whoever has passed it finds what every rank did before it came.

use std::fs;
use std::path::PathBuf;

use kolo::Result;

use super::bench::{Bench, Team};

const NAME: &str = "barrier";

/// A file that a rank leaves before it comes. Ranks of all kinds, on hosts of all kinds here, see the same directory.
fn trace(bench: &Bench<'_>, round: &str, global: usize) -> PathBuf {
    bench.task.directory.join(format!("{round}, rank {global}"))
}

pub(crate) fn run(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    let members = team.named.ranks();
    for form in ["by order", "by order, async", "by name", "by name, async", "by name, async on every other rank"] {
        // Everyone is the only late one once.
        for late in 0..team.size() {
            if !bench.begin(team, NAME, &"none", format_args!("{late} comes last, {form}")) {
                continue;
            }
            let round = format!("{}, {form}, {late} last", team.label);
            if team.me() == late {
                // What takes a while, so that the others come first if nothing holds them.
                (0..200).for_each(|_| std::thread::yield_now());
            }
            let mine = trace(bench, &round, bench.kolo.rank());
            fs::write(&mine, "").unwrap_or_else(|error| panic!("{}: {error}", mine.display()));
            match form {
                "by order" => team.comm.barrier()?,
                "by order, async" => team.comm.barrier_async()?.wait()?,
                "by name" => team.named.barrier()?,
                "by name, async" => team.named.barrier_async()?.wait()?,
                _ if team.me().is_multiple_of(2) => team.named.barrier_async()?.wait()?,
                _ => team.named.barrier()?,
            }
            for &member in &members {
                let came = trace(bench, &round, member).exists();
                bench.holds(came, &format!("passed before rank {member} came"));
            }
        }
    }
    Ok(())
}
