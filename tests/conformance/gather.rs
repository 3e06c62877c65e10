//! Gather, to every rank, of equally many rows from each rank and of any number.

use kolo::Result;

use super::allgather::check_blocks;
use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory};
use super::sample::{Rows, Spread, few_counts, values};
use super::value::Value;

const NAME: &str = "gather";

pub(crate) fn run<T: Value>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for count in few_counts(size_of::<T>()) {
        for root in 0..team.size() {
            even::<T>(bench, team, count, root)?;
            for spread in Spread::ALL {
                uneven::<T>(bench, team, (spread, count), 1 + 2 * (root % 2), root)?;
            }
        }
    }
    Ok(())
}

fn even<T: Value>(bench: &mut Bench<'_>, team: &mut Team, count: usize, root: usize) -> Result<()> {
    let data = values::<T>(bench.task.seed, &vec![count; team.size()], &NAME);
    let (mine, is_root) = (&data[team.me()], team.me() == root);
    for memory in Memory::ALL {
        // On the others the output may be there or not: it is not looked at.
        let spare = if is_root || (memory as usize).is_multiple_of(2) { count * team.size() } else { 0 };
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{count} from each to {root}, by order, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let mut output = Buffer::poisoned(bench.kolo, memory, spare)?;
            team.comm.gather(input.slice(), output.slice_mut(), root)?;
            let want = if is_root { data.concat() } else { vec![T::poison(); spare] };
            bench.holds_same(&output, &want);
            bench.unchanged(&input, mine);
        }
    }
    Ok(())
}

fn uneven<T: Value>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    (spread, most): (Spread, usize),
    row: usize,
    root: usize,
) -> Result<()> {
    let rows = spread.rows(team.size(), most, most + root);
    let lengths: Vec<usize> = rows.iter().map(|rows| rows * row).collect();
    let data = values::<T>(bench.task.seed, &lengths, &format_args!("{NAME} {spread}"));
    let (mine, my_rows, global) = (&data[team.me()], rows[team.me()], team.global(root));
    let (t, what) = (&T::DTYPE, format!("{spread} {most} rows of {row} to {root}"));
    let name = format!("rows of {row} {} to {root}", T::DTYPE);
    // The others get blocks without elements.
    let want: Rows<T> = if team.me() == root { data.clone() } else { vec![Vec::new(); team.size()] };
    for memory in Memory::ALL {
        if bench.begin(team, NAME, t, format_args!("{what}, by order, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let blocks = team.comm.gatherv(input.slice(), root)?;
            check_blocks(bench, &blocks, &want);
            bench.unchanged(&input, mine);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by order, async, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?.shaped(&[my_rows, row, 1]);
            let blocks = team.comm.gatherv_async(input, root)?.wait()?;
            check_blocks(bench, &blocks, &want);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?;
            let blocks = team.named.gather(&name, input.slice(), global)?;
            check_blocks(bench, &blocks, &want);
            bench.unchanged(&input, mine);
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, async, {memory}")) {
            let input = Buffer::of(bench.kolo, memory, mine)?.shaped(&[my_rows, row, 1]);
            let blocks = team.named.gather_async(&name, input, global)?.wait()?;
            check_blocks(bench, &blocks, &want);
        }
    }
    Ok(())
}
