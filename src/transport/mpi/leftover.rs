//! What streams that end in the middle leave behind, and how it comes to an end.
//!
//! A set can end while messages are under way: a late cancel, a failed operation. A large message that MPI has begun to
//! send waits until its receiver takes it, and after such an end no receiver ever will. It cannot be withdrawn either:
//! MPI cancels receives, but not sends. And while it waits, MPI must not be finalised.
//!
//! # Protocol
//!
//! States of a transfer, and who moves it on:
//!
//! ```text
//! in a channel ──channel dropped──▶ withdrawn ──over, within PATIENCE──▶ gone
//!                                       │
//!                                       └── still pending ──▶ parked ──over──▶ gone
//! ```
//!
//! 1. *Dropping a channel* asks MPI to withdraw its receives, and moves its sends on for a moment. What is pending then
//!    is parked here. Nobody waits for it; whoever makes or drops a channel later takes off what is over by then.
//! 2. *At the exit* a rank has no channel any more, so each message that still comes in is one that nobody will ask for.
//!    All ranks gather, and tell how much each has parked. If that is nothing, MPI is finalised: this is the only step
//!    of a job whose sets all ended in order.
//! 3. Otherwise every rank *takes* what comes, whatever it is, into memory of its own that nobody looks at, and moves
//!    its own parked transfers on, until those are over or [`SETTLE`] has passed.
//! 4. All ranks gather a second time and tell what is left. A rank goes on to take while it waits there, so it may come
//!    early: the others' sends need it. After the gathering all sends of all ranks are over, or some rank has said that
//!    its are not, and then no rank finalises. Such a rank tells the user before it comes to the gathering: the others
//!    end as soon as they hear of it, and then the launcher may end this one at any moment.
//!
//! Why no message is missed: from one rank to another, messages are matched in the order in which they were sent. The
//! gatherings' own messages are sent after all that was left behind. So a rank that sees such a message first has taken
//! everything before it, and it leaves it to the gathering.
//!
//! Why no message is stolen: step 3 begins when all ranks are at their exit, and none of them has a channel.
//!
//! Scenarios:
//!
//! * *Both ends gave up*, each with its sends full: both park, both take the other's at the exit.
//! * *A receive that MPI cannot withdraw*, because a message has matched it: it is parked as well, and over when the
//!   message has come, which the sender's parked send sees to.
//! * *A peer that works on for an hour*: a rank waits for it in step 2, as it does in any orderly exit, without a
//!   deadline. The deadline of step 3 counts from when all are there.
//! * *A peer that fails meanwhile*: it does not come to the gathering, and the launcher ends the job, as always.
//!
//! # An MPI of the application
//!
//! The application finalises it, at a time that kolo does not see, so there is no step 2. What is parked when the last
//! kolo of the process ends is told as a warning. The standard leaves it open what `MPI_Finalize` does then.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::call::{Comm, Serial, serial};
use super::staging::{Buffer, Progress, Transfer};
use super::world::{MpiWorld, Pace};
use super::{exit, gather};
use crate::error::{Error, Result};

/// How long dropping a channel waits for MPI to give its memory back.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the ranks, once all are at their exit, work on what was left behind. A few pieces for each peer and set.
const SETTLE: Duration = if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(30) };

static LEFT: Mutex<Left> = Mutex::new(Left { parked: Transfers::none(), worlds: Vec::new() });

struct Left {
    parked: Transfers,
    /// The communicators that messages may still come in on, with this rank and the number of ranks.
    worlds: Vec<(Comm, usize, usize)>,
}

/// Transfers that nobody needs, except that MPI must be done with them.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    pub(super) sends: Vec<Transfer>,
    pub(super) receives: Vec<Transfer>,
}

impl Transfers {
    const fn none() -> Self {
        Self { sends: Vec::new(), receives: Vec::new() }
    }

    fn len(&self) -> usize {
        self.sends.len() + self.receives.len()
    }

    /// Takes off what is over. After an error the others are leaked.
    fn reap(&mut self, mpi: &Serial) -> Result<()> {
        for send in mem::take(&mut self.sends) {
            if let Progress::Pending(send) = send.sent(mpi)? {
                self.sends.push(send);
            }
        }
        for receive in mem::take(&mut self.receives) {
            if let Progress::Pending(receive) = receive.received(mpi)? {
                self.receives.push(receive);
            }
        }
        Ok(())
    }
}

fn lock() -> MutexGuard<'static, Left> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that messages may come in on `comm`, for as long as MPI runs.
pub(super) fn watch(comm: Comm, rank: usize, size: usize) {
    lock().worlds.push((comm, rank, size));
}

/// Gets kolo's memory back from MPI, as far as it comes at once or soon; parks the rest.
pub(super) fn withdraw(mut transfers: Transfers) -> Result<()> {
    {
        let mpi = serial();
        // An application that finalises its own MPI too early has ended all transfers in its own way.
        if mpi.finalized()? {
            return Ok(());
        }
        for receive in &mut transfers.receives {
            receive.cancel(&mpi)?;
        }
    }
    let end = Instant::now() + PATIENCE;
    let mut pace = Pace::new();
    loop {
        transfers.reap(&serial())?;
        if transfers.len() == 0 {
            return tidy();
        }
        if Instant::now() >= end {
            break;
        }
        pace.wait();
    }
    log::debug!(
        "a stream ended in the middle: {} sends that no peer has received and {} receives that MPI keeps",
        transfers.sends.len(),
        transfers.receives.len()
    );
    tidy()?;
    let mut left = lock();
    left.parked.sends.append(&mut transfers.sends);
    left.parked.receives.append(&mut transfers.receives);
    Ok(())
}

/// Frees what has come to its end since it was parked.
pub(super) fn tidy() -> Result<()> {
    let mut left = lock();
    if left.parked.len() == 0 { Ok(()) } else { left.parked.reap(&serial()) }
}

/// How many transfers are parked.
pub(super) fn parked() -> usize {
    lock().parked.len()
}

/// Parks a receive that is never over.
#[cfg(test)]
pub(super) fn park_for_ever(world: &MpiWorld) {
    let receive =
        Transfer::receive(&serial(), world.comm, Buffer::new(1), world.rank() as i32, 12_345).expect("a receive");
    lock().parked.receives.push(receive);
}

impl Left {
    /// Takes what has come in, and moves on what is parked.
    fn round(&mut self) -> Result<()> {
        let mpi = serial();
        for &(comm, me, size) in &self.worlds {
            for from in (0..size).filter(|&rank| rank != me) {
                // Behind a message of the gathering there is nothing else.
                while let Some((tag, bytes)) = mpi.probe(comm, from as i32)?.filter(|(tag, _)| *tag != gather::TAG) {
                    let receive = Transfer::receive(&mpi, comm, Buffer::new(bytes), from as i32, tag)?;
                    self.parked.receives.push(receive);
                }
            }
        }
        self.parked.reap(&mpi)
    }
}

/// Works until nothing is parked here. Returns how much still is when the time is over.
fn work(end: Instant) -> Result<usize> {
    let mut pace = Pace::new();
    loop {
        let mut left = lock();
        left.round()?;
        let parked = left.parked.len();
        drop(left);
        if parked == 0 || Instant::now() >= end {
            return Ok(parked);
        }
        pace.wait();
    }
}

/// Ends all that streams of `world`, and of others beside it, have left behind: steps 2 to 4 above.
///
/// # Collective
///
/// Every rank of the world that kolo started, as it exits, without a channel.
///
/// # Errors
///
/// Those of MPI, and what was not over in time here: then MPI must not be finalised. `tell` has heard of the latter, as
/// far as it concerns the others. What was not over elsewhere is marked as a failure that another rank tells.
pub(super) fn settle(world: &MpiWorld, tell: &mut dyn FnMut(&Error)) -> Result<()> {
    /// As long as the others may work.
    const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    let some = |counts: &[Vec<u8>]| counts.iter().position(|count| count.iter().any(|&byte| byte != 0));
    if some(&world.gather(&parked().to_le_bytes(), FOREVER, &mut || Ok(()))?).is_none() {
        return Ok(());
    }
    let parked = work(Instant::now() + SETTLE)?;
    if parked > 0 {
        tell(&unsettled(parked));
    }
    let others = world.gather(&parked.to_le_bytes(), SETTLE * 2, &mut || lock().round())?;
    if parked > 0 {
        return Err(unsettled(parked));
    }
    if let Some(rank) = some(&others) {
        // That rank tells.
        exit::mark_failed_told(&format!("rank {rank} cannot finalise MPI"));
        return Ok(());
    }
    // What was taken in the meantime has been sent whole.
    match work(Instant::now() + SETTLE)? {
        0 => Ok(()),
        parked => Err(unsettled(parked)),
    }
}

fn unsettled(parked: usize) -> Error {
    Error::Poisoned(
        format!(
            "{parked} messages of a set or communicator that was given up did not come to their end within {SETTLE:?}; \
             see whether a rank is stopped or cannot be reached"
        )
        .into(),
    )
}
