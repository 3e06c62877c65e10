//! Ranks with unequal data under a real `mpirun`: whoever has none left joins, and every operation of the others has the
//! result of those that are left.

#[macro_use]
mod common;

use std::time::Duration;

use kolo::{Error, Options, ProcessSet, ReduceOp, Result, bf16};

/// How many batches a rank has in an epoch. Never the same for all, but where there is one rank.
fn batches(rank: usize, epoch: usize) -> usize {
    (rank * 3 + epoch * 2) % 5 + usize::from(rank == epoch % 4)
}

fn value(rank: usize, step: usize, at: usize) -> i64 {
    (rank * 7 + step * 3 + at % 11) as i64 - 9
}

fn values(rank: usize, step: usize, count: usize) -> Vec<i64> {
    (0..count).map(|at| value(rank, step, at)).collect()
}

/// Reduces what the ranks `left` have, in rank order.
fn reduced(left: &[usize], step: usize, count: usize, combine: impl Fn(i64, i64) -> i64) -> Vec<i64> {
    let of = |at| left.iter().map(|&rank| value(rank, step, at)).reduce(&combine).expect("this rank is left");
    (0..count).map(of).collect()
}

/// Reductions of integers and floats, in place, alone and fused.
fn reductions(set: &ProcessSet, left: &[usize], step: usize) -> Result<()> {
    let me = set.rank();
    for count in [1, 700, 20_000] {
        type Combine = fn(i64, i64) -> i64;
        let ops: [(ReduceOp, Combine); 7] = [
            (ReduceOp::Sum, |a, b| a + b),
            (ReduceOp::Min, i64::min),
            (ReduceOp::Max, i64::max),
            (ReduceOp::Product, i64::wrapping_mul),
            (ReduceOp::And, |a, b| a & b),
            (ReduceOp::Or, |a, b| a | b),
            (ReduceOp::Xor, |a, b| a ^ b),
        ];
        for (op, combine) in ops {
            let mut data = values(me, step, count);
            set.allreduce(&format!("{op} {count}"), &mut data, op)?;
            assert!(data == reduced(left, step, count, combine), "{op} of {count} at step {step} of {left:?}");
        }
    }
    let sum = reduced(left, step, 333, |a, b| a + b);
    let mut average: Vec<i64> = values(me, step, 333);
    set.allreduce("average", &mut average, ReduceOp::Average)?;
    assert!(average.iter().zip(&sum).all(|(mean, sum)| *mean == sum / left.len() as i64), "truncated toward zero");
    // The scale is that of the ranks that are left, not of the identity.
    let mut product: Vec<f64> = values(me, step, 40).into_iter().map(|value| value as f64).collect();
    let options = Options { prescale: -2.0, postscale: 0.5, ..Options::default() };
    set.allreduce_with("scaled", &mut product, ReduceOp::Product, &options)?;
    let scaled = |at| left.iter().map(|&rank| -2.0 * value(rank, step, at) as f64).product::<f64>() * 0.5;
    assert!(product.iter().enumerate().all(|(at, got)| (got - scaled(at)).abs() <= scaled(at).abs() * 1e-12));
    let mut smallest: Vec<f32> = values(me, step, 40).into_iter().map(|value| value as f32).collect();
    set.allreduce_with("smallest", &mut smallest, ReduceOp::Min, &Options { prescale: -1.0, ..Options::default() })?;
    let least = |at| left.iter().map(|&rank| -value(rank, step, at)).min().expect("somebody") as f32;
    assert!(smallest.iter().enumerate().all(|(at, got)| *got == least(at)));

    // Many at once, so that they are fused; averages of halves as well.
    let handles: Vec<_> = (0..9)
        .map(|n| {
            let data: Vec<bf16> =
                values(me, step, 50 + n).into_iter().map(|value| bf16::from_f64(value as f64)).collect();
            set.allreduce_async(&format!("fused {n}"), data, ReduceOp::Average)
        })
        .collect::<Result<_>>()?;
    for handle in handles {
        for (at, got) in handle.wait()?.into_iter().enumerate() {
            let sum: i64 = left.iter().map(|&rank| value(rank, step, at)).sum();
            assert_eq!(got, bf16::from_f32(sum as f32 / left.len() as f32), "fused, at {at}");
        }
    }
    let (mut first, mut second) = (values(me, step, 3), values(me, step, 8));
    set.allreduce_group("group", &mut [&mut first, &mut second], ReduceOp::Sum)?;
    assert!(first == sum[..3] && second == sum[..8]);
    // An Adasum with a zero vector is the other one; that of equal vectors is their average.
    let mut equal = vec![2.5_f32; 60];
    set.allreduce("adasum", &mut equal, ReduceOp::Adasum)?;
    assert!(equal.iter().all(|got| (got - 2.5).abs() < 1e-6), "{equal:?}");
    let rows = set.reduce_scatter("rows", &values(me, step, 11), ReduceOp::Sum)?;
    let begin = (0..me).map(|rank| 11 / set.size() + usize::from(rank < 11 % set.size())).sum::<usize>();
    assert!(rows == sum[begin..begin + rows.len()], "{rows:?}");
    Ok(())
}

/// Operations with a root, and moves of rows.
fn moves(set: &ProcessSet, left: &[usize], step: usize) -> Result<()> {
    let (me, ranks, globals) = (set.rank(), set.size(), set.ranks());
    let root = left[step % left.len()];
    let sum = reduced(left, step, 90, |a, b| a + b);
    let mut data = values(me, step, 90);
    set.reduce("to one", &mut data, ReduceOp::Sum, globals[root])?;
    assert!(data == if me == root { sum } else { values(me, step, 90) });
    set.broadcast("from one", &mut data, globals[root])?;
    assert_eq!(data[89], reduced(left, step, 90, |a, b| a + b)[89]);

    let mine = values(me, step, me + 1);
    let rows = |rank: usize| if left.contains(&rank) { values(rank, step, rank + 1) } else { Vec::new() };
    let all: Vec<Vec<i64>> = (0..ranks).map(rows).collect();
    let counts: Vec<usize> = all.iter().map(Vec::len).collect();
    let gathered = set.allgather("all", &mine)?;
    assert_eq!((gathered.counts(), gathered.data()), (&counts[..], &all.concat()[..]));
    let gathered = set.gather("gather", &mine, globals[root])?;
    assert_eq!(gathered.data(), if me == root { all.concat() } else { Vec::new() });
    // The rows for those that have joined are dropped.
    let own = set.scatter(
        "scatter",
        &values(me, step, if me == root { 2 * ranks } else { 0 }),
        &vec![2; if me == root { ranks } else { 0 }],
        globals[root],
    )?;
    assert_eq!(own, values(root, step, 2 * ranks)[2 * me..2 * me + 2]);
    let received = set.alltoall("alltoall", &values(me, step, 3 * ranks), &vec![3; ranks])?;
    let from = |rank: usize| {
        if left.contains(&rank) { values(rank, step, 3 * ranks)[3 * me..3 * me + 3].to_vec() } else { Vec::new() }
    };
    assert_eq!(received.data(), (0..ranks).map(from).collect::<Vec<_>>().concat());
    let group = set.allgather_group("groups", &[&[me as i32], &vec![me as i32; me], &[]])?;
    let ones: Vec<usize> = (0..ranks).map(|rank| usize::from(left.contains(&rank))).collect();
    assert_eq!(group[0].counts(), ones);
    assert!(left.iter().all(|&rank| group[1].block(rank) == vec![rank as i32; rank] && group[2].data().is_empty()));
    set.allreduce::<u8>("barrier", &mut [], ReduceOp::Max)
}

/// What needs a rank that has joined is an error on all that are left, and nothing else is.
fn without_an_answer(set: &ProcessSet, left: &[usize]) -> Result<()> {
    let Some(gone) = (0..set.size()).find(|rank| !left.contains(rank)) else { return Ok(()) };
    let global = set.ranks()[gone];
    let outcomes = [
        set.broadcast("rootless", &mut [1_u8; 9], global),
        set.reduce("rootless sum", &mut [1.0_f32], ReduceOp::Sum, global),
        set.gather("rootless rows", &[1_i32], global).map(drop),
        set.scatter::<i32>("rootless blocks", &[], &[], global).map(drop),
        set.allreduce_group("adasums", &mut [&mut [1.0_f32], &mut [2.0]], ReduceOp::Adasum),
        set.reduce_scatter_group("shares", &[&[1.0_f32; 4], &[2.0]], ReduceOp::Sum).map(drop),
    ];
    for outcome in outcomes {
        let Err(Error::Mismatch(mismatch)) = outcome else { panic!("{outcome:?}, though rank {gone} has joined") };
        let view = mismatch.views.iter().find(|(rank, _)| *rank as usize == global).expect("its view");
        assert_eq!(view.1, "has joined: it has no more data");
    }
    Ok(())
}

/// Epochs of unequal numbers of batches on the ranks of a set.
fn epochs(set: &ProcessSet) -> Result<()> {
    let (me, ranks) = (set.rank(), set.size());
    for epoch in 0..5 {
        let mine = batches(me, epoch);
        for step in 0..mine {
            let left: Vec<usize> = (0..ranks).filter(|rank| batches(*rank, epoch) > step).collect();
            reductions(set, &left, step)?;
            moves(set, &left, step)?;
            without_an_answer(set, &left)?;
        }
        let last = set.join()?;
        let most = (0..ranks).map(|rank| batches(rank, epoch)).max();
        let rank = set.set_rank(last).expect("one of the set");
        assert_eq!(Some(batches(rank, epoch)), most, "epoch {epoch}: rank {last} had the most");
        // Equal everywhere, and all take part again.
        let lasts = set.allgather("lasts", &[last as u64])?;
        assert_eq!(lasts.data(), vec![last as u64; ranks], "epoch {epoch}");
    }
    Ok(())
}

mpi_test!(the_others_go_on, np = [1, 2, 3, 4], hosts = ["2,2", "3,1", "1,1,2"], seconds = 120, |kolo| {
    epochs(kolo.world())?;
});

mpi_test!(sets_join_by_themselves, np = [3, 4], hosts = ["2,2"], seconds = 120, |kolo| {
    let evens: Vec<usize> = (0..kolo.size()).step_by(2).collect();
    let set = kolo.process_set(&evens)?;
    // The world is not joined while a set is.
    let joining = set.as_ref().map(ProcessSet::join_async).transpose()?;
    let mut data = [1_i32];
    kolo.allreduce("world", &mut data, ReduceOp::Sum)?;
    assert_eq!(data[0] as usize, kolo.size());
    if let (Some(set), Some(joining)) = (set, joining) {
        assert!(evens.contains(&joining.wait()?) && evens.contains(&set.join()?));
        epochs(&set)?;
    }
    kolo.barrier()?;
});

mpi_test!(what_is_in_flight_runs_before_the_join, np = [2, 3], hosts = ["2,2", "1,2"], |kolo| {
    let mut judge = kolo.communicator()?;
    for round in 0..10 {
        let handles: Vec<_> = (0..20)
            .map(|n| kolo.allreduce_async(&format!("t{n}"), vec![(kolo.rank() + n) as i32; 5], ReduceOp::Sum))
            .collect::<Result<_>>()?;
        // The others join only when rank 0 has tried.
        if kolo.rank() > 0 {
            judge.barrier()?;
        }
        let joining = kolo.join_async()?;
        if kolo.rank() == 0 {
            let refused = kolo.allreduce("late", &mut [1.0_f32], ReduceOp::Sum).expect_err("it has joined");
            assert!(matches!(&refused, Error::Argument(text) if text.contains("has joined")), "{refused}");
            judge.barrier()?;
        }
        for (n, handle) in handles.into_iter().enumerate() {
            let sum: usize = (0..kolo.size()).map(|rank| rank + n).sum();
            assert_eq!(handle.wait()?, [sum as i32; 5], "round {round}");
        }
        assert!(joining.wait()? < kolo.size());
    }
});

mpi_test!(a_join_that_nobody_follows_ends_by_name, np = [2, 4], hosts = ["2,2"], |kolo| {
    let judge = kolo::init()?;
    if kolo.rank() == 1 {
        let error = kolo.world().join_with(Duration::from_secs(1)).expect_err("nobody follows");
        let text = error.to_string();
        assert!(matches!(error, Error::Timeout { .. }), "{text}");
        let others = if kolo.size() == 2 { "rank 0 did not join" } else { "ranks 0, 2-3 did not join" };
        assert!(text.contains("'kolo.join'") && text.contains(others), "{text}");
    } else {
        // Rank 1 is waited for, though it has joined: it has given up.
        let error = loop {
            if let Err(error) = kolo.allreduce("alone", &mut [1.0_f32], ReduceOp::Sum) {
                break error;
            }
            judge.check()?;
            // A sign of life, now and then: not often enough.
            std::thread::sleep(Duration::from_millis(1500));
        };
        assert!(error.to_string().contains("rank 1"), "{error}");
    }
    judge.barrier()?;
});
