//! What tensors are made of: element types, and views of host memory that the engine may touch.
#![allow(unsafe_code, reason = "raw views of buffers in flight live here")]

mod blocks;
mod dtype;
mod element;
mod hold;
mod lent;
mod received;
mod reduce_op;
mod shared;
mod span;
mod traits;

pub use blocks::Blocks;
pub(crate) use blocks::room;
pub use dtype::DType;
pub(crate) use element::overwrite;
pub use element::{Element, Reducible};
pub(crate) use hold::{Both, GiveBack, Hold};
pub(crate) use lent::{Lent, Part};
pub(crate) use received::{Grow, Received};
pub(crate) use reduce_op::NOT_IN_PARTS;
pub use reduce_op::ReduceOp;
pub(crate) use shared::Reserve;
pub use shared::SharedBuffer;
pub(crate) use span::{Piece, RawSlice};
pub use traits::Tensor;
