//! From an operation to the schedule that runs it.

use std::sync::Arc;

use super::Channel;
use super::adasum::AdasumRun;
use super::channel::Run;
use super::fold::Fold;
use super::host::{HostRun, align};
use super::inline::InlineRun;
use super::operation::{Collective, Operation};
use super::rounds::{RoundRun, Work};
use crate::plan::chain::Chain;
use crate::plan::moves::{Move, Moves, PairMoves, SlotMoves};
use crate::plan::ring::Ring;
use crate::plan::tree::Tree;
use crate::plan::{Algorithm, HostOp, HostPlan, LinkPlan, SlotPlan, Span};
use crate::tensor::ReduceOp;
use crate::transport::shm::Fingerprint;

impl Channel {
    /// The run of an operation. Depends only on what all ranks know alike: the request, the team, the table.
    pub(super) fn plan(&self, operation: Operation, print: Fingerprint) -> Run {
        if operation.reduce_op() == Some(ReduceOp::Adasum) {
            return self.adasum(operation, print);
        }
        if self.team.is_local() && InlineRun::fits(&operation) {
            return Run::Inline(InlineRun::new(operation, print));
        }
        match operation.collective {
            Collective::Allreduce(_) => {
                let bytes = operation.count.saturating_mul(operation.dtype.size());
                self.allreduce_by(self.table.pick(bytes), operation, print)
            }
            Collective::Broadcast { root } => self.broadcast(operation, print, root),
            Collective::Allgather
            | Collective::Sizes { of: Move::Allgather | Move::Gather { .. }, .. }
            | Collective::SizesOfGroup { .. } => self.allgather(operation, print),
            Collective::ReduceScatter { op, row } => {
                let fold = Some(self.fold(&operation, op));
                self.reduce_scatter(operation, print, fold, row)
            }
            Collective::ReduceScatterGroup { op, .. } => {
                let fold = Some(self.fold(&operation, op));
                self.reduce_scatter(operation, print, fold, 1)
            }
            Collective::Reduce { op, root } => {
                let fold = Some(self.fold(&operation, op));
                self.reduce(operation, print, fold, root)
            }
            Collective::Move(of) | Collective::Sizes { of, .. } | Collective::Sized(of) => {
                let moves = operation.moves.clone().unwrap_or_else(|| self.even(of, operation.count));
                self.moves(operation, print, moves)
            }
            Collective::Barrier | Collective::Refused => {
                // Across hosts: an allreduce of nothing but one byte, from and to nowhere.
                let operation = Operation { count: 1, ..operation };
                let fold = Fold::new(operation.dtype, ReduceOp::Max, self.team.size(), 1.0);
                let work = Work::new(1, Span::default(), Span::default());
                let plan = Tree::allreduce(self.team.size(), self.team.rank(), 1).into();
                self.rounds(operation, print, Some(fold), plan, work)
            }
        }
    }

    /// How many elements of the operation a slot holds.
    fn chunk(&self, operation: &Operation) -> usize {
        self.chunk_bytes / operation.dtype.size()
    }

    fn host_plan(&self, op: HostOp, operation: &Operation) -> HostPlan {
        let (members, me) = (self.team.members().len(), self.team.member());
        let plan = HostPlan::new(op, members, me, operation.count, self.chunk(operation), align(operation.dtype));
        // Scaled input exists in the slot only.
        if operation.prescale.is_none() { plan.read_own_input() } else { plan }
    }

    fn host(&self, operation: Operation, print: Fingerprint, fold: Option<Fold>, op: HostOp) -> Run {
        let plan = self.host_plan(op, &operation);
        self.slots(operation, print, fold, plan.into())
    }

    fn slots(&self, operation: Operation, print: Fingerprint, fold: Option<Fold>, plan: SlotPlan) -> Run {
        Run::Host(Box::new(HostRun::new(self, print, plan, fold, operation, None, None)))
    }

    fn rounds(&self, operation: Operation, print: Fingerprint, fold: Option<Fold>, plan: LinkPlan, work: Work) -> Run {
        Run::Rounds(Box::new(RoundRun::new(print, plan, None, operation, fold, work)))
    }

    fn fold(&self, operation: &Operation, op: ReduceOp) -> Fold {
        operation.fold(op, self.team.size())
    }

    fn allreduce_by(&self, algorithm: Algorithm, operation: Operation, print: Fingerprint) -> Run {
        let (ranks, me, count) = (self.team.size(), self.team.rank(), operation.count);
        let fold = operation.reduce_op().map(|op| self.fold(&operation, op));
        let bytes = count.saturating_mul(operation.dtype.size());
        let cross = self.table.cross(algorithm, bytes, operation.dtype.size());
        let whole = Span::new(0, count);
        let work = Work::new(count, whole, whole);
        match algorithm {
            Algorithm::OneShot => self.host(operation, print, fold, HostOp::OneShot),
            Algorithm::Ring => {
                let plan = Ring::allreduce(ranks, me, count, align(operation.dtype)).into();
                self.rounds(operation, print, fold, plan, work)
            }
            Algorithm::BinomialTree => {
                self.rounds(operation, print, fold, Tree::allreduce(ranks, me, count).into(), work)
            }
            Algorithm::TwoLevel | Algorithm::OrderedChain if !self.team.is_local() => {
                let plan = self.two_level.host_plan(count, self.chunk(&operation), align(operation.dtype));
                let cross = Some((self.two_level.clone(), cross));
                Run::Host(Box::new(HostRun::new(self, print, plan.into(), fold, operation, cross, None)))
            }
            _ => self.host(operation, print, fold, HostOp::TwoShot { owners: self.team.members().len() }),
        }
    }

    /// An allreduce whose order of summing is the same for every element, whatever lies beside it: rank order, but on hosts
    /// that do not hold contiguous ranks the order of a tree.
    pub(super) fn plan_in_order(&self, operation: Operation, print: Fingerprint) -> Run {
        if self.team.is_local() {
            if InlineRun::fits(&operation) {
                return Run::Inline(InlineRun::new(operation, print));
            }
            let owners = self.team.members().len();
            let fold = operation.reduce_op().map(|op| self.fold(&operation, op));
            return self.host(operation, print, fold, HostOp::TwoShot { owners });
        }
        let algorithm = if self.two_level.contiguous() { Algorithm::OrderedChain } else { Algorithm::BinomialTree };
        self.allreduce_by(algorithm, operation, print)
    }

    /// Adasum of one rank's tensors is those tensors.
    fn adasum(&self, operation: Operation, print: Fingerprint) -> Run {
        if self.team.size() == 1 || operation.count == 0 {
            let operation = Operation { collective: Collective::Allreduce(ReduceOp::Sum), ..operation };
            return self.plan_in_order(operation, print);
        }
        Run::Adasum(Box::new(AdasumRun::new(self, operation, print)))
    }

    fn broadcast(&self, operation: Operation, print: Fingerprint, root: usize) -> Run {
        let relay = self.two_level.broadcast(root, operation.count);
        let whole = Span::new(0, operation.count);
        let stage = relay.link.filter(|_| !self.team.is_local()).map(|plan| {
            let names = (0..self.team.hosts().len()).map(|host| self.two_level.representative(root, host)).collect();
            let own = if self.team.rank() == root { whole } else { Span::default() };
            let work = Work::new(operation.count, own, whole);
            RoundRun::new(print, plan, Some(names), operation.clone(), None, work).unannounced()
        });
        let plan = self.host_plan(HostOp::Broadcast { root: relay.representative }, &operation);
        Run::Host(Box::new(HostRun::new(self, print, plan.into(), None, operation, None, stage)))
    }

    fn allgather(&self, operation: Operation, print: Fingerprint) -> Run {
        if self.team.is_local() {
            return self.host(operation, print, None, HostOp::Allgather);
        }
        let (ranks, me, count) = (self.team.size(), self.team.rank(), operation.count);
        let work = Work::new(ranks * count, Span::new(me * count, count), Span::new(0, ranks * count));
        self.rounds(operation, print, None, Ring::allgather(ranks, me, count).into(), work)
    }

    fn reduce_scatter(&self, operation: Operation, print: Fingerprint, fold: Option<Fold>, row: usize) -> Run {
        let blocks = operation.blocks.clone();
        if self.team.is_local() {
            let plan = self.host_plan(HostOp::ReduceScatter { row }, &operation);
            let plan = if let Some(blocks) = blocks { plan.cut(blocks) } else { plan };
            return self.slots(operation, print, fold, plan.into());
        }
        let (ranks, me) = (self.team.size(), self.team.rank());
        let whole = Span::new(0, operation.count);
        let own = blocks.as_ref().map_or_else(|| whole.part(me, ranks, row), |blocks| blocks[me]);
        let work = Work::new(whole.len, whole, own);
        let bytes = whole.len.saturating_mul(operation.dtype.size());
        if let Some(segment) = self.table.ordered_segment(bytes, operation.dtype.size()) {
            // Every rank gets the sums of all elements: the price of rank order, which no ring keeps.
            let plan = Chain::allreduce(ranks, me, whole.len, segment).into();
            return self.rounds(operation, print, fold, plan, work);
        }
        let plan = Ring::reduce_scatter(ranks, me, whole.len, row);
        let plan = if let Some(blocks) = blocks { plan.cut(blocks) } else { plan };
        self.rounds(operation, print, fold, plan.into(), work)
    }

    /// An allreduce whose result only the root unpacks.
    fn reduce(&self, operation: Operation, print: Fingerprint, fold: Option<Fold>, root: usize) -> Run {
        if self.team.is_local() {
            let owners = self.team.members().len();
            return self.host(operation, print, fold, HostOp::Reduce { owners, root: Some(root) });
        }
        let bytes = operation.count.saturating_mul(operation.dtype.size());
        let algorithm = match self.table.pick(bytes) {
            Algorithm::OrderedChain => Algorithm::OrderedChain,
            _ => Algorithm::TwoLevel,
        };
        let cross = self.table.cross(algorithm, bytes, operation.dtype.size());
        let (chunk, align) = (self.chunk(&operation), align(operation.dtype));
        let plan = self.two_level.reduce_plan(root, operation.count, chunk, align).into();
        let cross = Some((self.two_level.clone(), cross));
        Run::Host(Box::new(HostRun::new(self, print, plan, fold, operation, cross, None)))
    }

    /// Blocks of `count` elements each.
    fn even(&self, of: Move, count: usize) -> Arc<Moves> {
        let (ranks, me) = (self.team.size(), self.team.rank());
        let counts = vec![count; ranks];
        let mine = Span::new(me * count, count);
        Arc::new(match of {
            Move::Allgather => Moves::gather(&counts, me, None),
            Move::Gather { root } => Moves::gather(&counts, me, Some(root)),
            Move::Scatter { root } => Moves::scatter(ranks, me, root, mine, ranks * count, &counts),
            Move::AllToAll => Moves::all_to_all(me, vec![ranks * count; ranks], &vec![mine; ranks], &counts),
        })
    }

    fn moves(&self, operation: Operation, print: Fingerprint, moves: Arc<Moves>) -> Run {
        if self.team.is_local() {
            let plan = SlotMoves::new(moves, self.chunk(&operation));
            return self.slots(operation, print, None, plan.into());
        }
        let input = Span::new(0, moves.input());
        let output = Span::new(input.len, moves.output());
        let own = moves.own();
        let work = Work { copy: (own.data, input.len + own.output), ..Work::new(output.end(), input, output) };
        self.rounds(operation, print, None, PairMoves::new(moves).into(), work)
    }
}
