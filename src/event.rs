//! What happens in a job, as one small type that every layer can report into, and the one function that talks to users.

use std::fmt;
use std::io::Write as _;

use crate::error::Failure;

/// Something that an observer may want to know. Layers below report it; readers (timeline, metrics) stand above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A rank came into the job.
    Joined { rank: u32 },
    /// A rank left the job in order.
    Left { rank: u32 },
    /// The job failed.
    Failed(Failure),
}

/// Takes events. It must be quick and must not call back into the job.
pub(crate) trait Sink: Send + Sync + fmt::Debug {
    fn event(&self, event: &Event);
}

/// Drops every event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nobody;

impl Sink for Nobody {
    fn event(&self, _event: &Event) {}
}

/// The target of kolo's log records.
const TARGET: &str = "kolo";

/// Tells the user about a failure: through the logger if it takes errors, else on stderr. Never lost, never twice.
pub(crate) fn tell_error(text: &str) {
    if log::log_enabled!(target: TARGET, log::Level::Error) {
        log::error!(target: TARGET, "{text}");
    } else {
        to_stderr(text);
    }
}

/// Tells the user about something odd: through the logger if there is one (which may drop it), else on stderr.
pub(crate) fn tell_warning(text: &str) {
    if log::max_level() == log::LevelFilter::Off {
        to_stderr(text);
    } else {
        log::warn!(target: TARGET, "{text}");
    }
}

/// One write a message, so that launchers, which pass on what they read, keep it whole.
fn to_stderr(text: &str) {
    let line = format!("kolo: {text}\n");
    // A closed stderr is nobody listening, not a reason to fail.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}
