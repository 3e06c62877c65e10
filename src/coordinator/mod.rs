//! Agrees which named tensors run next, in one order on every rank. README.md beside this file states the protocol.
//!
//! Pure: `step(now, event) -> actions`. No clock, thread, lock, FFI or shared memory; no order of a hash map is observable.

mod api;
mod request;
mod wire;

pub(crate) use api::{Action, Batch, BatchItem, Event, MAX_FRAME, Params, Ticket, Topology};
pub(crate) use request::{Device, Kind, Request, Spec};
