//! One tensor over a range of sizes.

use super::{Job, check_results, with_element};
use crate::buffers::Single;
use crate::cli::{AllreduceArgs, Api, Buffers, Peer, algorithm_name, name_of};
use crate::data::{Pattern, Sample};
use crate::measure::{Contender, Run, batch_for, measure};
use crate::report::{Case, JsonFile, Record, header, row};
use anyhow::{Context, Result};
use std::rc::Rc;

/// Measures all sizes, prints the table and writes the records.
///
/// # Errors
///
/// Those of kolo and MPI; wrong results; a file that cannot be written.
pub(crate) fn run(job: &mut Job<'_>, args: &AllreduceArgs) -> Result<()> {
    let json = JsonFile::create(args.contest.json.as_deref(), job.reports())?;
    if job.reports() {
        println!(
            "# allreduce, {} interface, {} buffers, {}, algorithm {}, {} rounds\n{}",
            name_of(&args.api),
            name_of(&args.buffers),
            if in_place(args) { "in place" } else { "out of place" },
            algorithm_name(args.algorithm),
            args.contest.rounds,
            header()
        );
    }
    let mut records = Vec::new();
    for bytes in args.bytes.sizes() {
        let of_size = with_element!(args.element.dtype, size(job, args, bytes))
            .with_context(|| format!("while reducing {bytes} bytes"))?;
        if job.reports() {
            of_size.iter().for_each(|record| println!("{}", row(record)));
        }
        records.extend(of_size);
    }
    if job.reports() {
        json.write(&records)?;
    }
    check_results(&records)
}

/// Named tensors are reduced in place: there is no other form.
fn in_place(args: &AllreduceArgs) -> bool {
    args.in_place || args.api == Api::Named
}

fn size<T: Sample>(job: &mut Job<'_>, args: &AllreduceArgs, bytes: u64) -> Result<Vec<Record>> {
    let kolo = job.kolo;
    let Job { control, machines, mpi, .. } = job;
    let (op, in_place) = (args.element.op, in_place(args));
    let count = usize::try_from(bytes)? / size_of::<T>();
    let pattern = Rc::new(Pattern::<T>::new(kolo.rank(), kolo.size(), op));
    let mut works = vec![Single::new(kolo, args.buffers, count, in_place, &pattern)?];
    // The peer works on the same private memory as we do; where ours is shared, on private memory of its own, which is
    // what it is tuned for.
    let peer_work = if args.buffers == Buffers::Shared && !args.contest.against.is_empty() {
        works.push(Single::new(kolo, Buffers::Private, count, in_place, &pattern)?);
        1
    } else {
        0
    };

    let ours: Run<'_, Single<T>> = match args.api {
        Api::Communicator => {
            let mut communicator = kolo.communicator()?;
            Box::new(move |work| {
                match &mut work.output {
                    None => communicator.allreduce(&mut work.input, op)?,
                    Some(output) => communicator.allreduce_into(&work.input, output, op)?,
                }
                Ok(())
            })
        }
        Api::Named => {
            let name = format!("bench.{}.{count}", T::DTYPE);
            Box::new(move |work| Ok(kolo.allreduce(&name, &mut work.input, op)?))
        }
    };
    let mut contenders = vec![Contender { work: 0, run: ours }];
    for _ in &args.contest.against {
        let mpi = mpi.as_ref().context("MPI was not attached")?;
        let run = Box::new(move |work: &mut Single<T>| match &mut work.output {
            None => mpi.allreduce_in_place(&mut work.input, op),
            Some(output) => mpi.allreduce(&work.input, output, op),
        });
        contenders.push(Contender { work: peer_work, run });
    }

    let rounds = args.contest.rounds as usize;
    let mut outcomes = measure(control, &mut works, &mut contenders, rounds, batch_for(bytes))?;
    let peers: Vec<(Peer, _)> = args.contest.against.iter().copied().zip(outcomes.split_off(1)).collect();
    let case = Case {
        case: "allreduce".into(),
        api: name_of(&args.api),
        preset: None,
        ranks: kolo.size(),
        bytes,
        count: count as u64,
        tensors: 1,
        dtype: T::DTYPE.to_string(),
        op: op.to_string(),
        buffers: name_of(&args.buffers),
        in_place,
        algorithm: algorithm_name(args.algorithm),
        hosts: machines.hosts(),
        cores: machines.cores(),
    };
    Ok(case.records(&outcomes[0], &peers))
}
