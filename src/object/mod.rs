//! Objects of any serde type as bytes that ranks can check: pure, without a thought for how they travel.
//!
//! An operation on objects has two parts. First every rank says in a [`Notice`] what it calls, and either a [`Label`] (how
//! long its object is, a checksum, and the first bytes of it) or why it has none to give. Every rank judges the same
//! notices by the same rule, so that all go on or all stop, before anything large moves. Then the rest of the objects
//! follows in chunks.
//!
//! Bytes are data here and nothing else: they name no type, no function and no length beyond their own, and reading them
//! takes no more memory than bytes of that number can ask for. The checksum finds damage, not malice: ranks of a job trust
//! each other.

mod codec;
#[cfg(all(test, not(kolo_loom)))]
mod fuzz;
mod notice;
mod parcel;

pub(crate) use codec::encode;
pub(crate) use notice::Notice;
pub(crate) use parcel::{Label, Parcel};
