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
    for form in ["by order", "by name"] {
        // Named, there is one of all ranks.
        if form == "by name" && !team.is_world {
            continue;
        }
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
            if form == "by order" {
                team.comm.barrier()?;
            } else {
                bench.kolo.barrier()?;
            }
            for &member in &members {
                let came = trace(bench, &round, member).exists();
                bench.holds(came, &format!("passed before rank {member} came"));
            }
        }
    }
    Ok(())
}
