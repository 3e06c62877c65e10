//! kolo: a data-parallel training runtime.

mod coordinator;
mod error;
mod tensor;

pub use error::{Error, Failure, Mismatch, Result};
pub use half::{bf16, f16};
pub use tensor::{DType, Element, ReduceOp};
