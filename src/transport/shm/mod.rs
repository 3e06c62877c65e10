//! The memory that the ranks of a host share, and the protocol spoken in it. `README.md` beside this file states the
//! protocol: who writes what, in which order, and why that suffices. Comments here name its scenarios.
//!
//! - [`Memory`]: mapped memory, carved into lines of atomics and ranges of bytes.
//! - [`Control`]: one a host and job: who is there, the first failure, the doorbells ([`Bells`]).
//! - [`Arena`]: one a set and host: announcements, progress and slots of the data plane, mailboxes for ordered
//!   messages, and, for sets that negotiate, ready words, request rings and the decision log.
//!
//! Nothing here waits but [`Bells::sleep`]; everything else answers at once.

mod announcement;
mod arena;
mod control;
mod doings;
mod doorbell;
mod failure;
mod header;
mod log;
mod mailbox;
mod memory;
mod progress;
mod ready;
mod reason;
mod requests;
mod segment;

pub(crate) use announcement::Fingerprint;
pub(crate) use arena::{Arena, ArenaParams};
pub(crate) use control::{Control, MemberState, Presence};
pub(crate) use doings::{Doing, NAME};
pub(crate) use failure::cut;
pub(crate) use header::Stamp;
pub(crate) use log::{ENTRY, Install, Log};
pub(crate) use mailbox::{MailReceiver, MailSender};
pub(crate) use memory::Memory;
pub(crate) use ready::READY_BITS;
pub(crate) use requests::{RequestReader, RequestWriter};
pub(crate) use segment::{Offer, Ticket};
