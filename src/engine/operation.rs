//! What a collective is asked to do, and the sixteen bytes by which ranks recognise the same request.

use crate::error::Error;
use crate::tensor::{DType, Piece, ReduceOp};
use crate::transport::shm::Fingerprint;

/// A collective and what only it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Collective {
    Allreduce(ReduceOp),
    Broadcast {
        root: usize,
    },
    Allgather,
    ReduceScatter(ReduceOp),
    Barrier,
    /// The batch that entry `index` of the decision log names. The log has agreed everything else already.
    Logged {
        index: u32,
        op: Option<ReduceOp>,
        root: usize,
    },
}

/// One collective over one or more tensors of one type, as if they were one long tensor.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) collective: Collective,
    pub(crate) dtype: DType,
    /// Elements: of the whole list (allreduce, broadcast) or of one rank's block (allgather, reduce-scatter).
    pub(crate) count: usize,
    pub(crate) prescale: Prescale,
    pub(crate) postscale: f64,
    pub(crate) pieces: Pieces,
}

/// What a rank's elements are multiplied by before they are combined.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prescale {
    All(f64),
    /// A factor for each piece of the operation.
    Each(Vec<f64>),
}

impl Prescale {
    /// The factor of a piece.
    pub(super) fn of(&self, piece: usize) -> f64 {
        match self {
            Self::All(factor) => *factor,
            Self::Each(factors) => factors[piece],
        }
    }

    /// Whether it leaves every element as it is.
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::All(1.0))
    }
}

/// The tensors of an operation; the most common case, a single one, without a list.
#[derive(Clone, Debug)]
pub(crate) enum Pieces {
    None,
    One([Piece; 1]),
    Many(Vec<Piece>),
}

impl std::ops::Deref for Pieces {
    type Target = [Piece];

    fn deref(&self) -> &[Piece] {
        match self {
            Self::None => &[],
            Self::One(piece) => piece,
            Self::Many(pieces) => pieces,
        }
    }
}

impl Operation {
    /// An operation on one tensor, without scale factors.
    pub(crate) fn new(collective: Collective, dtype: DType, count: usize, piece: Option<Piece>) -> Self {
        let pieces = piece.map_or(Pieces::None, |piece| Pieces::One([piece]));
        Self { collective, dtype, count, prescale: Prescale::All(1.0), postscale: 1.0, pieces }
    }

    /// How elements combine, for those collectives that combine them.
    pub(crate) fn reduce_op(&self) -> Option<ReduceOp> {
        match self.collective {
            Collective::Allreduce(op) | Collective::ReduceScatter(op) => Some(op),
            Collective::Logged { op, .. } => op,
            Collective::Broadcast { .. } | Collective::Allgather | Collective::Barrier => None,
        }
    }
}

const KINDS: [&str; 6] = ["allreduce", "broadcast", "allgather", "reduce_scatter", "barrier", "batch"];

/// The request in two words: equal on all ranks exactly if they ask for the same.
///
/// The sequence may wrap: no rank is ever more than one operation ahead of another, so equality suffices.
pub(super) fn fingerprint(sequence: u32, operation: &Operation) -> Fingerprint {
    let dtype = operation.dtype as u8;
    let count = operation.count as u64;
    // The index of a kind in KINDS, plus one: zero means that nothing was announced.
    let (kind, dtype, op, count, root) = match operation.collective {
        Collective::Allreduce(op) => (1, dtype, op as u8, count, 0),
        Collective::Broadcast { root } => (2, dtype, 0, count, root as u16),
        Collective::Allgather => (3, dtype, 0, count, 0),
        Collective::ReduceScatter(op) => (4, dtype, op as u8, count, 0),
        Collective::Barrier => (5, 0, 0, 0, 0),
        Collective::Logged { index, .. } => (6, 0, 0, u64::from(index), 0),
    };
    Fingerprint::new(sequence, kind, dtype, op, 0, count, root)
}

/// The request in words, for the error that lists every rank's view.
pub(super) fn describe(print: Fingerprint) -> String {
    let kind = usize::from(print.kind()).checked_sub(1).and_then(|kind| KINDS.get(kind)).copied();
    let mut text = kind.unwrap_or("an unknown operation").to_owned();
    if kind == Some("batch") {
        return format!("batch {} of the decision log", print.count());
    }
    if let Some(op) = ReduceOp::from_code(print.op()) {
        text += &format!(" {op}");
    }
    if let Some(dtype) = DType::from_code(print.dtype()) {
        text += &format!(" of {} {dtype}", print.count());
    }
    if kind == Some("broadcast") {
        text += &format!(" from rank {}", print.root());
    }
    text
}

/// What ends an operation that received bytes which are no elements of its type.
#[cold]
pub(super) fn unsound(dtype: DType, from: Option<u32>) -> Error {
    let from = from.map_or_else(String::new, |rank| format!(" from rank {rank}"));
    Error::Poisoned(
        format!(
            "bytes{from} are no {dtype}: memory that kolo uses was overwritten; look for unsafe code that went astray"
        )
        .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_requests_apart_and_in_words() {
        let sum = Operation::new(Collective::Allreduce(ReduceOp::Sum), DType::F32, 17, None);
        let max = Operation::new(Collective::Allreduce(ReduceOp::Max), DType::F32, 17, None);
        let root = Operation::new(Collective::Broadcast { root: 3 }, DType::BF16, 1, None);
        assert_eq!(fingerprint(5, &sum), fingerprint(5, &sum));
        assert_ne!(fingerprint(5, &sum), fingerprint(5, &max));
        assert_ne!(fingerprint(5, &sum), fingerprint(6, &sum));
        assert_eq!(describe(fingerprint(9, &sum)), "allreduce sum of 17 f32");
        assert_eq!(describe(fingerprint(9, &root)), "broadcast of 1 bf16 from rank 3");
        let barrier = Operation::new(Collective::Barrier, DType::U8, 0, None);
        assert_eq!(describe(fingerprint(1, &barrier)), "barrier");
    }
}
