//! What ranks tell each other before blocks of differing sizes move.
//!
//! One small operation goes before the blocks: each rank tells each other what its block for it is. It carries the verb, the type and
//! the root of what follows, so that ranks that ask for different things find out before data moves.

use std::sync::Arc;

use crate::communicator::{Communicator, apart};
use crate::engine::{Collective, Move, Operation};
use crate::error::{Error, Result};
use crate::plan::Span;
use crate::plan::moves::Moves;
use crate::tensor::{DType, Element, Piece, RawSlice};

/// What a rank tells another of the block that it has for it: start, length, and the length of its whole input.
const WORDS: usize = 3;

impl Communicator {
    /// What everybody sends, of a gather: the elements of every rank's block.
    pub(super) fn gather_sizes(&mut self, of: Move, dtype: DType, mine: usize) -> Result<Vec<usize>> {
        let mut all = vec![0_u64; self.size()];
        self.sizes(of, dtype, 1, &[mine as u64], &mut all)?;
        let sizes = lengths(&all)?;
        checked_sum(&sizes)?;
        Ok(sizes)
    }

    /// What the root has for this rank: where its block lies in the root's input, and how long that is.
    pub(super) fn scatter_sizes(&mut self, root: usize, dtype: DType, counts: &[usize]) -> Result<(Span, usize)> {
        let told = if self.rank() == root { tell(counts) } else { vec![0; WORDS * self.size()] };
        let mut mine = [0_u64; WORDS];
        self.sizes(Move::Scatter { root }, dtype, WORDS, &told, &mut mine)?;
        heard(&mine)
    }

    /// What every rank has for this one: where its block lies in their inputs, and how long those are.
    pub(super) fn all_to_all_sizes(&mut self, dtype: DType, counts: &[usize]) -> Result<(Vec<Span>, Vec<usize>)> {
        let mut theirs = vec![0_u64; WORDS * self.size()];
        self.sizes(Move::AllToAll, dtype, WORDS, &tell(counts), &mut theirs)?;
        let (spans, totals): (Vec<Span>, Vec<usize>) =
            theirs.as_chunks::<WORDS>().0.iter().map(heard).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        checked_sum(spans.iter().map(|span| &span.len))?;
        Ok((spans, totals))
    }

    fn sizes(&mut self, of: Move, dtype: DType, words: usize, mine: &[u64], all: &mut [u64]) -> Result<()> {
        let collective = Collective::Sizes { of, dtype, row: 1 };
        self.run(Operation::new(collective, DType::U64, words, Some(apart(mine, all))))
    }

    /// Moves blocks whose sizes have been told.
    pub(super) fn move_blocks<T: Element>(
        &mut self,
        of: Move,
        moves: Moves,
        input: &[T],
        output: &mut [T],
    ) -> Result<()> {
        let piece = Piece { input: RawSlice::of(input), output: RawSlice::of_mut(output) };
        let operation = Operation::new(Collective::Sized(of), T::DTYPE, 0, Some(piece));
        self.run(Operation { moves: Some(Arc::new(moves)), ..operation })
    }

    /// This rank cannot go on with an operation that the others have begun.
    pub(super) fn abandon<T>(&mut self, error: Error) -> Result<T> {
        self.channel.give_up(error.clone());
        self.take_leave();
        Err(error)
    }
}

fn tell(counts: &[usize]) -> Vec<u64> {
    let total: usize = counts.iter().sum();
    let mut start = 0;
    counts
        .iter()
        .flat_map(|&count| {
            start += count;
            [start - count, count, total].map(|word| word as u64)
        })
        .collect()
}

/// # Errors
/// A block that does not lie in its input: whoever sent it runs another kolo.
fn heard(words: &[u64; WORDS]) -> Result<(Span, usize)> {
    let [start, len, total] = words.map(|word| usize::try_from(word).unwrap_or(usize::MAX));
    if start.checked_add(len).is_none_or(|end| end > total) {
        return Err(Error::Poisoned(
            format!("a block of {len} elements at {start} of {total}: all ranks must run the same kolo").into(),
        ));
    }
    Ok((Span::new(start, len), total))
}

fn lengths(words: &[u64]) -> Result<Vec<usize>> {
    words.iter().map(|&word| usize::try_from(word).map_err(|_| too_long())).collect()
}

fn checked_sum<'a>(counts: impl IntoIterator<Item = &'a usize>) -> Result<usize> {
    counts.into_iter().try_fold(0_usize, |sum, &count| sum.checked_add(count)).ok_or_else(too_long)
}

fn too_long() -> Error {
    Error::argument(
        "the blocks of all ranks together have more elements than this machine can count; send less at a time",
    )
}
