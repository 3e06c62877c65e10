//! Reduce, to every rank.

use kolo::{ReduceOp, Result};

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory, shape};
use super::sample::{Rows, Sample, few_counts, numbers};
use super::value::Number;
use super::want::{Scale, Want, operations};

const NAME: &str = "reduce";

pub(crate) fn run<T: Number>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    let plain = few_counts(size_of::<T>()).map(|count| Sample { count, special: false });
    for sample in plain.into_iter().chain([Sample { count: 53, special: true }]) {
        let data = numbers::<T>(bench.task.seed, team.size(), sample);
        for op in operations::<T>() {
            for root in 0..team.size() {
                to_root(bench, team, &data, sample, op, root)?;
            }
        }
    }
    Ok(())
}

fn to_root<T: Number>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    data: &Rows<T>,
    sample: Sample,
    op: ReduceOp,
    root: usize,
) -> Result<()> {
    let (mine, is_root, global) = (&data[team.me()], team.me() == root, team.global(root));
    let turn = sample.count + op as usize + root;
    let memory = Memory::turn(turn);
    let (t, what) = (&T::DTYPE, format!("{op} of {sample} to {root}"));
    let name = format!("{what} {}", T::DTYPE);
    let check = |bench: &mut Bench<'_>, team: &Team, buffer: &Buffer<T>| {
        if is_root {
            bench.reduced(team, buffer, &Want::new(data, sample, op, Scale::NONE));
        } else {
            bench.unchanged(buffer, mine);
        }
    };
    if bench.begin(team, NAME, t, format_args!("{what}, by order, in place, {memory}")) {
        let mut buffer = Buffer::of(bench.kolo, memory, mine)?;
        team.comm.reduce(buffer.slice_mut(), op, root)?;
        check(bench, team, &buffer);
    }
    if bench.begin(team, NAME, t, format_args!("{what}, by order, async, {memory}")) {
        let buffer = Buffer::of(bench.kolo, memory, mine)?;
        let buffer = team.comm.reduce_async(buffer, op, root)?.wait()?;
        check(bench, team, &buffer);
    }
    // On the others the output may be there or not: it is not looked at.
    for elsewhere in ["empty", "as long"] {
        if bench.begin(team, NAME, t, format_args!("{what}, by order, apart, {memory}, {elsewhere} on the others")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let room = if is_root || elsewhere == "as long" { sample.count } else { 0 };
            let mut output = Buffer::poisoned(bench.kolo, memory, room)?;
            team.comm.reduce_into(input.slice(), output.slice_mut(), op, root)?;
            bench.unchanged(&input, mine);
            if is_root {
                check(bench, team, &output);
            } else {
                bench.holds_same(&output, &vec![T::poison(); room]);
            }
        }
    }
    if bench.begin(team, NAME, t, format_args!("{what}, by name, in place, {memory}")) {
        let mut buffer = Buffer::of(bench.kolo, memory, mine)?;
        team.named.reduce(&name, buffer.slice_mut(), op, global)?;
        check(bench, team, &buffer);
    }
    let shape = shape(sample.count, turn);
    if bench.begin(team, NAME, t, format_args!("{what}, by name, async, shape {shape:?}, {memory}")) {
        let buffer = Buffer::of(bench.kolo, memory, mine)?.shaped(&shape);
        let buffer = team.named.reduce_async(&name, buffer, op, global)?.wait()?;
        check(bench, team, &buffer);
    }
    if bench.begin(team, NAME, t, format_args!("{what}, by name, async in a scope, {memory}")) {
        let mut buffer = Buffer::of(bench.kolo, memory, mine)?;
        team.named.scope(|scope| scope.reduce_async(&name, buffer.slice_mut(), op, global)?.wait())?;
        check(bench, team, &buffer);
    }

    let form = turn % 3;
    // From one buffer into another; named, the forms take turns. On the others there is room as well now and then: it is not looked at.
    let room = if is_root || turn.is_multiple_of(2) { sample.count } else { turn % 3 };
    let buffers = |bench: &Bench<'_>| {
        Ok((Buffer::of(bench.kolo, memory, mine)?, Buffer::poisoned(bench.kolo, Memory::turn(turn + 1), room)?))
    };
    let check_apart = |bench: &mut Bench<'_>, team: &Team, input: &Buffer<T>, output: &Buffer<T>| {
        bench.unchanged(input, mine);
        if is_root {
            check(bench, team, output);
        } else {
            bench.holds_same(output, &vec![T::poison(); room]);
        }
    };
    if bench.begin(team, NAME, t, format_args!("{what}, by order, apart, async, {memory}")) {
        let (input, output) = buffers(bench)?;
        let (input, output) = team.comm.reduce_into_async(input, output, op, root)?.wait()?;
        check_apart(bench, team, &input, &output);
    }
    if form == 0 && bench.begin(team, NAME, t, format_args!("{what}, by name, apart, {memory}")) {
        let (input, mut output) = buffers(bench)?;
        team.named.reduce_into(&name, input.slice(), output.slice_mut(), op, global)?;
        check_apart(bench, team, &input, &output);
    }
    if form == 1 && bench.begin(team, NAME, t, format_args!("{what}, by name, apart, async, shape {shape:?}, {memory}"))
    {
        let (input, output) = buffers(bench)?;
        let handle = team.named.reduce_into_async(&name, input.shaped(&shape), output, op, global)?;
        let (input, output) = handle.wait()?;
        check_apart(bench, team, &input, &output);
    }
    // The others in place.
    if form == 2
        && bench.begin(team, NAME, t, format_args!("{what}, by name, in a scope, apart on every other rank, {memory}"))
    {
        let (mut input, mut output) = buffers(bench)?;
        let is_apart = (team.me() + turn).is_multiple_of(2);
        team.named.scope(|scope| {
            let handle = if is_apart {
                scope.reduce_into_async(&name, input.slice(), output.slice_mut(), op, global)?
            } else {
                scope.reduce_async(&name, input.slice_mut(), op, global)?
            };
            handle.wait()
        })?;
        if is_apart {
            check_apart(bench, team, &input, &output);
        } else {
            check(bench, team, &input);
        }
    }
    Ok(())
}
