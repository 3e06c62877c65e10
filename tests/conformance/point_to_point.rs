//! Send and receive, between every pair of ranks and in both directions.

use kolo::Result;

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory};
use super::sample::{counts, values};
use super::value::Value;

const NAME: &str = "point_to_point";

/// Messages of a pair in a row: their order is kept.
const IN_A_ROW: usize = 2;

pub(crate) fn run<T: Value>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for (turn, count) in counts(size_of::<T>()).into_iter().enumerate() {
        for from in 0..team.size() {
            for to in (0..team.size()).filter(|to| *to != from) {
                one_way::<T>(bench, team, count, (from, to), Memory::turn(turn + from + to))?;
            }
        }
        for memory in Memory::ALL {
            around::<T>(bench, team, count, memory)?;
            around_at_once::<T>(bench, team, count, memory)?;
        }
    }
    Ok(())
}

fn one_way<T: Value>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    count: usize,
    (from, to): (usize, usize),
    memory: Memory,
) -> Result<()> {
    if !bench.begin(team, NAME, &T::DTYPE, format_args!("{count} from {from} to {to}, {memory}")) {
        return Ok(());
    }
    for data in values::<T>(bench.task.seed, &[count; IN_A_ROW], &NAME) {
        if team.me() == from {
            let buffer = Buffer::of(bench.kolo, memory, &data)?;
            team.comm.send(buffer.slice(), to)?;
            bench.unchanged(&buffer, &data);
        } else if team.me() == to {
            let mut buffer = Buffer::poisoned(bench.kolo, memory, count)?;
            team.comm.recv(buffer.slice_mut(), from)?;
            bench.holds_same(&buffer, &data);
        }
    }
    Ok(())
}

/// Every rank to the next and from the one before. The first one sends first: messages may be longer than what is on its way.
fn around<T: Value>(bench: &mut Bench<'_>, team: &mut Team, count: usize, memory: Memory) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    if size < 2 || !bench.begin(team, NAME, &T::DTYPE, format_args!("{count} around a ring, {memory}")) {
        return Ok(());
    }
    let data = values::<T>(bench.task.seed, &vec![count; size], &format_args!("{NAME} ring"));
    let (next, before) = ((me + 1) % size, (me + size - 1) % size);
    let mine = Buffer::of(bench.kolo, memory, &data[me])?;
    let mut got = Buffer::poisoned(bench.kolo, memory, count)?;
    if me == 0 {
        team.comm.send(mine.slice(), next)?;
        team.comm.recv(got.slice_mut(), before)?;
    } else {
        team.comm.recv(got.slice_mut(), before)?;
        team.comm.send(mine.slice(), next)?;
    }
    bench.holds_same(&got, &data[before]);
    bench.unchanged(&mine, &data[me]);
    Ok(())
}

/// The same, and everyone sends first.
fn around_at_once<T: Value>(bench: &mut Bench<'_>, team: &mut Team, count: usize, memory: Memory) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    if size < 2 || !bench.begin(team, NAME, &T::DTYPE, format_args!("{count} around a ring, async, {memory}")) {
        return Ok(());
    }
    let data = values::<T>(bench.task.seed, &vec![count; size], &format_args!("{NAME} ring"));
    let (next, before) = ((me + 1) % size, (me + size - 1) % size);
    let sent = team.comm.send_async(Buffer::of(bench.kolo, memory, &data[me])?, next)?;
    let received = team.comm.recv_async(Buffer::poisoned(bench.kolo, memory, count)?, before)?;
    bench.holds_same(&received.wait()?, &data[before]);
    bench.holds_same(&sent.wait()?, &data[me]);
    Ok(())
}
