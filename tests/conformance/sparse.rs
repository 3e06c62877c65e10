//! Sparse allreduce: rows that some ranks have, some twice and some nobody, sparse and dense as the documentation decides.

use std::collections::BTreeMap;

use kolo::{ReduceOp, Result, Sparse};

use super::bench::{Bench, Team};
use super::sample::{Sample, Spread, mix, values};
use super::value::{Number, Random};
use super::want::{Scale, Want};

const NAME: &str = "sparse_allreduce";

/// Rows of a tensor, and elements of a row: one, narrow and wide, few and many.
const SHAPES: [[usize; 2]; 6] = [[1, 1], [40, 3], [600, 1], [90, 70], [5, 400], [2000, 2]];

/// How many of the rows a rank has at most.
const DENSITIES: [&str; 3] = ["few", "a third", "more than all"];

/// So many at most.
fn most(density: &str, rows: usize) -> usize {
    match density {
        "few" => rows.div_ceil(40),
        "a third" => rows / 3,
        _ => rows + 3,
    }
}

/// What a rank passes: indices in any order, some more than once, and their rows.
type Rows<T> = (Vec<u64>, Vec<T>);

pub(crate) fn run<T: Number>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for shape in SHAPES {
        for density in DENSITIES {
            for spread in Spread::ALL {
                for op in [ReduceOp::Sum, ReduceOp::Average] {
                    each_form::<T>(bench, team, shape, density, spread, op)?;
                }
            }
        }
    }
    Ok(())
}

fn each_form<T: Number>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    shape: [usize; 2],
    density: &str,
    spread: Spread,
    op: ReduceOp,
) -> Result<()> {
    let [rows, width] = shape;
    let what = format!("{op} of {rows} rows of {width}, {density}, {spread}");
    // One name for all of a shape: how many rows there are may change from call to call.
    let name = format!("{op} of rows {shape:?} {}", T::DTYPE);
    for form in ["by order", "by order, async", "by name", "by name, async"] {
        if !bench.begin(team, NAME, &T::DTYPE, format_args!("{what}, {form}")) {
            continue;
        }
        let all = draw::<T>(bench.task.seed, shape, &spread.rows(team.size(), most(density, rows), rows), &what);
        let (indices, values) = &all[team.me()];
        let got = match form {
            "by order" => team.comm.allreduce_sparse(shape, indices, values, op)?,
            "by order, async" => team.comm.allreduce_sparse_async(shape, indices, values, op)?.wait()?,
            "by name" => team.named.allreduce_sparse(&name, shape, indices, values, op)?,
            _ => team.named.allreduce_sparse_async(&name, shape, indices, values, op)?.wait()?,
        };
        check(bench, team, shape, op, &all, &got, &what);
    }
    Ok(())
}

/// The rows of each rank.
fn draw<T: Number>(seed: u64, [rows, width]: [usize; 2], counts: &[usize], what: &str) -> Vec<Rows<T>> {
    let lengths: Vec<usize> = counts.iter().map(|count| count * width).collect();
    let values = values::<T>(seed, &lengths, &format_args!("{NAME} {what}"));
    let with_indices = |(rank, (values, &count)): (usize, (Vec<T>, &usize))| {
        let mut random = Random(mix(seed, &[&what, &rank]));
        ((0..count).map(|_| random.below(rows) as u64).collect(), values)
    };
    values.into_iter().zip(counts).enumerate().map(with_indices).collect()
}

/// A rank's rows by index; those that it has more than once are added in their order.
fn merged<T: Number>((indices, values): &Rows<T>, width: usize) -> BTreeMap<u64, Vec<T>> {
    let mut by_index: BTreeMap<u64, Vec<&[T]>> = BTreeMap::new();
    for (index, row) in indices.iter().zip(values.chunks_exact(width)) {
        by_index.entry(*index).or_default().push(row);
    }
    let add = |rows: Vec<&[T]>| {
        let column = |at: usize| rows.iter().map(|row| row[at]).collect::<Vec<T>>();
        (0..width).map(|at| T::ordered(&column(at), ReduceOp::Sum, 1.0)).collect()
    };
    by_index.into_iter().map(|(index, rows)| (index, add(rows))).collect()
}

/// Whether all rows are reduced, by the rule in the documentation of the operation.
fn is_dense<T>([rows, width]: [usize; 2], passed: usize) -> bool {
    let row = 2 * width * size_of::<T>();
    let union = (8 * passed).min(rows / 4);
    passed > 0 && row * rows <= union + row * passed.min(rows)
}

fn check<T: Number>(
    bench: &mut Bench<'_>,
    team: &Team,
    [rows, width]: [usize; 2],
    op: ReduceOp,
    all: &[Rows<T>],
    got: &Sparse<T>,
    what: &str,
) {
    let merged: Vec<BTreeMap<u64, Vec<T>>> = all.iter().map(|rows| merged(rows, width)).collect();
    let dense = is_dense::<T>([rows, width], merged.iter().map(BTreeMap::len).sum());
    let mut union: Vec<u64> = merged.iter().flat_map(BTreeMap::keys).copied().collect();
    union.sort_unstable();
    union.dedup();
    let (indices, values) = match got {
        Sparse::Rows { indices, values } => {
            bench.holds(!dense, "sparse, where all rows are no more to move");
            bench.holds(*indices == union, "other rows than the ranks have");
            (union, values)
        }
        Sparse::Dense(values) => {
            bench.holds(dense, "dense, where the ranks' rows are less to move");
            ((0..rows as u64).collect(), values)
        }
    };
    if indices.is_empty() {
        return bench.holds(values.is_empty(), "elements of no rows");
    }
    // What a rank has not changes no bit of the sum.
    let nothing: T = bytemuck::pod_read_unaligned(&op.identity(T::DTYPE).expect("a sum has one")[..size_of::<T>()]);
    let laid_out = |rows: &BTreeMap<u64, Vec<T>>| -> Vec<T> {
        let row = |index: &u64| rows.get(index).cloned().unwrap_or_else(|| vec![nothing; width]);
        indices.iter().flat_map(row).collect()
    };
    let data: Vec<Vec<T>> = merged.iter().map(laid_out).collect();
    let count = indices.len() * width;
    let mut want = Want::new(&data, Sample { count, special: false }, op, Scale::NONE);
    want.words = format!("the rows of {what}, {} over {}", T::DTYPE, team.size());
    bench.reduced_part(team, values, &want, 0..count);
}
