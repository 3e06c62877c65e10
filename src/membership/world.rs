//! What holds the ranks of a job together: nothing, one process, or MPI.

use std::sync::Arc;

use crate::engine;
use crate::error::{Error, Result};
#[cfg(feature = "mpi")]
use crate::transport::mpi;
use crate::transport::sim::Network;
use crate::transport::{Link, PIECE, Stamp};

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

/// The messages of one job, as the engine asks for them.
#[derive(Debug)]
pub(super) struct Messages {
    pub(super) world: Arc<World>,
    pub(super) id: u128,
    pub(super) epoch: u64,
}

impl engine::Network for Messages {
    fn link(&self, set: u32, channel: u8, ranks: &[u32], me: usize) -> Result<Box<dyn Link>> {
        match &*self.world {
            World::Solo => Err(Error::argument("a job of one rank has nobody to send to")),
            World::Threads(network) => {
                let stamp = Stamp { job: self.id, epoch: self.epoch, set, channel };
                Ok(Box::new(network.link(stamp, ranks.to_vec(), me, PIECE)?))
            }
            #[cfg(feature = "mpi")]
            World::Mpi(job) => Ok(Box::new(mpi::MpiChannel::new(job, set, channel, ranks.to_vec(), PIECE)?)),
        }
    }
}
