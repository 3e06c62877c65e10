//! Whether a round went as `docs/failures.md` says.

use std::fmt::{self, Write as _};
use std::time::Duration;

use xtask::process::Finished;
use xtask::record::Note;

use super::fault::{Fault, Nature};
use super::round::{Place, Round, Strike};

/// What is known of a round when its job is over.
pub(crate) struct Judge<'a> {
    pub(crate) round: &'a Round,
    pub(crate) finished: Finished,
    /// What kolo told, and when it was heard.
    pub(crate) told: Vec<(Duration, String)>,
    pub(crate) notes: Vec<Note>,
    pub(crate) struck: Option<Strike>,
    pub(crate) ended: Duration,
    /// Segments that were not there before.
    pub(crate) left: Vec<String>,
}

/// What came of a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) failures: Vec<String>,
    /// Whether the culprit was named. `None`: nobody had to be.
    pub(crate) named: Option<bool>,
    /// From the fault to the first word about it on a surviving rank.
    pub(crate) detection: Option<Duration>,
    /// From the fault to the end of the job.
    pub(crate) end: Option<Duration>,
    /// All that was printed and noted.
    pub(crate) evidence: String,
}

impl Judge<'_> {
    pub(crate) fn judge(self) -> Outcome {
        let Round { fault, .. } = *self.round;
        let mut outcome = Outcome { evidence: self.evidence(), ..Outcome::default() };
        let mut complain = |bad: bool, what: String| {
            if bad {
                outcome.failures.push(what);
            }
        };
        let goes_on = fault.job_goes_on();
        complain(self.finished.timed_out(), format!("it hangs: {}", self.finished.ending()));
        complain(self.finished.success() != goes_on, format!("it ended with {}", self.finished.ending()));
        complain(!self.finished.left_behind.is_empty(), format!("left: processes {:?}", self.finished.left_behind));
        complain(!self.left.is_empty(), format!("left: segments {:?}", self.left));
        for note in self.notes.iter().filter(|note| note.word == "wrong") {
            complain(true, format!("wrong on rank {}: {}", note.rank, note.text));
        }
        let ranks_with = |word: &str| self.notes.iter().filter(|note| note.word == word).count();
        if goes_on {
            complain(ranks_with("finished") != 4, "not every rank came to the end".to_owned());
        }
        if fault.nature() == Nature::Mistake {
            complain(ranks_with("mistake") != 4, "not every rank got the mistake's error".to_owned());
        }
        let Some(at) = self.moment() else {
            complain(true, "the fault did not come about".to_owned());
            return outcome;
        };
        if fault.nature() != Nature::Harmless {
            let named = self.words().any(|(_, words)| self.names_culprit(words));
            // Hydra ends the others at once when a rank dies by a signal, and says itself who it was.
            let silenced = fault == Fault::Kill && self.finished.output.contains("BAD TERMINATION OF ONE OF YOUR");
            complain(!named && !silenced, "nobody named the culprit".to_owned());
            outcome.named = (named || !silenced).then_some(named);
            let first = self.words().map(|(at, _)| at).filter(|heard| *heard >= at).min();
            outcome.detection = first.map(|first| first - at);
        }
        let over = self.struck.and_then(|strike| strike.over).unwrap_or(self.ended);
        outcome.end = (!goes_on).then(|| over.saturating_sub(at));
        outcome
    }

    /// When the fault came.
    fn moment(&self) -> Option<Duration> {
        let own = self.notes.iter().find(|note| note.word == "fault").map(|note| note.at);
        self.struck.map(|strike| strike.at).or(own)
    }

    /// What survivors got, and what was told.
    fn words(&self) -> impl Iterator<Item = (Duration, &str)> {
        let survivor =
            |note: &&Note| note.rank != self.round.victim && ["error", "mistake"].contains(&note.word.as_str());
        let notes = self.notes.iter().filter(survivor).map(|note| (note.at, note.text.as_str()));
        notes.chain(self.told.iter().map(|(at, text)| (*at, text.as_str())))
    }

    fn names_culprit(&self, words: &str) -> bool {
        let victim = self.round.victim;
        // Between hosts only the other side is known: its name, or a rank of it.
        let host = format!("n{}", victim / 2);
        let far = self.round.fault == Fault::Cut && words.contains(&format!(" on {host} "));
        let silent = self.round.place == Place::Network && words.starts_with(&format!("kolo: {host} has not answered"));
        far || silent || words.contains(&format!("rank {victim}"))
    }

    fn evidence(&self) -> String {
        let mut text = format!("{}\n", self.finished.output);
        for note in &self.notes {
            writeln!(text, "{:?} rank {}: {} {}", note.at, note.rank, note.word, note.text).expect("a String takes it");
        }
        writeln!(text, "struck: {:?}, ended: {:?}", self.struck, self.ended).expect("a String takes it");
        text
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.failures.is_empty() { "ok" } else { "FAILED" })?;
        for (what, time) in [("seen after", self.detection), ("over after", self.end)] {
            if let Some(time) = time {
                write!(f, ", {what} {:.3} s", time.as_secs_f64())?;
            }
        }
        self.failures.iter().try_for_each(|failure| write!(f, "; {failure}"))
    }
}
