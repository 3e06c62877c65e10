//! What tensors are made of: element types, and views of host memory that the engine may touch.
#![allow(unsafe_code, reason = "raw views of buffers in flight live here")]

mod dtype;
mod hold;
mod shared;
mod span;
mod traits;

pub use dtype::{DType, Element, ReduceOp};
pub(crate) use hold::Hold;
pub(crate) use shared::Reserve;
pub use shared::SharedBuffer;
pub(crate) use span::{Piece, RawSlice};
pub use traits::Tensor;
