//! What tensors are made of: element types, and views of host memory that the engine may touch.
#![allow(unsafe_code, reason = "raw views of buffers in flight live here")]

mod dtype;
mod shared;
mod span;

pub use dtype::{DType, Element, ReduceOp};
pub(crate) use shared::Reserve;
pub use shared::SharedBuffer;
pub(crate) use span::{Piece, RawSlice};
