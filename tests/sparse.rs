//! Sparse allreduce under a real `mpirun`: by name and by order, sparse and dense, with rows that come twice or not at all,
//! against sums of a map.

#[macro_use]
mod common;

use std::collections::BTreeMap;

use kolo::{Error, Kolo, ReduceOp, Reducible, Result, Sparse, f16};

/// The rows of a rank: which, and their elements.
fn rows_of(rank: usize, step: usize, rows: usize, width: usize) -> (Vec<u64>, Vec<i64>) {
    let mut state = (rank * 1000 + step + 1) as u64;
    let mut next = move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(rank as u64 + 0x1405_7b7e_f767_814f);
        state >> 33
    };
    // From no row to all rows, some of them twice.
    let count = [0, 1, rows / 20, rows / 3, rows + 3][(rank + step) % 5];
    let indices: Vec<u64> = (0..count).map(|_| next() % rows as u64).collect();
    let values = (0..count * width).map(|_| (next() % 41) as i64 - 20).collect();
    (indices, values)
}

/// What the ranks `left` come to together.
fn expected(left: &[usize], step: usize, rows: usize, width: usize) -> BTreeMap<u64, Vec<i64>> {
    let mut sums: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    for rank in left {
        let (indices, values) = rows_of(*rank, step, rows, width);
        for (index, row) in indices.iter().zip(values.chunks(width)) {
            let sum = sums.entry(*index).or_insert_with(|| vec![0; width]);
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    }
    sums
}

fn check<T: Reducible>(
    got: &Sparse<T>,
    sums: &BTreeMap<u64, Vec<i64>>,
    rows: usize,
    width: usize,
    from: impl Fn(i64) -> T,
) {
    match got {
        Sparse::Rows { indices, values } => {
            assert!(indices.iter().eq(sums.keys()), "{indices:?}, not {:?}", sums.keys());
            let all: Vec<T> = sums.values().flatten().map(|sum| from(*sum)).collect();
            assert!(*values == all);
        }
        Sparse::Dense(values) => {
            assert_eq!(values.len(), rows * width);
            let none = vec![0; width];
            for (index, row) in (0..).zip(values.chunks(width)) {
                let sum = sums.get(&index).unwrap_or(&none);
                assert!(row.iter().zip(sum).all(|(got, sum)| *got == from(*sum)), "row {index}");
            }
        }
    }
}

/// Steps of all shapes; returns how often the result was sparse, and dense.
fn steps(kolo: &Kolo, left: &[usize]) -> Result<[usize; 2]> {
    let mut seen = [0; 2];
    let mut comm = if left.len() == kolo.size() { Some(kolo.communicator()?) } else { None };
    for (step, [rows, width]) in
        [[1, 1], [40, 3], [300, 1], [300, 70], [5, 2000], [7000, 2]].into_iter().cycle().take(24).enumerate()
    {
        let (indices, values) = rows_of(kolo.rank(), step, rows, width);
        let sums = expected(left, step, rows, width);
        let got = kolo.allreduce_sparse("rows", [rows, width], &indices, &values, ReduceOp::Sum)?;
        check(&got, &sums, rows, width, |sum| sum);
        let handle = kolo.allreduce_sparse_async("more rows", [rows, width], &indices, &values, ReduceOp::Sum)?;
        assert_eq!(kolo.allreduce_sparse("rows", [rows, width], &indices, &values, ReduceOp::Sum)?, got);
        assert_eq!(handle.wait()?, got);
        seen[usize::from(matches!(got, Sparse::Dense(_)))] += 1;
        // Halves of small integers are exact in f16 and in steps.
        let floats: Vec<f16> = values.iter().map(|value| f16::from_f64(*value as f64)).collect();
        let got = kolo.allreduce_sparse("means", [rows, width], &indices, &floats, ReduceOp::Average)?;
        let mean = |sum: i64| f16::from_f32(sum as f32 / left.len() as f32);
        check(&got, &sums, rows, width, mean);
        if let Some(comm) = &mut comm {
            let floats: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            let handle = comm.allreduce_sparse_async([rows, width], &indices, &floats, ReduceOp::Sum)?;
            check(&handle.wait()?, &sums, rows, width, |sum| sum as f32);
            check(
                &comm.allreduce_sparse([rows, width], &indices, &floats, ReduceOp::Sum)?,
                &sums,
                rows,
                width,
                |sum| sum as f32,
            );
        }
    }
    Ok(seen)
}

mpi_test!(rows_are_summed_sparse_and_dense, np = [1, 2, 3, 4], hosts = ["2,2", "3,1"], |kolo| {
    let all: Vec<usize> = (0..kolo.size()).collect();
    let seen = steps(kolo, &all)?;
    assert!(seen[0] > 0 && seen[1] > 0, "both ways: {seen:?}");
    // The last rank has no more data.
    if kolo.rank() + 1 < kolo.size() {
        steps(kolo, &all[..kolo.size() - 1])?;
    }
    kolo.join()?;
});

mpi_test!(what_a_rank_gets_wrong_all_hear_of, np = [2, 4], hosts = ["3,1"], |kolo| {
    let mut comm = kolo.communicator()?;
    for wrong in 0..kolo.size() {
        let mine = kolo.rank() == wrong;
        let index = if mine { 10 } else { 3 };
        let told = |outcome: Result<Sparse<f32>>, word: &str| {
            let error = outcome.expect_err("one rank is wrong");
            match &error {
                Error::Argument(_) => assert!(mine, "{error}"),
                Error::Mismatch(_) => {}
                _ => panic!("{error}"),
            }
            assert!(error.to_string().contains(word), "{error}");
        };
        told(kolo.allreduce_sparse("x", [10, 1], &[index], &[1.0], ReduceOp::Sum), "the index 10 at place 0");
        told(comm.allreduce_sparse([10, 1], &[index], &[1.0], ReduceOp::Sum), "the index 10 at place 0");
        let handle = kolo.allreduce_sparse_async("x", [10, 1], &[index], &[1.0], ReduceOp::Sum)?;
        told(comm.allreduce_sparse_async([10, 1], &[index], &[1.0], ReduceOp::Sum)?.wait(), "the index 10 at place 0");
        told(handle.wait(), "the index 10 at place 0");
        let op = if mine { ReduceOp::Max } else { ReduceOp::Sum };
        told(kolo.allreduce_sparse("x", [10, 1], &[3], &[1.0], op), "use sum or average");
        let width = if mine { 2 } else { 1 };
        told(kolo.allreduce_sparse("x", [10, width], &[3], &vec![1.0; width], ReduceOp::Sum), "rows of 2");
        // And all is well again.
        let sum = kolo.allreduce_sparse("x", [10, 1], &[3], &[1.0_f32], ReduceOp::Sum)?;
        check(&sum, &BTreeMap::from([(3, vec![kolo.size() as i64])]), 10, 1, |sum| sum as f32);
    }
});
