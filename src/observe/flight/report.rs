//! A diagnosis as a small table.

use std::fmt;
use std::time::Duration;

use super::diagnosis::{Diagnosis, Divergence, Standing};
use super::{End, Process};

/// Divergences that are shown in full.
const SHOWN: usize = 4;
/// Ranks that are listed one by one.
const LISTED: usize = 64;

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "job {:016x}, {} of {} ranks recorded", self.job as u64, self.ranks.len(), self.size)?;
        writeln!(
            f,
            "  {:>5}  {:<16} {:<8} {:<9} {:>7}  {:>9}  last operation",
            "rank", "host", "pid", "state", "flying", "age"
        )?;
        for standing in self.ranks.iter().take(LISTED) {
            let last = standing.last.as_ref();
            let what = last.map_or_else(
                || "none".to_owned(),
                |last| {
                    let name = last.name.as_ref().map_or_else(String::new, |name| format!("'{name}' "));
                    let place = last.place.map_or_else(String::new, |place| format!(" at {place}"));
                    format!("{name}{}{place}: {}", super::diagnosis::request(last), last.stage.name())
                },
            );
            let age = standing.age.map_or_else(|| "-".to_owned(), short);
            writeln!(
                f,
                "  {:>5}  {:<16} {:<8} {:<9} {:>7}  {age:>9}  {what}",
                standing.rank,
                standing.host,
                standing.pid,
                state(standing),
                standing.in_flight
            )?;
        }
        if self.ranks.len() > LISTED {
            writeln!(f, "  and {} ranks more", self.ranks.len() - LISTED)?;
        }
        if !self.absent.is_empty() {
            writeln!(f, "no file of {}: it may lie on its own host", ranks(&self.absent))?;
        }
        for standing in &self.ranks {
            if let End::Found(failure) = &standing.end {
                writeln!(f, "first failure, as rank {} found it: {failure}", standing.rank)?;
            }
        }
        if self.divergences.is_empty() {
            return write!(f, "the ranks did not part: nothing was begun by some that others have not done");
        }
        for (index, divergence) in self.divergences.iter().take(SHOWN).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let which = if index == 0 { "first divergence" } else { "then" };
            write!(f, "{which}: {divergence}")?;
        }
        if self.divergences.len() > SHOWN {
            write!(f, "\nand {} operations more", self.divergences.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} of set {}: {}", self.what, self.set.id, self.how.name())?;
        for view in self.views.iter().take(LISTED) {
            let stage = view.stage.map_or("absent", |stage| stage.name());
            writeln!(f, "  {:>5}  {stage:<9} {}", view.rank, view.what)?;
        }
        if self.views.len() > LISTED {
            writeln!(f, "  and {} ranks more", self.views.len() - LISTED)?;
        }
        match self.culprits.as_slice() {
            [] => write!(f, "  culprit: it cannot be told from the records"),
            culprits => write!(f, "  culprit: {}", ranks(culprits)),
        }
    }
}

/// How a rank ended, or what its process does, in a word.
fn state(standing: &Standing) -> &'static str {
    match (&standing.end, standing.process) {
        (End::Left, _) => "left",
        (End::Found(_), _) => "failed",
        (End::Open, Process::Alive) => "alive",
        (End::Open, Process::Stopped) => "stopped",
        (End::Open, Process::Ended) => "ended",
        (End::Open, Process::Elsewhere) => "unknown",
    }
}

/// "rank 3", "ranks 1, 2".
fn ranks(ranks: &[u32]) -> String {
    let list: Vec<String> = ranks.iter().take(LISTED).map(u32::to_string).collect();
    let more = if ranks.len() > LISTED { format!(" and {} more", ranks.len() - LISTED) } else { String::new() };
    format!("rank{} {}{more}", if ranks.len() == 1 { "" } else { "s" }, list.join(", "))
}

/// A span in three digits or so.
fn short(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 600.0 => format!("{s:.2} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}
