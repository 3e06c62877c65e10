//! The flight recorder: what each rank did last, in a file that outlives its process, and who was missing.
//!
//! Every rank of a job records each operation, from its submission to its end (`KOLO_FLIGHT`). After a failure, or while a
//! job hangs, [`read`] takes the files of its ranks, and [`diagnose`] names the first operation in which they differ.
//! `kolo-bench flight DIR` does both. docs/flight.md shows how to read what it prints.
//!
//! ```no_run
//! let recordings = kolo::flight::read(["/tmp/kolo-flight-1000/job-0123456789abcdef"])?;
//! let diagnosis = kolo::flight::diagnose(&recordings.recordings)?;
//! println!("{diagnosis}");
//! # Ok::<(), kolo::Error>(())
//! ```

mod diagnosis;
mod layout;
mod parse;
mod read;
mod recorder;
mod report;
mod ring;
mod store;
mod table;
#[cfg(all(test, not(kolo_loom)))]
mod tests;

use std::time::Duration;

pub use diagnosis::{Diagnosis, Divergence, How, Standing, View, diagnose};
pub use read::{Recordings, read};
pub use recorder::{Cost, cost};
pub(crate) use recorder::{Recorder, Whose};

use crate::error::Failure;
use crate::tensor::{DType, ReduceOp};

/// Records of a file, where nothing else is said.
pub(crate) const DEFAULT_RECORDS: usize = 4096;

/// What one rank left.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recording {
    /// The job's number.
    pub job: u128,
    /// The generation of the job's members.
    pub epoch: u64,
    /// The global rank.
    pub rank: u32,
    /// Ranks of the job.
    pub size: u32,
    /// The host's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// How the rank ended, as far as it could write that down itself.
    pub end: End,
    /// What its process does now, as far as this host knows.
    pub process: Process,
    /// The operations that are still in the file, oldest first.
    pub operations: Vec<Operation>,
    /// The sets that the rank took part in.
    pub sets: Vec<Set>,
    /// Whether operations were recorded before the oldest that is left.
    pub wrapped: bool,
    /// Operations that got no record, because too many were in flight.
    pub lost: u64,
    /// Records that cannot be read: they were being written, or are damaged.
    pub unreadable: u64,
    /// Names and sets that found no room in the file.
    pub unnamed: u64,
    pub(crate) start_time: u64,
    pub(crate) host_hash: u64,
}

/// How a rank ended, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It did not say: it runs, or its process was ended.
    Open,
    /// It left the job in order.
    Left,
    /// It was the first to find this failure of the job, its own or another rank's.
    Found(Failure),
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Process {
    /// It runs or sleeps.
    Alive,
    /// It is stopped, by a signal or by a debugger.
    Stopped,
    /// It has ended.
    Ended,
    /// It belongs to another host.
    Elsewhere,
}

/// The ranks of a set or communicator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Set {
    /// Its number. Sets without a rank in common may have the same.
    pub id: u32,
    /// Whether its operations have names, and not an order.
    pub named: bool,
    /// The global ranks, in set order.
    pub ranks: Vec<u32>,
}

/// One operation of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Operation {
    /// Counts the operations of a rank.
    pub number: u64,
    /// The set or communicator.
    pub set: u32,
    /// What it does: `allreduce`.
    pub kind: &'static str,
    /// The tensor's name. `None` where operations are matched by order, or the name found no room.
    pub name: Option<String>,
    /// The hash of the name; 0 where operations are matched by order.
    pub hash: u64,
    /// The element type.
    pub dtype: Option<DType>,
    /// The reduction.
    pub op: Option<ReduceOp>,
    /// Bytes of this rank's tensor.
    pub bytes: u64,
    /// The global rank of the root, or of the other side.
    pub peer: Option<u32>,
    /// The place in the set's order, from 0: of a communicator its count of operations, of named operations the entry of
    /// the log. `None` while the ranks have not agreed.
    pub place: Option<u64>,
    /// How far it came.
    pub stage: Reached,
    /// When it was submitted, since 1970 by this host's clock.
    pub submitted: Duration,
    /// From there until the ranks agreed, where it had to wait for its turn after that.
    pub agreed: Option<Duration>,
    /// Until its data began to move.
    pub started: Option<Duration>,
    /// Until it ended.
    pub ended: Option<Duration>,
}

/// How far an operation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reached {
    /// Handed in; the ranks have not agreed to run it.
    Submitted,
    /// The ranks have agreed; it waits for its turn.
    Agreed,
    /// Its data moves.
    Running,
    /// It ended well.
    Done,
    /// It ended with an error.
    Failed,
    /// This rank gave it up.
    Cancelled,
}

impl Reached {
    /// The stage in a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Agreed => "agreed",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the operation was in flight when the rank was last heard of.
    #[must_use]
    pub const fn in_flight(self) -> bool {
        matches!(self, Self::Submitted | Self::Agreed | Self::Running)
    }
}

impl Operation {
    /// The last that is known of it, since 1970.
    #[must_use]
    pub fn last(&self) -> Duration {
        let spans = [self.agreed, self.started, self.ended];
        self.submitted.saturating_add(spans.into_iter().flatten().max().unwrap_or_default())
    }
}

impl Process {
    /// The state in a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
            Self::Elsewhere => "on another host",
        }
    }
}
