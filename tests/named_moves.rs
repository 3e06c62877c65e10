//! Named operations that move blocks, reduce to one rank, or reduce groups, under a real `mpirun`: blocking and asynchronous,
//! of all ranks and of a set, with counts that change from step to step.

#[macro_use]
mod common;

use kolo::{Blocks, Error, Kolo, ProcessSet, ReduceOp, Result, f16};

/// What rank `rank` has at `step`: a number that names the element.
fn element(rank: usize, step: usize, at: usize) -> i64 {
    (rank * 1_000_000 + step * 10_000 + at) as i64
}

fn row(rank: usize, step: usize, count: usize) -> Vec<i64> {
    (0..count).map(|at| element(rank, step, at)).collect()
}

/// How many elements a rank has at a step; none now and then.
fn count(rank: usize, step: usize) -> usize {
    [0, 1, 5, 700, 3][(rank + step) % 5]
}

/// How many of its elements `from` has for `to`.
fn split(from: usize, to: usize, step: usize) -> usize {
    if (from + step).is_multiple_of(3) { 0 } else { (from * 2 + to * 3 + step * 40) % 90 }
}

fn splits(from: usize, ranks: usize, step: usize) -> Vec<usize> {
    (0..ranks).map(|to| split(from, to, step)).collect()
}

/// One step of every operation on the set; returns how many there were.
fn step(set: &ProcessSet, step: usize) -> Result<usize> {
    let (ranks, me) = (set.size(), set.rank());
    let globals = set.ranks();
    let root = step % ranks;
    let mine_of_all = row(me, step, count(me, step));
    let everybody: Vec<Vec<i64>> = (0..ranks).map(|rank| row(rank, step, count(rank, step))).collect();
    let counts: Vec<usize> = everybody.iter().map(Vec::len).collect();
    let mut done = 0;
    let mut check = |what: &str, blocks: Blocks<i64>, data: Vec<i64>, counts: &[usize]| {
        assert_eq!(blocks.counts(), counts, "{what} at step {step}");
        assert!(blocks.data() == data, "{what} at step {step}");
        done += 1;
    };

    check("allgather", set.allgather("all", &mine_of_all)?, everybody.concat(), &counts);
    let handle = set.allgather_async("all, later", mine_of_all.clone())?;
    let gathered = set.gather("to one", &mine_of_all, globals[root])?;
    let (data, of_root) = if me == root { (everybody.concat(), counts.clone()) } else { (Vec::new(), vec![0; ranks]) };
    check("gather", gathered, data.clone(), &of_root);
    let gathering = set.gather_async("to one, later", mine_of_all.clone(), globals[root])?;
    check("allgather_async", handle.wait()?, everybody.concat(), &counts);
    check("gather_async", gathering.wait()?, data, &of_root);

    let sent = splits(me, ranks, step);
    let input = row(me, step, sent.iter().sum());
    let block = |from: usize| {
        let before: usize = splits(from, ranks, step)[..me].iter().sum();
        (before..before + split(from, me, step)).map(move |at| element(from, step, at))
    };
    let want: Vec<i64> = (0..ranks).flat_map(block).collect();
    let received: Vec<usize> = (0..ranks).map(|from| split(from, me, step)).collect();
    check("alltoall", set.alltoall("each to each", &input, &sent)?, want.clone(), &received);
    let handle = set.alltoall_async("each to each, later", input.clone(), &sent)?;
    check("alltoall_async", handle.wait()?, want, &received);

    let scattered = set.scatter("from one", &input, &sent, globals[root])?;
    assert_eq!(scattered, block(root).collect::<Vec<_>>(), "scatter at step {step}");
    let scattering = set.scatter_async("from one, later", input, &sent, globals[root])?;
    assert_eq!(scattering.wait()?, scattered, "scatter_async at step {step}");

    // Sums of whole numbers are exact in whatever order.
    let len = 10 * ranks + step;
    let sum = |at: usize| (0..ranks).map(|rank| element(rank, step, at)).sum::<i64>();
    let rows = len / ranks + usize::from(me < len % ranks);
    let start: usize = (0..me).map(|rank| len / ranks + usize::from(rank < len % ranks)).sum();
    let got = set.reduce_scatter("my share", &row(me, step, len), ReduceOp::Sum)?;
    assert_eq!(got, (start..start + rows).map(sum).collect::<Vec<_>>(), "reduce_scatter at step {step}");
    let handle = set.reduce_scatter_async("my share, later", row(me, step, len), ReduceOp::Sum)?;
    let mut reduced = row(me, step, len);
    set.reduce("to one", &mut reduced, ReduceOp::Sum, globals[root])?;
    let all: Vec<i64> = (0..len).map(sum).collect();
    assert_eq!(reduced, if me == root { all.clone() } else { row(me, step, len) }, "reduce at step {step}");
    assert_eq!(handle.wait()?, got, "reduce_scatter_async at step {step}");
    let handle = set.reduce_async("to one, later", row(me, step, len), ReduceOp::Sum, globals[root])?;
    assert_eq!(handle.wait()?, reduced, "reduce_async at step {step}");

    // From one place into another; what is no result is not looked at. Every other rank does without.
    let (mine, room) = (row(me, step, len), if me == root { len } else { step });
    let mut output = vec![-1; room];
    set.reduce_into("to one, apart", &mine, &mut output, ReduceOp::Sum, globals[root])?;
    assert!(output == if me == root { all.clone() } else { vec![-1; room] }, "reduce_into at step {step}");
    let mut sums = vec![-1; len];
    if (me + step).is_multiple_of(2) {
        set.allreduce_into("apart or not", &mine, &mut sums, ReduceOp::Sum)?;
    } else {
        sums.copy_from_slice(&mine);
        set.allreduce("apart or not", &mut sums, ReduceOp::Sum)?;
    }
    assert!(sums == all, "allreduce_into at step {step}");
    let handle = set.allreduce_into_async("apart, later", mine, vec![-1; len].into_boxed_slice(), ReduceOp::Sum)?;
    let coming = set.barrier_async()?;
    let (mine, sums) = handle.wait()?;
    assert!(mine == row(me, step, len) && *sums == all[..], "allreduce_into_async at step {step}");
    coming.wait()?;

    let (mut first, mut second) = (row(me, step, len), row(me, step, 3));
    set.allreduce_group("group", &mut [&mut first, &mut second, &mut []], ReduceOp::Sum)?;
    assert!(first == all && second == all[..3], "allreduce_group at step {step}");
    let group = vec![row(me, step, 3), row(me, step, len)];
    let group = set.allreduce_group_async("group, later", group, ReduceOp::Sum)?.wait()?;
    assert!(group[0] == all[..3] && group[1] == all, "allreduce_group_async at step {step}");
    let mut sums = [vec![-1; 3], vec![-1; len]];
    let [one, other] = &mut sums;
    set.allreduce_group_into("group, apart", &[&mine[..3], &mine], &mut [one, other], ReduceOp::Sum)?;
    assert!(sums[0] == all[..3] && sums[1] == all, "allreduce_group_into at step {step}");

    let empty: &[i64] = &[];
    let whole = |blocks: &[Blocks<i64>]| {
        blocks.len() == 3
            && (blocks[0].data() == everybody.concat() && blocks[0].counts() == counts)
            && blocks[1].counts() == vec![0; ranks]
            && (blocks[2].counts() == vec![4; ranks] && blocks[2].block(root) == row(root, step, 4))
    };
    let blocks = set.allgather_group("gathered group", &[&mine_of_all, empty, &row(me, step, 4)])?;
    assert!(whole(&blocks), "allgather_group at step {step}");
    let group = vec![mine_of_all, Vec::new(), row(me, step, 4)];
    let blocks = set.allgather_group_async("gathered group, later", group)?.wait()?;
    assert!(whole(&blocks), "allgather_group_async at step {step}");

    let few = 2 + step % 3;
    let mine_of_few = few / ranks + usize::from(me < few % ranks);
    let before: usize = (0..me).map(|rank| few / ranks + usize::from(rank < few % ranks)).sum();
    let want = [got, Vec::new(), (before..before + mine_of_few).map(sum).collect()];
    let group = [row(me, step, len), Vec::new(), row(me, step, few)];
    let blocks = set.reduce_scatter_group("shares", &[&group[0], &group[1], &group[2]], ReduceOp::Sum)?;
    assert!(blocks == want, "reduce_scatter_group at step {step}");
    let blocks = set.reduce_scatter_group_async("shares, later", group.into(), ReduceOp::Sum)?.wait()?;
    assert!(blocks == want, "reduce_scatter_group_async at step {step}");
    Ok(done + 17)
}

fn all_ranks(kolo: &Kolo) -> Result<ProcessSet> {
    let ranks: Vec<usize> = (0..kolo.size()).collect();
    Ok(kolo.process_set(&ranks)?.expect("every rank is in it"))
}

mpi_test!(
    blocks_move_by_name,
    np = [1, 2, 3, 4],
    hosts = ["1,1", "2,2", "3,1"],
    env = [("KOLO_SLOT_BYTES", "4KiB"), ("KOLO_DEADLINE", "30s")],
    |kolo| {
        let world = all_ranks(kolo)?;
        // A set in another order, without a rank if there is one to spare.
        let members: Vec<usize> = (0..kolo.size()).rev().filter(|&rank| rank != 1 || kolo.size() < 3).collect();
        let some = kolo.process_set(&members)?;
        let mut cases = 0;
        for at in 0..7 {
            cases += step(&world, at)?;
            if let Some(some) = &some {
                cases += step(some, at)?;
            }
        }
        if kolo.rank() == 0 {
            println!("cases: {cases} of named moves on {} ranks", kolo.size());
        }
    }
);

/// A matrix, to see that rows stay whole.
struct Matrix {
    columns: usize,
    values: Vec<f16>,
}

impl kolo::Tensor for Matrix {
    type Element = f16;

    fn shape(&self) -> Vec<usize> {
        vec![self.values.len() / self.columns, self.columns]
    }

    fn as_slice(&self) -> &[f16] {
        &self.values
    }

    fn as_mut_slice(&mut self) -> &mut [f16] {
        &mut self.values
    }
}

mpi_test!(rows_stay_whole, np = [2, 3], hosts = ["2,1"], env = [("KOLO_DEADLINE", "30s")], |kolo| {
    let (ranks, me) = (kolo.size(), kolo.rank());
    let matrix = |rows: usize| Matrix { columns: 3, values: vec![f16::from_f32(me as f32 + 1.0); rows * 3] };
    // One row more than comes out even: the first rank gets it.
    let rows = kolo.reduce_scatter_async("rows", matrix(ranks + 1), ReduceOp::Max)?.wait()?;
    assert_eq!(rows, vec![f16::from_f32(ranks as f32); if me == 0 { 6 } else { 3 }]);
    let blocks = kolo.alltoall_async("rows", matrix(ranks), &vec![1; ranks])?.wait()?;
    assert_eq!(blocks.counts(), vec![3; ranks]);
    assert!((0..ranks).all(|from| blocks.block(from) == [f16::from_f32(from as f32 + 1.0); 3]));

    // Another number of columns on one rank is a mismatch, and the name is free again.
    let odd = Matrix { columns: if me == 1 { 2 } else { 3 }, values: vec![f16::ONE; 6] };
    let Err(Error::Mismatch(mismatch)) = kolo.allgather_async("columns", odd)?.wait() else {
        panic!("the columns differ")
    };
    let text = mismatch.to_string();
    assert!(["[*, 2]", "[*, 3]", "allgather, f16"].iter().all(|part| text.contains(part)), "{text}");
    let right = kolo.allgather_async("columns", matrix(me))?.wait()?;
    assert_eq!(right.counts(), (0..ranks).map(|rank| rank * 3).collect::<Vec<_>>());

    // A group whose tensors differ in length on one rank, though not in the sum.
    let lengths = if me == 1 { [2, 4] } else { [3, 3] };
    let group: Vec<Vec<f32>> = lengths.iter().map(|&len| vec![1.0; len]).collect();
    let Err(Error::Mismatch(mismatch)) = kolo.allreduce_group_async("group", group, ReduceOp::Sum)?.wait() else {
        panic!("the groups differ")
    };
    assert!(mismatch.to_string().contains("f32, a group of 2"), "{mismatch}");

    // Groups whose rows differ in length on one rank; those of another number of tensors.
    let matrices = |columns: usize| vec![Matrix { columns, values: vec![f16::ONE; 6 * me] }, matrix(2)];
    let group = matrices(if me == 1 { 2 } else { 3 });
    let Err(Error::Mismatch(mismatch)) = kolo.allgather_group_async("gathered", group)?.wait() else {
        panic!("the columns differ")
    };
    let text = mismatch.to_string();
    assert!(["allgather", "f16", "a group of 2", "shapes"].iter().all(|part| text.contains(part)), "{text}");
    let blocks = kolo.allgather_group_async("gathered", matrices(3))?.wait()?;
    assert_eq!(blocks[0].counts(), (0..ranks).map(|rank| 6 * rank).collect::<Vec<_>>());
    let tensors: &[&[u8]] = if me == 0 { &[&[1; 6], &[1; 6]] } else { &[&[1; 6], &[1; 3], &[1; 3]] };
    let Err(Error::Mismatch(mismatch)) = kolo.reduce_scatter_group("scattered", tensors, ReduceOp::Sum) else {
        panic!("the groups differ")
    };
    let text = mismatch.to_string();
    assert!(["reduce_scatter", "a group of 2", "a group of 3"].iter().all(|part| text.contains(part)), "{text}");
    let Err(Error::Argument(text)) = kolo.reduce_scatter_group("scattered", &[&[1.0_f32]], ReduceOp::Adasum) else {
        panic!("no part of an Adasum")
    };
    assert!(text.contains("adasum"), "{text}");

    // Rows of a group stay whole, each tensor's for itself.
    let group = vec![matrix(ranks + 1), matrix(1)];
    let rows = kolo.reduce_scatter_group_async("rows of a group", group, ReduceOp::Max)?.wait()?;
    let most = f16::from_f32(ranks as f32);
    assert_eq!(rows[0], vec![most; if me == 0 { 6 } else { 3 }]);
    assert_eq!(rows[1], vec![most; if me == 0 { 3 } else { 0 }]);

    // Counts that do not add up are refused on one rank, and the others learn why.
    let counts = if me == 1 { vec![2; ranks] } else { vec![1; ranks] };
    match kolo.alltoall("counts", &vec![1_u8; ranks], &counts) {
        Err(Error::Argument(text)) if me == 1 => assert!(text.contains("one count for each rank"), "{text}"),
        Err(Error::Mismatch(mismatch)) if me != 1 => {
            assert!(mismatch.to_string().contains("blocks of"), "{mismatch}");
        }
        other => panic!("{other:?}"),
    }
    kolo.barrier()?;
});
