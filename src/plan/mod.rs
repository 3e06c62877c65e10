//! Pure schedules: what a rank does for one agreed operation, without doing it.
//!
//! Two planes. The **slot plane** ([`direct`]) serves the members of one host: each has a slot of shared memory, and a
//! plan says what a member packs, reduces and unpacks for each chunk. The **link plane** ([`ring`], [`tree`],
//! [`chain`], [`meet`]) serves ranks that exchange messages: a plan is a list of [`Round`]s. [`moves`] has both for
//! operations that reduce nothing. [`two_level`] composes the two over hosts, and [`select`] picks.
//!
//! Everything here is a closed form of (who, how many, which step): no clock, no transport, no memory, and no
//! allocation once the caller's buffers have grown. `docs/algorithms.md` has the table of steps and bytes.

pub(crate) mod chain;
pub(crate) mod direct;
pub(crate) mod meet;
pub(crate) mod moves;
pub(crate) mod ring;
pub(crate) mod select;
pub(crate) mod tree;
pub(crate) mod two_level;

#[cfg(test)]
mod check;

mod algorithm;
mod round;
mod slot;
mod span;

pub use algorithm::Algorithm;
pub(crate) use direct::{ChunkSteps, HostOp, HostPlan, Own, ReducePart, UnpackAfter};
pub(crate) use round::{Combine, LinkPlan, Receive, Round, Send, Values};
pub(crate) use select::{Layout, Table, Thresholds};
pub(crate) use slot::SlotPlan;
pub(crate) use span::Span;
pub(crate) use two_level::{Cross, TwoLevel};
