//! A rank's handle on its job.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Ground;
use crate::error::{Error, Result};
use crate::handle::{Session, Status};
use crate::membership::Job;
use crate::process_set::ProcessSet;
use crate::tensor::{Element, SharedBuffer};

/// One rank of a job.
///
/// Cheap to clone, usable from any thread. The rank belongs to the job until the last clone, and everything made from
/// it, is dropped. That is local and legal at any time; whoever needs the rank afterwards gets an error that names it.
/// A process that exits while it holds a `Kolo` has failed.
#[derive(Clone)]
pub struct Kolo {
    /// All ranks, for named operations. Dropped before the rank leaves.
    world: ProcessSet,
    pub(crate) job: Arc<Job>,
}

impl Kolo {
    /// A handle on a job that this rank has just joined.
    ///
    /// # Collective
    /// Every rank of the job.
    pub(super) fn new(job: Arc<Job>) -> Result<Self> {
        let session = Session::new(Ground::new(Arc::clone(&job))?);
        let all = (0..job.size() as u32).collect();
        let built = session.ground.build(all, true, &mut |bytes| job.allgather(bytes))?;
        let set = session.named(built)?;
        Ok(Self { world: ProcessSet { set, session }, job })
    }

    /// All ranks of the job as a set.
    #[must_use]
    pub fn world(&self) -> &ProcessSet {
        &self.world
    }

    /// This rank's number in the job, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.job.topology.rank()
    }

    /// The number of ranks in the job.
    #[must_use]
    pub fn size(&self) -> usize {
        self.job.topology.size()
    }

    /// This rank's number among those of its host, from 0: which GPU is its own.
    #[must_use]
    pub fn local_rank(&self) -> usize {
        self.job.topology.local_rank()
    }

    /// The number of ranks on this host.
    #[must_use]
    pub fn local_size(&self) -> usize {
        self.job.topology.local_size()
    }

    /// This rank's number among those with the same local rank, one on each host.
    #[must_use]
    pub fn cross_rank(&self) -> usize {
        self.job.topology.cross_rank()
    }

    /// The number of hosts that have a rank with this local rank.
    #[must_use]
    pub fn cross_size(&self) -> usize {
        self.job.topology.cross_size()
    }

    /// The name of this host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.job.topology.host().name
    }

    /// Whether every host has equally many ranks.
    #[must_use]
    pub fn is_homogeneous(&self) -> bool {
        self.job.topology.is_homogeneous()
    }

    /// Ends the job because this rank cannot go on: every rank gets the reason from whatever it waits for, it is
    /// printed once, and shortly after all processes of the job are ended.
    ///
    /// Returns the error to return with; it is the job's first failure, which may be another rank's.
    ///
    /// ```
    /// # let kolo = kolo::init()?;
    /// fn check(kolo: &kolo::Kolo, loss: f32) -> kolo::Result<()> {
    ///     if loss.is_nan() {
    ///         return Err(kolo.abort("the loss is not a number"));
    ///     }
    ///     Ok(())
    /// }
    /// assert!(check(&kolo, 0.5).is_ok());
    /// # Ok::<(), kolo::Error>(())
    /// ```
    #[must_use = "return the error, so that this rank ends, too"]
    pub fn abort(&self, reason: impl fmt::Display) -> Error {
        self.job.fail(reason.to_string())
    }

    /// Whether the job goes on: an error once any rank has failed.
    ///
    /// Every operation of kolo checks this by itself. Call it now and then in long work between operations, so that
    /// this rank ends soon when another fails. It costs one load.
    ///
    /// # Errors
    /// The job's first failure.
    #[inline]
    pub fn check(&self) -> Result<()> {
        self.job.check()
    }

    /// What this rank knows of tensors that wait for ranks, and of what every rank does: [`ProcessSet::status`] of all
    /// ranks.
    #[must_use]
    pub fn status(&self) -> Status {
        self.world().status()
    }

    /// Asks all ranks to be patient for so long: deadlines and warnings of waits count from then on.
    ///
    /// For work on one rank that the others wait for: an evaluation, a long checkpoint.
    pub fn pause(&self, duration: Duration) {
        self.job.pause(duration);
    }

    /// `count` zeroed elements in memory that all ranks of the host have mapped: operations on them copy less.
    ///
    /// The memory comes from this rank's reserve (`KOLO_SHARED_RESERVE`) and goes back there when the buffer is
    /// dropped.
    ///
    /// ```
    /// let kolo = kolo::init()?;
    /// let mut gradient = kolo.alloc::<f32>(1000)?;
    /// gradient[7] = 1.0;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Errors
    /// The reserve is used up: how much is left, and which knob makes it larger.
    pub fn alloc<T: Element>(&self, count: usize) -> Result<SharedBuffer<T>> {
        SharedBuffer::new(&self.job.reserve, count)
    }
}

impl fmt::Debug for Kolo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kolo").field("rank", &self.rank()).field("size", &self.size()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Builder;
    use crate::os::time;

    #[test]
    fn a_pause_reaches_every_host() {
        let paused = Builder::new().hosts([2, 1]).threads(3, |kolo| {
            // Not the leader of its host: the request goes by way of the leader.
            if kolo.rank() == 1 {
                kolo.pause(Duration::from_secs(1000));
            }
            while kolo.job.control.paused_until().is_zero() {
                std::thread::yield_now();
            }
            // Nobody leaves before the word is out.
            kolo.barrier().expect("all come");
            kolo.job.control.paused_until().saturating_sub(time::monotonic())
        });
        for left in paused.expect("nobody failed") {
            assert!(left > Duration::from_secs(900) && left <= Duration::from_secs(1000), "{left:?}");
        }
    }

    #[test]
    fn a_departure_is_known_to_every_rank_of_every_host() {
        for leaver in 0..4 {
            let gone = Builder::new().hosts([2, 2]).threads(4, |kolo| {
                if kolo.rank() == leaver {
                    return;
                }
                let absence = loop {
                    match kolo.job.roster.missing(leaver) {
                        Some(absence) => break absence,
                        None => std::thread::yield_now(),
                    }
                };
                assert!(absence.is_final(), "{absence}");
            });
            gone.expect("nobody failed");
        }
    }
}
