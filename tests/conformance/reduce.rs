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
    Ok(())
}
