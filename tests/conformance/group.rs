//! Grouped operations: several tensors that are one operation. Today there is allreduce.

use kolo::{ReduceOp, Result};

use super::bench::{Bench, Team};
use super::memory::{Buffer, Memory, shape};
use super::sample::{Rows, Sample, counts, numbers};
use super::value::Number;
use super::want::{Scale, Want, operations};

const NAME: &str = "grouped_allreduce";

/// Groups, as indices in [`counts`]: of many lengths, of none among them, of equals, of one, of nothing.
const GROUPS: [&[usize]; 5] = [&[5, 0, 2, 9], &[8, 1, 4], &[5, 5, 5], &[1], &[]];

pub(crate) fn run<T: Number>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    let adasum = T::DTYPE.is_float().then_some(ReduceOp::Adasum);
    for (turn, group) in GROUPS.iter().enumerate() {
        let sample = |&at: &usize| Sample { count: counts(size_of::<T>())[at], special: false };
        let samples: Vec<Sample> = group.iter().map(sample).collect();
        let data: Vec<Rows<T>> = samples.iter().map(|sample| numbers(bench.task.seed, team.size(), *sample)).collect();
        for op in operations::<T>().chain(adasum) {
            one_group(bench, team, op, &samples, &data, turn + op as usize)?;
        }
    }
    Ok(())
}

fn one_group<T: Number>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    op: ReduceOp,
    samples: &[Sample],
    data: &[Rows<T>],
    turn: usize,
) -> Result<()> {
    let me = team.me();
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.count).collect();
    let (what, name) = (format!("{op} of {lengths:?}"), format!("{op} {} {lengths:?}", T::DTYPE));
    let wants = || -> Vec<Want<T>> {
        samples.iter().zip(data).map(|(sample, data)| Want::new(data, *sample, op, Scale::NONE)).collect()
    };
    let check = |bench: &mut Bench<'_>, team: &Team, got: &[Buffer<T>]| {
        let wants = wants();
        bench.holds(got.len() == wants.len(), "another number of tensors came back");
        for (got, want) in got.iter().zip(&wants) {
            bench.reduced(team, got, want);
        }
    };
    for memory in Memory::ALL {
        // Each tensor of the group lies elsewhere.
        let buffers = |bench: &Bench<'_>| -> Result<Vec<Buffer<T>>> {
            let memory = |at: usize| Memory::turn(memory as usize + at);
            data.iter().enumerate().map(|(at, rows)| Buffer::of(bench.kolo, memory(at), &rows[me])).collect()
        };
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{what}, by order, {memory} first")) {
            let mut group = buffers(bench)?;
            team.comm.allreduce_group(&mut slices(&mut group), op)?;
            check(bench, team, &group);
        }
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{what}, by name, {memory} first")) {
            let mut group = buffers(bench)?;
            team.named.allreduce_group(&name, &mut slices(&mut group), op)?;
            check(bench, team, &group);
        }
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{what}, by name, async, {memory} first")) {
            let shaped = buffers(bench)?.into_iter().enumerate().map(|(at, buffer)| {
                let shape = shape(lengths[at], turn + at);
                buffer.shaped(&shape)
            });
            let group = team.named.allreduce_group_async(&name, shaped.collect(), op)?.wait()?;
            check(bench, team, &group);
        }
    }
    Ok(())
}

fn slices<T: Number>(group: &mut [Buffer<T>]) -> Vec<&mut [T]> {
    group.iter_mut().map(Buffer::slice_mut).collect()
}
