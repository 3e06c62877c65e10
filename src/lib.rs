//! kolo: a data-parallel training runtime.

mod config;
mod coordinator;
mod device;
mod engine;
mod error;
mod event;
mod os;
mod plan;
mod tensor;
mod transport;

pub use config::{Alias, Knob, knobs, knobs_help};
pub use error::{Error, Failure, Mismatch, Result};
pub use half::{bf16, f16};
pub use plan::Algorithm;
pub use tensor::{DType, Element, ReduceOp, Tensor};
