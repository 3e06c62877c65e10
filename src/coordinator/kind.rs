//! Which collective a request asks for: its parameter, its code, its words.

use std::fmt;

use super::wire::{Put, Take};
use crate::plan::moves::Move;
use crate::tensor::{DType, NOT_IN_PARTS, ReduceOp};

/// Which collective, with the parameter that only it has.
///
/// A new collective adds a variant, its code in [`Kind::encode`] and [`Kind::decode`], and its words in `Display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everyone gets the reduction of all.
    Allreduce {
        /// How elements become one.
        op: ReduceOp,
    },
    /// Everyone gets the root's tensor.
    Broadcast {
        /// The root's set rank.
        root: u32,
    },
    /// The root gets the reduction of all.
    Reduce {
        /// How elements become one.
        op: ReduceOp,
        /// The root's set rank.
        root: u32,
    },
    /// Everyone gets its rows of the reduction of all.
    ReduceScatter {
        /// How elements become one.
        op: ReduceOp,
    },
    /// Rows change places; how many, each rank decides for itself.
    Move(Move),
    /// Everyone tells everyone what its call is, as the first step of an operation of several: an allgather.
    Meet,
    /// Everyone gets the reduction of all. How many rows there are, the ranks have found out in an earlier step; a rank that has
    /// joined was not there.
    AllreduceRows {
        /// How elements become one.
        op: ReduceOp,
    },
    /// Everyone gets the root's rows. How many, the ranks have found out as well.
    BroadcastRows {
        /// The root's set rank.
        root: u32,
    },
}

impl Kind {
    /// The root's set rank, if there is one.
    pub(crate) fn root(self) -> Option<u32> {
        match self {
            Self::Broadcast { root } | Self::Reduce { root, .. } | Self::BroadcastRows { root } => Some(root),
            Self::Move(Move::Gather { root } | Move::Scatter { root }) => Some(root as u32),
            Self::Allreduce { .. } | Self::ReduceScatter { .. } | Self::Move(Move::Allgather | Move::AllToAll) => None,
            Self::Meet | Self::AllreduceRows { .. } => None,
        }
    }

    /// How rows change places, if they do.
    pub(crate) fn moves(self) -> Option<Move> {
        match self {
            Self::Move(of) => Some(of),
            Self::Meet => Some(Move::Allgather),
            _ => None,
        }
    }

    /// Whether there is such an operation on elements of `dtype`.
    pub(super) fn takes(self, dtype: DType) -> bool {
        match self {
            Self::Allreduce { op } | Self::AllreduceRows { op } => op.takes(dtype),
            Self::Reduce { op, .. } | Self::ReduceScatter { op } => op != ReduceOp::Adasum && op.takes(dtype),
            Self::Broadcast { .. } | Self::BroadcastRows { .. } | Self::Move(_) | Self::Meet => true,
        }
    }

    /// What to say if there is none.
    pub(super) fn refusal(self, dtype: DType) -> Option<String> {
        match self {
            Self::Reduce { op: ReduceOp::Adasum, .. } | Self::ReduceScatter { op: ReduceOp::Adasum } => {
                Some(NOT_IN_PARTS.to_owned())
            }
            Self::Allreduce { op }
            | Self::Reduce { op, .. }
            | Self::ReduceScatter { op }
            | Self::AllreduceRows { op } => op.refusal(dtype),
            Self::Broadcast { .. } | Self::BroadcastRows { .. } | Self::Move(_) | Self::Meet => None,
        }
    }

    /// Whether tensors of this kind may be laid end to end and run as one.
    pub(crate) fn fuses(self) -> bool {
        matches!(self, Self::Allreduce { .. } | Self::Broadcast { .. } | Self::Reduce { .. })
    }

    /// Whether requests carry zero for the first dimension: ranks may differ in it, or know it from elsewhere.
    pub(crate) fn has_own_rows(self) -> bool {
        matches!(self, Self::Move(_) | Self::Meet) || self.knows_rows()
    }

    /// Whether the ranks know from an earlier step how many rows there are.
    pub(super) fn knows_rows(self) -> bool {
        matches!(self, Self::AllreduceRows { .. } | Self::BroadcastRows { .. })
    }

    pub(super) fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::Allreduce { op } => {
                out.u8(1);
                out.u8(op as u8);
            }
            Self::Broadcast { root } => {
                out.u8(2);
                out.varint(root.into());
            }
            Self::Reduce { op, root } => {
                out.u8(3);
                out.u8(op as u8);
                out.varint(root.into());
            }
            Self::ReduceScatter { op } => {
                out.u8(4);
                out.u8(op as u8);
            }
            Self::Move(Move::Allgather) => out.u8(5),
            Self::Move(Move::Gather { root }) => {
                out.u8(6);
                out.varint(root as u64);
            }
            Self::Move(Move::Scatter { root }) => {
                out.u8(7);
                out.varint(root as u64);
            }
            Self::Move(Move::AllToAll) => out.u8(8),
            Self::Meet => out.u8(9),
            Self::AllreduceRows { op } => {
                out.u8(10);
                out.u8(op as u8);
            }
            Self::BroadcastRows { root } => {
                out.u8(11);
                out.varint(root.into());
            }
        }
    }

    pub(super) fn decode(take: &mut Take<'_>) -> Option<Self> {
        match take.u8()? {
            1 => Some(Self::Allreduce { op: ReduceOp::from_code(take.u8()?)? }),
            2 => Some(Self::Broadcast { root: take.u32()? }),
            3 => Some(Self::Reduce { op: ReduceOp::from_code(take.u8()?)?, root: take.u32()? }),
            4 => Some(Self::ReduceScatter { op: ReduceOp::from_code(take.u8()?)? }),
            5 => Some(Self::Move(Move::Allgather)),
            6 => Some(Self::Move(Move::Gather { root: take.u32()? as usize })),
            7 => Some(Self::Move(Move::Scatter { root: take.u32()? as usize })),
            8 => Some(Self::Move(Move::AllToAll)),
            9 => Some(Self::Meet),
            10 => Some(Self::AllreduceRows { op: ReduceOp::from_code(take.u8()?)? }),
            11 => Some(Self::BroadcastRows { root: take.u32()? }),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allreduce { op } => write!(f, "allreduce {op}"),
            Self::Broadcast { root } => write!(f, "broadcast from {root}"),
            Self::Reduce { op, root } => write!(f, "reduce {op} to {root}"),
            Self::ReduceScatter { op } => write!(f, "reduce_scatter {op}"),
            Self::Move(Move::Allgather) => f.write_str("allgather"),
            Self::Move(Move::Gather { root }) => write!(f, "gather to {root}"),
            Self::Move(Move::Scatter { root }) => write!(f, "scatter from {root}"),
            Self::Move(Move::AllToAll) => f.write_str("alltoall"),
            // What they are together, a request says in its own words.
            Self::Meet => f.write_str("an operation on objects or sparse rows"),
            Self::AllreduceRows { op } => write!(f, "allreduce {op} of some rows"),
            Self::BroadcastRows { root } => write!(f, "broadcast of some rows from {root}"),
        }
    }
}
