//! What happens in a job, as one small type that every layer can report into, and the one function that talks to users.

use std::fmt;
use std::io::Write as _;
use std::time::Duration;

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
    /// This rank has left, and it was the last of its host, where all left in order.
    Closed,
    /// This rank takes part in a set of the global ranks `ranks`.
    Set { id: u32, named: bool, ranks: Vec<u32> },
}

/// Takes events. It must be quick and must not call back into the job.
pub(crate) trait Sink: Send + Sync + fmt::Debug {
    fn event(&self, event: &Event);

    /// An operation came up. The mark stands for it in what is reported of it later.
    fn begun(&self, _operation: &Begun<'_>) -> Mark {
        Mark::NONE
    }

    /// An operation reached a stage.
    ///
    /// `at` is [`Begun::at`] of that moment: given for all stages of an operation, or for none.
    fn reached(&self, _mark: Mark, _stage: Stage, _at: Option<Duration>) {}

    /// Where somebody finds what was observed of the job, in the words of an advice.
    fn whereabouts(&self) -> Option<String> {
        None
    }
}

/// An operation, as it comes up on this rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun<'a> {
    /// Of the set or communicator, see [`Event::Set`].
    pub(crate) set: u32,
    /// Empty where operations are matched by order.
    pub(crate) name: &'a str,
    pub(crate) verb: Verb,
    /// The codes of the element type and of the reduction; 0 for none.
    pub(crate) dtype: u8,
    pub(crate) op: u8,
    /// The global rank of the root, or of the other side.
    pub(crate) peer: Option<u32>,
    pub(crate) bytes: u64,
    /// The place in the set's order, where that decides: it has started then. `None`: the ranks have to agree first.
    pub(crate) place: Option<u64>,
    /// The moment by the monotonic clock, if the reporter knows it anyway; a look at a clock is most of what a report costs.
    pub(crate) at: Option<Duration>,
}

/// Stands for an operation at the sink that gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) u64);

impl Mark {
    /// An operation that is not observed.
    pub(crate) const NONE: Self = Self(0);
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The ranks agreed to run it at this place of the set's order.
    Agreed(u64),
    /// Its data begins to move, at this place of the set's order.
    Started(u64),
    Done,
    Failed,
    /// This rank gave it up.
    Cancelled,
}

macro_rules! verbs {
    ($($verb:ident = $code:literal, $name:literal;)*) => {
        /// What an operation does. The codes stand in files.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Verb {
            $($verb = $code,)*
        }

        impl Verb {
            pub(crate) const ALL: &[Self] = &[$(Self::$verb),*];

            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$verb => $name,)*
                }
            }
        }
    };
}

verbs! {
    Allreduce = 1, "allreduce";
    Broadcast = 2, "broadcast";
    Allgather = 3, "allgather";
    ReduceScatter = 4, "reduce_scatter";
    Barrier = 5, "barrier";
    Send = 6, "send";
    Receive = 7, "receive";
    Reduce = 8, "reduce";
    Gather = 9, "gather";
    Scatter = 10, "scatter";
    Alltoall = 11, "alltoall";
    Join = 12, "join";
    Sizes = 13, "sizes";
    Refused = 14, "a refused call";
}

impl Verb {
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|verb| *verb as u8 == code)
    }
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
