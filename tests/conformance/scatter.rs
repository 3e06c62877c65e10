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
    Ok(())
}
