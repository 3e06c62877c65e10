//! Advances collectives: nothing here blocks, everything is polled.
//!
//! An operation in flight is a state machine with `poll`, which does at most a chunk of work. Whoever has time polls: a
//! thread that waits, the background thread, or the seeded scheduler of the tests. [`wait`] holds the one loop that waits.

#![allow(unsafe_code, reason = "the order of a plan's steps is what makes a slot or a buffer readable or writable")]

mod adasum;
mod channel;
mod choose;
mod cross;
mod exchange;
mod farewell;
mod fold;
mod ground;
mod host;
mod inline;
mod inquiry;
mod message;
#[cfg(test)]
mod mistakes;
mod operation;
mod patience;
mod regions;
mod ringing;
mod rounds;
mod routes;
#[cfg(test)]
mod seeded;
mod sizing;
mod slice;
mod split;
mod stores;
mod team;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod wait;

pub(crate) use channel::Channel;
pub(crate) use ground::{Built, Ground};
pub(crate) use message::{Receiving, Sending};
pub(crate) use operation::{Collective, MAX_ROW, Operation, Pieces, Prescale, mix, reported_move};
pub(crate) use patience::Patience;
pub(crate) use sizing::{Sizing, Told};
pub(crate) use split::{group, wish};
pub(crate) use team::Team;
pub(crate) use wait::{BLAMED, Doubt, Idle, Port, block};

/// What a poll came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step<T = ()> {
    /// Finished.
    Ready(T),
    /// Moved on; poll again.
    Progress,
    /// Waits for a peer.
    Pending,
}
