//! Grouped operations: several tensors that are one operation.

use kolo::{Blocks, ReduceOp, Result};

use super::allgather::check_blocks;
use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory, shape};
use super::sample::{Rows, Sample, Spread, counts, numbers, values};
use super::value::{Number, Value};
use super::want::{Scale, Want, operations};

const ALLREDUCE: &str = "grouped_allreduce";
const REDUCE_SCATTER: &str = "grouped_reduce_scatter";
const ALLGATHER: &str = "grouped_allgather";

/// Groups, as indices in [`counts`]: of many lengths, of none among them, of equals, of one, of nothing.
const GROUPS: [&[usize]; 5] = [&[5, 0, 2, 9], &[8, 1, 4], &[5, 5, 5], &[1], &[]];

pub(crate) fn run<T: Number>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    let adasum = T::DTYPE.is_float().then_some(ReduceOp::Adasum);
    for (turn, group) in GROUPS.iter().enumerate() {
        let sample = |&at: &usize| Sample { count: counts(size_of::<T>())[at], special: false };
        let samples: Vec<Sample> = group.iter().map(sample).collect();
        let data: Vec<Rows<T>> = samples.iter().map(|sample| numbers(bench.task.seed, team.size(), *sample)).collect();
        for op in operations::<T>().chain(adasum) {
            allreduce(bench, team, op, &samples, &data, turn + op as usize)?;
        }
        for op in operations::<T>() {
            reduce_scatter(bench, team, op, &samples, &data)?;
        }
        allgather::<T>(bench, team, &samples)?;
    }
    Ok(())
}

fn allreduce<T: Number>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    op: ReduceOp,
    samples: &[Sample],
    data: &[Rows<T>],
    turn: usize,
) -> Result<()> {
    let me = team.me();
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.count).collect();
    let (what, name) = (format!("{op} of {lengths:?}"), format!("{op} {} {lengths:?}", T::DTYPE));
    let check =
        |bench: &mut Bench<'_>, team: &Team, got: &[Buffer<T>]| check_allreduced(bench, team, op, (samples, data), got);
    for memory in Memory::ALL {
        // Each tensor of the group lies elsewhere.
        let buffers = |bench: &Bench<'_>| -> Result<Vec<Buffer<T>>> {
            let memory = |at: usize| Memory::turn(memory as usize + at);
            data.iter().enumerate().map(|(at, rows)| Buffer::of(bench.kolo, memory(at), &rows[me])).collect()
        };
        if bench.begin(team, ALLREDUCE, &T::DTYPE, format_args!("{what}, by order, async, {memory} first")) {
            let group = team.comm.allreduce_group_async(buffers(bench)?, op)?.wait()?;
            check(bench, team, &group);
        }
        if bench.begin(team, ALLREDUCE, &T::DTYPE, format_args!("{what}, by order, {memory} first")) {
            let mut group = buffers(bench)?;
            team.comm.allreduce_group(&mut slices(&mut group), op)?;
            check(bench, team, &group);
        }
        if bench.begin(team, ALLREDUCE, &T::DTYPE, format_args!("{what}, by name, {memory} first")) {
            let mut group = buffers(bench)?;
            team.named.allreduce_group(&name, &mut slices(&mut group), op)?;
            check(bench, team, &group);
        }
        if bench.begin(team, ALLREDUCE, &T::DTYPE, format_args!("{what}, by name, async, {memory} first")) {
            let shaped = buffers(bench)?.into_iter().enumerate().map(|(at, buffer)| {
                let shape = shape(lengths[at], turn + at);
                buffer.shaped(&shape)
            });
            let group = team.named.allreduce_group_async(&name, shaped.collect(), op)?.wait()?;
            check(bench, team, &group);
        }
    }
    allreduce_lent(bench, team, op, (samples, data), turn)
}

fn check_allreduced<T: Number>(
    bench: &mut Bench<'_>,
    team: &Team,
    op: ReduceOp,
    (samples, data): (&[Sample], &[Rows<T>]),
    got: &[Buffer<T>],
) {
    bench.holds(got.len() == samples.len(), "another number of tensors came back");
    for ((got, sample), data) in got.iter().zip(samples).zip(data) {
        bench.reduced(team, got, &Want::new(data, *sample, op, Scale::NONE));
    }
}

/// The tensors that go in, and those that come out.
type Pair<T> = (Vec<Buffer<T>>, Vec<Buffer<T>>);

/// From some buffers into others, and in a scope: forms and memories take turns.
fn allreduce_lent<T: Number>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    op: ReduceOp,
    (samples, data): (&[Sample], &[Rows<T>]),
    turn: usize,
) -> Result<()> {
    let me = team.me();
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.count).collect();
    let (what, name) = (format!("{op} of {lengths:?}"), format!("{op} {} {lengths:?}", T::DTYPE));
    let (t, memory) = (&T::DTYPE, Memory::turn(turn));
    let (by_order, by_name) = (turn % 2, turn % 3);
    let buffers = |bench: &Bench<'_>| -> Result<Pair<T>> {
        let room = |(at, &len): (usize, &usize)| Buffer::poisoned(bench.kolo, Memory::turn(turn + at + 1), len);
        let rows = |(at, rows): (usize, &Rows<T>)| Buffer::of(bench.kolo, Memory::turn(turn + at), &rows[me]);
        let inputs = data.iter().enumerate().map(rows).collect::<Result<Vec<_>>>()?;
        Ok((inputs, lengths.iter().enumerate().map(room).collect::<Result<Vec<_>>>()?))
    };
    let check = |bench: &mut Bench<'_>, team: &Team, inputs: &[Buffer<T>], outputs: &[Buffer<T>]| {
        check_allreduced(bench, team, op, (samples, data), outputs);
        bench.holds(inputs.len() == data.len(), "another number of inputs came back");
        inputs.iter().zip(data).for_each(|(input, rows)| bench.unchanged(input, &rows[me]));
    };
    if by_order == 0 && bench.begin(team, ALLREDUCE, t, format_args!("{what}, by order, apart, {memory} first")) {
        let (inputs, mut outputs) = buffers(bench)?;
        team.comm.allreduce_group_into(&views(&inputs), &mut slices(&mut outputs), op)?;
        check(bench, team, &inputs, &outputs);
    }
    if by_order == 1 && bench.begin(team, ALLREDUCE, t, format_args!("{what}, by order, apart, async, {memory} first"))
    {
        let (inputs, outputs) = buffers(bench)?;
        let (inputs, outputs) = team.comm.allreduce_group_into_async(inputs, outputs, op)?.wait()?;
        check(bench, team, &inputs, &outputs);
    }
    if by_name == 0 && bench.begin(team, ALLREDUCE, t, format_args!("{what}, by name, apart, {memory} first")) {
        let (inputs, mut outputs) = buffers(bench)?;
        team.named.allreduce_group_into(&name, &views(&inputs), &mut slices(&mut outputs), op)?;
        check(bench, team, &inputs, &outputs);
    }
    if by_name == 1 && bench.begin(team, ALLREDUCE, t, format_args!("{what}, by name, apart, async, {memory} first")) {
        let (inputs, outputs) = buffers(bench)?;
        let (inputs, outputs) = team.named.allreduce_group_into_async(&name, inputs, outputs, op)?.wait()?;
        check(bench, team, &inputs, &outputs);
    }
    if by_name == 2
        && bench.begin(team, ALLREDUCE, t, format_args!("{what}, by name, apart in a scope, {memory} first"))
    {
        let (inputs, mut outputs) = buffers(bench)?;
        team.named.scope(|scope| {
            scope.allreduce_group_into_async(&name, &views(&inputs), slices(&mut outputs), op)?.wait()
        })?;
        check(bench, team, &inputs, &outputs);
    }
    if bench.begin(team, ALLREDUCE, t, format_args!("{what}, by name, in a scope, {memory} first")) {
        let (mut group, _) = buffers(bench)?;
        team.named.scope(|scope| scope.allreduce_group_async(&name, slices(&mut group), op)?.wait())?;
        check_allreduced(bench, team, op, (samples, data), &group);
    }
    Ok(())
}

/// Each tensor of a group lies elsewhere.
fn input<T: Value>(bench: &Bench<'_>, rows: &[Rows<T>], me: usize) -> Result<Vec<Buffer<T>>> {
    rows.iter().enumerate().map(|(at, rows)| Buffer::of(bench.kolo, Memory::turn(at), &rows[me])).collect()
}

fn reduce_scatter<T: Number>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    op: ReduceOp,
    samples: &[Sample],
    data: &[Rows<T>],
) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.count).collect();
    let (what, name) = (format!("{op} of {lengths:?}"), format!("parts of {op} {} {lengths:?}", T::DTYPE));
    let check = |bench: &mut Bench<'_>, team: &Team, got: &[Vec<T>]| {
        bench.holds(got.len() == samples.len(), "another number of tensors came back");
        for ((got, sample), data) in got.iter().zip(samples).zip(data) {
            let start = |rank: usize| sample.count / size * rank + rank.min(sample.count % size);
            bench.reduced_part(team, got, &Want::new(data, *sample, op, Scale::NONE), start(me)..start(me + 1));
        }
    };
    if bench.begin(team, REDUCE_SCATTER, &T::DTYPE, format_args!("{what}, by order")) {
        let group = input(bench, data, me)?;
        let got = team.comm.reduce_scatter_group(&views(&group), op)?;
        check(bench, team, &got);
    }
    if bench.begin(team, REDUCE_SCATTER, &T::DTYPE, format_args!("{what}, by order, async")) {
        let got = team.comm.reduce_scatter_group_async(input(bench, data, me)?, op)?.wait()?;
        check(bench, team, &got);
    }
    if bench.begin(team, REDUCE_SCATTER, &T::DTYPE, format_args!("{what}, by name")) {
        let group = input(bench, data, me)?;
        let got = team.named.reduce_scatter_group(&name, &views(&group), op)?;
        check(bench, team, &got);
    }
    if bench.begin(team, REDUCE_SCATTER, &T::DTYPE, format_args!("{what}, by name, async")) {
        let got = team.named.reduce_scatter_group_async(&name, input(bench, data, me)?, op)?.wait()?;
        check(bench, team, &got);
    }
    Ok(())
}

/// Also the tensors of one group have their rows spread in different ways.
fn allgather<T: Value>(bench: &mut Bench<'_>, team: &mut Team, samples: &[Sample]) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    let spread = |at: usize| Spread::ALL[at % Spread::ALL.len()];
    let rows = |(at, sample): (usize, &Sample)| {
        values::<T>(bench.task.seed, &spread(at).rows(size, sample.count, at), &format_args!("{ALLGATHER} {at}"))
    };
    let data: Vec<Rows<T>> = samples.iter().enumerate().map(rows).collect();
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.count).collect();
    let (what, name) = (format!("up to {lengths:?}"), format!("all of {} {lengths:?}", T::DTYPE));
    let check = |bench: &mut Bench<'_>, got: &[Blocks<T>]| {
        bench.holds(got.len() == data.len(), "another number of tensors came back");
        got.iter().zip(&data).for_each(|(got, want)| check_blocks(bench, got, want));
    };
    if bench.begin(team, ALLGATHER, &T::DTYPE, format_args!("{what}, by order")) {
        let group = input(bench, &data, me)?;
        let got = team.comm.allgather_group(&views(&group))?;
        check(bench, &got);
    }
    if bench.begin(team, ALLGATHER, &T::DTYPE, format_args!("{what}, by order, async")) {
        let got = team.comm.allgather_group_async(input(bench, &data, me)?)?.wait()?;
        check(bench, &got);
    }
    if bench.begin(team, ALLGATHER, &T::DTYPE, format_args!("{what}, by name")) {
        let group = input(bench, &data, me)?;
        let got = team.named.allgather_group(&name, &views(&group))?;
        check(bench, &got);
    }
    if bench.begin(team, ALLGATHER, &T::DTYPE, format_args!("{what}, by name, async")) {
        let got = team.named.allgather_group_async(&name, input(bench, &data, me)?)?.wait()?;
        check(bench, &got);
    }
    Ok(())
}

fn views<T: Value>(group: &[Buffer<T>]) -> Vec<&[T]> {
    group.iter().map(Buffer::slice).collect()
}

fn slices<T: Number>(group: &mut [Buffer<T>]) -> Vec<&mut [T]> {
    group.iter_mut().map(Buffer::slice_mut).collect()
}
