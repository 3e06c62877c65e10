//! A run of elements, and how it is cut.

/// A run of elements: indices `start .. start + len`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Span {
    pub(crate) const fn new(start: usize, len: usize) -> Self {
        Self { start, len }
    }

    /// One past the last element.
    pub(crate) const fn end(self) -> usize {
        self.start + self.len
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The elements that are in both; where there are none, empty.
    pub(crate) fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, len: self.end().min(other.end()).saturating_sub(start) }
    }

    /// Piece `index` of the span cut into pieces of `size` (the last may be shorter; past the end it is empty).
    pub(crate) fn piece(self, index: usize, size: usize) -> Self {
        let offset = index.saturating_mul(size).min(self.len);
        Self { start: self.start + offset, len: size.min(self.len - offset) }
    }

    /// Part `index` of the span cut into `parts` balanced parts.
    ///
    /// Each part but the last holds a multiple of `align` elements, and parts differ by at most `align` elements
    /// (the last by what is left over). With fewer than `parts * align` elements, some parts are empty.
    pub(crate) fn part(self, index: usize, parts: usize, align: usize) -> Self {
        debug_assert!(index < parts && align > 0);
        // Whole blocks of `align` are dealt out; quotient and remainder keep every product below `len + align`.
        let blocks = self.len.div_ceil(align);
        let (each, extra) = (blocks / parts, blocks % parts);
        let first = each * index + index.min(extra);
        let blocks_here = each + usize::from(index < extra);
        let from = first.saturating_mul(align).min(self.len);
        let to = (first + blocks_here).saturating_mul(align).min(self.len);
        Self { start: self.start + from, len: to - from }
    }
}

#[cfg(test)]
mod tests {
    use super::Span;
    use proptest::prelude::*;

    fn check(len: usize, parts: usize, align: usize) {
        let whole = Span::new(5, len);
        let mut at = 5;
        let mut sizes = Vec::new();
        for index in 0..parts {
            let part = whole.part(index, parts, align);
            assert_eq!(part.start, at, "parts are adjacent");
            at = part.end();
            assert!((part.start - 5).is_multiple_of(align) || part.is_empty());
            sizes.push(part.len.div_ceil(align));
        }
        assert_eq!(at, 5 + len);
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(most - least <= 1, "balanced to one block: {sizes:?}");
    }

    #[test]
    fn parts_cover_balanced_and_aligned() {
        for len in [0, 1, 2, 15, 16, 17, 31, 97, 1009] {
            for parts in 1..=17 {
                for align in [1, 8, 16, 64] {
                    check(len, parts, align);
                }
            }
        }
    }

    #[test]
    fn intersections() {
        let span = Span::new(5, 10);
        assert_eq!(span.intersect(Span::new(0, 7)), Span::new(5, 2));
        assert_eq!(span.intersect(Span::new(14, 9)), Span::new(14, 1));
        assert_eq!(span.intersect(Span::new(6, 3)), Span::new(6, 3));
        assert!(span.intersect(Span::new(15, 3)).is_empty() && span.intersect(Span::new(0, 5)).is_empty());
    }

    #[test]
    fn counts_beyond_32_bits_and_at_the_very_end_do_not_overflow() {
        let whole = Span::new(0, usize::MAX - 3);
        let last = whole.part(16, 17, 64);
        assert_eq!(last.end(), usize::MAX - 3);
        assert_eq!(whole.piece(usize::MAX, 7).len, 0);
    }

    proptest! {
        #[test]
        fn any_cut(len in 0usize..1 << 40, parts in 1usize..64, align in 1usize..100) {
            check(len, parts, align);
        }

        #[test]
        fn pieces_are_adjacent(len in 0usize..10_000, size in 1usize..600) {
            let whole = Span::new(3, len);
            let mut at = 3;
            for index in 0..len.div_ceil(size) {
                let piece = whole.piece(index, size);
                prop_assert!(piece.start == at && !piece.is_empty() && piece.len <= size);
                at = piece.end();
            }
            prop_assert_eq!(at, 3 + len);
            prop_assert!(whole.piece(len.div_ceil(size), size).is_empty());
        }
    }
}
