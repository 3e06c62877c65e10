//! kolo: a data-parallel training runtime.

mod error;
mod tensor;
mod transport;

pub use error::{Error, Failure, Mismatch, Result};
pub use half::{bf16, f16};
pub use tensor::{DType, Element, ReduceOp};
