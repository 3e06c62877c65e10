//! Join: what operations give while some ranks have no more data, and who was the last.

use std::collections::BTreeSet;

use kolo::{ReduceOp, Result};

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory};
use super::report::Bits;
use super::sample::{Rows, Sample, few_counts, numbers};
use super::value::Number;
use super::want::{Scale, Want, operations};

const NAME: &str = "join";

/// What runs while some have joined.
#[derive(Clone, Copy, Debug)]
enum Form {
    Allreduce(ReduceOp),
    Reduce(ReduceOp),
    ReduceScatter(ReduceOp),
    Broadcast,
    Allgather,
    Gather,
    Scatter,
    Alltoall,
}

/// A round: some ranks join, the others work and join then.
struct Round<'a, T> {
    joined: &'a BTreeSet<usize>,
    data: &'a Rows<T>,
    sample: Sample,
}

pub(crate) fn run<T: Number>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    let size = team.size();
    let sample = |at: usize| Sample { count: few_counts(size_of::<T>())[at], special: false };
    // One of them, and all but one.
    for odd in 0..size {
        let one = BTreeSet::from([odd]);
        let others: BTreeSet<usize> = (0..size).filter(|rank| *rank != odd).collect();
        for (turn, joined) in [one, others].into_iter().enumerate() {
            // Of two, one is all but the other; and somebody must be left.
            if joined.len() == size || turn == 1 && joined.len() < 2 {
                continue;
            }
            let sample = sample((odd + turn) % few_counts(1).len());
            let data = numbers::<T>(bench.task.seed, size, sample);
            Round { joined: &joined, data: &data, sample }.run(bench, team)?;
        }
    }
    Ok(())
}

impl<T: Number> Round<'_, T> {
    fn run(&self, bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
        let adasum = T::DTYPE.is_float().then_some(ReduceOp::Adasum);
        let reductions =
            operations::<T>().flat_map(|op| [Form::Allreduce(op), Form::Reduce(op), Form::ReduceScatter(op)]);
        let moves = [Form::Broadcast, Form::Allgather, Form::Gather, Form::Scatter, Form::Alltoall];
        let forms = reductions.chain(adasum.map(Form::Allreduce)).chain(moves);
        let key = |form: Form| {
            let (sample, joined) = (self.sample, self.joined);
            let what = format_args!("{form:?} of {sample}, {joined:?} joined");
            bench.wanted(team, NAME, &T::DTYPE, what).map(|key| (form, key))
        };
        let wanted: Vec<(Form, String)> = forms.filter_map(key).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let last = if self.joined.contains(&team.me()) {
            let last = team.named.join()?;
            wanted.into_iter().for_each(|(_, key)| bench.begin_wanted(team, key));
            last
        } else {
            for (form, key) in wanted {
                bench.begin_wanted(team, key);
                self.work(bench, team, form)?;
            }
            team.named.join()?
        };
        // Whoever worked on needed the others to have joined.
        let of_the_others = team.named.set_rank(last).is_some_and(|last| !self.joined.contains(&last));
        bench.holds(of_the_others, &format!("rank {last} is said to have joined last"));
        // Sets that run one case at a time have each their own.
        let of = format!("the last of {:?} in {}", team.named.ranks(), bench.report.key());
        bench.report.bits(Bits { digest: last as u64, of, here_only: true });
        Ok(())
    }

    /// The data of the ranks that have not joined, and nothing of those that have.
    fn present(&self) -> Rows<T> {
        let row = |(rank, row): (usize, &Vec<T>)| if self.joined.contains(&rank) { Vec::new() } else { row.clone() };
        self.data.iter().enumerate().map(row).collect()
    }

    /// A reduction over those that have not joined.
    fn want(&self, op: ReduceOp) -> Want<T> {
        let is_left = |(rank, _): &(usize, &Vec<T>)| !self.joined.contains(rank);
        let rows: Rows<T> = if op == ReduceOp::Adasum {
            // Its tree keeps their places: they are ranks of zeros.
            let factor = |rank: usize| if self.joined.contains(&rank) { 0.0 } else { 1.0 };
            let row = |(rank, row): (usize, &Vec<T>)| row.iter().map(|value| value.scaled(factor(rank))).collect();
            self.data.iter().enumerate().map(row).collect()
        } else {
            self.data.iter().enumerate().filter(is_left).map(|(_, row)| row.clone()).collect()
        };
        Want::new(&rows, self.sample, op, Scale::NONE).without(&format!("{:?} of {}", self.joined, self.data.len()))
    }

    fn work(&self, bench: &mut Bench<'_>, team: &Team, form: Form) -> Result<()> {
        let (me, size, count) = (team.me(), team.size(), self.sample.count);
        let mine = &self.data[me];
        let name = format!("{form:?} {}", T::DTYPE);
        // A root must not have joined.
        let root = (0..size).find(|rank| !self.joined.contains(rank)).expect("not all have joined");
        let global = team.global(root);
        let mut buffer = Buffer::of(bench.kolo, Memory::turn(count + me), mine)?;
        match form {
            Form::Allreduce(op) => {
                team.named.allreduce(&name, buffer.slice_mut(), op)?;
                bench.reduced(team, &buffer, &self.want(op));
            }
            Form::Reduce(op) => {
                team.named.reduce(&name, buffer.slice_mut(), op, global)?;
                if me == root {
                    bench.reduced(team, &buffer, &self.want(op));
                } else {
                    bench.unchanged(&buffer, mine);
                }
            }
            Form::ReduceScatter(op) => {
                let got = team.named.reduce_scatter(&name, buffer.slice(), op)?;
                let start = |rank: usize| count / size * rank + rank.min(count % size);
                bench.reduced_part(team, &got, &self.want(op), start(me)..start(me + 1));
            }
            Form::Broadcast => {
                team.named.broadcast(&name, buffer.slice_mut(), global)?;
                bench.holds_same(&buffer, &self.data[root]);
            }
            Form::Allgather => {
                let blocks = team.named.allgather(&name, buffer.slice())?;
                super::allgather::check_blocks(bench, &blocks, &self.present());
            }
            Form::Gather => {
                let blocks = team.named.gather(&name, buffer.slice(), global)?;
                let want = if me == root { self.present() } else { vec![Vec::new(); size] };
                super::allgather::check_blocks(bench, &blocks, &want);
            }
            Form::Scatter => {
                let counts = vec![count; size];
                let (data, counts) = if me == root { (self.data.concat(), &counts[..]) } else { (Vec::new(), &[][..]) };
                let got = team.named.scatter(&name, &data, counts, global)?;
                bench.same(&got, mine);
            }
            Form::Alltoall => {
                // Everyone sends all of its elements to everyone, the joined ones included.
                let blocks = team.named.alltoall(&name, &mine.repeat(size), &vec![count; size])?;
                super::allgather::check_blocks(bench, &blocks, &self.present());
            }
        }
        Ok(())
    }
}
