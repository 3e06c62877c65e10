//! kolo: a data-parallel training runtime.

mod config;
mod error;
mod event;
mod fields;
mod membership;
mod os;
mod runtime;
mod tensor;
mod topology;
mod transport;


pub use config::{Alias, Knob, knobs, knobs_help};
pub use error::{Error, Failure, Mismatch, Result};
pub use half::{bf16, f16};
pub use runtime::{Builder, Kolo, init, run, threads};
pub use tensor::{DType, Element, ReduceOp, SharedBuffer};
