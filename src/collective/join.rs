//! Join: a rank without data steps aside, and the others go on.

use std::time::Duration;

use crate::error::Result;
use crate::handle::Handle;
use crate::process_set::ProcessSet;

impl ProcessSet {
    /// Says that this rank has no more data, and waits until every rank of the set has said so. Returns the global rank that
    /// was the last: its model has seen the most, so its state is the one to broadcast.
    ///
    /// Until then the other ranks' operations in this set run without this rank. It contributes what leaves the others'
    /// elements as they are ([`ReduceOp::identity`](crate::ReduceOp::identity)), an average divides by the ranks that have
    /// not joined, gathers and alltoalls get no rows of it, and what it would receive is dropped. What needs it as its root,
    /// an Adasum of a group, and a group of reduce-scatters, fails on the others with [`Error::Mismatch`](crate::Error::Mismatch), which says that the
    /// rank has joined. Of this rank's own tensors nothing changes.
    ///
    /// Operations that this rank submitted before run first. It submits none while it waits, in this set: that is an
    /// [`Error::Argument`](crate::Error::Argument).
    ///
    /// ```
    /// # kolo::threads(3, |kolo| -> kolo::Result<()> {
    /// // Rank 0 has one batch, rank 2 has three.
    /// for batch in 0..=kolo.rank() {
    ///     let mut gradient = [batch as f32];
    ///     kolo.allreduce("gradient", &mut gradient, kolo::ReduceOp::Average)?;
    ///     assert_eq!(gradient, [batch as f32]);
    /// }
    /// let last = kolo.join()?;
    /// assert_eq!(last, 2);
    /// kolo.broadcast("model", &mut [0.5_f32], last)?;
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank of the set, once it has no more data; one call at a time on each.
    ///
    /// # Errors
    /// [`Error::Timeout`](crate::Error::Timeout) naming the ranks that have not joined, once nothing has moved in the set for
    /// `KOLO_DEADLINE`; else as [`allreduce`](Self::allreduce).
    pub fn join(&self) -> Result<usize> {
        self.set.join(None)
    }

    /// As [`join`](Self::join), with another deadline: how long nothing may move in the set.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn join_with(&self, deadline: Duration) -> Result<usize> {
        self.set.join(Some(deadline))
    }

    /// As [`join`](Self::join), but returns at once; the handle waits for the others. Dropping the handle takes nothing back.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn join_async(&self) -> Result<Handle<usize>> {
        self.set.join_async(None)
    }
}
