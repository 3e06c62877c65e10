//! A job within a world: several kolos of one process, at once or one after another, never mix their messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::gather;
use super::world::MpiWorld;
use crate::error::{Error, Result};

/// Channels of a set, and sets of a job, that have tags of their own.
const CHANNELS: u32 = 1 << 4;
const SETS: u32 = 1 << 16;

/// A world, and the part of its tags that belongs to one job.
#[derive(Debug)]
pub(crate) struct MpiJob {
    world: Arc<MpiWorld>,
    id: u128,
    epoch: u64,
    /// The ranks agreed on it; no earlier job of any of them had it.
    number: u32,
}

impl MpiJob {
    /// Agrees with the other ranks that this is job `id` at `epoch`.
    ///
    /// # Collective
    ///
    /// Every rank of the world, in the same order as other uses of [`MpiWorld::allgather`].
    ///
    /// # Errors
    ///
    /// Ranks that name different jobs or epochs, and those of the allgather.
    pub(crate) fn join(world: &Arc<MpiWorld>, id: u128, epoch: u64, deadline: Duration) -> Result<Arc<Self>> {
        let mut mine = [0; 28];
        mine[..16].copy_from_slice(&id.to_le_bytes());
        mine[16..24].copy_from_slice(&epoch.to_le_bytes());
        mine[24..].copy_from_slice(&world.next_job().to_le_bytes());
        let all = world.allgather(&mine, deadline)?;
        let mut number = 0;
        for (rank, theirs) in all.iter().enumerate() {
            let Some((_, theirs)) = theirs.split_last_chunk().filter(|(same, _)| *same == &mine[..24]) else {
                return Err(Error::config(format!(
                    "rank {rank} joins another job or epoch than rank {}; every rank must start its kolos in the same \
                     order",
                    world.rank()
                )));
            };
            number = number.max(u32::from_le_bytes(*theirs));
        }
        world.jobs.store(number.wrapping_add(1), Ordering::Relaxed);
        Ok(Arc::new(Self { world: Arc::clone(world), id, epoch, number }))
    }

    /// The world that the job runs in.
    pub(crate) fn world(&self) -> &Arc<MpiWorld> {
        &self.world
    }

    /// The job's random id.
    pub(crate) fn id(&self) -> u128 {
        self.id
    }

    /// The generation of the job's membership.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The tag of a stream of this job.
    ///
    /// # Errors
    ///
    /// A set or channel that has no tag.
    pub(super) fn tag(&self, set: u32, channel: u8) -> Result<i32> {
        if set >= SETS || u32::from(channel) >= CHANNELS {
            return Err(Error::argument(format!(
                "set {set}, channel {channel}: a job has {SETS} sets of {CHANNELS} channels between hosts; create fewer \
                 process sets and communicators"
            )));
        }
        Ok(tag(self.number, set, channel, self.world.tag_limit))
    }
}

/// Spreads (job, set, channel) over the tags above the bootstrap's.
///
/// With the 31 bits of Open MPI, two streams share a tag only if their jobs are 2048 apart, with MPICH's 28 if they are
/// 256 apart. Libraries with fewer bits wrap sooner; then the stamp in each piece turns a mix-up into an error.
fn tag(number: u32, set: u32, channel: u8, limit: i32) -> i32 {
    let first = i64::from(gather::TAG) + 1;
    let stream = (i64::from(number) * i64::from(SETS) + i64::from(set)) * i64::from(CHANNELS) + i64::from(channel);
    // Between `first` and `limit`, so it fits.
    (first + stream % (i64::from(limit) - first + 1)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tags_stay_in_range_and_differ() {
        for limit in [32_767, (1 << 28) - 1, i32::MAX] {
            let mut seen = HashSet::new();
            for number in [0, 1, 2, u32::MAX] {
                for set in [0, 1, 2, SETS - 1] {
                    for channel in 0..CHANNELS as u8 {
                        let tag = tag(number, set, channel, limit);
                        assert!(tag > gather::TAG && tag <= limit);
                        assert!(seen.insert(tag) || limit == 32_767 || number == u32::MAX);
                    }
                }
            }
        }
    }
}
