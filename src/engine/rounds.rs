//! A collective by messages between all ranks of the set: ring, tree and ordered chain, and what crosses hosts.

use super::exchange::{Area, Exchange, Greetings};
use super::fold::Fold;
use super::operation::{Prescale, unsound};
use super::regions::{Regions, Side};
use super::{Channel, Operation, Step};
use crate::device::host::{Finish, Sink, Source, copy_checked, copy_scaled, partial_size, reduce};
use crate::error::Result;
use crate::plan::{Combine, LinkPlan, Span, Values};
use crate::tensor::{DType, RawSlice};
use crate::transport::Link as _;
use crate::transport::shm::Fingerprint;

/// A collective in progress.
#[derive(Debug)]
pub(super) struct RoundRun {
    print: Fingerprint,
    exchange: Exchange,
    greetings: Greetings,
    area: Flat,
    /// Set ranks by position of the plan, where they are not the same.
    names: Option<Vec<usize>>,
    announced: bool,
    agreed: bool,
    begun: bool,
}

impl RoundRun {
    pub(super) fn new(
        print: Fingerprint,
        plan: LinkPlan,
        names: Option<Vec<usize>>,
        operation: Operation,
        fold: Option<Fold>,
        work: Work,
    ) -> Self {
        Self {
            print,
            exchange: Exchange::new(plan),
            greetings: Greetings::new(print),
            area: Flat::new(operation, fold, work),
            names,
            announced: false,
            agreed: false,
            begun: false,
        }
    }

    /// The same, as a stage of an operation that announces itself on the host later.
    pub(super) fn unannounced(self) -> Self {
        Self { announced: true, agreed: true, ..self }
    }

    pub(super) fn poll(&mut self, channel: &mut Channel) -> Result<Step> {
        if !self.announced {
            channel.announce(self.print, &[]);
            self.announced = true;
        }
        if !self.agreed {
            if !channel.agreed(self.print)? {
                return Ok(Step::Pending);
            }
            self.agreed = true;
        }
        if !self.begun {
            self.area.begin();
            self.begun = true;
        }
        let names = &self.names;
        let name = |position: usize| names.as_ref().map_or(position, |names| names[position]);
        let link = &mut channel.link;
        link.progress()?;
        let step = self.exchange.poll(link, &name, &mut self.greetings, &mut self.area, &|_| (true, true))?;
        if step == Step::Ready(()) {
            self.area.end()?;
        }
        Ok(step)
    }

    /// Whether it is the turn of messages, and not of announcements.
    pub(super) fn exchanges(&self) -> bool {
        self.agreed
    }

    /// The global ranks that hold the operation up.
    pub(super) fn missing(&self, channel: &Channel) -> Vec<u32> {
        if !self.agreed {
            return channel.unannounced(self.print);
        }
        self.exchange.missing().into_iter().map(|rank| channel.team.global(rank)).collect()
    }
}

/// How a collective's input and output lie in the work area, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Elements of the work area.
    pub(super) whole: usize,
    /// Where this rank's input lies; empty if it has none.
    pub(super) own: Span,
    /// Which part becomes the output.
    pub(super) kept: Span,
    /// What is copied within the area at the start, and where to.
    pub(super) copy: (Span, usize),
}

impl Work {
    pub(super) fn new(whole: usize, own: Span, kept: Span) -> Self {
        Self { whole, own, kept, copy: (Span::default(), 0) }
    }
}

/// The work area of a collective by messages: final elements, and partial values beside them where ranks reduce.
#[derive(Debug)]
struct Flat {
    dtype: DType,
    fold: Option<Fold>,
    prescale: Prescale,
    regions: Regions,
    work: Work,
    /// Elements: this rank's input at first, the result in the end. In words, so that they are aligned.
    elements: Vec<u64>,
    partials: Vec<u64>,
}

impl Flat {
    fn new(operation: Operation, fold: Option<Fold>, work: Work) -> Self {
        let dtype = operation.dtype;
        Self {
            dtype,
            fold,
            prescale: operation.prescale,
            regions: Regions::new(operation.pieces, dtype.size()),
            work,
            elements: vec![0; (work.whole * dtype.size()).div_ceil(8)],
            partials: vec![0; if fold.is_some() { (work.whole * partial_size(dtype)).div_ceil(8) } else { 0 }],
        }
    }

    fn element(&self, index: usize) -> *const u8 {
        self.elements.as_ptr().cast::<u8>().wrapping_add(index * self.dtype.size())
    }

    fn element_mut(&mut self, index: usize) -> *mut u8 {
        self.elements.as_mut_ptr().cast::<u8>().wrapping_add(index * self.dtype.size())
    }

    fn partial_mut(&mut self, index: usize) -> *mut u8 {
        self.partials.as_mut_ptr().cast::<u8>().wrapping_add(index * partial_size(self.dtype))
    }

    /// Copies the input in.
    fn begin(&mut self) {
        let base = self.element_mut(self.work.own.start);
        let (dtype, prescale) = (self.dtype, &self.prescale);
        self.regions.each_of(Side::Input, 0, self.work.own.len, |piece, memory: RawSlice, offset| {
            let at = base.wrapping_add(offset * dtype.size());
            // SAFETY: `own` lies in the work area, and the operation owns its input.
            unsafe { copy_scaled(dtype, memory.ptr(), at, memory.len() / dtype.size(), prescale.of(piece)) };
        });
        let (from, to) = self.work.copy;
        let (bytes, to) = (from.len * self.dtype.size(), self.element_mut(to));
        // SAFETY: both spans lie in the work area.
        unsafe { std::ptr::copy(self.element(from.start), to, bytes) };
    }

    /// Copies the output out.
    ///
    /// # Errors
    /// If bytes that came from others are no elements of the type.
    fn end(&self) -> Result<()> {
        let base = self.element(self.work.kept.start);
        let mut sound = true;
        self.regions.each(Side::Output, 0, self.work.kept.len, |memory: RawSlice, offset| {
            let size = self.dtype.size();
            let from = base.wrapping_add(offset * size);
            // SAFETY: `kept` lies in the work area, and the operation owns its output.
            sound &= unsafe { copy_checked(self.dtype, from, memory.ptr(), memory.len() / size) };
        });
        if sound { Ok(()) } else { Err(unsound(self.dtype, None)) }
    }

    /// Reduces `sources` into the span's partial values.
    fn combine(&mut self, sources: &[Source], span: Span) {
        let sink = [Sink::Partial(self.partial_mut(span.start))];
        if let Some(fold) = self.fold {
            // SAFETY: the sources hold the span's values (received, or of the work area), and so does the sink.
            unsafe { reduce(fold.dtype, fold.op, sources, span.len, &sink, Finish::NONE) };
        }
    }
}

impl Area for Flat {
    fn width(&self, values: Values) -> usize {
        match values {
            Values::Partial => partial_size(self.dtype),
            Values::Final => self.dtype.size(),
        }
    }

    fn load(&mut self, span: Span) {
        // Without a reduction, own elements are final from the start.
        let own = Source::Elements(self.element(span.start));
        self.combine(&[own], span);
    }

    fn take(&mut self, combine: Combine, span: Span, bytes: &[u8]) {
        let received = Source::Partial(bytes.as_ptr());
        match combine {
            Combine::Copy => {
                let at = self.element_mut(span.start);
                // SAFETY: the span lies in the work area and `bytes` holds its elements.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
            }
            Combine::Reduce => {
                let own = Source::Partial(self.partial_mut(span.start).cast_const());
                self.combine(&[own, received], span);
            }
            Combine::Extend => {
                let own = Source::Elements(self.element(span.start));
                self.combine(&[received, own], span);
            }
        }
    }

    fn finish(&mut self, span: Span) {
        let Some(fold) = self.fold else { return };
        let source = [Source::Partial(self.partial_mut(span.start).cast_const())];
        let sink = [Sink::Elements(self.element_mut(span.start))];
        // SAFETY: both lie in the work area and hold the span.
        unsafe { reduce(fold.dtype, fold.op, &source, span.len, &sink, fold.finish) };
    }

    fn give(&self, values: Values, span: Span, bytes: &mut Vec<u8>) {
        let (from, len) = match values {
            Values::Partial => {
                let size = partial_size(self.dtype);
                (self.partials.as_ptr().cast::<u8>().wrapping_add(span.start * size), span.len * size)
            }
            Values::Final => (self.element(span.start), span.len * self.dtype.size()),
        };
        // SAFETY: the span lies in the work area, which is not written while it is borrowed.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(from, len) });
    }
}
