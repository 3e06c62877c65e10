//! Random sequences of random operations, one after another without a pause, under random schedules: ranks run ahead of
//! each other, fall behind, and sleep.
//!
//! `KOLO_SEEDS=n` runs n seeds, `KOLO_SEED=n` one of them. A failure prints its seed.

use std::sync::Arc;

use super::testing::{Random, Shape, assert_moves};
use super::{Channel, Collective, Operation, Pieces, Step};
use crate::error::{Error, Result};
use crate::plan::moves::{Move, Moves};
use crate::plan::{Algorithm, Span};
use crate::tensor::{DType, Piece, RawSlice, ReduceOp};
use crate::{bf16, f16};

/// Prints the seed when the test panics.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("KOLO_SEED={} replays it", self.0);
        }
    }
}

pub(super) fn for_each_seed(count: u64, run: impl Fn(u64)) {
    for_each_seed_and(count, &[], run);
}

/// The same, and seeds beyond `count` that found something once.
pub(super) fn for_each_seed_and(count: u64, found: &[u64], run: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("KOLO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KOLO_SEEDS").unwrap_or(count),
    };
    let found = found.iter().copied().filter(|seed| number("KOLO_SEED").is_none() && !seeds.contains(seed));
    for seed in seeds.clone().chain(found) {
        let _replay = Replay(seed);
        run(seed);
    }
}

/// Bytes of a whole number, of the type.
fn element(dtype: DType, value: i64) -> Vec<u8> {
    match dtype {
        DType::F16 => f16::from_f64(value as f64).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f64(value as f64).to_le_bytes().to_vec(),
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::F64 => (value as f64).to_le_bytes().to_vec(),
        DType::I16 | DType::U16 => (value as i16).to_le_bytes().to_vec(),
        DType::I32 | DType::U32 => (value as i32).to_le_bytes().to_vec(),
        DType::I64 | DType::U64 => value.to_le_bytes().to_vec(),
        DType::I8 | DType::U8 | DType::Bool => vec![value as u8],
    }
}

/// Small whole numbers, whose sums and products every type holds exactly (or turns into the same infinity, or the same
/// remainder): the order of summing, which other tests look at, does not show.
fn draw(dtype: DType, op: Option<ReduceOp>, random: &mut Random) -> i64 {
    let signed = !matches!(dtype, DType::U8 | DType::U16 | DType::U32 | DType::U64);
    match op {
        _ if dtype == DType::Bool => random.below(2) as i64,
        Some(ReduceOp::Product) if signed => [1, 2, -1][random.below(3)],
        Some(ReduceOp::Product) => [1, 2][random.below(2)],
        _ => random.below(9) as i64 - if signed { 4 } else { 0 },
    }
}

fn reduce(dtype: DType, op: ReduceOp, column: impl Iterator<Item = i64>) -> Vec<u8> {
    let column: Vec<i64> = column.collect();
    let (sum, ranks) = (column.iter().sum::<i64>(), column.len());
    let value = match op {
        ReduceOp::Sum | ReduceOp::Adasum => sum,
        ReduceOp::Average => {
            // One division, in the accumulator's type.
            return match dtype {
                DType::F16 => f16::from_f32(sum as f32 / ranks as f32).to_le_bytes().to_vec(),
                DType::BF16 => bf16::from_f32(sum as f32 / ranks as f32).to_le_bytes().to_vec(),
                DType::F32 => (sum as f32 / ranks as f32).to_le_bytes().to_vec(),
                DType::F64 => (sum as f64 / ranks as f64).to_le_bytes().to_vec(),
                _ => element(dtype, sum / ranks as i64),
            };
        }
        ReduceOp::Min => column.into_iter().min().unwrap(),
        ReduceOp::Max => column.into_iter().max().unwrap(),
        ReduceOp::Product => column.into_iter().product(),
        ReduceOp::And => column.into_iter().fold(!0, |all, value| all & value),
        ReduceOp::Or => column.into_iter().fold(0, |all, value| all | value),
        ReduceOp::Xor => column.into_iter().fold(0, |all, value| all ^ value),
    };
    element(dtype, value)
}

fn bytes(dtype: DType, row: &[i64]) -> Vec<u8> {
    row.iter().flat_map(|&value| element(dtype, value)).collect()
}

/// One operation: what every rank has, and what it must get.
pub(super) struct Task {
    collective: Collective,
    dtype: DType,
    count: usize,
    inputs: Vec<Vec<u8>>,
    /// None for ranks that work in place.
    outputs: Vec<Option<Vec<u8>>>,
    wants: Vec<Vec<u8>>,
    /// Who gets what, by rank, for blocks of differing sizes.
    moves: Vec<Option<Arc<Moves>>>,
    /// By which tensors are cut where all ranks must cut alike.
    seed: u64,
}

impl Task {
    pub(super) fn random(ranks: usize, chunk_bytes: usize, random: &mut Random) -> Self {
        let dtype = DType::ALL[random.below(DType::ALL.len())];
        let chunk = chunk_bytes / dtype.size();
        let count = match random.below(4) {
            0 => random.below(8),
            1 => (chunk + random.below(3)).saturating_sub(1),
            2 => random.below(chunk.min(200) + 1),
            _ => random.below(5 * chunk.min(200) + 2),
        };
        match random.below(12) {
            0..6 if dtype != DType::Bool => Self::reduction(ranks, dtype, count, random),
            0..11 => Self::blocks(ranks, dtype, count, random),
            _ => Self {
                collective: Collective::Barrier,
                dtype: DType::U8,
                count: 0,
                inputs: vec![Vec::new(); ranks],
                outputs: vec![None; ranks],
                wants: vec![Vec::new(); ranks],
                moves: vec![None; ranks],
                seed: 0,
            },
        }
    }

    fn reduction(ranks: usize, dtype: DType, count: usize, random: &mut Random) -> Self {
        let ops: Vec<ReduceOp> = ReduceOp::ALL.into_iter().filter(|op| op.takes(dtype)).collect();
        let op = ops[random.below(ops.len())];
        let row = 1 + random.below(3);
        let (collective, count) = match random.below(6) {
            _ if op == ReduceOp::Adasum => (Collective::Allreduce(op), count),
            0 => (Collective::ReduceScatter { op, row }, count * row),
            1 => (Collective::Reduce { op, root: random.below(ranks) }, count),
            _ => (Collective::Allreduce(op), count),
        };
        let mut rows: Vec<Vec<i64>> =
            (0..ranks).map(|_| (0..count).map(|_| draw(dtype, Some(op), random)).collect()).collect();
        if op == ReduceOp::Adasum {
            // Orthogonal, tensor by tensor, however they are cut: then it is the sum.
            for (rank, row) in rows.iter_mut().enumerate() {
                row.iter_mut().enumerate().filter(|(at, _)| at % ranks != rank).for_each(|(_, value)| *value = 0);
            }
        }
        let inputs: Vec<Vec<u8>> = rows.iter().map(|row| bytes(dtype, row)).collect();
        let reduced = |span: Span| -> Vec<u8> {
            (span.start..span.end()).flat_map(|at| reduce(dtype, op, rows.iter().map(|row| row[at]))).collect()
        };
        let whole = Span::new(0, count);
        let want = |rank: usize| match collective {
            Collective::ReduceScatter { row, .. } => reduced(whole.part(rank, ranks, row)),
            // Nobody but the root gets anything: in place, the input is left as it is.
            Collective::Reduce { root, .. } if root != rank => Vec::new(),
            _ => reduced(whole),
        };
        let mut wants: Vec<Vec<u8>> = (0..ranks).map(want).collect();
        let outputs = wants
            .iter_mut()
            .zip(&inputs)
            .map(|(want, input)| {
                let in_place = op == ReduceOp::Adasum
                    || !matches!(collective, Collective::ReduceScatter { .. }) && random.below(2) == 0;
                if in_place && want.is_empty() {
                    want.clone_from(input);
                }
                (!in_place).then(|| vec![0xa5; want.len()])
            })
            .collect();
        Self { collective, dtype, count, inputs, outputs, wants, moves: vec![None; ranks], seed: random.any() }
    }

    fn blocks(ranks: usize, dtype: DType, count: usize, random: &mut Random) -> Self {
        let root = random.below(ranks);
        let of = [Move::Allgather, Move::Gather { root }, Move::Scatter { root }, Move::AllToAll][random.below(4)];
        let even = random.below(2) == 0;
        let collective = match of {
            _ if random.below(6) == 0 => Collective::Broadcast { root },
            Move::Allgather if even => Collective::Allgather,
            _ if even => Collective::Move(of),
            _ => Collective::Sized(of),
        };
        // Elements of the block that a rank has for another.
        let mut one = |_| if even { count } else { random.below(count + 1) * random.below(2) };
        let counts: Vec<Vec<usize>> = (0..ranks)
            .map(|rank| match (collective, of) {
                (Collective::Broadcast { .. }, _) => vec![count],
                (_, Move::Allgather | Move::Gather { .. }) => vec![one(0)],
                (_, Move::Scatter { .. }) if rank != root => Vec::new(),
                _ => (0..ranks).map(&mut one).collect(),
            })
            .collect();
        let totals: Vec<usize> = counts.iter().map(|counts| counts.iter().sum()).collect();
        let inputs: Vec<Vec<u8>> = totals
            .iter()
            .map(|&total| bytes(dtype, &(0..total).map(|_| draw(dtype, None, random)).collect::<Vec<_>>()))
            .collect();
        let block = |from: usize, to: usize| Span::new(counts[from][..to].iter().sum(), counts[from][to]);
        let cut = |from: usize, span: Span| &inputs[from][span.start * dtype.size()..span.end() * dtype.size()];
        let want = |me: usize| match (collective, of) {
            (Collective::Broadcast { root }, _) => inputs[root].clone(),
            (_, Move::Gather { root }) if root != me => Vec::new(),
            (_, Move::Allgather | Move::Gather { .. }) => inputs.concat(),
            (_, Move::Scatter { root }) => cut(root, block(root, me)).to_vec(),
            (_, Move::AllToAll) => (0..ranks).flat_map(|from| cut(from, block(from, me)).to_vec()).collect(),
        };
        let wants: Vec<Vec<u8>> = (0..ranks).map(want).collect();
        let moves = |me: usize| {
            let known: Vec<usize> = counts.iter().map(|counts| counts.first().copied().unwrap_or(0)).collect();
            Arc::new(match of {
                Move::Allgather => Moves::gather(&known, me, None),
                Move::Gather { root } => Moves::gather(&known, me, Some(root)),
                Move::Scatter { root } => Moves::scatter(ranks, me, root, block(root, me), totals[root], &counts[me]),
                Move::AllToAll => {
                    let theirs: Vec<Span> = (0..ranks).map(|from| block(from, me)).collect();
                    Moves::all_to_all(me, totals.clone(), &theirs, &counts[me])
                }
            })
        };
        let sized = matches!(collective, Collective::Sized(_));
        let in_place = matches!(collective, Collective::Broadcast { .. });
        Self {
            collective,
            dtype,
            count: if sized { 0 } else { count },
            outputs: wants.iter().map(|want| (!in_place).then(|| vec![0xa5; want.len()])).collect(),
            moves: (0..ranks).map(|me| sized.then(|| moves(me))).collect(),
            inputs,
            wants,
            seed: 0,
        }
    }

    /// An operation in which everyone waits for everyone.
    pub(super) fn meeting(ranks: usize) -> Self {
        Self {
            collective: Collective::Allreduce(ReduceOp::Sum),
            dtype: DType::I32,
            count: 1,
            inputs: vec![vec![1, 0, 0, 0]; ranks],
            outputs: vec![None; ranks],
            wants: vec![vec![ranks as u8, 0, 0, 0]; ranks],
            moves: vec![None; ranks],
            seed: 0,
        }
    }

    /// Whether ranks could tell it from another.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.collective, self.dtype, self.count) == (other.collective, other.dtype, other.count)
    }

    /// Whether some rank may end it without hearing of any other.
    pub(super) fn may_pass_unseen(&self) -> bool {
        match self.collective {
            Collective::Barrier => false,
            Collective::Allreduce(_) | Collective::ReduceScatter { .. } | Collective::Allgather => self.count == 0,
            _ => true,
        }
    }

    pub(super) fn operation(&mut self, rank: usize, random: &mut Random) -> Operation {
        let (input, output) = (&mut self.inputs[rank], &mut self.outputs[rank]);
        let pieces = match (self.collective, output) {
            (Collective::Barrier, _) => Pieces::None,
            (Collective::Allreduce(ReduceOp::Adasum), _) => {
                in_place(input, self.dtype.size(), &mut Random::new(self.seed))
            }
            (Collective::Allreduce(_) | Collective::Reduce { .. }, None) => in_place(input, self.dtype.size(), random),
            (_, None) => Pieces::One([Piece::in_place(RawSlice::of_mut(input))]),
            (_, Some(output)) => Pieces::One([Piece { input: RawSlice::of(input), output: RawSlice::of_mut(output) }]),
        };
        let moves = self.moves[rank].clone();
        Operation { pieces, moves, ..Operation::new(self.collective, self.dtype, self.count, None) }
    }

    pub(super) fn check(&self, what: &str) {
        for (rank, want) in self.wants.iter().enumerate() {
            let got = self.outputs[rank].as_ref().unwrap_or(&self.inputs[rank]);
            assert!(
                got == want,
                "{what}: {:?} of {} {} on rank {rank}: {got:?}, not {want:?}",
                self.collective,
                self.count,
                self.dtype
            );
        }
    }
}

/// One tensor, or several laid end to end.
fn in_place(data: &mut [u8], size: usize, random: &mut Random) -> Pieces {
    if random.below(2) == 0 {
        return Pieces::One([Piece::in_place(RawSlice::of_mut(data))]);
    }
    let mut rest = data;
    let mut list = Vec::new();
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at_mut(random.below(rest.len() / size + 1) * size);
        list.push(Piece::in_place(RawSlice::of_mut(piece)));
        rest = tail;
    }
    Pieces::Many(list)
}

/// A random job, without the algorithms that cannot serve it.
pub(super) fn shape(random: &mut Random) -> Shape {
    let layouts: [&[usize]; 9] = [&[1], &[2], &[3], &[5], &[2, 2], &[3, 1], &[1, 1], &[1, 3, 2], &[2, 1, 2, 1]];
    let hosts = layouts[random.below(layouts.len())].to_vec();
    let deterministic = random.below(3) == 0;
    let algorithm = loop {
        let algorithm = Algorithm::ALL[random.below(Algorithm::ALL.len())];
        let far = hosts.len() > 1;
        let serves = match algorithm {
            Algorithm::OneShot | Algorithm::TwoShot => !far,
            Algorithm::Ring | Algorithm::BinomialTree => !deterministic,
            Algorithm::TwoLevel => !(deterministic && far),
            Algorithm::Auto | Algorithm::OrderedChain => true,
        };
        if serves {
            break algorithm;
        }
    };
    Shape {
        hosts,
        slot_bytes: [64, 128, 192, 512, 1024, 4096][random.below(6)],
        slots: 1 + random.below(4),
        algorithm,
        deterministic,
        negotiated: false,
        seed: random.any(),
    }
}

/// Runs the tasks on every rank, each rank at its own pace. `cancel` names a rank and the task that it gives up.
///
/// Returns, for each rank, how its first task that did not succeed ended.
fn run_tasks(
    channels: &mut [Channel],
    tasks: &mut [Task],
    cancel: Option<(usize, usize)>,
    random: &mut Random,
) -> Vec<(usize, Result<()>)> {
    let mut next = vec![0; channels.len()];
    let mut ended: Vec<Option<Result<()>>> = channels.iter().map(|_| None).collect();
    let mut asleep = vec![0; channels.len()];
    let mut stuck = 0;
    while ended.iter().any(Option::is_none) {
        let rank = random.below(channels.len());
        if asleep[rank] > 0 {
            asleep[rank] -= 1;
            continue;
        }
        if random.below(64) == 0 {
            asleep[rank] = random.below(200);
        }
        for _ in 0..=random.below(8) {
            if ended[rank].is_some() {
                channels[rank].take_leave();
                break;
            }
            let channel = &mut channels[rank];
            stuck += 1;
            if !channel.is_busy() {
                let Some(task) = tasks.get_mut(next[rank]) else {
                    ended[rank] = Some(Ok(()));
                    continue;
                };
                if let Err(error) = channel.begin(task.operation(rank, random)) {
                    ended[rank] = Some(Err(error));
                    continue;
                }
                if cancel == Some((rank, next[rank])) {
                    // Before, amid or after the work, as chance wills.
                    for _ in 0..random.below(6) {
                        if channel.is_busy() && channel.poll().is_ok_and(|step| step == Step::Ready(())) {
                            next[rank] += 1;
                        }
                    }
                    channel.give_up(Error::Poisoned("given up on purpose".into()));
                }
            }
            match channel.poll() {
                Ok(Step::Ready(())) => {
                    next[rank] += 1;
                    stuck = 0;
                }
                Ok(Step::Progress) => stuck = 0,
                Ok(Step::Pending) => {}
                Err(error) => ended[rank] = Some(Err(error)),
            }
        }
        assert_moves(stuck, channels);
    }
    next.into_iter().zip(ended.into_iter().flatten()).collect()
}

#[test]
fn seeded_operations_one_after_another() {
    for_each_seed(150, |seed| {
        let mut random = Random::new(seed);
        let shape = shape(&mut random);
        let ranks = shape.hosts.iter().sum();
        let mut channels = shape.channels();
        let mut tasks: Vec<Task> =
            (0..2 + random.below(8)).map(|_| Task::random(ranks, shape.slot_bytes, &mut random)).collect();
        for (rank, end) in run_tasks(&mut channels, &mut tasks, None, &mut random).into_iter().enumerate() {
            end.1.unwrap_or_else(|error| panic!("{shape:?}, rank {rank}: {error}"));
        }
        for (index, task) in tasks.iter().enumerate() {
            task.check(&format!("{shape:?}, operation {index}"));
        }
    });
}

/// Whoever gives an operation up takes the others with it: all end with an error, none waits for its deadline, and what
/// ended before is right.
#[test]
fn seeded_giving_up_ends_every_rank() {
    for_each_seed(150, |seed| {
        let mut random = Random::new(seed ^ 0x5eed);
        let shape = shape(&mut random);
        let ranks: usize = shape.hosts.iter().sum();
        let mut channels = shape.channels();
        let mut tasks: Vec<Task> = (0..4).map(|_| Task::random(ranks, shape.slot_bytes, &mut random)).collect();
        tasks.extend([Task::meeting(ranks), Task::meeting(ranks)]);
        let (quitter, at) = (random.below(ranks), random.below(4));
        let ends = run_tasks(&mut channels, &mut tasks, Some((quitter, at)), &mut random);
        for (rank, (done, end)) in ends.iter().enumerate() {
            let what = format!("{shape:?}: rank {quitter} gives up operation {at}; rank {rank} ended {done}: {end:?}");
            let Err(Error::Poisoned(text)) = end else { panic!("{what}") };
            let told = text.contains(&format!("rank {quitter} gave up"));
            assert!(told || rank == quitter && text.contains("on purpose"), "{what}");
            assert!(rank != quitter || *done <= at + 1, "{what}");
        }
        // The operations that ended on every rank before.
        let before = ends.iter().map(|(done, _)| *done).min().unwrap_or(0);
        for (index, task) in tasks[..before].iter().enumerate() {
            task.check(&format!("{shape:?}, operation {index}, before it was over"));
        }
    });
}
