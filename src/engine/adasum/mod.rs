//! Adasum over all ranks of a set, tensor by tensor, in memory that does not grow with the tensors.
//!
//! Every factor of the tree of pairs follows from the dot products of the ranks' tensors (`weights.rs`), so no combined
//! tensor is needed before the last. Three stages, each announced like an operation of its own:
//!
//! 1. *meet*: block after block, all ranks' elements come together at one rank, which keeps their dot products only;
//! 2. *share*: the dot products of all blocks are summed over the ranks, all but one of which have a zero for each: exact
//!    in whatever order;
//! 3. *sum*: an allreduce of the weighted tensors, in an order that is the same for every element.
//!
//! A block never crosses tensors, and its dot products are added in an order that its length determines; the blocks of a
//! tensor are added in order by every rank. So a tensor has the same bits fused and unfused, and where stage 3 is in rank
//! order, on one host and on several.

#[cfg(test)]
mod tests;
mod weights;

use std::sync::Arc;

use self::weights::weights;
use super::channel::Run;
use super::exchange::{Area, Exchange, Greetings};
use super::operation::{Collective, Operation, Prescale};
use super::regions::{Regions, Side};
use super::{Channel, Step};
use crate::device::host::{dots, pairs};
use crate::error::Result;
use crate::plan::meet::Meeting;
use crate::plan::{Combine, Span, Values};
use crate::tensor::{DType, Piece, RawSlice, ReduceOp};
use crate::transport::Link;
use crate::transport::shm::Fingerprint;

/// Elements of a block, for each 16 ranks: the more ranks, the more pairs, and the dot products shall stay small beside
/// what they are of.
const BLOCK: usize = 8192;

/// An Adasum in progress.
#[derive(Debug)]
pub(super) struct AdasumRun {
    operation: Operation,
    blocks: Blocks,
    /// The dot products of each block, one block after another. Not touched but by the stage that is under way.
    sums: Vec<f64>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Meet(Box<MeetRun>),
    Share(Run),
    Sum(Run),
}

impl AdasumRun {
    pub(super) fn new(channel: &Channel, operation: Operation, print: Fingerprint) -> Self {
        let (ranks, me) = (channel.team().size(), channel.team().rank());
        let lengths = operation.pieces.iter().map(|piece| piece.input.len() / operation.dtype.size());
        let blocks = Blocks::new(lengths, BLOCK * ranks.div_ceil(16));
        let sums = vec![0.0; blocks.ends.len() * pairs(ranks)];
        let meet = MeetRun {
            print,
            exchange: Exchange::new(Meeting::new(ranks, me, blocks.cuts()).into()),
            greetings: Greetings::new(print),
            table: Gathering::new(ranks, me, &operation, &blocks),
            announced: false,
            agreed: false,
        };
        Self { operation, blocks, sums, stage: Stage::Meet(Box::new(meet)) }
    }

    pub(super) fn poll(&mut self, channel: &mut Channel) -> Result<Step> {
        let step = match &mut self.stage {
            Stage::Meet(run) => run.poll(channel, &self.blocks, &mut self.sums)?,
            Stage::Share(run) | Stage::Sum(run) => run.poll(channel)?,
        };
        if step != Step::Ready(()) {
            return Ok(step);
        }
        let print = match &self.stage {
            Stage::Sum(_) => return Ok(step),
            Stage::Meet(_) | Stage::Share(_) => channel.next_print(&self.operation),
        };
        self.stage = if matches!(self.stage, Stage::Meet(_)) {
            let piece = Piece::in_place(RawSlice::of_mut(&mut self.sums));
            let sum = Collective::Allreduce(ReduceOp::Sum);
            let operation = Operation::new(sum, DType::F64, self.sums.len(), Some(piece));
            Stage::Share(channel.plan(operation, print))
        } else {
            Stage::Sum(channel.plan_in_order(self.weighted(channel), print))
        };
        Ok(Step::Progress)
    }

    /// The allreduce of stage 3.
    fn weighted(&self, channel: &Channel) -> Operation {
        let (ranks, me) = (channel.team().size(), channel.team().rank());
        let mut dots = vec![vec![0.0; pairs(ranks)]; self.operation.pieces.len()];
        for (sums, &(tensor, _)) in self.sums.chunks_exact(pairs(ranks)).zip(&self.blocks.ends) {
            for (total, sum) in dots[tensor].iter_mut().zip(sums) {
                *total += sum;
            }
        }
        let factor = |(tensor, dots): (usize, &Vec<f64>)| weights(ranks, dots)[me] * self.operation.prescale.of(tensor);
        let prescale = Prescale::Each(dots.iter().enumerate().map(factor).collect());
        Operation { collective: Collective::Allreduce(ReduceOp::Sum), prescale, ..self.operation.clone() }
    }

    /// Whether messages of other ranks may be what it waits for.
    pub(super) fn exchanges(&self) -> bool {
        match &self.stage {
            Stage::Meet(run) => run.agreed,
            Stage::Share(run) | Stage::Sum(run) => run.exchanges(),
        }
    }

    /// The global ranks that hold the operation up.
    pub(super) fn missing(&self, channel: &Channel) -> Vec<u32> {
        match &self.stage {
            Stage::Meet(run) if !run.agreed => channel.unannounced(run.print),
            Stage::Meet(run) => run.exchange.missing().into_iter().map(|rank| channel.team().global(rank)).collect(),
            Stage::Share(run) | Stage::Sum(run) => run.missing(channel),
        }
    }
}

/// How a list of tensors, laid end to end, is cut.
#[derive(Debug)]
struct Blocks {
    /// The tensor of each block, and where it ends; it begins where the one before ends.
    ends: Vec<(usize, usize)>,
    /// The first block of each portion, which one rank looks at; then the number of blocks.
    portions: Vec<usize>,
}

impl Blocks {
    /// Cuts tensors of `lengths` into blocks of `block` elements, the last of each shorter. Short blocks that follow each
    /// other make one portion.
    fn new(lengths: impl Iterator<Item = usize>, block: usize) -> Self {
        let (mut ends, mut portions) = (Vec::new(), vec![0]);
        let (mut at, mut begin) = (0, 0);
        for (tensor, length) in lengths.enumerate() {
            let end = at + length;
            while at < end {
                let next = end.min(at + block);
                if next - begin > block && at > begin {
                    portions.push(ends.len());
                    begin = at;
                }
                ends.push((tensor, next));
                at = next;
            }
        }
        portions.push(ends.len());
        Self { ends, portions }
    }

    /// Where block `index` begins.
    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before].1)
    }

    /// Where the portions begin, in elements; then the number of elements.
    fn cuts(&self) -> Arc<[usize]> {
        self.portions.iter().map(|&block| self.start(block)).collect()
    }
}

/// Stage 1 in progress.
#[derive(Debug)]
struct MeetRun {
    print: Fingerprint,
    exchange: Exchange,
    greetings: Greetings,
    table: Gathering,
    announced: bool,
    agreed: bool,
}

impl MeetRun {
    fn poll(&mut self, channel: &mut Channel, blocks: &Blocks, sums: &mut [f64]) -> Result<Step> {
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
        let link = &mut channel.link;
        link.progress()?;
        let mut area = Meet { table: &mut self.table, blocks, sums };
        self.exchange.poll(link, &|rank| rank, &mut self.greetings, &mut area, &|_| (true, true))
    }
}

/// All ranks' elements of one portion.
#[derive(Debug)]
struct Gathering {
    ranks: usize,
    me: usize,
    dtype: DType,
    regions: Regions,
    /// Elements of the whole operation, of one rank.
    count: usize,
    /// Room for a portion of each rank, `longest` elements apart. In words, so that they are aligned.
    elements: Vec<u64>,
    longest: usize,
}

impl Gathering {
    fn new(ranks: usize, me: usize, operation: &Operation, blocks: &Blocks) -> Self {
        let cuts = blocks.cuts();
        let longest = cuts.windows(2).map(|cut| cut[1] - cut[0]).max().unwrap_or(0);
        let (dtype, count) = (operation.dtype, operation.count);
        let elements = vec![0; (ranks * longest * dtype.size()).div_ceil(8)];
        let regions = Regions::new(operation.pieces.clone(), dtype.size());
        Self { ranks, me, dtype, regions, count, elements, longest }
    }

    /// Where `rank`'s element `at` of the portion lies.
    fn place(&mut self, rank: usize, at: usize) -> *mut u8 {
        let element = rank * self.longest + at;
        self.elements.as_mut_ptr().cast::<u8>().wrapping_add(element * self.dtype.size())
    }
}

/// The work area of [`Meeting`]: those of rank r's elements that belong to this rank's portion.
struct Meet<'a> {
    table: &'a mut Gathering,
    blocks: &'a Blocks,
    sums: &'a mut [f64],
}

impl Meet<'_> {
    /// The rank and the place among its elements of a place of the work area.
    fn whose(&self, at: usize) -> (usize, usize) {
        (at / self.table.count, at % self.table.count)
    }

    /// The blocks of the portion that holds an element.
    fn portion(&self, at: usize) -> std::ops::Range<usize> {
        let block = self.blocks.ends.partition_point(|&(_, end)| end <= at);
        let next = self.blocks.portions.partition_point(|&first| first <= block);
        self.blocks.portions[next - 1]..self.blocks.portions[next]
    }
}

impl Area for Meet<'_> {
    fn width(&self, _: Values) -> usize {
        self.table.dtype.size()
    }

    fn load(&mut self, _: Span) {
        // Sent and looked at where it lies.
    }

    fn take(&mut self, _: Combine, span: Span, bytes: &[u8]) {
        let (rank, at) = self.whose(span.start);
        let begin = self.blocks.start(self.portion(at).start);
        let place = self.table.place(rank, at - begin);
        // SAFETY: the span lies in a portion, for which there is room for each rank, and `bytes` holds its elements.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    fn finish(&mut self, span: Span) {
        let (me, begin) = self.whose(span.start);
        let own = self.table.place(me, 0);
        let size = self.table.dtype.size();
        self.table.regions.each(Side::Input, begin, span.len, |memory, offset| {
            let to = own.wrapping_add(offset * size);
            // SAFETY: the portion lies in the operation's input, and there is room for it.
            unsafe { std::ptr::copy_nonoverlapping(memory.ptr().cast_const(), to, memory.len()) };
        });
        let pairs = pairs(self.table.ranks);
        for block in self.portion(begin) {
            let start = self.blocks.start(block);
            let inputs: Vec<*const u8> =
                (0..self.table.ranks).map(|rank| self.table.place(rank, start - begin).cast_const()).collect();
            let len = self.blocks.ends[block].1 - start;
            // SAFETY: the table holds every rank's elements of the block.
            unsafe { dots(self.table.dtype, &inputs, len, &mut self.sums[block * pairs..][..pairs]) };
        }
    }

    fn give(&self, _: Values, span: Span, bytes: &mut Vec<u8>) {
        let begin = span.start - self.table.me * self.table.count;
        self.table.regions.each(Side::Input, begin, span.len, |memory, _| {
            // SAFETY: the operation owns its input, and nobody writes it before stage 3.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(memory.ptr(), memory.len()) });
        });
    }
}
