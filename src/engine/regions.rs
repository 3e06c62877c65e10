//! A list of tensors seen as one long tensor.

use super::operation::Pieces;
use crate::tensor::{Piece, RawSlice};

/// Which memory of each tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Input,
    Output,
}

impl Side {
    fn of(self, piece: &Piece) -> RawSlice {
        match self {
            Self::Input => piece.input,
            Self::Output => piece.output,
        }
    }
}

/// Finds the memory behind a range of elements of a list of tensors laid end to end.
#[derive(Debug)]
pub(crate) struct Regions {
    pieces: Pieces,
    /// Where each piece begins, in elements; then the total. A single piece, whose input and output may differ in length,
    /// always begins at 0.
    starts: Vec<usize>,
    /// The same of the outputs, in a list where they differ from the inputs in length; else empty.
    outputs: Vec<usize>,
    element: usize,
}

impl Regions {
    pub(crate) fn new(pieces: Pieces, element: usize) -> Self {
        let starts = |len: &dyn Fn(&Piece) -> usize| {
            let mut starts = Vec::with_capacity(pieces.len() + 1);
            let mut total = 0;
            for piece in pieces.iter() {
                starts.push(total);
                total += len(piece) / element;
            }
            starts.push(total);
            starts
        };
        let apart = pieces.len() > 1 && pieces.iter().any(|piece| piece.input.len() != piece.output.len());
        let (starts, outputs) = if apart {
            (starts(&|piece| piece.input.len()), starts(&|piece| piece.output.len()))
        } else {
            (starts(&|piece| piece.input.len().max(piece.output.len())), Vec::new())
        };
        Self { pieces, starts, outputs, element }
    }

    fn starts(&self, side: Side) -> &[usize] {
        if side == Side::Output && !self.outputs.is_empty() { &self.outputs } else { &self.starts }
    }

    /// Calls `visit(memory, offset)` for each contiguous part of elements `start..start + len`, in order; `offset`
    /// counts elements from `start`.
    pub(super) fn each(&self, side: Side, start: usize, len: usize, mut visit: impl FnMut(RawSlice, usize)) {
        self.each_of(side, start, len, |_, memory, offset| visit(memory, offset));
    }

    /// As [`each`](Self::each), with the index of the piece: `visit(piece, memory, offset)`.
    pub(super) fn each_of(&self, side: Side, start: usize, len: usize, mut visit: impl FnMut(usize, RawSlice, usize)) {
        let starts = self.starts(side);
        let mut index = starts.partition_point(|&begin| begin <= start).saturating_sub(1);
        let mut done = 0;
        while done < len {
            let inside = start + done - starts[index];
            let part = (starts[index + 1] - starts[index] - inside).min(len - done);
            if part > 0 {
                let memory = side.of(&self.pieces[index]);
                visit(index, memory.part(inside * self.element, part * self.element), done);
                done += part;
            }
            index += 1;
        }
    }

    /// The memory of elements `start..start + len` where it is contiguous.
    pub(super) fn contiguous(&self, side: Side, start: usize, len: usize) -> Option<RawSlice> {
        let starts = self.starts(side);
        let index = starts.partition_point(|&begin| begin <= start).saturating_sub(1);
        let end = *starts.get(index + 1)?;
        (start + len <= end)
            .then(|| side.of(&self.pieces[index]).part((start - starts[index]) * self.element, len * self.element))
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
        regions.each(Side::Input, 2, 4, |memory, offset| {
            seen.push((memory.ptr() as usize, memory.len(), offset));
        });
        assert_eq!(seen, [(bases[0] + 8, 4, 0), (bases[2], 4, 1), (bases[3], 8, 2)]);
        assert!(regions.contiguous(Side::Input, 2, 2).is_none());
        assert_eq!(regions.contiguous(Side::Input, 4, 5).unwrap().len(), 20);
        regions.each(Side::Output, 9, 0, |_, _| panic!("nothing to visit"));
    }

    #[test]
    fn inputs_and_outputs_of_a_list_may_lie_apart() {
        let mut data: [Vec<u8>; 3] = [vec![0; 5], vec![0; 2], vec![0; 3]];
        let [a, b, c] = data.each_mut().map(|piece| RawSlice::of_mut(piece));
        let nothing = RawSlice::of::<u8>(&[]);
        // Five elements go in; they come out in two parts, the second first.
        let pieces = vec![
            Piece { input: a, output: nothing },
            Piece { input: nothing, output: b },
            Piece { input: nothing, output: c },
        ];
        let regions = Regions::new(Pieces::Many(pieces), 1);
        let seen = |side, start, len| {
            let mut seen = Vec::new();
            regions.each(side, start, len, |memory, offset| seen.push((memory.ptr(), memory.len(), offset)));
            seen
        };
        assert_eq!(seen(Side::Input, 1, 4), [(a.part(1, 4).ptr(), 4, 0)]);
        assert_eq!(seen(Side::Output, 1, 4), [(b.part(1, 1).ptr(), 1, 0), (c.ptr(), 3, 1)]);
        assert_eq!(regions.contiguous(Side::Output, 2, 3).map(|memory| memory.ptr()), Some(c.ptr()));
        assert!(regions.contiguous(Side::Output, 1, 2).is_none());
    }
}
