//! What tensors are made of: element types, and views of host memory that the engine may touch.
#![allow(unsafe_code, reason = "raw views of buffers in flight live here")]

mod blocks;
mod dtype;
mod hold;
mod received;
mod shared;
mod span;
mod traits;

pub use blocks::Blocks;
pub(crate) use blocks::room;
pub use dtype::{DType, Element, ReduceOp};
pub(crate) use hold::{GiveBack, Hold};
pub(crate) use received::{Grow, Received};
pub(crate) use shared::Reserve;
pub use shared::SharedBuffer;
pub(crate) use span::{Piece, RawSlice};
pub use traits::Tensor;
