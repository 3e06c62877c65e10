//! Broadcast: every rank gets the root's elements.

use crate::communicator::Communicator;
use crate::engine::Collective;
use crate::error::Result;
use crate::tensor::{Element, Piece, RawSlice};

impl Communicator {
    /// Copies `data` of rank `root` to `data` of every rank.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length and root.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if there is no rank `root`; else as
    /// [`allreduce`](Self::allreduce).
    pub fn broadcast<T: Element>(&mut self, data: &mut [T], root: usize) -> Result<()> {
        self.check_rank("broadcast root", root)?;
        let piece = Piece::in_place(RawSlice::of_mut(data));
        self.run_on::<T>(Collective::Broadcast { root }, data.len(), piece)
    }
}
