//! All cases of all jobs: which there were, and which failed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::report::{Bits, Failed, Report};

/// Failures that are shown; more are counted.
const SHOWN: usize = 30;

/// The types, as the columns of the matrix.
const TYPES: [&str; 14] =
    ["f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bool", "none"];

/// What is known so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Every case once, however many ranks and jobs ran it.
    cases: HashSet<String>,
    /// Cases, and jobs as wholes.
    failed: HashSet<String>,
    shown: Vec<String>,
    bits: Known,
    /// How many results had to have the bits of one before, and had them.
    compared: usize,
}

/// The digest of what has the same bits wherever it is computed, and the case that had it first.
type Known = HashMap<String, (u64, String)>;

impl Tally {
    /// Adds what the ranks of a job report.
    pub(crate) fn add(&mut self, reports: &[Report]) {
        let mut ran: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut here = Known::new();
        for (rank, report) in reports.iter().enumerate() {
            for case in &report.ran {
                ran.entry(&case.key).or_insert((case.ranks, 0)).1 += 1;
                for bits in &case.bits {
                    let known = if bits.here_only { &mut here } else { &mut self.bits };
                    match compare(known, bits, &case.key) {
                        Ok(again) => self.compared += usize::from(again),
                        Err(why) => self.fail(&case.key, rank, &why),
                    }
                }
            }
            for Failed { key, rank, why } in &report.failed {
                self.fail(key, *rank, why);
            }
        }
        for (key, (ranks, came)) in ran {
            if ranks != came {
                self.fail(key, 0, &format!("{came} ranks ran it, not {ranks}"));
            }
            if !self.cases.contains(key) {
                self.cases.insert(key.to_owned());
            }
        }
    }

    /// Notes a failure that is not a case's: a job that did not come to its end.
    pub(crate) fn job_failed(&mut self, place: &dyn fmt::Display, why: &str) {
        self.failed.insert(format!("the job on {place}"));
        self.shown.push(format!("FAILED: the job on {place}: {why}"));
    }

    fn fail(&mut self, key: &str, rank: usize, why: &str) {
        self.failed.insert(key.to_owned());
        self.shown.push(format!("FAILED: {key}: on rank {rank}: {why}"));
    }

    pub(crate) fn cases(&self) -> usize {
        self.cases.len()
    }

    pub(crate) fn failed(&self) -> usize {
        self.failed.len()
    }

    /// What there is to show of failures, and how to run one again.
    pub(crate) fn failures(&self, seed: u64) -> String {
        let mut text: String = self.shown.iter().take(SHOWN).map(|line| format!("{line}\n")).collect();
        if self.shown.len() > SHOWN {
            text += &format!("and {} more\n", self.shown.len() - SHOWN);
        }
        if !self.shown.is_empty() {
            text += &format!(
                "again, on the same data: KOLO_SEED={seed} cargo xtask conformance --only 'WORDS OF THE CASE'\n"
            );
        }
        text
    }
}

/// Whether these bits were known; an error if others were.
fn compare(known: &mut Known, bits: &Bits, key: &str) -> Result<bool, String> {
    match known.get(&bits.of) {
        None => {
            known.insert(bits.of.clone(), (bits.digest, key.to_owned()));
            Ok(false)
        }
        Some((digest, _)) if *digest == bits.digest => Ok(true),
        Some((_, first)) => Err(format!("other bits of {} than '{first}' has", bits.of)),
    }
}

impl fmt::Display for Tally {
    /// The cases by operation and type, the results that were compared, and the line that counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<&str, [usize; TYPES.len()]> = BTreeMap::new();
        for key in &self.cases {
            let mut words = key.split([' ', ',']);
            let row = rows.entry(words.next().unwrap_or_default()).or_default();
            let dtype = words.next().unwrap_or_default();
            let column = TYPES.iter().position(|name| *name == dtype).expect("the second word of a key is a type");
            row[column] += 1;
        }
        write!(f, "{:24}", "cases")?;
        TYPES.iter().try_for_each(|name| write!(f, "{name:>6}"))?;
        writeln!(f, "{:>8}", "all")?;
        for (operation, row) in rows {
            write!(f, "{operation:24}")?;
            for cases in row {
                if cases == 0 { write!(f, "{:>6}", "-")? } else { write!(f, "{cases:>6}")? }
            }
            writeln!(f, "{:>8}", row.iter().sum::<usize>())?;
        }
        writeln!(f, "{} results had to have the bits of an earlier one, and had them", self.compared)?;
        writeln!(f, "{} cases, {} failed", self.cases(), self.failed())
    }
}
