//! A list of tensors seen as one long tensor.

use super::operation::Pieces;
use crate::tensor::{Piece, RawSlice};

/// Finds the memory behind a range of elements of a list of tensors laid end to end.
#[derive(Debug)]
pub(crate) struct Regions {
    pieces: Pieces,
    /// Where each piece begins, in elements; then the total. Inputs and outputs of a list have equal lengths; a single
    /// piece (whose input and output may differ in length) always begins at 0.
    starts: Vec<usize>,
    element: usize,
}

impl Regions {
    pub(crate) fn new(pieces: Pieces, element: usize) -> Self {
        let mut starts = Vec::with_capacity(pieces.len() + 1);
        let mut total = 0;
        for piece in pieces.iter() {
            starts.push(total);
            total += piece.input.len().max(piece.output.len()) / element;
        }
        starts.push(total);
        Self { pieces, starts, element }
    }

    /// Calls `visit(memory, offset)` for each contiguous part of elements `start..start + len`, in order; `offset`
    /// counts elements from `start`.
    pub(crate) fn each(
        &self,
        side: fn(&Piece) -> RawSlice,
        start: usize,
        len: usize,
        mut visit: impl FnMut(RawSlice, usize),
    ) {
        self.each_of(side, start, len, |_, memory, offset| visit(memory, offset));
    }

    /// As [`each`](Self::each), with the index of the piece: `visit(piece, memory, offset)`.
    pub(crate) fn each_of(
        &self,
        side: fn(&Piece) -> RawSlice,
        start: usize,
        len: usize,
        mut visit: impl FnMut(usize, RawSlice, usize),
    ) {
        let mut index = self.starts.partition_point(|&begin| begin <= start).saturating_sub(1);
        let mut done = 0;
        while done < len {
            let inside = start + done - self.starts[index];
            let part = (self.starts[index + 1] - self.starts[index] - inside).min(len - done);
            if part > 0 {
                let memory = side(&self.pieces[index]);
                visit(index, memory.part(inside * self.element, part * self.element), done);
                done += part;
            }
            index += 1;
        }
    }

    /// The memory of elements `start..start + len` where it is contiguous.
    pub(crate) fn contiguous(&self, side: fn(&Piece) -> RawSlice, start: usize, len: usize) -> Option<RawSlice> {
        let index = self.starts.partition_point(|&begin| begin <= start).saturating_sub(1);
        let end = *self.starts.get(index + 1)?;
        (start + len <= end)
            .then(|| side(&self.pieces[index]).part((start - self.starts[index]) * self.element, len * self.element))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cross_pieces_and_skip_empty_ones() {
        let mut data: [Vec<f32>; 4] = [vec![0.0; 3], vec![], vec![0.0; 1], vec![0.0; 5]];
        let bases: Vec<usize> = data.iter().map(|piece| piece.as_ptr() as usize).collect();
        let pieces = data.iter_mut().map(|piece| Piece::in_place(RawSlice::of_mut(piece))).collect();
        let regions = Regions::new(Pieces::Many(pieces), 4);
        let mut seen = Vec::new();
        regions.each(
            |piece| piece.input,
            2,
            4,
            |memory, offset| {
                seen.push((memory.ptr() as usize, memory.len(), offset));
            },
        );
        assert_eq!(seen, [(bases[0] + 8, 4, 0), (bases[2], 4, 1), (bases[3], 8, 2)]);
        assert!(regions.contiguous(|piece| piece.input, 2, 2).is_none());
        assert_eq!(regions.contiguous(|piece| piece.input, 4, 5).unwrap().len(), 20);
        regions.each(|piece| piece.output, 9, 0, |_, _| panic!("nothing to visit"));
    }
}
