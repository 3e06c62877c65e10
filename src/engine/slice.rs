//! The work area of an exchange between hosts: this owner's slice of a chunk, over its host's slots.

use super::exchange::Area;
use super::fold::Fold;
use super::regions::{Regions, Side};
use crate::device::host::{Finish, Sink, Source, partial_size, reduce};
use crate::plan::{Combine, ReducePart, Span, Values};
use crate::transport::shm::Arena;

/// One owner's slice of one chunk. Spans count from the start of the slice.
///
/// Every member has packed the chunk, so the slots are readable; this slice of the owner's own slot is the owner's to
/// write until it publishes `reduced`.
pub(super) struct Slice<'a> {
    pub(super) fold: Fold,
    pub(super) arena: &'a Arena,
    /// The chunk's slot.
    pub(super) slot: usize,
    pub(super) part: ReducePart,
    pub(super) regions: &'a Regions,
    /// Partial values, in words so that they are aligned.
    pub(super) work: &'a mut Vec<u64>,
}

impl Slice<'_> {
    /// Makes room for the slice's partial values.
    pub(super) fn prepare(&mut self) {
        let bytes = self.part.slot.len * partial_size(self.fold.dtype);
        self.work.resize(bytes.div_ceil(8), 0);
    }

    fn partial(&mut self, element: usize) -> *mut u8 {
        self.work.as_mut_ptr().cast::<u8>().wrapping_add(element * partial_size(self.fold.dtype))
    }

    fn slot(&self, member: usize, element: usize) -> *mut u8 {
        self.arena.slot_ptr(member, self.slot).wrapping_add((self.part.slot.start + element) * self.fold.dtype.size())
    }

    /// Copies final elements from the slice of the own slot to the output, if this rank wants it.
    fn output(&self, span: Span) {
        let Some(output) = self.part.output.map(|output| output + span.start) else { return };
        let size = self.fold.dtype.size();
        self.regions.each(Side::Output, output, span.len, |memory, offset| {
            let from = self.slot(self.arena.me(), span.start + offset).cast_const();
            // SAFETY: the span lies in the slice, which this rank has just written; the operation owns its output.
            unsafe { std::ptr::copy_nonoverlapping(from, memory.ptr(), memory.len()) };
            debug_assert_eq!(memory.len() % size, 0);
        });
    }
}

impl Area for Slice<'_> {
    fn width(&self, values: Values) -> usize {
        match values {
            Values::Partial => partial_size(self.fold.dtype),
            Values::Final => self.fold.dtype.size(),
        }
    }

    fn load(&mut self, span: Span) {
        let sink = [Sink::Partial(self.partial(span.start))];
        let source = |member| Source::Elements(self.slot(member, span.start));
        // SAFETY: the slots are readable (see the type), and the work area holds the slice's partial values.
        unsafe { self.fold.members(None, self.arena.members(), source, span.len, &sink, Finish::NONE) };
    }

    fn take(&mut self, combine: Combine, span: Span, bytes: &[u8]) {
        let work = self.partial(span.start);
        let received = Source::Partial(bytes.as_ptr());
        let (dtype, op, sink) = (self.fold.dtype, self.fold.op, [Sink::Partial(work)]);
        match combine {
            // SAFETY: `bytes` holds the span's values; the slice is this rank's to write.
            Combine::Copy => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.slot(self.arena.me(), span.start), bytes.len());
            },
            // SAFETY: `bytes` and the work area hold the span's partial values.
            Combine::Reduce => unsafe {
                reduce(dtype, op, &[Source::Partial(work), received], span.len, &sink, Finish::NONE);
            },
            Combine::Extend => {
                let source = |member| Source::Elements(self.slot(member, span.start));
                // SAFETY: as for `load`, after the partial values received.
                unsafe {
                    self.fold.members(Some(received), self.arena.members(), source, span.len, &sink, Finish::NONE);
                }
            }
        }
        if combine == Combine::Copy {
            self.output(span);
        }
    }

    fn finish(&mut self, span: Span) {
        let source = [Source::Partial(self.partial(span.start))];
        let sink = [Sink::Elements(self.slot(self.arena.me(), span.start))];
        // SAFETY: the work area holds the span's partial values; the slice of the own slot is this rank's to write, and
        // its packed input has been reduced.
        unsafe { reduce(self.fold.dtype, self.fold.op, &source, span.len, &sink, self.fold.finish) };
        self.output(span);
    }

    fn give(&self, values: Values, span: Span, bytes: &mut Vec<u8>) {
        let (from, len) = match values {
            Values::Partial => {
                let size = partial_size(self.fold.dtype);
                (self.work.as_ptr().cast::<u8>().wrapping_add(span.start * size), span.len * size)
            }
            Values::Final => (self.slot(self.arena.me(), span.start).cast_const(), span.len * self.fold.dtype.size()),
        };
        // SAFETY: the span lies in the slice; nobody writes these values while the shared slice is borrowed.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(from, len) });
    }
}
