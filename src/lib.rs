//! kolo: a data-parallel training runtime.

mod config;
mod coordinator;
mod device;
mod engine;
mod error;
mod event;
mod fields;
mod membership;
mod os;
mod plan;
mod runtime;
mod tensor;
mod topology;
mod transport;

pub use config::{Alias, Knob, knobs, knobs_help};
pub use error::{Error, Failure, Mismatch, Result};
pub use half::{bf16, f16};
pub use plan::Algorithm;
pub use runtime::{Builder, Kolo, init, run, threads};
pub use tensor::{DType, Element, ReduceOp, SharedBuffer, Tensor};
