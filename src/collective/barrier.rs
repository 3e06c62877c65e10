//! Barrier: nobody goes on before everybody has come.

use crate::communicator::Communicator;
use crate::engine::{Collective, Operation};
use crate::error::Result;
use crate::tensor::DType;

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
