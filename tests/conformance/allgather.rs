//! Allgather, of equally many rows from each rank and of any number.

use kolo::{Blocks, Result};

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory};
use super::sample::{Rows, Spread, counts, few_counts, values};
use super::value::Value;

const NAME: &str = "allgather";

pub(crate) fn run<T: Value>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for count in counts(size_of::<T>()) {
        let data = values::<T>(bench.task.seed, &vec![count; team.size()], &NAME);
        let (mine, all) = (&data[team.me()], data.concat());
        for memory in Memory::ALL {
            if bench.begin(team, NAME, &T::DTYPE, format_args!("{count} from each, by order, {memory}")) {
                let input = Buffer::of(bench.kolo, memory, mine)?;
                let mut output = Buffer::poisoned(bench.kolo, memory, all.len())?;
                team.comm.allgather(input.slice(), output.slice_mut())?;
                bench.holds_same(&output, &all);
                bench.unchanged(&input, mine);
            }
        }
    }
    for count in few_counts(size_of::<T>()) {
        for spread in Spread::ALL {
            for row in [1, 6] {
                uneven::<T>(bench, team, count, spread, row)?;
            }
        }
    }
    Ok(())
}

/// The blocks are those of all ranks.
pub(crate) fn check_blocks<T: Value>(bench: &mut Bench<'_>, got: &Blocks<T>, want: &Rows<T>) {
    let counts: Vec<usize> = want.iter().map(Vec::len).collect();
    bench.holds(got.counts() == counts, "other counts than the ranks had");
    bench.same(got.data(), &want.concat());
}

fn uneven<T: Value>(bench: &mut Bench<'_>, team: &mut Team, most: usize, spread: Spread, row: usize) -> Result<()> {
    let rows = spread.rows(team.size(), most, most);
    let lengths: Vec<usize> = rows.iter().map(|rows| rows * row).collect();
    let data = values::<T>(bench.task.seed, &lengths, &format_args!("{NAME} {spread}"));
    let (mine, my_rows) = (&data[team.me()], rows[team.me()]);
    let (t, what) = (&T::DTYPE, format!("{spread} {most} rows of {row}"));
    // The same name for every number of rows: it may change from call to call.
    let name = format!("rows of {row} {}", T::DTYPE);
    for memory in Memory::ALL {
        if bench.begin(team, NAME, t, format_args!("{what}, by order, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let blocks = team.comm.allgatherv(input.slice())?;
            check_blocks(bench, &blocks, &data);
            bench.unchanged(&input, mine);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by order, async, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?.shaped(&[my_rows, row / 2 + row % 2, 1 + (row + 1) % 2]);
            let blocks = team.comm.allgatherv_async(input)?.wait()?;
            check_blocks(bench, &blocks, &data);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let blocks = team.named.allgather(&name, input.slice())?;
            check_blocks(bench, &blocks, &data);
            bench.unchanged(&input, mine);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, async, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?.shaped(&[my_rows, row / 2 + row % 2, 1 + (row + 1) % 2]);
            let blocks = team.named.allgather_async(&name, input)?.wait()?;
            check_blocks(bench, &blocks, &data);
        }
    }
    Ok(())
}
