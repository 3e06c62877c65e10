//! Barrier: nobody goes on before everybody has come.

use std::sync::Arc;

use super::deferred::Nothing;
use crate::communicator::Communicator;
use crate::coordinator::Kind;
use crate::engine::{Collective, Operation};
use crate::error::Result;
use crate::handle::{Call, Handle, Memory, Options};
use crate::process_set::ProcessSet;
use crate::tensor::{DType, Piece, RawSlice, ReduceOp};

/// The name of a barrier among the named operations.
const NAME: &str = "kolo.barrier";

impl Communicator {
    /// Returns once every rank has called it.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce).
    pub fn barrier(&mut self) -> Result<()> {
        self.run(Operation::new(Collective::Barrier, DType::U8, 0, None))
    }
}

impl ProcessSet {
    /// Returns once every rank of the set has come.
    ///
    /// # Collective
    /// Every rank of the set; one call at a time on each.
    ///
    /// # Errors
    /// As [`allreduce`](Self::allreduce).
    pub fn barrier(&self) -> Result<()> {
        self.allreduce::<u8>(NAME, &mut [], ReduceOp::Max)
    }

    /// Comes to the barrier, and goes on; the handle's operation has ended once every rank of the set has come.
    ///
    /// It waits for no other named operation, of this rank or of others: those are in no order.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let all_are_here = kolo.barrier_async()?;
    /// // ... what needs nobody ...
    /// all_are_here.wait()?;
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`barrier`](Self::barrier): this one has ended before the next one of either kind begins. Ranks may differ in whether
    /// they wait.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async).
    pub fn barrier_async(&self) -> Result<Handle<()>> {
        let call = Call::slice::<u8>(Kind::Allreduce { op: ReduceOp::Max }, &[], Options::default());
        let nothing = Piece::in_place(RawSlice::of::<u8>(&[]));
        self.set.handle(NAME, &call, Memory::borrowed(nothing), Arc::new(Nothing))
    }
}
