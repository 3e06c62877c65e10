//! What the ranks tell each other outside of what is timed.

use anyhow::Result;
use kolo::{Algorithm, Communicator, Kolo, ReduceOp};

/// What the method needs from the ranks together.
pub(crate) trait Ranks {
    /// Lets no rank go on before all are here: the start line of an iteration, the same for every contender.
    ///
    /// # Errors
    ///
    /// Those of the communication.
    fn barrier(&mut self) -> Result<()>;

    /// Replaces each value by its maximum over the ranks.
    ///
    /// # Errors
    ///
    /// Those of the communication.
    fn maximum(&mut self, values: &mut [f64]) -> Result<()>;

    /// The sum of a count over the ranks.
    ///
    /// # Errors
    ///
    /// Those of the communication.
    fn total(&mut self, count: u64) -> Result<u64>;
}

/// A communicator for the benchmark's own use, beside those that are measured.
#[derive(Debug)]
pub(crate) struct Control {
    communicator: Communicator,
}

impl Control {
    /// Makes the communicator.
    ///
    /// # Collective
    ///
    /// Every rank calls it at the same point.
    ///
    /// # Errors
    ///
    /// Those of kolo.
    pub(crate) fn new(kolo: &Kolo) -> Result<Self> {
        let mut communicator = kolo.communicator()?;
        // An algorithm that was asked for is for what is measured.
        communicator.set_algorithm(Algorithm::Auto)?;
        Ok(Self { communicator })
    }

    /// Every rank's values, by rank. All ranks pass equally many.
    ///
    /// # Errors
    ///
    /// Those of kolo.
    pub(crate) fn gather<T: kolo::Element>(&mut self, mine: &[T]) -> Result<Vec<Vec<T>>> {
        if mine.is_empty() {
            return Ok(vec![Vec::new(); self.communicator.size()]);
        }
        let mut all = mine.repeat(self.communicator.size());
        self.communicator.allgather(mine, &mut all)?;
        Ok(all.chunks(mine.len()).map(<[T]>::to_vec).collect())
    }
}

impl Ranks for Control {
    fn barrier(&mut self) -> Result<()> {
        Ok(self.communicator.barrier()?)
    }

    fn maximum(&mut self, values: &mut [f64]) -> Result<()> {
        Ok(self.communicator.allreduce(values, ReduceOp::Max)?)
    }

    fn total(&mut self, count: u64) -> Result<u64> {
        let mut total = [count];
        self.communicator.allreduce(&mut total, ReduceOp::Sum)?;
        Ok(total[0])
    }
}
