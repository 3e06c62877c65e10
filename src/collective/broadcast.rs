//! Broadcast: every rank gets the root's elements.

use crate::communicator::Communicator;

use crate::coordinator::Kind;
use crate::engine::Collective;
use crate::error::Result;
use crate::handle::{Call, Handle, Memory, Options, Scope, ScopedHandle};
use crate::process_set::ProcessSet;
use crate::tensor::{Element, Piece, RawSlice, Tensor};

impl Communicator {
    /// Copies `data` of rank `root` to `data` of every rank.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type, length and root.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument)(crate::Error::Argument) if there is no rank `root`; else as
    /// [`allreduce`](Self::allreduce).
    pub fn broadcast<T: Element>(&mut self, data: &mut [T], root: usize) -> Result<()> {
        self.check_root("broadcast root", root)?;
        let piece = Piece::in_place(RawSlice::of_mut(data));
        self.run_on::<T>(Collective::Broadcast { root }, data.len(), piece)
    }
}

impl ProcessSet {
    /// Copies the tensor `name` of rank `root` to every rank of the set, and waits for it.
    ///
    /// `root` is a global rank, also in a set that has its own numbers.
    ///
    /// # Collective
    /// Every rank of the set submits the name, with the same type, length and root; in any order among names, from any
    /// thread.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if `root` is not in the set; else as [`allreduce`](Self::allreduce).
    pub fn broadcast<T: Element>(&self, name: &str, data: &mut [T], root: usize) -> Result<()> {
        let kind = Kind::Broadcast { root: self.set.root(name, "broadcast from", root)? };
        let call = Call::slice(kind, data, Options::default());
        self.set.blocking(name, &call, Memory::borrowed(Piece::in_place(RawSlice::of_mut(data))))
    }

    /// Begins to copy the tensor `name` of rank `root` to every rank of the set; the handle gives it back.
    ///
    /// # Collective
    /// As [`broadcast`](Self::broadcast); the tensor's shape must be equal on every rank, too.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`](crate::Error::Argument) if `root` is not in the set.
    pub fn broadcast_async<B>(&self, name: &str, tensor: B, root: usize) -> Result<Handle<B>>
    where
        B: Tensor + Send + 'static,
    {
        let kind = Kind::Broadcast { root: self.set.root(name, "broadcast from", root)? };
        self.set.owned(name, kind, tensor, Options::default())
    }
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Begins to copy the borrowed tensor `name` of rank `root` to every rank of the set.
    ///
    /// # Collective
    /// As [`ProcessSet::broadcast_async`].
    ///
    /// # Errors
    /// As [`ProcessSet::broadcast_async`].
    pub fn broadcast_async<T: Element>(
        &'scope self,
        name: &str,
        data: &'env mut [T],
        root: usize,
    ) -> Result<ScopedHandle<'scope>> {
        let kind = Kind::Broadcast { root: self.set.root(name, "broadcast from", root)? };
        let call = Call::slice(kind, data, Options::default());
        self.begin(name, &call, Memory::borrowed(Piece::in_place(RawSlice::of_mut(data))))
    }
}
