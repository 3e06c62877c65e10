//! How a rank makes process sets: of a list of ranks, by colour, along the axes of a mesh.

use std::sync::Arc;

use super::Kolo;
use crate::engine::{group, wish};
use crate::error::{Error, Result};
use crate::process_set::{Grid, Mesh, ProcessSet};

impl Kolo {
    /// A set of the global ranks `ranks` with named operations of its own; `None` on the ranks that are not in it.
    ///
    /// ```
    /// # kolo::threads(3, |kolo| -> kolo::Result<()> {
    /// let even = kolo.process_set(&[0, 2])?;
    /// if let Some(even) = even {
    ///     let mut data = [1.0_f32];
    ///     even.allreduce("x", &mut data, kolo::ReduceOp::Sum)?;
    ///     assert_eq!(data, [2.0]);
    /// }
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank of the job, members or not, with the same list, in the same order among communicators and process
    /// sets.
    ///
    /// # Errors
    /// [`Error::Argument`] on every rank if the list is empty, names a rank twice, or one that does not exist; else as
    /// [`communicator`](Self::communicator).
    pub fn process_set(&self, ranks: &[usize]) -> Result<Option<ProcessSet>> {
        self.check_list(ranks)?;
        self.build(ranks)
    }

    /// Cuts the ranks of the job into disjoint sets, one for each colour: a rank is in the set of those with its `color`, in the
    /// order of `key`, then of rank. A rank without a colour is in none.
    ///
    /// ```
    /// # kolo::threads(4, |kolo| -> kolo::Result<()> {
    /// let half = kolo.split(Some(kolo.rank() as u32 / 2), 0)?.expect("every rank has a colour");
    /// let mut data = [kolo.rank() as f32];
    /// half.allreduce("x", &mut data, kolo::ReduceOp::Sum)?;
    /// assert_eq!(data, [[1.0], [5.0]][kolo.rank() / 2]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank of the job, in the same order among communicators and process sets.
    ///
    /// # Errors
    /// As [`communicator`](Self::communicator).
    pub fn split(&self, color: Option<u32>, key: i64) -> Result<Option<ProcessSet>> {
        let ranks = group(&self.job.allgather(&wish(color, key))?, color);
        self.build(&ranks)
    }

    /// A grid of all ranks, for training that is parallel in more than one way: each axis has a name and a length, the last
    /// one holds neighbouring ranks. [`Mesh::axis`] is the set of the ranks that differ from this one along that axis alone.
    ///
    /// ```
    /// # kolo::threads(4, |kolo| -> kolo::Result<()> {
    /// let mesh = kolo.mesh(&[("data", 2), ("tensor", 2)])?;
    /// let mut gradient = [kolo.rank() as f32];
    /// mesh.axis("data")?.allreduce("gradient", &mut gradient, kolo::ReduceOp::Sum)?;
    /// assert_eq!(gradient, [[2.0], [4.0]][kolo.rank() % 2]); // 0 + 2 and 1 + 3
    /// assert_eq!(mesh.coordinates(), [kolo.rank() / 2, kolo.rank() % 2]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank of the job, with the same axes, in the same order among communicators and process sets.
    ///
    /// # Errors
    /// [`Error::Argument`] if the lengths do not multiply to the number of ranks, or two axes have one name; else as
    /// [`communicator`](Self::communicator).
    pub fn mesh(&self, axes: &[(&str, usize)]) -> Result<Mesh> {
        let grid = Grid::new(axes, self.rank(), self.size())?;
        let mut sets = Vec::new();
        for axis in 0..axes.len() {
            let (color, key) = grid.line(axis);
            // Every rank lies on a line of every axis.
            sets.extend(self.split(Some(color), key)?);
        }
        Ok(Mesh::new(grid, sets))
    }

    /// The set of the global ranks `ranks`; `None` on those that are not in it. Every rank of the job takes part, though not
    /// necessarily with the same list: disjoint sets may be built at once.
    fn build(&self, ranks: &[usize]) -> Result<Option<ProcessSet>> {
        let session = &self.world().session;
        if !ranks.contains(&self.rank()) {
            return session.ground.attend(&mut |bytes| self.job.allgather(bytes)).map(|()| None);
        }
        let members = ranks.iter().map(|&rank| rank as u32).collect();
        let built = session.ground.build(members, true, &mut |bytes| {
            let all = self.job.allgather(bytes)?;
            Ok(ranks.iter().map(|&rank| all[rank].clone()).collect())
        })?;
        let set = session.named(built)?;
        Ok(Some(ProcessSet { set, session: Arc::clone(session) }))
    }

    fn check_list(&self, ranks: &[usize]) -> Result<()> {
        let last = self.size() - 1;
        let wrong = match ranks.iter().enumerate().find(|&(at, rank)| *rank > last || ranks[..at].contains(rank)) {
            Some((_, rank)) if *rank > last => format!("names rank {rank}, and the ranks are 0 to {last}"),
            Some((_, rank)) => format!("names rank {rank} twice"),
            None if ranks.is_empty() => "is empty".to_owned(),
            None => return Ok(()),
        };
        Err(Error::argument(format!("the process set {ranks:?} {wrong}; list each member once")))
    }
}
