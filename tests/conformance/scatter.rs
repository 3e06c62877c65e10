//! Scatter, from every rank, of blocks of one size and of any.

use kolo::Result;

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory};
use super::sample::{Spread, few_counts, values};
use super::value::Value;

const NAME: &str = "scatter";

pub(crate) fn run<T: Value>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for count in few_counts(size_of::<T>()) {
        for root in 0..team.size() {
            even::<T>(bench, team, count, root)?;
            for spread in Spread::ALL {
                uneven::<T>(bench, team, (spread, count), root)?;
            }
        }
    }
    Ok(())
}

fn even<T: Value>(bench: &mut Bench<'_>, team: &mut Team, count: usize, root: usize) -> Result<()> {
    let (me, all) = (team.me(), count * team.size());
    let data = values::<T>(bench.task.seed, &[all], &format_args!("{NAME} {root}")).remove(0);
    for memory in Memory::ALL {
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{count} to each from {root}, by order, {memory}")) {
            // On the others the input may be anything.
            let input = if me == root || (memory as usize).is_multiple_of(2) { &data[..] } else { &[] };
            let input_buffer = Buffer::of(bench.kolo, memory, input)?;
            let mut output = Buffer::poisoned(bench.kolo, memory, count)?;
            team.comm.scatter(input_buffer.slice(), output.slice_mut(), root)?;
            bench.holds_same(&output, &data[me * count..][..count]);
            bench.unchanged(&input_buffer, input);
        }
    }
    let memory = Memory::turn(count + root);
    if bench.begin(team, NAME, &T::DTYPE, format_args!("{count} to each from {root}, by order, async, {memory}")) {
        let input = Buffer::of(bench.kolo, memory, if me == root { &data } else { &data[..all.min(me)] })?;
        let got = team.comm.scatter_async(input, count, root)?.wait()?;
        bench.same(&got, &data[me * count..][..count]);
    }
    Ok(())
}

fn uneven<T: Value>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    (spread, most): (Spread, usize),
    root: usize,
) -> Result<()> {
    let (me, global) = (team.me(), team.global(root));
    let counts = spread.rows(team.size(), most, most + root);
    let all = counts.iter().sum();
    let data = values::<T>(bench.task.seed, &[all], &format_args!("{NAME} {spread} {root}")).remove(0);
    let want = &data[counts[..me].iter().sum()..][..counts[me]];
    let (input, sizes): (&[T], &[usize]) = if me == root { (&data, &counts) } else { (&[], &[]) };
    let (t, what) = (&T::DTYPE, format!("{spread} {most} from {root}"));
    let name = format!("{} from {root}", T::DTYPE);
    for memory in Memory::ALL {
        if bench.begin(team, NAME, t, format_args!("{what}, by order, {memory}")) {
            let buffer = Buffer::of(bench.kolo, memory, input)?;
            let got = team.comm.scatterv(buffer.slice(), sizes, root)?;
            bench.same(&got, want);
            bench.unchanged(&buffer, input);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by order, async, {memory}")) {
            let buffer = Buffer::of(bench.kolo, memory, input)?;
            let got = team.comm.scatterv_async(buffer, sizes, root)?.wait()?;
            bench.same(&got, want);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, {memory}")) {
            let buffer = Buffer::of(bench.kolo, memory, input)?;
            let got = team.named.scatter(&name, buffer.slice(), sizes, global)?;
            bench.same(&got, want);
            bench.unchanged(&buffer, input);
        }
    }
    let memory = Memory::turn(most + root);
    // The others have something else at hand, and some of them wait at once.
    if bench.begin(team, NAME, t, format_args!("{what}, by name, async, {memory}")) {
        let at_hand = if me == root { input } else { &data[..all.min(me)] };
        let buffer = Buffer::of(bench.kolo, memory, at_hand)?;
        let got = if me == root || (most + me).is_multiple_of(2) {
            team.named.scatter_async(&name, buffer, sizes, global)?.wait()?
        } else {
            team.named.scatter(&name, buffer.slice(), sizes, global)?
        };
        bench.same(&got, want);
    }
    // Rows of two elements.
    if bench.begin(team, NAME, t, format_args!("rows, {what}, by name, async, {memory}")) {
        let double: Vec<T> = data.iter().flat_map(|&value| [value; 2]).collect();
        let shape = if me == root { vec![all, 2] } else { vec![0] };
        let buffer = Buffer::of(bench.kolo, memory, if me == root { &double } else { &[] })?.shaped(&shape);
        let got = team.named.scatter_async(&name, buffer, sizes, global)?.wait()?;
        bench.same(&got, &want.iter().flat_map(|&value| [value; 2]).collect::<Vec<T>>());
    }
    Ok(())
}
