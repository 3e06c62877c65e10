//! All-to-all, of blocks of one size and of any: some ranks send nothing, some get nothing.

use kolo::Result;

use super::allgather::check_blocks;
use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory};
use super::sample::{Rows, Spread, few_counts, values};
use super::value::Value;

const NAME: &str = "alltoall";

pub(crate) fn run<T: Value>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for count in few_counts(size_of::<T>()) {
        even::<T>(bench, team, count)?;
        for spread in Spread::ALL {
            for row in [1, 3] {
                uneven::<T>(bench, team, (spread, count), row)?;
            }
        }
    }
    Ok(())
}

fn even<T: Value>(bench: &mut Bench<'_>, team: &mut Team, count: usize) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    let data = values::<T>(bench.task.seed, &vec![count * size; size], &NAME);
    let want: Vec<T> = data.iter().flat_map(|row| &row[me * count..][..count]).copied().collect();
    for memory in Memory::ALL {
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{count} to each, by order, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, &data[me])?;
            let mut output = Buffer::poisoned(bench.kolo, memory, count * size)?;
            team.comm.alltoall(input.slice(), output.slice_mut())?;
            bench.holds_same(&output, &want);
            bench.unchanged(&input, &data[me]);
        }
    }
    Ok(())
}

fn uneven<T: Value>(bench: &mut Bench<'_>, team: &mut Team, (spread, most): (Spread, usize), row: usize) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    // Rows from each to each; where all is with one, the senders differ in whom they send to.
    let rows: Vec<Vec<usize>> = (0..size).map(|from| spread.rows(size, most, most + from)).collect();
    let counts: Vec<Vec<usize>> = rows.iter().map(|rows| rows.iter().map(|rows| rows * row).collect()).collect();
    let lengths: Vec<usize> = counts.iter().map(|counts| counts.iter().sum()).collect();
    let data = values::<T>(bench.task.seed, &lengths, &format_args!("{NAME} {spread}"));
    let block = |from: usize| data[from][counts[from][..me].iter().sum()..][..counts[from][me]].to_vec();
    let want: Rows<T> = (0..size).map(block).collect();
    let mine = &data[me];
    let (t, what) = (&T::DTYPE, format!("{spread} {most} rows of {row}"));
    let name = format!("rows of {row} {}", T::DTYPE);
    for memory in Memory::ALL {
        if bench.begin(team, NAME, t, format_args!("{what}, by order, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let blocks = team.comm.alltoallv(input.slice(), &counts[me])?;
            check_blocks(bench, &blocks, &want);
            bench.unchanged(&input, mine);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by order, async, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?.shaped(&[rows[me].iter().sum(), row]);
            let blocks = team.comm.alltoallv_async(input, &rows[me])?.wait()?;
            check_blocks(bench, &blocks, &want);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let blocks = team.named.alltoall(&name, input.slice(), &counts[me])?;
            check_blocks(bench, &blocks, &want);
            bench.unchanged(&input, mine);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, async, {memory}")) {
            let shape = [rows[me].iter().sum(), 1, row];
            let input = Buffer::of(bench.kolo, memory, mine)?.shaped(&shape);
            let blocks = team.named.alltoall_async(&name, input, &rows[me])?.wait()?;
            check_blocks(bench, &blocks, &want);
        }
    }
    Ok(())
}
