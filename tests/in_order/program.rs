//! Random programs of a communicator: every rank draws the same from a seed, and knows what must come of it.

use kolo::{Blocks, Communicator, Kolo, ReduceOp, Result};

/// Waits for an operation, and compares what came of it.
pub(crate) type Waiting = Box<dyn FnOnce() -> Result<()> + Send>;

pub(crate) struct Program {
    rank: usize,
    ranks: usize,
    state: u64,
    step: usize,
    /// Operations so far.
    pub(crate) cases: usize,
}

/// What rank `rank` has at `step`.
fn element(rank: usize, step: usize, at: usize) -> i64 {
    ((rank * 31 + step * 7 + at) % 1009) as i64
}

fn row(rank: usize, step: usize, count: usize) -> Vec<i64> {
    (0..count).map(|at| element(rank, step, at)).collect()
}

fn later<T: Send + 'static>(
    what: &str,
    handle: kolo::Handle<T>,
    check: impl FnOnce(&T) -> bool + Send + 'static,
) -> Option<Waiting> {
    let what = what.to_owned();
    Some(Box::new(move || {
        assert!(check(&handle.wait()?), "{what}");
        Ok(())
    }))
}

impl Program {
    pub(crate) fn new(kolo: &Kolo, seed: u64) -> Self {
        Self::new_of(kolo.rank(), kolo.size(), seed)
    }

    /// As rank `rank` of `ranks`.
    pub(crate) fn new_of(rank: usize, ranks: usize, seed: u64) -> Self {
        Self { rank, ranks, state: seed, step: 0, cases: 0 }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % bound
    }

    /// Elements that `from` has for `to` at this step.
    fn split(&self, from: usize, to: usize) -> usize {
        if (from + self.step).is_multiple_of(3) { 0 } else { (from * 2 + to * 3 + self.step * 40) % 90 }
    }

    fn splits(&self, from: usize) -> Vec<usize> {
        (0..self.ranks).map(|to| self.split(from, to)).collect()
    }

    /// What `from` has for this rank, if its input is cut by `splits`.
    fn block(&self, from: usize) -> Vec<i64> {
        let before: usize = self.splits(from)[..self.rank].iter().sum();
        (before..before + self.split(from, self.rank)).map(|at| element(from, self.step, at)).collect()
    }

    /// Of `len` elements, where this rank's share begins and ends.
    fn share(&self, len: usize) -> std::ops::Range<usize> {
        let part = |rank: usize| len / self.ranks + usize::from(rank < len % self.ranks);
        let start = (0..self.rank).map(part).sum();
        start..start + part(self.rank)
    }

    /// Does the next operation: one in three blocks, and is compared at once.
    pub(crate) fn submit(&mut self, world: &mut Communicator) -> Result<Option<Waiting>> {
        self.step += 1;
        self.cases += 1;
        let (me, ranks, step) = (self.rank, self.ranks, self.step);
        let (kind, blocks, root) = (self.below(16), self.below(3) == 0, self.below(ranks));
        let len = [0, 1, 3, 6, 50, 700, 5000][self.below(7)];
        let what = format!("operation {kind} of {len} from {root} at step {step}, blocking: {blocks}");
        let mine = row(me, step, len);
        let sums: Vec<i64> = (0..len).map(|at| (0..ranks).map(|rank| element(rank, step, at)).sum()).collect();
        let all: Vec<i64> = (0..ranks).flat_map(|rank| row(rank, step, len)).collect();
        // Lengths that differ by rank.
        let count = |rank: usize| [0, 2, 300, 1][(rank + step) % 4];
        let uneven: Vec<i64> = (0..ranks).flat_map(|rank| row(rank, step, count(rank))).collect();
        let counts: Vec<usize> = (0..ranks).map(count).collect();
        let is_root = me == root;
        Ok(match kind {
            0 | 1 if blocks => {
                let mut data = mine;
                world.allreduce(&mut data, ReduceOp::Sum)?;
                assert!(data == sums, "{what}");
                None
            }
            0 | 1 => later(&what, world.allreduce_async(mine, ReduceOp::Sum)?, move |data| *data == sums),
            2 if blocks => {
                let (mut first, mut second) = (mine.clone(), mine);
                world.allreduce_group(&mut [&mut first, &mut [], &mut second], ReduceOp::Sum)?;
                assert!(first == sums && second == sums, "{what}");
                None
            }
            2 => {
                let handle = world.allreduce_group_async(vec![mine.clone(), Vec::new(), mine], ReduceOp::Sum)?;
                later(&what, handle, move |group| group[0] == sums && group[1].is_empty() && group[2] == sums)
            }
            3 if blocks => {
                let mut data = mine.clone();
                world.reduce(&mut data, ReduceOp::Sum, root)?;
                assert!(data == if is_root { sums } else { mine }, "{what}");
                None
            }
            3 => {
                let want = if is_root { sums } else { mine.clone() };
                later(&what, world.reduce_async(mine, ReduceOp::Sum, root)?, move |data| *data == want)
            }
            4 => {
                let want = sums[self.share(len)].to_vec();
                if blocks {
                    let mut data = vec![-1; want.len()];
                    world.reduce_scatter(&mine, &mut data, ReduceOp::Sum)?;
                    assert!(data == want, "{what}");
                    None
                } else {
                    later(&what, world.reduce_scatter_async(mine, ReduceOp::Sum)?, move |data| *data == want)
                }
            }
            5 => {
                let (share, short) = (self.share(len), self.share(len / 2));
                let want = vec![sums[share].to_vec(), Vec::new(), sums[short].to_vec()];
                let half = mine[..len / 2].to_vec();
                if blocks {
                    let got = world.reduce_scatter_group(&[&mine, &[], &half], ReduceOp::Sum)?;
                    assert!(got == want, "{what}");
                    None
                } else {
                    let handle = world.reduce_scatter_group_async(vec![mine, Vec::new(), half], ReduceOp::Sum)?;
                    later(&what, handle, move |got| *got == want)
                }
            }
            6 if blocks => {
                let mut data = if is_root { mine } else { vec![-1; len] };
                world.broadcast(&mut data, root)?;
                assert!(data == row(root, step, len), "{what}");
                None
            }
            6 => {
                let data = if is_root { mine } else { vec![-1; len] };
                later(&what, world.broadcast_async(data, root)?, move |data| *data == row(root, step, len))
            }
            7 if blocks => {
                let mut data = vec![-1; len * ranks];
                world.allgather(&mine, &mut data)?;
                assert!(data == all, "{what}");
                None
            }
            7 => later(&what, world.allgather_async(mine)?, move |data| *data == all),
            8 => {
                let mine = row(me, step, count(me));
                let right = move |got: &Blocks<i64>| got.data() == uneven && got.counts() == counts;
                if blocks {
                    assert!(right(&world.allgatherv(&mine)?), "{what}");
                    None
                } else {
                    later(&what, world.allgatherv_async(mine)?, right)
                }
            }
            9 => {
                let other = row(me, step, count(me));
                let right = move |got: &Vec<Blocks<i64>>| {
                    got.len() == 3
                        && (got[0].data() == all && got[0].counts() == vec![len; ranks])
                        && (got[1].data() == uneven && got[1].counts() == counts)
                        && got[2].counts() == vec![0; ranks]
                };
                if blocks {
                    assert!(right(&world.allgather_group(&[&mine, &other, &[]])?), "{what}");
                    None
                } else {
                    later(&what, world.allgather_group_async(vec![mine, other, Vec::new()])?, right)
                }
            }
            10 => {
                let want = if is_root { all } else { Vec::new() };
                if blocks {
                    let mut data = vec![-1; want.len()];
                    world.gather(&mine, &mut data, root)?;
                    assert!(data == want, "{what}");
                    None
                } else {
                    later(&what, world.gather_async(mine, root)?, move |data| *data == want)
                }
            }
            11 => {
                let mine = row(me, step, count(me));
                let want = if is_root { (uneven, counts) } else { (Vec::new(), vec![0; ranks]) };
                let right = move |got: &Blocks<i64>| got.data() == want.0 && got.counts() == want.1;
                if blocks {
                    assert!(right(&world.gatherv(&mine, root)?), "{what}");
                    None
                } else {
                    later(&what, world.gatherv_async(mine, root)?, right)
                }
            }
            12 => {
                let input = if is_root { row(root, step, len * ranks) } else { Vec::new() };
                let want: Vec<i64> = (me * len..(me + 1) * len).map(|at| element(root, step, at)).collect();
                if blocks {
                    let mut data = vec![-1; len];
                    world.scatter(&input, &mut data, root)?;
                    assert!(data == want, "{what}");
                    None
                } else {
                    later(&what, world.scatter_async(input, len, root)?, move |data| *data == want)
                }
            }
            13 => {
                let splits = self.splits(root);
                let input = if is_root { row(root, step, splits.iter().sum()) } else { Vec::new() };
                let want = self.block(root);
                if blocks {
                    assert!(world.scatterv(&input, &splits, root)? == want, "{what}");
                    None
                } else {
                    later(&what, world.scatterv_async(input, &splits, root)?, move |data| *data == want)
                }
            }
            14 => {
                let input = row(me, step, len * ranks);
                let from = |rank: usize| (me * len..(me + 1) * len).map(move |at| element(rank, step, at));
                let want: Vec<i64> = (0..ranks).flat_map(from).collect();
                if blocks {
                    let mut data = vec![-1; len * ranks];
                    world.alltoall(&input, &mut data)?;
                    assert!(data == want, "{what}");
                    None
                } else {
                    later(&what, world.alltoall_async(input)?, move |data| *data == want)
                }
            }
            _ => {
                let splits = self.splits(me);
                let input = row(me, step, splits.iter().sum());
                let want: Vec<i64> = (0..ranks).flat_map(|from| self.block(from)).collect();
                let received: Vec<usize> = (0..ranks).map(|from| self.split(from, me)).collect();
                let right = move |got: &Blocks<i64>| got.data() == want && got.counts() == received;
                if blocks {
                    world.barrier()?;
                    assert!(right(&world.alltoallv(&input, &splits)?), "{what}");
                    None
                } else {
                    drop(world.barrier_async()?);
                    later(&what, world.alltoallv_async(input, &splits)?, right)
                }
            }
        })
    }
}
