//! What can go wrong, and what each error tells its reader: what was wrong, where, and what to do.

mod mismatch;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use mismatch::Mismatch;
pub(crate) use mismatch::{Fields, ranks_in_words};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// Errors are cheap to clone: one failure is handed to every operation that it ends.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A local argument is wrong. Nothing was sent; the job stays usable.
    #[error("{0}")]
    Argument(Arc<str>),

    /// A knob (environment, file or builder) has a value that cannot be used.
    #[error("{0}")]
    Config(Arc<str>),

    /// The ranks disagree about an operation. It failed on every rank before data moved; the job stays usable.
    #[error("{0}")]
    Mismatch(Arc<Mismatch>),

    /// A wait reached its deadline.
    #[error("{what}: gave up after {waited:?}; {missing}")]
    Timeout {
        /// The operation and the tensor that were waited for.
        what: Arc<str>,
        /// How long the wait lasted.
        waited: Duration,
        /// Which ranks were missing, and what to do.
        missing: Arc<str>,
    },

    /// A rank that the operation needs has left the job, or its process has ended: it will not come.
    #[error("{what} cannot end: {missing}")]
    Gone {
        /// The operation that needs the rank.
        what: Arc<str>,
        /// The rank, how it went, and what to do.
        missing: Arc<str>,
    },

    /// The job failed: the first failure of any rank, the same on every rank.
    #[error("{0}")]
    Failed(Arc<Failure>),

    /// An earlier failure or a late cancel left this set or communicator unusable.
    #[error("{0}")]
    Poisoned(Arc<str>),

    /// The operation was cancelled before the ranks agreed to run it.
    #[error("{0} was cancelled before it ran")]
    Cancelled(Arc<str>),

    /// What came from a rank as its object is none: it was damaged on the way, or written for another type.
    #[error("{what}: the object of rank {rank} cannot be read: {reason}")]
    Object {
        /// The operation.
        what: Arc<str>,
        /// The global rank whose object it was to be.
        rank: u32,
        /// What is wrong with it, and what to do.
        reason: Arc<str>,
    },

    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried, and what to do about it.
        what: Arc<str>,
        /// The system's answer.
        source: Arc<io::Error>,
    },

    /// MPI returned an error code.
    #[error("{call} failed: {text}")]
    Mpi {
        /// The MPI function.
        call: &'static str,
        /// MPI's own words for the code.
        text: Arc<str>,
    },
}

impl Error {
    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::Argument(text.into().into())
    }

    pub(crate) fn config(text: impl Into<String>) -> Self {
        Self::Config(text.into().into())
    }

    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into().into(), source: Arc::new(source.into()) }
    }
}

/// The first failure of a job: who failed, where, and why. Every rank gets the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The global rank that failed.
    pub rank: u32,
    /// The host it ran on.
    pub host: String,
    /// What happened, in one sentence without a full stop.
    pub cause: String,
}

impl Failure {
    pub(crate) fn new(rank: u32, host: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { rank, host: host.into(), cause: cause.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} on {} failed: {}", self.rank, self.host, self.cause)
    }
}
