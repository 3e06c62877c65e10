//! What holds the ranks of a job together: nothing, one process, or MPI.

use crate::error::{Error, Result};
use crate::transport::sim::Network;
use crate::transport::{Link, Stamp};

#[cfg(feature = "mpi")]
use {crate::transport::mpi, std::sync::Arc};

/// The world that a job lives in.
#[derive(Debug)]
pub(crate) enum World {
    /// One rank, no launcher.
    Solo,
    /// Ranks are threads of this process.
    Threads(Network),
    /// Ranks are processes that an MPI launcher started.
    #[cfg(feature = "mpi")]
    Mpi(Arc<mpi::MpiJob>),
}

impl World {
    /// A stream of messages between the ranks `ranks` (in set order), of which the rank `me` is one. `piece`
    /// is the largest message in bytes.
    ///
    /// # Errors
    /// A job without messages, or no room for another stream.
    pub(crate) fn link(&self, stamp: Stamp, ranks: Vec<u32>, me: u32, piece: usize) -> Result<Box<dyn Link>> {
        match self {
            Self::Solo => Err(Error::argument("a job of one rank has nobody to send to")),
            Self::Threads(network) => {
                let me = ranks.iter().position(|&rank| rank == me).unwrap_or(usize::MAX);
                Ok(Box::new(network.link(stamp, ranks, me, piece)?))
            }
            #[cfg(feature = "mpi")]
            Self::Mpi(job) => Ok(Box::new(mpi::MpiChannel::new(job, stamp.set, stamp.channel, ranks, piece)?)),
        }
    }

    /// Whether a failure is for this job to tell. In-process jobs return it to their caller, who tells.
    pub(super) fn tells(&self) -> bool {
        !matches!(self, Self::Threads(_))
    }

    /// Whether a failure must end processes that do not notice it themselves.
    pub(super) fn has_processes(&self) -> bool {
        !matches!(self, Self::Solo | Self::Threads(_))
    }

    /// Keeps the end of this process from waiting for peers that will not come.
    pub(super) fn mark_failed(&self, why: &str) {
        match self {
            Self::Solo | Self::Threads(_) => {}
            #[cfg(feature = "mpi")]
            Self::Mpi(job) => job.world().mark_failed(why),
        }
        let _ = why;
    }

    /// Ends every process of the job. Returns where there is nobody to end.
    pub(super) fn abort(&self) {
        match self {
            Self::Solo | Self::Threads(_) => {}
            #[cfg(feature = "mpi")]
            Self::Mpi(job) => {
                let error = job.world().abort(1);
                log::debug!("MPI did not end the job: {error}");
            }
        }
    }
}
