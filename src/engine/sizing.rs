//! The first half of an operation on blocks that differ in size by rank: everybody tells everybody where the block for it
//! lies.
//!
//! A small operation goes before the blocks. It carries the verb, the type and the root of what follows, so that ranks that
//! ask for different things find out before data moves.

use std::sync::Arc;

use super::operation::{Collective, Operation, mix};
use crate::engine::Pieces;
use crate::error::{Error, Result};
use crate::plan::Span;
use crate::plan::moves::{Move, Moves};
use crate::tensor::{DType, Piece, RawSlice};

/// What a rank tells another of the block that it has for it: start, length, and the length of its whole input.
const WORDS: usize = 3;

/// The sizes of an operation's blocks, on their way.
#[derive(Debug)]
pub(crate) struct Sizing {
    of: Move,
    ranks: usize,
    me: usize,
    /// Elements of the blocks that this rank sends: one for each rank, or just one where all get the same.
    counts: Vec<usize>,
    told: Vec<u64>,
    heard: Vec<u64>,
    /// Of an allgather of several tensors: their rows' lengths, digested.
    group: Option<u64>,
}

/// What the sizes come to.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) moves: Arc<Moves>,
    /// Elements of the blocks that this rank gets, by source; of a group, of each source's tensors in turn.
    pub(crate) received: Vec<usize>,
}

impl Sizing {
    /// `counts` are the elements of the blocks that this rank sends: to all (allgather, gather: one count), to each
    /// (alltoall, and the root of a scatter), or none (other ranks of a scatter). Their sum does not overflow.
    pub(crate) fn new(of: Move, ranks: usize, me: usize, counts: Vec<usize>) -> Self {
        let (told, heard) = match of {
            Move::Allgather | Move::Gather { .. } => (counts.iter().map(|&count| count as u64).collect(), ranks),
            Move::Scatter { root } if root != me => (vec![0; WORDS * ranks], WORDS),
            Move::Scatter { .. } => (tell(&counts), WORDS),
            Move::AllToAll => (tell(&counts), WORDS * ranks),
        };
        Self { of, ranks, me, counts, told, heard: vec![0; heard], group: None }
    }

    /// The same of an allgather of several tensors, of which this rank has `counts` elements each. `rows` are the elements of
    /// a row of each.
    pub(crate) fn group(ranks: usize, me: usize, counts: Vec<usize>, rows: impl Iterator<Item = usize>) -> Self {
        let heard = vec![0; counts.len() * ranks];
        Self { heard, group: Some(mix(rows)), ..Self::new(Move::Allgather, ranks, me, counts) }
    }

    /// The operation that tells the sizes. It works on memory of this value, which must stay alive until it has ended.
    pub(crate) fn operation(&mut self, dtype: DType, row: usize) -> Operation {
        let words = match self.of {
            Move::Allgather | Move::Gather { .. } => 1,
            Move::Scatter { .. } | Move::AllToAll => WORDS,
        };
        let piece = Piece { input: RawSlice::of(&self.told), output: RawSlice::of_mut(&mut self.heard) };
        let (sizes, words) = match self.group {
            None => (Collective::Sizes { of: self.of, dtype, row }, words),
            Some(rows) => {
                let tensors = self.counts.len();
                // In a print there is room for so many; a greater number shows in the digest.
                (Collective::SizesOfGroup { dtype, tensors: tensors.min(u16::MAX.into()) as u16, rows }, tensors)
            }
        };
        Operation::new(sizes, DType::U64, words, Some(piece))
    }

    /// What everybody told, once the operation has ended.
    ///
    /// # Errors
    /// More elements than can be counted, or a block that does not lie in its input.
    pub(crate) fn finish(self) -> Result<Told> {
        let Self { of, ranks, me, counts, heard, group, .. } = self;
        let (moves, received) = match of {
            Move::Allgather | Move::Gather { .. } => {
                let all: Vec<usize> =
                    heard.iter().map(|&word| usize::try_from(word).map_err(|_| too_long())).collect::<Result<_>>()?;
                let root = if let Move::Gather { root } = of { Some(root) } else { None };
                let gets = root.is_none_or(|root| root == me);
                checked_sum(&all)?;
                let inputs = match group {
                    None => Moves::gather(&all, me, root),
                    Some(_) if counts.is_empty() => Moves::gather(&vec![0; ranks], me, root),
                    Some(_) => {
                        let inputs: Vec<usize> = all.chunks_exact(counts.len()).map(|all| all.iter().sum()).collect();
                        Moves::gather(&inputs, me, root)
                    }
                };
                (inputs, if gets { all } else { vec![0; ranks] })
            }
            Move::Scatter { root } => {
                let (mine, total) = block(&heard)?;
                let mut received = vec![0; ranks];
                received[root] = mine.len;
                (Moves::scatter(ranks, me, root, mine, total, &counts), received)
            }
            Move::AllToAll => {
                let blocks = heard.chunks_exact(WORDS).map(block).collect::<Result<Vec<_>>>()?;
                let (theirs, totals): (Vec<Span>, Vec<usize>) = blocks.into_iter().unzip();
                let received: Vec<usize> = theirs.iter().map(|block| block.len).collect();
                checked_sum(&received)?;
                (Moves::all_to_all(me, totals, &theirs, &counts), received)
            }
        };
        Ok(Told { moves: Arc::new(moves), received })
    }
}

impl Told {
    /// The operation that moves the blocks.
    pub(crate) fn operation(&self, of: Move, dtype: DType, input: RawSlice, output: RawSlice) -> Operation {
        let operation = Operation::new(Collective::Sized(of), dtype, 0, Some(Piece { input, output }));
        Operation { moves: Some(Arc::clone(&self.moves)), ..operation }
    }

    /// Elements of each rank's block of tensor `tensor` of `tensors`.
    pub(crate) fn of_tensor(&self, tensor: usize, tensors: usize) -> Vec<usize> {
        self.received.iter().skip(tensor).step_by(tensors).copied().collect()
    }

    /// The operation that moves the blocks of a group: `outputs` have room for all blocks of a tensor each.
    ///
    /// What comes from a rank is a block of each tensor, one after another; each goes to its own output.
    pub(crate) fn operation_of_group(&self, dtype: DType, inputs: &[RawSlice], outputs: &[RawSlice]) -> Operation {
        let nothing = RawSlice::of::<u8>(&[]);
        let mut taken = vec![0; outputs.len()];
        let mut pieces: Vec<Piece> = inputs.iter().map(|&input| Piece { input, output: nothing }).collect();
        for of_rank in self.received.chunks(outputs.len().max(1)) {
            for ((output, taken), count) in outputs.iter().zip(&mut taken).zip(of_rank) {
                let bytes = count * dtype.size();
                pieces.push(Piece { input: nothing, output: output.part(*taken, bytes) });
                *taken += bytes;
            }
        }
        let operation = Operation::new(Collective::Sized(Move::Allgather), dtype, 0, None);
        Operation { moves: Some(Arc::clone(&self.moves)), pieces: Pieces::Many(pieces), ..operation }
    }
}

fn tell(counts: &[usize]) -> Vec<u64> {
    let total: usize = counts.iter().sum();
    let mut start = 0;
    let words = counts.iter().flat_map(|&count| {
        start += count;
        [start - count, count, total].map(|word| word as u64)
    });
    words.collect()
}

fn block(words: &[u64]) -> Result<(Span, usize)> {
    let word = |at: usize| words.get(at).and_then(|&word| usize::try_from(word).ok()).unwrap_or(usize::MAX);
    let (start, len, total) = (word(0), word(1), word(2));
    if start.checked_add(len).is_none_or(|end| end > total) {
        return Err(Error::Poisoned(
            format!("a block of {len} elements at {start} of {total}: all ranks must run the same kolo").into(),
        ));
    }
    Ok((Span::new(start, len), total))
}

fn checked_sum(counts: &[usize]) -> Result<()> {
    counts.iter().try_fold(0_usize, |sum, &count| sum.checked_add(count)).map(drop).ok_or_else(too_long)
}

fn too_long() -> Error {
    Error::argument(
        "the blocks of all ranks together have more elements than this machine can count; send less at a time",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let finish = |of, counts: Vec<usize>, heard: Vec<u64>| {
            let mut sizing = Sizing::new(of, 2, 0, counts);
            assert_eq!(sizing.heard.len(), heard.len());
            sizing.heard = heard;
            sizing.finish().map(|sized| sized.received)
        };
        assert_eq!(finish(Move::Allgather, vec![2], vec![2, 3]).unwrap(), [2, 3]);
        assert_eq!(finish(Move::Gather { root: 1 }, vec![2], vec![2, 3]).unwrap(), [0, 0]);
        assert!(finish(Move::Allgather, vec![2], vec![2, u64::MAX]).is_err());
        assert_eq!(finish(Move::AllToAll, vec![1, 1], vec![0, 1, 2, 4, 5, 9]).unwrap(), [1, 5]);
        assert!(finish(Move::AllToAll, vec![1, 1], vec![0, 1, 2, 4, 6, 9]).is_err());
        assert!(finish(Move::Scatter { root: 1 }, vec![], vec![u64::MAX, 2, 9]).is_err());
    }

    #[test]
    fn blocks_of_a_group_go_to_their_tensors() {
        let mut sizing = Sizing::group(2, 0, vec![1, 2], [1, 1].into_iter());
        sizing.heard = vec![1, 2, 0, 3];
        let told = sizing.finish().unwrap();
        assert_eq!((told.of_tensor(0, 2), told.of_tensor(1, 2)), (vec![1, 0], vec![2, 3]));
        assert_eq!((told.moves.input(), told.moves.output()), (3, 6));
        let (mut first, mut second) = ([0_u8; 1], [0_u8; 5]);
        let outputs = [RawSlice::of_mut(&mut first), RawSlice::of_mut(&mut second)];
        let operation = told.operation_of_group(DType::U8, &[], &outputs);
        let places: Vec<_> = operation.pieces.iter().map(|piece| (piece.output.ptr(), piece.output.len())).collect();
        let at = |tensor: usize, start, len| (outputs[tensor].part(start, 0).ptr(), len);
        assert_eq!(places, [at(0, 0, 1), at(1, 0, 2), at(0, 1, 0), at(1, 2, 3)]);

        let nothing = Sizing::group(2, 0, vec![], std::iter::empty()).finish().unwrap();
        assert_eq!((nothing.moves.output(), nothing.received.len()), (0, 0));
    }
}
