//! What a collective is asked to do, and the sixteen bytes by which ranks recognise the same request.

use std::sync::Arc;

use super::fold::Fold;
use crate::error::{Error, Fields};
use crate::event::Verb;
use crate::plan::Span;
use crate::plan::moves::{Move, Moves};
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
    /// Blocks of whole rows of `row` elements; [`Operation::count`] is the whole input.
    ReduceScatter {
        op: ReduceOp,
        row: usize,
    },
    /// Blocks of whole rows of several tensors; [`Operation::blocks`] has them, `digest` is of the tensors' shapes.
    ReduceScatterGroup {
        op: ReduceOp,
        digest: u32,
    },
    Reduce {
        op: ReduceOp,
        root: usize,
    },
    /// Blocks of [`Operation::count`] elements each.
    Move(Move),
    /// What blocks of differing sizes need to know of each other: three words a block (an allgather's and a gather's: one).
    /// The type and the row are those of the move that follows.
    Sizes {
        of: Move,
        dtype: DType,
        row: usize,
    },
    /// The same of an allgather of so many tensors: a word a tensor. `rows` is a digest of the lengths of their rows.
    SizesOfGroup {
        dtype: DType,
        tensors: u16,
        rows: u64,
    },
    /// Blocks of differing sizes, which a [`Collective::Sizes`] before has told; [`Operation::moves`] has them.
    Sized(Move),
    Barrier,
    /// The place of a call that this rank could not make.
    Refused,
}

/// One collective over one or more tensors of one type, as if they were one long tensor.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) collective: Collective,
    pub(crate) dtype: DType,
    /// Elements: of the whole list (allreduce, broadcast, reduce, reduce-scatter) or of one rank's block (the moves).
    pub(crate) count: usize,
    pub(crate) prescale: Prescale,
    pub(crate) postscale: f64,
    pub(crate) pieces: Pieces,
    /// The entry of the decision log that names it, if one does: the log has agreed everything else already.
    pub(crate) logged: Option<u64>,
    /// Who gets what, if the blocks are not of `count` elements each.
    pub(crate) moves: Option<Arc<Moves>>,
    /// How many ranks contribute to an average, if not all do.
    pub(crate) contributors: Option<usize>,
    /// The blocks of a reduce-scatter by rank, end to end, if they are not cut by rows.
    pub(crate) blocks: Option<Arc<[Span]>>,
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
        let prescale = Prescale::All(1.0);
        Self {
            collective,
            dtype,
            count,
            prescale,
            postscale: 1.0,
            pieces,
            logged: None,
            moves: None,
            blocks: None,
            contributors: None,
        }
    }

    /// How its elements combine in a set of `ranks`.
    pub(super) fn fold(&self, op: ReduceOp, ranks: usize) -> Fold {
        Fold::new(self.dtype, op, self.contributors.unwrap_or(ranks), self.postscale)
    }

    /// What to report of it; `None` if somebody else does. The root is a rank of the set.
    pub(super) fn reported(&self) -> Option<(Verb, Option<usize>)> {
        if self.logged.is_some() {
            // Each of its tensors is reported by name.
            return None;
        }
        Some(match self.collective {
            Collective::Allreduce(_) => (Verb::Allreduce, None),
            Collective::Broadcast { root } => (Verb::Broadcast, Some(root)),
            Collective::Allgather => (Verb::Allgather, None),
            Collective::ReduceScatter { .. } | Collective::ReduceScatterGroup { .. } => (Verb::ReduceScatter, None),
            Collective::Reduce { root, .. } => (Verb::Reduce, Some(root)),
            Collective::Move(of) | Collective::Sized(of) => reported_move(of),
            Collective::Sizes { of, .. } => (Verb::Sizes, reported_move(of).1),
            Collective::SizesOfGroup { .. } => (Verb::Sizes, None),
            Collective::Barrier => (Verb::Barrier, None),
            Collective::Refused => (Verb::Refused, None),
        })
    }

    /// How elements combine, for those collectives that combine them.
    pub(crate) fn reduce_op(&self) -> Option<ReduceOp> {
        match self.collective {
            Collective::Allreduce(op)
            | Collective::ReduceScatter { op, .. }
            | Collective::ReduceScatterGroup { op, .. }
            | Collective::Reduce { op, .. } => Some(op),
            Collective::Broadcast { .. }
            | Collective::Allgather
            | Collective::Move(_)
            | Collective::Sizes { .. }
            | Collective::SizesOfGroup { .. }
            | Collective::Sized(_)
            | Collective::Barrier
            | Collective::Refused => None,
        }
    }
}

/// What to report of blocks that change places.
pub(crate) fn reported_move(of: Move) -> (Verb, Option<usize>) {
    match of {
        Move::Allgather => (Verb::Allgather, None),
        Move::Gather { root } => (Verb::Gather, Some(root)),
        Move::Scatter { root } => (Verb::Scatter, Some(root)),
        Move::AllToAll => (Verb::Alltoall, None),
    }
}

const KINDS: [&str; 12] = [
    "allreduce",
    "broadcast",
    "allgather",
    "reduce_scatter",
    "barrier",
    "batch",
    "reduce",
    "gather",
    "scatter",
    "alltoall",
    "a call that was refused for a wrong argument; see that rank's error",
    "reduce_scatter of a group",
];

/// What a print's flags say of a move: blocks of one size, or of differing sizes: their sizes, then themselves.
const EVEN: u8 = 0;
const SIZES: u8 = 1;
const SIZED: u8 = 2;
/// Sizes of the tensors of a group.
const SIZES_OF_GROUP: u8 = 3;

/// The name of a reduce-scatter of several tensors.
const SCATTERED_GROUP: &str = "reduce_scatter of a group";

/// The kind of whatever a log entry names.
const BATCH: u8 = 6;

/// The index of a kind in KINDS, plus one: zero means that nothing was announced.
fn kind_of(of: Move) -> u8 {
    match of {
        Move::Allgather => 3,
        Move::Gather { .. } => 8,
        Move::Scatter { .. } => 9,
        Move::AllToAll => 10,
    }
}

/// The longest row that a print has room for.
pub(crate) const MAX_ROW: usize = (1 << 24) - 1;

/// The request in two words: equal on all ranks exactly if they ask for the same.
///
/// The sequence may wrap: no rank is ever more than one operation ahead of another, so equality suffices.
pub(super) fn fingerprint(sequence: u32, operation: &Operation) -> Fingerprint {
    let dtype = operation.dtype as u8;
    let count = operation.count as u64;
    if let Some(index) = operation.logged {
        return Fingerprint::new(sequence, BATCH, 0, 0, EVEN, index & ((1 << 48) - 1), 0);
    }
    let (kind, dtype, op, flags, count, root) = match operation.collective {
        Collective::Allreduce(op) => (1, dtype, op as u8, EVEN, count, digest(op, &operation.pieces)),
        Collective::Broadcast { root } => (2, dtype, 0, EVEN, count, root as u16),
        Collective::Allgather => (3, dtype, 0, EVEN, count, 0),
        // A row has 24 bits: the low 16 in the root's place, the high 8 in the flags'.
        Collective::ReduceScatter { op, row } => (4, dtype, op as u8, (row >> 16) as u8, count, row as u16),
        // The digest in the place of the row.
        Collective::ReduceScatterGroup { op, digest } => {
            (12, dtype, op as u8, (digest >> 16) as u8, count, digest as u16)
        }
        Collective::Barrier => (5, 0, 0, EVEN, 0, 0),
        Collective::Refused => (11, 0, 0, EVEN, 0, 0),
        Collective::Reduce { op, root } => (7, dtype, op as u8, EVEN, count, root as u16),
        Collective::Move(of) => (kind_of(of), dtype, 0, EVEN, count, of.root() as u16),
        Collective::Sizes { of, dtype, row } => (kind_of(of), dtype as u8, 0, SIZES, row as u64, of.root() as u16),
        // An allgather has no root: in its place stands how many tensors there are, in that of the row's length a digest.
        Collective::SizesOfGroup { dtype, tensors, rows } => {
            (kind_of(Move::Allgather), dtype as u8, 0, SIZES_OF_GROUP, rows & ((1 << 48) - 1), tensors)
        }
        Collective::Sized(of) => (kind_of(of), dtype, 0, SIZED, 0, of.root() as u16),
    };
    Fingerprint::new(sequence, kind, dtype, op, flags, count, root)
}

/// A digest of numbers, for a print that has no room for them.
pub(crate) fn mix(numbers: impl Iterator<Item = usize>) -> u64 {
    numbers.fold(1, |mixed, number| (mixed ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31))
}

/// Where it matters how the elements are divided among tensors: 16 bits of their lengths, 0 for a single one.
fn digest(op: ReduceOp, pieces: &[Piece]) -> u16 {
    if op != ReduceOp::Adasum || pieces.len() < 2 {
        return 0;
    }
    let mix = |mixed: u64, piece: &Piece| (mixed ^ piece.input.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1;
    (pieces.iter().fold(1, mix) >> 47) as u16 | 1
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
    let is_scatter = matches!(kind, Some("reduce_scatter" | SCATTERED_GROUP));
    if let Some(dtype) = DType::from_code(print.dtype()) {
        text += &match print.flags() {
            _ if is_scatter => format!(" of {} {dtype}", print.count()),
            SIZES_OF_GROUP => {
                format!(" of a group of {} {dtype} tensors, rows of lengths {:#06x}", print.root(), print.count())
            }
            SIZES if print.count() > 1 => {
                format!(" of blocks of their own sizes, in rows of {} {dtype}", print.count())
            }
            SIZES | SIZED => format!(" of {dtype} blocks of their own sizes"),
            _ => format!(" of {} {dtype}", print.count()),
        };
    }
    match kind {
        Some("reduce_scatter") => {
            let row = usize::from(print.flags()) << 16 | usize::from(print.root());
            if row > 1 {
                text += &format!(" in rows of {row}");
            }
        }
        Some(SCATTERED_GROUP) => {
            text += &format!(" in tensors of shapes {:#08x}", u32::from(print.flags()) << 16 | u32::from(print.root()));
        }
        Some("allreduce") if print.root() != 0 => text += &format!(" in tensors of lengths {:#06x}", print.root()),
        Some("broadcast" | "scatter") => text += &format!(" from rank {}", print.root()),
        Some("reduce" | "gather") => text += &format!(" to rank {}", print.root()),
        _ => {}
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

/// The request field by field: all that [`describe`] tells apart.
pub(super) fn fields(print: Fingerprint) -> Fields {
    let kind = usize::from(print.kind()).checked_sub(1).and_then(|kind| KINDS.get(kind)).copied();
    let mut fields: Fields = vec![("operation", kind.unwrap_or("an unknown operation").to_owned())];
    if let Some(op) = ReduceOp::from_code(print.op()) {
        fields.push(("op", op.to_string()));
    }
    if let Some(dtype) = DType::from_code(print.dtype()) {
        fields.push(("dtype", dtype.to_string()));
    }
    let is_scatter = matches!(kind, Some("reduce_scatter" | SCATTERED_GROUP));
    match print.flags() {
        SIZES_OF_GROUP if !is_scatter => {
            fields.push(("elements", format!("a group of {} tensors", print.root())));
            fields.push(("rows", format!("rows of lengths {:#06x}", print.count())));
        }
        SIZES | SIZED if !is_scatter => fields.push(("elements", "blocks of their own sizes".to_owned())),
        _ if kind == Some("batch") => fields.push(("entry", print.count().to_string())),
        _ => fields.push(("elements", print.count().to_string())),
    }
    let row = if is_scatter { usize::from(print.flags()) << 16 | usize::from(print.root()) } else { 1 };
    match kind {
        Some(SCATTERED_GROUP) => fields.push(("shapes of its tensors, in order", format!("shapes {row:#08x}"))),
        Some("reduce_scatter") if row > 1 => fields.push(("row", format!("rows of {row}"))),
        _ if print.flags() == SIZES && print.count() > 1 => fields.push(("row", format!("rows of {}", print.count()))),
        Some("broadcast" | "scatter" | "reduce" | "gather") => fields.push(("root", format!("rank {}", print.root()))),
        _ => {}
    }
    fields
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
        let rows = Collective::ReduceScatter { op: ReduceOp::Sum, row: 65_537 };
        let rows = Operation::new(rows, DType::F32, 131_074, None);
        assert_eq!(describe(fingerprint(9, &rows)), "reduce_scatter sum of 131074 f32 in rows of 65537");
        let sizes = Collective::Sizes { of: Move::Scatter { root: 2 }, dtype: DType::I64, row: 1 };
        let sizes = Operation::new(sizes, DType::U64, 3, None);
        assert_eq!(describe(fingerprint(1, &sizes)), "scatter of i64 blocks of their own sizes from rank 2");
        let barrier = Operation::new(Collective::Barrier, DType::U8, 0, None);
        assert_eq!(describe(fingerprint(1, &barrier)), "barrier");
    }

    #[test]
    fn what_words_tell_apart_fields_do() {
        let all = [
            Collective::Allreduce(ReduceOp::Sum),
            Collective::Allreduce(ReduceOp::Max),
            Collective::Broadcast { root: 0 },
            Collective::Broadcast { root: 1 },
            Collective::Allgather,
            Collective::ReduceScatter { op: ReduceOp::Sum, row: 1 },
            Collective::ReduceScatter { op: ReduceOp::Sum, row: 3 },
            Collective::ReduceScatterGroup { op: ReduceOp::Sum, digest: 1 },
            Collective::ReduceScatterGroup { op: ReduceOp::Sum, digest: 0x00ab_cdef },
            Collective::SizesOfGroup { dtype: DType::F32, tensors: 2, rows: 7 },
            Collective::SizesOfGroup { dtype: DType::F32, tensors: 3, rows: 7 },
            Collective::SizesOfGroup { dtype: DType::F32, tensors: 2, rows: 8 },
            Collective::Barrier,
            Collective::Reduce { op: ReduceOp::Sum, root: 0 },
            Collective::Reduce { op: ReduceOp::Sum, root: 2 },
            Collective::Move(Move::Gather { root: 1 }),
            Collective::Move(Move::AllToAll),
            Collective::Sizes { of: Move::AllToAll, dtype: DType::F32, row: 1 },
            Collective::Sizes { of: Move::AllToAll, dtype: DType::F32, row: 4 },
            Collective::Refused,
        ];
        let prints = all.into_iter().flat_map(|collective| {
            [(DType::F32, 17), (DType::F64, 17), (DType::F32, 18)]
                .map(|(dtype, count)| fingerprint(1, &Operation::new(collective, dtype, count, None)))
        });
        let prints: Vec<Fingerprint> = prints.collect();
        for (one, other) in prints.iter().flat_map(|one| prints.iter().map(move |other| (*one, *other))) {
            let (words, fields) = (describe(one) == describe(other), fields(one) == fields(other));
            assert_eq!(words, fields, "{} and {}", describe(one), describe(other));
        }
    }
}
