//! The slot plane's schedules, whichever it is.

use super::direct::{ChunkSteps, HostPlan};
use super::moves::SlotMoves;

/// A schedule of the slot plane, for one member of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SlotPlan {
    Direct(HostPlan),
    Moves(SlotMoves),
}

impl SlotPlan {
    /// How many chunks there are: the same on every member.
    pub(crate) fn chunks(&self) -> usize {
        match self {
            Self::Direct(plan) => plan.chunks(),
            Self::Moves(plan) => plan.chunks(),
        }
    }

    /// Whether members read what others reduced: then each says when it has.
    pub(crate) fn shares(&self) -> bool {
        match self {
            Self::Direct(plan) => plan.shares(),
            Self::Moves(_) => false,
        }
    }

    /// What this member does for `chunk`, written over `steps`.
    pub(crate) fn steps(&self, chunk: usize, steps: &mut ChunkSteps) {
        match self {
            Self::Direct(plan) => plan.steps(chunk, steps),
            Self::Moves(plan) => plan.steps(chunk, steps),
        }
    }
}

impl From<HostPlan> for SlotPlan {
    fn from(plan: HostPlan) -> Self {
        Self::Direct(plan)
    }
}

impl From<SlotMoves> for SlotPlan {
    fn from(plan: SlotMoves) -> Self {
        Self::Moves(plan)
    }
}
