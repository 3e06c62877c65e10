//! What a rank knows of a set's operations that have not ended, as data.

use std::sync::Arc;
use std::time::Duration;

use crate::coordinator::{Stalled, without_step};
use crate::engine::Team;
use crate::membership::RankStatus;

/// What this rank knows at one moment: which tensors wait for whom, and what every rank does.
///
/// Made by [`Kolo::status`](crate::Kolo::status) and [`ProcessSet::status`](crate::ProcessSet::status).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Tensors that some ranks submitted and the ranks have not agreed to run, the oldest first. On one host those of
    /// all ranks; with several hosts the set's first rank knows of all, and the others for certain of their own alone.
    pub pending: Vec<PendingTensor>,
    /// Names of the tensors that are being reduced, or copied, at this moment; a step of an operation of several counts as
    /// its operation.
    pub running: Vec<String>,
    /// Every rank of the set, in set order.
    pub ranks: Vec<RankStatus>,
}

/// A tensor that waits for ranks. Ranks are global ranks, ascending in set order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingTensor {
    /// Its name. An operation of several steps, of which ranks wait in different ones, may stand here more than once.
    pub name: String,
    /// How long it has been pending, as far as this rank knows: one with nothing in flight counts from the first time
    /// that it looked.
    pub age: Duration,
    /// The ranks that submitted it.
    pub submitted: Vec<usize>,
    /// The ranks that did not.
    pub missing: Vec<usize>,
    /// The ranks of which this one does not know.
    pub unknown: Vec<usize>,
}

impl Status {
    pub(super) fn new(
        team: &Team,
        stalled: Vec<Stalled>,
        running: &[Arc<str>],
        standing: &dyn Fn(u32) -> RankStatus,
    ) -> Self {
        let global = |ranks: Vec<u32>| ranks.into_iter().map(|rank| team.global(rank as usize) as usize).collect();
        let pending = |stalled: Stalled| PendingTensor {
            name: without_step(&stalled.name).to_owned(),
            age: stalled.waited,
            submitted: global(stalled.present),
            missing: global(stalled.missing),
            unknown: global(stalled.unknown),
        };
        Self {
            pending: stalled.into_iter().map(pending).collect(),
            running: running.iter().map(|name| without_step(name).to_owned()).collect(),
            ranks: team.globals().iter().map(|&rank| standing(rank)).collect(),
        }
    }
}
