//! Batches of messages: everyone to everyone at once, in whatever order the ranks list them, and against single messages.

use kolo::{Result, Transfer};

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory};
use super::sample::{few_counts, values};
use super::value::Value;

const NAME: &str = "batch";

/// In which order a rank lists its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    SendsFirst,
    ReceivesFirst,
    InTurn,
    /// Every other rank lists them the other way round.
    Mixed,
}

impl Listed {
    const ALL: [(Self, &'static str); 4] = [
        (Self::SendsFirst, "sends first"),
        (Self::ReceivesFirst, "receives first"),
        (Self::InTurn, "in turn"),
        (Self::Mixed, "each in another order"),
    ];
}

pub(crate) fn run<T: Value>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for (turn, count) in few_counts(size_of::<T>()).into_iter().enumerate() {
        for (at, (listed, words)) in Listed::ALL.into_iter().enumerate() {
            let memory = Memory::turn(turn + at);
            for apiece in [1, 3] {
                let form = format_args!("{count} to each, {apiece} apiece, {words}, {memory}");
                if bench.begin(team, NAME, &T::DTYPE, form) {
                    to_each::<T>(bench, team, count, apiece, listed, memory)?;
                }
            }
        }
        for memory in Memory::ALL {
            around::<T>(bench, team, count, memory)?;
            against_single::<T>(bench, team, count, memory)?;
        }
    }
    Ok(())
}

/// `apiece` messages from every rank to every rank, itself included; the later ones longer.
fn to_each<T: Value>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    count: usize,
    apiece: usize,
    listed: Listed,
    memory: Memory,
) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    let lengths: Vec<usize> = (0..apiece).map(|at| count + at).collect();
    let messages = |from: usize, to: usize| values::<T>(bench.task.seed, &lengths, &format_args!("{NAME} {from} {to}"));
    let sent: Vec<_> = (0..size).flat_map(|to| messages(me, to)).collect();
    let want: Vec<_> = (0..size).flat_map(|from| messages(from, me)).collect();
    let out = sent.iter().map(|data| Buffer::of(bench.kolo, memory, data)).collect::<Result<Vec<_>>>()?;
    let mut room =
        want.iter().map(|data| Buffer::poisoned(bench.kolo, memory, data.len())).collect::<Result<Vec<Buffer<T>>>>()?;
    let peer = |at: usize| at / apiece;
    let sends = out.iter().enumerate().map(|(at, buffer)| Transfer::send(buffer.slice(), peer(at)));
    let receives = room.iter_mut().enumerate().map(|(at, buffer)| Transfer::recv(buffer.slice_mut(), peer(at)));
    let listed = if listed == Listed::Mixed {
        [Listed::SendsFirst, Listed::ReceivesFirst, Listed::InTurn][me % 3]
    } else {
        listed
    };
    let list: Vec<Transfer<'_>> = match listed {
        Listed::SendsFirst => sends.chain(receives).collect(),
        Listed::ReceivesFirst => receives.chain(sends).collect(),
        _ => sends.zip(receives).flat_map(|(send, receive)| [send, receive]).collect(),
    };
    team.comm.batch(list)?;
    room.iter().zip(&want).for_each(|(buffer, want)| bench.holds_same(buffer, want));
    out.iter().zip(&sent).for_each(|(buffer, data)| bench.unchanged(buffer, data));
    Ok(())
}

/// Both neighbours' edges, of different types in one batch: indices one way, elements the other.
fn around<T: Value>(bench: &mut Bench<'_>, team: &mut Team, count: usize, memory: Memory) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    if !bench.begin(team, NAME, &T::DTYPE, format_args!("{count} around a ring, numbers the other way, {memory}")) {
        return Ok(());
    }
    let data = values::<T>(bench.task.seed, &vec![count; size], &format_args!("{NAME} ring"));
    let numbers = values::<u64>(bench.task.seed, &vec![count + 1; size], &format_args!("{NAME} back"));
    let (next, before) = ((me + 1) % size, (me + size - 1) % size);
    let mine = Buffer::of(bench.kolo, memory, &data[me])?;
    let mut got = Buffer::poisoned(bench.kolo, memory, count)?;
    let mut back = vec![0_u64; count + 1];
    team.comm.batch([
        Transfer::send(mine.slice(), next),
        Transfer::send(&numbers[me], before),
        Transfer::recv(got.slice_mut(), before),
        Transfer::recv(&mut back, next),
    ])?;
    bench.holds_same(&got, &data[before]);
    bench.same(&back, &numbers[next]);
    bench.unchanged(&mine, &data[me]);
    Ok(())
}

/// Rank 0 has all its messages in a batch, the others theirs one by one, or begun and waited for.
fn against_single<T: Value>(bench: &mut Bench<'_>, team: &mut Team, count: usize, memory: Memory) -> Result<()> {
    let (me, size) = (team.me(), team.size());
    if size < 2 || !bench.begin(team, NAME, &T::DTYPE, format_args!("{count} against single messages, {memory}")) {
        return Ok(());
    }
    let data = values::<T>(bench.task.seed, &vec![count; 2 * size], &format_args!("{NAME} single"));
    let (down, up) = data.split_at(size);
    if me == 0 {
        let mut room =
            (1..size).map(|_| Buffer::poisoned(bench.kolo, memory, count)).collect::<Result<Vec<Buffer<T>>>>()?;
        let sends = (1..size).map(|to| Transfer::send(&down[to], to));
        let receives = room.iter_mut().zip(1..).map(|(buffer, from)| Transfer::recv(buffer.slice_mut(), from));
        team.comm.batch(sends.chain(receives).collect::<Vec<_>>())?;
        room.iter().zip(&up[1..]).for_each(|(buffer, want)| bench.holds_same(buffer, want));
        return Ok(());
    }
    let mut got = Buffer::poisoned(bench.kolo, memory, count)?;
    if me % 2 == 1 {
        team.comm.recv(got.slice_mut(), 0)?;
        team.comm.send(&up[me], 0)?;
    } else {
        let sent = team.comm.send_async(Buffer::of(bench.kolo, memory, &up[me])?, 0)?;
        got = team.comm.recv_async(got, 0)?.wait()?;
        bench.holds_same(&sent.wait()?, &up[me]);
    }
    bench.holds_same(&got, &down[me]);
    Ok(())
}
