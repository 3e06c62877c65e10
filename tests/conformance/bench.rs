//! What the bodies of the cases share: the ranks of a set, and what is to be noted of a case.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::result::Result;

use kolo::{Communicator, Kolo, ProcessSet};

use super::memory::Buffer;
use super::place::Place;
use super::report::{Bits, Report};
use super::sample::mix;
use super::value::{Number, Value};
use super::want::{Want, check_same, digest};

/// What is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) seed: u64,
    /// One in so many cases runs, of those that usually do.
    pub(crate) share: u64,
    /// Whether all of them run, those included that usually leave it to others like them.
    pub(crate) all: bool,
    /// Words that the key of a case must hold.
    pub(crate) only: String,
    /// A directory of the job's own.
    pub(crate) directory: PathBuf,
}

/// A rank at work.
pub(crate) struct Bench<'a> {
    pub(crate) kolo: &'a Kolo,
    pub(crate) task: &'a Task,
    pub(crate) place: &'a Place,
    pub(crate) report: Report,
}

/// In which order a float sum was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// In that of the ranks: the bits of one process.
    Ranks,
    /// In one that the algorithm, the length and the layout of the hosts determine: the same in every run.
    OfItsOwn,
    /// The same on all ranks, and another in another run.
    Varies,
}

/// Ranks that work together: their named operations, and a communicator.
pub(crate) struct Team {
    pub(crate) named: ProcessSet,
    pub(crate) comm: Communicator,
    /// Whether these are all ranks of the job, in their order.
    pub(crate) is_world: bool,
    /// Whether sums are in rank order, unless an algorithm is asked for that keeps no order.
    pub(crate) ordered: bool,
    /// In the keys of its cases.
    pub(crate) label: String,
    /// How many ranks of the job run cases of this label.
    ranks: usize,
    /// Cases that a set which is not the world leaves out: all but one in so many.
    share: u64,
}

/// Sets that are not the world run one in so many cases: what they add is the numbering of ranks.
const SETS_SHARE: u64 = 3;

/// One in how many cases of an operation usually runs. Some have many that differ in little: each run draws others.
fn usual(operation: &str) -> u64 {
    match operation {
        "allreduce" => 100,
        "reduce" | "reduce_scatter" => 40,
        // They have few forms, and forms are few cases.
        "grouped_allgather" | "grouped_reduce_scatter" => 2,
        "broadcast_object" | "allgather_object" => 4,
        "sparse_allreduce" => 100,
        "barrier" => 1,
        _ => 20,
    }
}

impl Team {
    /// All sets that this rank is in: all ranks; all but the first, in reverse; those with odd or even numbers.
    pub(crate) fn all(kolo: &Kolo, place: &Place) -> kolo::Result<Vec<Self>> {
        let (me, size) = (kolo.rank(), kolo.size());
        let mut world = kolo.communicator()?;
        let mut teams = Vec::new();
        if size > 1 {
            let reversed: Vec<usize> = (1..size).rev().collect();
            let named = kolo.process_set(&reversed)?;
            let comm = world.split((me > 0).then_some(7), -(me as i64))?;
            let label = format!("a subset of {}, reversed", reversed.len());
            teams.extend(named.zip(comm).map(|(named, comm)| Self::new(named, comm, label, size - 1, place)));

            let part_of = |rank: usize| (rank % 2..size).step_by(2).collect::<Vec<_>>();
            // The parts may differ in what they can run: only those that are alike share a label.
            let label_of = |rank: usize| {
                let part = part_of(rank);
                let hosts = if place.is_one_host(&part) { "on one host" } else { "across hosts" };
                format!("a part of {} of a split, {hosts}", part.len())
            };
            let named = kolo.split(Some((me % 2) as u32), 0)?;
            let comm = world.split(Some((me % 2) as u32), 0)?;
            let label = label_of(me);
            let ranks = (0..size).filter(|rank| label_of(*rank) == label).count();
            teams.extend(named.zip(comm).map(|(named, comm)| Self::new(named, comm, label, ranks, place)));
        }
        let label = format!("all {size}");
        teams.insert(0, Self::new(kolo.world().clone(), world, label, size, place));
        teams[0].is_world = true;
        teams[0].share = 1;
        Ok(teams)
    }

    fn new(named: ProcessSet, comm: Communicator, label: String, ranks: usize, place: &Place) -> Self {
        assert_eq!((named.rank(), named.size()), (comm.rank(), comm.size()), "{label}");
        let ordered = place.deterministic || place.is_one_host(&named.ranks());
        Self { named, comm, is_world: false, ordered, label, ranks, share: SETS_SHARE }
    }

    pub(crate) fn size(&self) -> usize {
        self.named.size()
    }

    /// This rank's number in the set.
    pub(crate) fn me(&self) -> usize {
        self.named.rank()
    }

    /// The order in which sums are done, unless an algorithm is asked for.
    fn order_of<T: Number>(&self, want: &Want<T>) -> Order {
        if self.ordered || want.is_adasum() { Order::Ranks } else { Order::OfItsOwn }
    }

    /// The same for tensors that may be fused with others: with how many, the moment decides.
    pub(crate) fn order_of_fused<T: Number>(&self, want: &Want<T>) -> Order {
        if self.order_of(want) == Order::Ranks { Order::Ranks } else { Order::Varies }
    }

    /// The global rank of one of its ranks.
    pub(crate) fn global(&self, rank: usize) -> usize {
        self.named.global_rank(rank).expect("a rank of the set")
    }
}

impl Bench<'_> {
    /// The key of a case, if it is to run. All ranks of the set decide alike.
    pub(crate) fn wanted(
        &self,
        team: &Team,
        operation: &str,
        dtype: &dyn fmt::Display,
        form: fmt::Arguments<'_>,
    ) -> Option<String> {
        let key = format!("{operation} {dtype}, {form}, {}, {}", team.label, self.place);
        let share = if self.task.all { 1 } else { self.task.share * team.share * self.place.share * usual(operation) };
        let has_turn = share == 1 || mix(self.task.seed, &[&key]).is_multiple_of(share);
        (has_turn && key.contains(&self.task.only)).then_some(key)
    }

    /// Begins the case, unless it is not to run.
    pub(crate) fn begin(
        &mut self,
        team: &Team,
        operation: &str,
        dtype: &dyn fmt::Display,
        form: fmt::Arguments<'_>,
    ) -> bool {
        let key = self.wanted(team, operation, dtype, form);
        let runs = key.is_some();
        key.into_iter().for_each(|key| self.begin_wanted(team, key));
        runs
    }

    /// Begins a case that is to run, by its key.
    pub(crate) fn begin_wanted(&mut self, team: &Team, key: String) {
        self.report.begin(key, team.ranks);
    }

    /// Notes what came of a check of the case that began last.
    pub(crate) fn check(&mut self, outcome: Result<(), String>) {
        self.report.check(self.kolo.rank(), outcome);
    }

    /// The case holds only if this does.
    pub(crate) fn holds(&mut self, holds: bool, what: &str) {
        self.check(if holds { Ok(()) } else { Err(what.to_owned()) });
    }

    /// `got` is exactly `want`.
    pub(crate) fn same<T: Value>(&mut self, got: &[T], want: &[T]) {
        self.check(check_same(got, want));
    }

    /// The buffer holds exactly `want`, and what lies around it was not touched.
    pub(crate) fn holds_same<T: Value>(&mut self, got: &Buffer<T>, want: &[T]) {
        self.same(got.slice(), want);
        self.framed(got);
    }

    /// What was read only is as it was.
    pub(crate) fn unchanged<T: Value>(&mut self, input: &Buffer<T>, data: &[T]) {
        self.check(check_same(input.slice(), data).map_err(|why| format!("the input was changed: {why}")));
        self.framed(input);
    }

    /// What lies around the buffer was not touched.
    pub(crate) fn framed<T: Value>(&mut self, buffer: &Buffer<T>) {
        self.holds(buffer.is_framed(), "elements beside the buffer were written");
    }

    /// The buffer holds the whole reduction, and every rank has the same bits, in every run.
    pub(crate) fn reduced<T: Number>(&mut self, team: &Team, got: &Buffer<T>, want: &Want<T>) {
        self.reduced_by(team.order_of(want), got, want);
    }

    /// As [`reduced`](Self::reduced), of sums that were done in that order.
    pub(crate) fn reduced_by<T: Number>(&mut self, order: Order, got: &Buffer<T>, want: &Want<T>) {
        self.framed(got);
        self.check(want.check(got.slice(), 0..want.len(), order == Order::Ranks));
        self.bits(order, got.slice(), want, 0..want.len());
    }

    /// The elements are a part of the reduction.
    pub(crate) fn reduced_part<T: Number>(&mut self, team: &Team, got: &[T], want: &Want<T>, part: Range<usize>) {
        let order = team.order_of(want);
        self.check(want.check(got, part.clone(), order == Order::Ranks));
        self.bits(order, got, want, part);
    }

    fn bits<T: Number>(&mut self, order: Order, got: &[T], want: &Want<T>, part: Range<usize>) {
        if want.has_nan() {
            return;
        }
        let what = match order {
            Order::Ranks => want.words.clone(),
            // A case may have several results.
            _ => format!("{} ({}: {})", self.report.key(), self.report.results(), want.words),
        };
        let of = format!("{what} from {} to {}", part.start, part.end);
        self.report.bits(Bits { digest: digest(got), of, here_only: order == Order::Varies });
    }
}
