//! Reduce-scatter, of rows that come out even and that do not: the first ranks get one more then.

use std::collections::BTreeSet;
use std::ops::Range;

use kolo::{ReduceOp, Result};

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory};
use super::sample::{Rows, Sample, few_counts, numbers};
use super::value::Number;
use super::want::{Scale, Want, operations};

const NAME: &str = "reduce_scatter";

/// How long a row is.
const ROWS: [usize; 2] = [1, 3];

pub(crate) fn run<T: Number>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    let size = team.size();
    // So many rows for each, one more for all but the last, and fewer than there are ranks.
    let few = few_counts(size_of::<T>());
    let all: BTreeSet<usize> =
        few.iter().flat_map(|count| [count * size, count * size + size - 1]).chain([1]).collect();
    for rows in all {
        for row in ROWS {
            let sample = Sample { count: rows * row, special: false };
            let data = numbers::<T>(bench.task.seed, size, sample);
            for op in operations::<T>() {
                scattered(bench, team, &data, (rows, row), op)?;
            }
        }
    }
    Ok(())
}

/// Which of the elements a rank gets.
fn part(rank: usize, size: usize, (rows, row): (usize, usize)) -> Range<usize> {
    let start = |rank: usize| (rows / size * rank + rank.min(rows % size)) * row;
    start(rank)..start(rank + 1)
}

fn scattered<T: Number>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    data: &Rows<T>,
    (rows, row): (usize, usize),
    op: ReduceOp,
) -> Result<()> {
    let (count, mine) = (rows * row, &data[team.me()]);
    let part = part(team.me(), team.size(), (rows, row));
    let sample = Sample { count, special: false };
    let check = |bench: &mut Bench<'_>, team: &Team, got: &[T]| {
        bench.reduced_part(team, got, &Want::new(data, sample, op, Scale::NONE), part.clone());
    };
    let (t, what) = (&T::DTYPE, format!("{op} of {rows} rows of {row}"));
    let name = format!("{what} {}", T::DTYPE);
    for memory in Memory::ALL {
        if bench.begin(team, NAME, t, format_args!("{what}, by order, {memory}")) {
            let len = team.comm.reduce_scatter_len(count, row);
            bench.holds(len == part.len(), "reduce_scatter_len tells another length");
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let mut output = Buffer::poisoned(bench.kolo, memory, len)?;
            if row == 1 {
                team.comm.reduce_scatter(input.slice(), output.slice_mut(), op)?;
            } else {
                team.comm.reduce_scatter_rows(input.slice(), row, output.slice_mut(), op)?;
            }
            bench.unchanged(&input, mine);
            bench.framed(&output);
            check(bench, team, output.slice());
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by order, async, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?.shaped(&[rows, row]);
            let output = team.comm.reduce_scatter_async(input, op)?.wait()?;
            check(bench, team, &output);
        }
        if row == 1 && bench.begin(team, NAME, t, format_args!("{what}, by name, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let output = team.named.reduce_scatter(&name, input.slice(), op)?;
            bench.unchanged(&input, mine);
            check(bench, team, &output);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, async, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?.shaped(&[rows, 1, row]);
            let output = team.named.reduce_scatter_async(&name, input, op)?.wait()?;
            check(bench, team, &output);
        }
    }
    Ok(())
}
