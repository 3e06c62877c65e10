//! What came of all rounds, by kind of fault.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::fault::Fault;
use super::judge::Outcome;

#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: BTreeMap<Fault, Row>,
}

#[derive(Debug, Default)]
struct Row {
    rounds: usize,
    failed: usize,
    /// Rounds in which somebody was to be named, and was.
    to_name: usize,
    named: usize,
    detection: Option<Duration>,
    end: Option<Duration>,
}

impl Table {
    pub(crate) fn add(&mut self, fault: Fault, outcome: &Outcome) {
        let row = self.rows.entry(fault).or_default();
        row.rounds += 1;
        row.failed += usize::from(!outcome.failures.is_empty());
        row.to_name += usize::from(outcome.named.is_some());
        row.named += usize::from(outcome.named == Some(true));
        row.detection = row.detection.max(outcome.detection);
        row.end = row.end.max(outcome.end);
    }

    pub(crate) fn failed(&self) -> usize {
        self.rows.values().map(|row| row.failed).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.3}", time.as_secs_f64()));
        writeln!(
            f,
            "\n{:18} {:>6} {:>6} {:>7} {:>14} {:>12}",
            "kind", "rounds", "failed", "named", "slowest seen s", "slowest over"
        )?;
        for (fault, row) in &self.rows {
            let named = if row.to_name > 0 { format!("{}/{}", row.named, row.to_name) } else { "-".to_owned() };
            let (detection, end) = (seconds(row.detection), seconds(row.end));
            writeln!(f, "{fault:18} {:>6} {:>6} {named:>7} {detection:>14} {end:>12}", row.rounds, row.failed)?;
        }
        let rounds: usize = self.rows.values().map(|row| row.rounds).sum();
        writeln!(f, "{rounds} faults, {} failed", self.failed())
    }
}
