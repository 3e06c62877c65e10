//! The link plane's vocabulary: rounds of messages over a work area.
//!
//! A schedule runs over a **work area** of the operation's elements (for a slice in the two-level scheme: of that
//! slice). Ranks are positions `0..n` of whoever takes part; [`Round::rename`] turns them into set ranks.
//!
//! A rank does a round in this order: `load`; then all sends and receives, concurrently; then `finish`; then the next
//! round. A message sent in round r is received in round r of its receiver, so rounds make progress whatever the
//! transport's buffering. Within a round no two spans of sends and receives overlap where one of them is written, so
//! their order does not matter. Between one pair of ranks messages match by order. Empty spans are left out on both
//! sides alike.

use super::chain::Chain;
use super::meet::Meeting;
use super::moves::PairMoves;
use super::ring::Ring;
use super::span::Span;
use super::tree::Tree;

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Partial reductions, in the accumulator's type where the engine keeps one (f32 for 16-bit types).
    Partial,
    /// Results, after [`Round::finish`] (or plain data that nobody reduces), in the element's type.
    Final,
}

/// A span of the work area, sent to a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Send {
    pub(crate) to: usize,
    pub(crate) span: Span,
    pub(crate) values: Values,
}

/// What happens with a received span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combine {
    /// Carries [`Values::Final`]: it replaces the span.
    Copy,
    /// Carries [`Values::Partial`]: the span, loaded before, becomes span (+) received.
    Reduce,
    /// Carries [`Values::Partial`]: the span, not loaded before, becomes received (+) own contributions in order.
    Extend,
}

impl Combine {
    /// What the message carries.
    pub(crate) const fn values(self) -> Values {
        match self {
            Self::Copy => Values::Final,
            Self::Reduce | Self::Extend => Values::Partial,
        }
    }
}

/// A span of the work area, received from a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receive {
    pub(crate) from: usize,
    pub(crate) span: Span,
    pub(crate) combine: Combine,
}

/// What one rank does in one round. May be empty: then the rank goes on at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Before all else: fill this span of the work area with own contributions (own input; in the two-level scheme
    /// the reduction over the host's members).
    pub(crate) load: Option<Span>,
    pub(crate) sends: Vec<Send>,
    pub(crate) receives: Vec<Receive>,
    /// After all receives: this span holds every contribution; divide, scale and round it, once.
    pub(crate) finish: Option<Span>,
}

impl Round {
    pub(crate) fn clear(&mut self) {
        self.load = None;
        self.sends.clear();
        self.receives.clear();
        self.finish = None;
    }

    pub(crate) fn load(&mut self, span: Span) {
        self.load = Some(span).filter(|span| !span.is_empty());
    }

    pub(crate) fn finish(&mut self, span: Span) {
        self.finish = Some(span).filter(|span| !span.is_empty());
    }

    pub(crate) fn send(&mut self, to: usize, span: Span, values: Values) {
        if !span.is_empty() {
            self.sends.push(Send { to, span, values });
        }
    }

    pub(crate) fn receive(&mut self, from: usize, span: Span, combine: Combine) {
        if !span.is_empty() {
            self.receives.push(Receive { from, span, combine });
        }
    }

    /// Replaces positions by what `name` says, such as set ranks.
    pub(crate) fn rename(&mut self, name: impl Fn(usize) -> usize) {
        for send in &mut self.sends {
            send.to = name(send.to);
        }
        for receive in &mut self.receives {
            receive.from = name(receive.from);
        }
    }
}

/// A schedule of the link plane, for one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkPlan {
    Ring(Ring),
    Tree(Tree),
    Chain(Chain),
    Meeting(Meeting),
    Pairs(PairMoves),
}

impl LinkPlan {
    /// How many rounds there are: the same on every rank.
    pub(crate) fn rounds(&self) -> usize {
        match self {
            Self::Ring(plan) => plan.rounds(),
            Self::Tree(plan) => plan.rounds(),
            Self::Chain(plan) => plan.rounds(),
            Self::Meeting(plan) => plan.rounds(),
            Self::Pairs(plan) => plan.rounds(),
        }
    }

    /// What this rank does in round `index`, written over `round`.
    pub(crate) fn round(&self, index: usize, round: &mut Round) {
        round.clear();
        match self {
            Self::Ring(plan) => plan.round(index, round),
            Self::Tree(plan) => plan.round(index, round),
            Self::Chain(plan) => plan.round(index, round),
            Self::Meeting(plan) => plan.round(index, round),
            Self::Pairs(plan) => plan.round(index, round),
        }
    }
}

impl From<Ring> for LinkPlan {
    fn from(plan: Ring) -> Self {
        Self::Ring(plan)
    }
}

impl From<Tree> for LinkPlan {
    fn from(plan: Tree) -> Self {
        Self::Tree(plan)
    }
}

impl From<PairMoves> for LinkPlan {
    fn from(plan: PairMoves) -> Self {
        Self::Pairs(plan)
    }
}

impl From<Chain> for LinkPlan {
    fn from(plan: Chain) -> Self {
        Self::Chain(plan)
    }
}

impl From<Meeting> for LinkPlan {
    fn from(plan: Meeting) -> Self {
        Self::Meeting(plan)
    }
}
