//! Messages between two ranks, and several threads at once.

use kolo::{Communicator, ReduceOp, Result};

use super::bench::Bench;
use super::sample::{Random, Sample, draw, poison, same};

impl Bench<'_> {
    /// Every rank to every other, each count twice: the order of a pair is kept.
    pub(crate) fn messages<T: Sample>(&mut self, counts: &[usize]) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        for from in 0..ranks {
            for to in (0..ranks).filter(|to| *to != from) {
                for &count in counts {
                    let seeds = [self.random.any(), self.random.any()];
                    for seed in seeds {
                        let data: Vec<T> = draw(seed, from, count);
                        if me == from {
                            self.world.send(&data, to)?;
                        } else if me == to {
                            let mut got = vec![poison(); count];
                            self.world.recv(&mut got, from)?;
                            assert!(same(&got, &data), "{count} {} from {from} to {to}", T::DTYPE);
                        }
                    }
                    self.cases += 1;
                }
            }
        }
        self.world.barrier()
    }

    /// Pairs that send to each other, many messages in a row, all pairs at once.
    pub(crate) fn exchange_both_ways<T: Sample>(&mut self, counts: &[usize]) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        for &count in counts {
            let seed = self.random.any();
            for round in 0..3 {
                // A round-robin tournament would pair all; neighbours on a ring suffice here.
                for first in 0..2 {
                    let peer = if me % 2 == first { (me + 1) % ranks } else { (me + ranks - 1) % ranks };
                    let alone = ranks % 2 == 1 && (me + 1 == ranks && first == 0 || me == 0 && first == 1);
                    if ranks == 1 || alone || (ranks == 2 && first == 1) {
                        continue;
                    }
                    let mine: Vec<T> = draw(seed + round, me, count);
                    let theirs: Vec<T> = draw(seed + round, peer, count);
                    let mut got = vec![poison(); count];
                    if me < peer {
                        self.world.send(&mine, peer)?;
                        self.world.recv(&mut got, peer)?;
                    } else {
                        self.world.recv(&mut got, peer)?;
                        self.world.send(&mine, peer)?;
                    }
                    assert!(same(&got, &theirs), "{count} {} from {peer}", T::DTYPE);
                }
            }
            self.cases += 1;
        }
        Ok(())
    }

    /// A collective between a message's sending and its receipt does not see it.
    pub(crate) fn messages_do_not_mix_with_collectives(&mut self) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let mut sums = [me as i64];
        if me == 0 {
            for to in 1..ranks {
                self.world.send(&[to as i64], to)?;
            }
        }
        self.world.allreduce(&mut sums, ReduceOp::Sum)?;
        assert_eq!(sums, [(0..ranks as i64).sum::<i64>()]);
        if me > 0 {
            let mut got = [-1_i64];
            self.world.recv(&mut got, 0)?;
            assert_eq!(got, [me as i64]);
        }
        self.cases += 1;
        Ok(())
    }

    /// Four threads of every rank, each on a communicator of its own, at once.
    pub(crate) fn threads(&mut self) -> Result<()> {
        let mut copies = (0..3).map(|_| self.world.dup()).collect::<Result<Vec<_>>>()?;
        // A copy of a copy is one, too.
        let again = copies[0].dup()?;
        copies.push(again);
        let seed = self.random.any();
        let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = copies
                .into_iter()
                .enumerate()
                .map(|(index, world)| scope.spawn(move || work(world, index, seed + index as u64)))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
        });
        self.cases += outcomes.len();
        outcomes.into_iter().collect()
    }
}

/// Operations of all kinds on one communicator; which, depends on the thread.
fn work(mut world: Communicator, thread: usize, seed: u64) -> Result<()> {
    let (ranks, me) = (world.size(), world.rank());
    let mut random = Random::new(seed);
    for round in 0..30 {
        let count = [3, 1500, 40_000][round % 3] + thread;
        let seed = random.any();
        let all: Vec<Vec<i32>> = (0..ranks).map(|rank| draw(seed, rank, count)).collect();
        match (round + thread) % 4 {
            0 => {
                let mut data = all[me].clone();
                world.allreduce(&mut data, ReduceOp::Sum)?;
                let want = (0..count).map(|at| all.iter().fold(0, |sum: i32, row| sum.wrapping_add(row[at])));
                assert!(data.into_iter().eq(want), "allreduce of {count}, thread {thread}");
            }
            1 => {
                let root = round % ranks;
                let mut data = if me == root { all[me].clone() } else { vec![poison(); count] };
                world.broadcast(&mut data, root)?;
                assert!(data == all[root], "broadcast of {count}, thread {thread}");
            }
            2 => {
                let mut data = vec![poison(); count * ranks];
                world.allgather(&all[me], &mut data)?;
                assert!(data == all.concat(), "allgather of {count}, thread {thread}");
            }
            _ if ranks > 1 => {
                let (next, before) = ((me + 1) % ranks, (me + ranks - 1) % ranks);
                let mut data = vec![poison::<i32>(); count];
                if me == 0 {
                    world.send(&all[me], next)?;
                    world.recv(&mut data, before)?;
                } else {
                    world.recv(&mut data, before)?;
                    world.send(&all[me], next)?;
                }
                assert!(data == all[before], "message of {count}, thread {thread}");
            }
            _ => world.barrier()?,
        }
    }
    Ok(())
}
