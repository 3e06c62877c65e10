//! Allgather: every rank gets every rank's elements.

use crate::communicator::{Communicator, apart};
use crate::engine::Collective;
use crate::error::{Error, Result};
use crate::tensor::Element;

impl Communicator {
    /// Gathers `input` of every rank, in rank order, into `output`, which holds `size` times as many elements.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and length.
    ///
    /// # Errors
    /// [`Error::Argument`] if the lengths do not fit; else as [`allreduce`](Self::allreduce).
    pub fn allgather<T: Element>(&mut self, input: &[T], output: &mut [T]) -> Result<()> {
        if input.len().checked_mul(self.size()) != Some(output.len()) {
            return Err(Error::argument(format!(
                "allgather of {} elements from each of {} ranks into {}: the output must hold size times the input",
                input.len(),
                self.size(),
                output.len()
            )));
        }
        self.run_on::<T>(Collective::Allgather, input.len(), apart(input, output))
    }
}
