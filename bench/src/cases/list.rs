//! A model's gradients: all submitted by name, then all waited for, in place.

use super::{Job, check_results, with_element};
use crate::buffers::List;
use crate::cli::{Buffers, ListArgs, Peer, algorithm_name, name_of};
use crate::data::{Pattern, Sample};
use crate::measure::{Contender, Run, measure};
use crate::peer::Mpi;
use crate::report::{Case, JsonFile, Record, header, row};
use anyhow::{Context, Result};
use kolo::{Kolo, ReduceOp, Reducible};
use std::ops::DerefMut;
use std::rc::Rc;

/// Measures the list, prints the table and writes the records.
///
/// # Errors
///
/// Those of kolo and MPI; wrong results; a file that cannot be written.
pub(crate) fn run(job: &mut Job<'_>, args: &ListArgs) -> Result<()> {
    let json = JsonFile::create(args.contest.json.as_deref(), job.reports())?;
    if job.reports() {
        println!(
            "# list {}, named, {} buffers, in place, algorithm {}, {} rounds\n{}",
            args.preset.name(),
            name_of(&args.buffers),
            algorithm_name(args.algorithm),
            args.contest.rounds,
            header()
        );
    }
    let records = with_element!(args.element.dtype, preset(job, args))
        .with_context(|| format!("while reducing the list {}", args.preset.name()))?;
    if job.reports() {
        records.iter().for_each(|record| println!("{}", row(record)));
        json.write(&records)?;
    }
    check_results(&records)
}

fn preset<T: Sample>(job: &mut Job<'_>, args: &ListArgs) -> Result<Vec<Record>> {
    let kolo = job.kolo;
    let Job { control, machines, mpi, .. } = job;
    let op = args.element.op;
    let counts = args.preset.counts(size_of::<T>());
    let values: usize = counts.iter().sum();
    let bytes = (values * size_of::<T>()) as u64;
    let pattern = Rc::new(Pattern::<T>::new(kolo.rank(), kolo.size(), op));
    let mut works = vec![List::new(kolo, args.buffers, &counts, &pattern)?];
    let peer_work = if args.buffers == Buffers::Shared && !args.contest.against.is_empty() {
        works.push(List::new(kolo, Buffers::Private, &counts, &pattern)?);
        1
    } else {
        0
    };

    let names = names(args.preset.name(), counts.len());
    let ours: Run<'_, List<T>> = Box::new(|work| Ok(reduce(kolo, &names, &mut work.tensors, op)?));
    let mut contenders = vec![Contender { work: 0, run: ours }];
    for peer in &args.contest.against {
        let mpi = mpi.as_ref().context("MPI was not attached")?;
        let run: Run<'_, List<T>> = match peer {
            Peer::Mpi => {
                Box::new(move |work| work.tensors.iter_mut().try_for_each(|tensor| mpi.allreduce_in_place(tensor, op)))
            }
            Peer::MpiFused => {
                let mut fused = vec![T::of(0, 1); values];
                Box::new(move |work| reduce_fused(mpi, &mut fused, &mut work.tensors, op))
            }
        };
        contenders.push(Contender { work: peer_work, run });
    }

    let mut outcomes = measure(control, &mut works, &mut contenders, args.contest.rounds as usize, 1)?;
    let peers: Vec<(Peer, _)> = args.contest.against.iter().copied().zip(outcomes.split_off(1)).collect();
    let case = Case {
        case: format!("list {}", args.preset.name()),
        api: "named".into(),
        preset: Some(args.preset.name().into()),
        ranks: kolo.size(),
        bytes,
        count: values as u64,
        tensors: counts.len(),
        dtype: T::DTYPE.to_string(),
        op: op.to_string(),
        buffers: name_of(&args.buffers),
        in_place: true,
        algorithm: algorithm_name(args.algorithm),
        hosts: machines.hosts(),
        cores: machines.cores(),
    };
    Ok(case.records(&outcomes[0], &peers))
}

/// Names that stay the same from step to step, so that the second step finds them cached.
pub(crate) fn names(preset: &str, tensors: usize) -> Vec<String> {
    (0..tensors).map(|i| format!("{preset}.{i:03}")).collect()
}

/// One step of a trainer: submits every gradient, then waits for all.
///
/// # Errors
///
/// Those of kolo.
pub(crate) fn reduce<T, B>(kolo: &Kolo, names: &[String], tensors: &mut [B], op: ReduceOp) -> kolo::Result<()>
where
    T: Reducible,
    B: DerefMut<Target = [T]>,
{
    kolo.scope(|scope| {
        let mut handles = Vec::with_capacity(tensors.len());
        for (name, tensor) in names.iter().zip(tensors) {
            handles.push(scope.allreduce_async(name, &mut tensor[..], op)?);
        }
        for handle in handles {
            handle.wait()?;
        }
        Ok(())
    })
}

/// What fusion costs where there is only MPI: pack, one call, unpack.
fn reduce_fused<T, B>(mpi: &Mpi, fused: &mut [T], tensors: &mut [B], op: ReduceOp) -> Result<()>
where
    T: Reducible,
    B: DerefMut<Target = [T]>,
{
    let mut at = 0;
    for tensor in tensors.iter() {
        fused[at..at + tensor.len()].copy_from_slice(tensor);
        at += tensor.len();
    }
    mpi.allreduce_in_place(fused, op)?;
    let mut at = 0;
    for tensor in tensors {
        let len = tensor.len();
        tensor.copy_from_slice(&fused[at..at + len]);
        at += len;
    }
    Ok(())
}
