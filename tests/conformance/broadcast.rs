//! Broadcast, from every rank.

use kolo::Result;

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory, shape};
use super::sample::{counts, values};
use super::value::Value;

const NAME: &str = "broadcast";

pub(crate) fn run<T: Value>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for count in counts(size_of::<T>()) {
        let data = values::<T>(bench.task.seed, &vec![count; team.size()], &NAME);
        for (root, want) in data.iter().enumerate() {
            let (mine, global) = (&data[team.me()], team.global(root));
            let (what, name) = (format!("{count} from {root}"), format!("{count} {} from {root}", T::DTYPE));
            for memory in Memory::ALL {
                let t = &T::DTYPE;
                if bench.begin(team, NAME, t, format_args!("{what}, by order, {memory}")) {
                    let mut buffer = Buffer::of(bench.kolo, memory, mine)?;
                    team.comm.broadcast(buffer.slice_mut(), root)?;
                    bench.holds_same(&buffer, want);
                }
                if bench.begin(team, NAME, t, format_args!("{what}, by order, async, {memory}")) {
                    let buffer = Buffer::of(bench.kolo, memory, mine)?;
                    let buffer = team.comm.broadcast_async(buffer, root)?.wait()?;
                    bench.holds_same(&buffer, want);
                }
                if bench.begin(team, NAME, t, format_args!("{what}, by name, {memory}")) {
                    let mut buffer = Buffer::of(bench.kolo, memory, mine)?;
                    team.named.broadcast(&name, buffer.slice_mut(), global)?;
                    bench.holds_same(&buffer, want);
                }
                let shape = shape(count, root + memory as usize);
                if bench.begin(team, NAME, t, format_args!("{what}, by name, async, shape {shape:?}, {memory}")) {
                    let buffer = Buffer::of(bench.kolo, memory, mine)?.shaped(&shape);
                    let buffer = team.named.broadcast_async(&name, buffer, global)?.wait()?;
                    bench.holds_same(&buffer, want);
                }
                if bench.begin(team, NAME, t, format_args!("{what}, by name, async in a scope, {memory}")) {
                    let mut buffer = Buffer::of(bench.kolo, memory, mine)?;
                    team.named.scope(|scope| {
                        scope.broadcast_async(&name, buffer.slice_mut(), global)?;
                        Ok(())
                    })?;
                    bench.holds_same(&buffer, want);
                }
            }
        }
    }
    Ok(())
}
