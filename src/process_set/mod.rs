//! Sets of ranks that negotiate: named tensors, in any order, from any thread.

mod mesh;

use std::fmt;
use std::sync::Arc;

pub(crate) use mesh::Grid;
pub use mesh::Mesh;

use crate::error::Result;
use crate::handle::{NamedSet, Scope, Session, Status};

/// A set of ranks with named operations of its own.
///
/// The methods of [`Kolo`](crate::Kolo) of the same names work on the set of all ranks. Sets do not disturb each other: one
/// that waits for a late rank delays no other, and the same name may be in flight in several sets.
///
/// Ranks are agreed on by name: a tensor runs once every rank of the set has submitted it, in whatever order and from
/// whatever thread. Tensors that are ready together are reduced together (fused). Cheap to clone.
#[derive(Clone)]
pub struct ProcessSet {
    pub(crate) set: Arc<NamedSet>,
    pub(crate) session: Arc<Session>,
}

impl fmt::Debug for ProcessSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessSet").field("ranks", &self.ranks()).finish_non_exhaustive()
    }
}

impl ProcessSet {
    /// This rank's index in the set.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.set.team().rank()
    }

    /// How many ranks the set has.
    #[must_use]
    pub fn size(&self) -> usize {
        self.set.team().size()
    }

    /// The global ranks of the set, in set order.
    #[must_use]
    pub fn ranks(&self) -> Vec<usize> {
        self.set.team().globals().iter().map(|&rank| rank as usize).collect()
    }

    /// The global rank of the set's rank `rank`, as roots are given; `None` if the set has no such rank.
    #[must_use]
    pub fn global_rank(&self, rank: usize) -> Option<usize> {
        self.set.team().globals().get(rank).map(|&global| global as usize)
    }

    /// The set's rank of the global rank `global`; `None` if it is not in the set.
    #[must_use]
    pub fn set_rank(&self, global: usize) -> Option<usize> {
        self.set.team().globals().iter().position(|&rank| rank as usize == global)
    }

    /// What this rank knows of the set's tensors that wait for ranks, and of what its ranks do.
    ///
    /// Local: it asks nobody and waits for nobody. It may be called from any thread, at any time, also while other
    /// threads wait, and reads a file of `/proc` for each rank of this host.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let handle = kolo.allreduce_async("loss", vec![1.0_f32], kolo::ReduceOp::Sum)?;
    /// for tensor in kolo.world().status().pending {
    ///     println!("{} waits for {:?} since {:?}", tensor.name, tensor.missing, tensor.age);
    /// }
    /// handle.wait()?;
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    #[must_use]
    pub fn status(&self) -> Status {
        self.set.status()
    }

    /// Lends tensors to operations that have all ended when it returns.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let (mut weight, mut bias) = ([1.0_f32; 6], [2.0_f32; 2]);
    /// kolo.scope(|scope| {
    ///     scope.allreduce_async("bias", &mut bias[..], kolo::ReduceOp::Sum)?;
    ///     scope.allreduce_async("weight", &mut weight[..], kolo::ReduceOp::Average)?;
    ///     Ok(())
    /// })?;
    /// assert_eq!((weight[0], bias[0]), (1.0, 4.0));
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `body` returns, or else the first error of an operation begun in it.
    pub fn scope<'env, R>(&self, body: impl for<'s> FnOnce(&'s Scope<'s, 'env>) -> Result<R>) -> Result<R> {
        Scope::run(&self.set, body)
    }
}
