//! Moves bytes between ranks. Nothing in here knows tensors, negotiation or schedules.
//!
//! Between hosts, bytes travel over a [`Link`]: MPI in a real job, [`sim`] when ranks are threads of one process.
#![allow(unsafe_code, reason = "MPI and shared memory are spoken to here")]

pub(crate) mod bootstrap;
#[cfg(all(test, feature = "mpi", not(kolo_loom)))]
mod fuzz;
pub(crate) mod launcher;
pub(crate) mod link;
#[cfg(feature = "mpi")]
pub(crate) mod mpi;
pub(crate) mod shm;
pub(crate) mod sim;
#[cfg(feature = "mpi")]
mod stamp;

use crate::error::{Error, Result};

/// The default payload of one piece, in bytes: large enough to reach a network's bandwidth, small enough to overlap.
pub(crate) const PIECE: usize = 128 << 10;

/// Ordered messages between the members of a set. Members are named by their set rank.
///
/// One link belongs to one (job, epoch, set, channel). Matching is by order for each (from, to): the n-th piece sent
/// is the n-th piece received. Two links never see each other's pieces.
///
/// # Required
///
/// An implementation must keep these promises, and the engine relies on no others:
///
/// 1. No call blocks, and none waits for a peer. `Ok(false)` means "ask again later" and has no effect that a peer or
///    a later call could see.
/// 2. `try_send` copies: once it returns `Ok(true)` the caller may change or free `payload`. Neither the caller's
///    memory nor that of `take` is ever known to MPI or to a peer.
/// 3. A piece arrives once, whole, with the length it was sent with (zero included) and in order for its (from, to).
///    `take` is called exactly once when `try_recv` returns `Ok(true)`, and never otherwise.
/// 4. A sent piece arrives without further calls on the receiving link other than `try_recv`, as long as the sending
///    side calls `progress` until [`idle`](Link::idle). Sends to one peer never wait for another peer.
/// 5. Sends in flight to one peer are bounded, so that a peer that does not receive holds up its sender by
///    `Ok(false)`, not by memory.
/// 6. Sending to oneself is an argument error, and so are an index out of range and a payload above
///    [`piece`](Link::piece). They leave the link usable.
/// 7. Any other `Err` is final: the stream may have lost a piece, every later call fails too, and memory that a
///    transport may still be using is leaked and not freed.
/// 8. A piece that belongs to another job, epoch, set or place in the order is an error that names the sender and both
///    values. It is never handed to `take`.
/// 9. Dropping a link is local: it waits for nobody beyond a short bound, and a peer that still needs it runs into its
///    own deadline.
pub(crate) trait Link: Send {
    /// The largest payload of one piece, in bytes. Equal on every member.
    fn piece(&self) -> usize;

    /// Copies `payload` and starts sending it to member `to`. `false`: too many are in flight, try again later.
    fn try_send(&mut self, to: usize, payload: &[u8]) -> Result<bool>;

    /// Hands the next piece from member `from` to `take`. `false`: none has arrived yet.
    fn try_recv(&mut self, from: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Moves pending sends on, and notices the ones that are done.
    fn progress(&mut self) -> Result<()>;

    /// Whether nothing that this member sent is still in flight, as of the last `progress`.
    fn idle(&self) -> bool;
}

/// What a piece belongs to. Travels with every piece and is checked on arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    /// The job: random, equal on every rank.
    pub(crate) job: u128,
    /// The generation of the job's membership.
    pub(crate) epoch: u64,
    /// The set.
    pub(crate) set: u32,
    /// The independent stream of the set (its collectives, its negotiation, ...).
    pub(crate) channel: u8,
}

/// The checks of promise 6, shared by the implementations.
fn check_call(me: usize, members: usize, piece: usize, peer: usize, bytes: usize) -> Result<()> {
    if peer >= members || peer == me {
        return Err(Error::argument(format!(
            "member {me} of {members} cannot exchange messages with member {peer}; name another member of the set"
        )));
    }
    if bytes > piece {
        return Err(Error::argument(format!(
            "a piece of {bytes} bytes; this link carries at most {piece}, cut it smaller"
        )));
    }
    Ok(())
}
