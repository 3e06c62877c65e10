//! kolo: a data-parallel training runtime.

mod collective;
mod communicator;
mod config;
mod coordinator;
pub mod data;
mod device;
mod engine;
mod error;
mod event;
mod fields;
mod handle;
mod membership;
mod object;
mod observe;
pub mod optim;
mod os;
mod plan;
mod process_set;
mod runtime;
mod tensor;
mod topology;
mod transport;

pub use collective::{Sparse, Transfer};
pub use communicator::Communicator;
pub use config::{Alias, Knob, knobs, knobs_help};
pub use error::{Error, Failure, Mismatch, Result};
pub use half::{bf16, f16};
pub use handle::{Handle, Options, PendingTensor, Scope, ScopedHandle, Status, Waited};
pub use membership::{LastOperation, RankState, RankStatus};
pub use observe::flight;
pub use plan::Algorithm;
pub use process_set::{Mesh, ProcessSet};
pub use runtime::{Builder, Kolo, init, run, threads};
pub use tensor::{Blocks, DType, Element, ReduceOp, Reducible, SharedBuffer, Tensor};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
