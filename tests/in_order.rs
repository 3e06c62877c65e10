//! The asynchronous operations of a communicator under a real `mpirun`: all of them in flight at once, mixed with blocking
//! ones, against references; mistakes in the middle of a queue; ranks that leave with a full one; handles that are dropped, or
//! waited for in another order and on other threads; several communicators at once.

#[macro_use]
mod common;
#[path = "in_order/program.rs"]
mod program;

use std::time::Duration;

use kolo::{Error, Handle, Kolo, ReduceOp, Result, Waited};

use program::{Program, Waiting};

/// A sum that is right only if all ranks are in step.
fn in_step(kolo: &Kolo, world: &mut kolo::Communicator) -> Result<()> {
    let ranks = kolo.size() as i64;
    let handle = world.allreduce_async(vec![kolo.rank() as i64 + 1; 3000], ReduceOp::Sum)?;
    let mut data = [kolo.rank() as i64 + 1];
    world.allreduce(&mut data, ReduceOp::Sum)?;
    assert_eq!(data, [ranks * (ranks + 1) / 2]);
    assert_eq!(handle.wait()?, vec![ranks * (ranks + 1) / 2; 3000]);
    Ok(())
}

mpi_test!(
    everything_in_flight_at_once,
    np = [1, 2, 3, 4],
    hosts = ["1,1", "2,2", "3,1"],
    env = [("KOLO_SLOT_BYTES", "4KiB"), ("KOLO_DEADLINE", "30s")],
    seconds = 120,
    |kolo| {
        let mut world = kolo.communicator()?;
        let mut cases = 0;
        for seed in 0..8 {
            let mut program = Program::new(kolo, seed);
            let mut waiting: Vec<Waiting> = Vec::new();
            for _ in 0..40 {
                waiting.extend(program.submit(&mut world)?);
            }
            cases += program.cases;
            match seed % 4 {
                // In reverse order.
                0 => waiting.into_iter().rev().try_for_each(|wait| wait())?,
                // On another thread, while this one does more.
                1 => std::thread::scope(|scope| {
                    let waiter = scope.spawn(|| waiting.into_iter().try_for_each(|wait| wait()));
                    let more = in_step(kolo, &mut world);
                    waiter.join().expect("no panic").and(more)
                })?,
                // After the communicator is gone.
                2 => {
                    world = kolo.communicator()?;
                    waiting.into_iter().try_for_each(|wait| wait())?;
                }
                // Every other one: the rest is dropped in flight.
                _ => waiting.into_iter().step_by(2).try_for_each(|wait| wait())?,
            }
            in_step(kolo, &mut world)?;
        }
        if kolo.rank() == 0 {
            println!("cases: {cases} operations in order on {} ranks", kolo.size());
        }
    }
);

mpi_test!(
    several_communicators_beside_named_tensors,
    np = [2, 4],
    hosts = ["2,1", "2,2"],
    env = [("KOLO_SLOT_BYTES", "4KiB"), ("KOLO_DEADLINE", "30s")],
    |kolo| {
        let mut world = kolo.communicator()?;
        let mut others = [world.dup()?, world.dup()?];
        let half = world.split(Some(kolo.rank() as u32 % 2), 0)?;
        let mut half = half.expect("every rank has a colour");
        let mut waiting: Vec<Waiting> = Vec::new();
        let mut program = Program::new(kolo, 100);
        let mut half_program = Program::new_of(half.rank(), half.size(), 101);
        for step in 0..20 {
            let named = kolo.allreduce_async(&format!("tensor {step}"), vec![1_u32; 500], ReduceOp::Sum)?;
            let size = kolo.size() as u32;
            waiting.push(Box::new(move || {
                assert_eq!(named.wait()?, vec![size; 500]);
                Ok(())
            }));
            // Whatever waits for one of them drives all.
            waiting.extend(program.submit(&mut world)?);
            for other in &mut others {
                waiting.extend(program.submit(other)?);
            }
            waiting.extend(half_program.submit(&mut half)?);
        }
        waiting.into_iter().rev().try_for_each(|wait| wait())?;
    }
);

mpi_test!(
    threads_have_communicators_of_their_own,
    np = [2, 3],
    hosts = ["2,1"],
    env = [("KOLO_DEADLINE", "30s")],
    |kolo| {
        let mut world = kolo.communicator()?;
        let worlds = [world.dup()?, world.dup()?, world.dup()?];
        let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = worlds
                .into_iter()
                .enumerate()
                .map(|(number, mut world)| {
                    scope.spawn(move || {
                        let mut program = Program::new(kolo, 200 + number as u64);
                        let mut waiting: Vec<Waiting> = Vec::new();
                        for _ in 0..40 {
                            waiting.extend(program.submit(&mut world)?);
                        }
                        waiting.into_iter().try_for_each(|wait| wait())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        outcomes.into_iter().collect::<Result<()>>()?;
        in_step(kolo, &mut world)?;
    }
);

/// Programs of ranks that are threads, on one host and on several: rank, seed and spread decide what is dropped and who waits.
#[test]
fn ranks_that_are_threads() {
    let program = |kolo: &Kolo, seed: u64| {
        let mut world = kolo.communicator()?;
        let mut program = Program::new(kolo, seed);
        let mut waiting: Vec<Waiting> = Vec::new();
        for step in 0..30 {
            waiting.extend(program.submit(&mut world)?);
            // Each rank for itself: the others need not know.
            match (seed as usize + step * 7 + kolo.rank() * 3) % 10 {
                0 => drop(waiting.pop()),
                1 => waiting.drain(..).rev().try_for_each(|wait| wait())?,
                _ => {}
            }
        }
        drop(world);
        waiting.into_iter().try_for_each(|wait| wait())
    };
    for seed in 0..6 {
        for hosts in [vec![1], vec![2], vec![5], vec![1, 1], vec![2, 1], vec![2, 2]] {
            let ranks = hosts.iter().sum();
            let seed = 300 + seed * 10 + ranks as u64;
            let builder = kolo::Builder::new().hosts(hosts.clone());
            let outcomes = builder.threads(ranks, |kolo| program(kolo, seed)).expect("nobody failed");
            assert!(outcomes.iter().all(Result::is_ok), "seed {seed} on {hosts:?}: {outcomes:?}");
        }
    }
}

/// How an operation ended that a rank called otherwise than the rest.
fn differs<B: std::fmt::Debug>(kolo: &Kolo, odd: usize, local: bool, outcome: Result<B>, text: &str) {
    match outcome {
        Err(Error::Mismatch(mismatch)) if local => {
            assert_eq!(mismatch.views.len(), kolo.size());
            assert!(mismatch.to_string().contains(text), "{mismatch}");
        }
        Err(Error::Poisoned(words)) if !local => assert!(words.contains("rank"), "{words}"),
        other => panic!("rank {odd} differs, and this is {other:?}"),
    }
}

mpi_test!(
    a_mistake_in_the_middle_of_a_queue,
    np = [2, 3, 4],
    hosts = ["2,1", "2,2"],
    env = [("KOLO_DEADLINE", "30s")],
    |kolo| {
        let local = kolo.local_size() == kolo.size();
        for odd in 0..kolo.size() {
            let mut world = kolo.communicator()?;
            let before = world.allreduce_async(vec![1.0_f32; 2000], ReduceOp::Sum)?;
            let count = if kolo.rank() == odd { 2001 } else { 2000 };
            let wrong = world.allreduce_async(vec![1.0_f32; count], ReduceOp::Sum)?;
            let after = world.allreduce_async(vec![2.0_f32; 2000], ReduceOp::Sum);
            if local {
                assert_eq!(before.wait()?, vec![kolo.size() as f32; 2000]);
                differs(kolo, odd, local, wrong.wait(), "2001");
                assert_eq!(after?.wait()?, vec![2.0 * kolo.size() as f32; 2000]);
                // A call with a wrong argument takes its turn in the queue, too.
                let before = world.allgather_async(vec![kolo.rank() as u16])?;
                let wrong = if kolo.rank() == odd {
                    let Err(Error::Argument(text)) = world.alltoall_async(vec![1_u8; kolo.size() + 1]) else {
                        panic!("one element too many")
                    };
                    assert!(text.contains("alltoallv takes blocks of any length"), "{text}");
                    None
                } else {
                    Some(world.alltoall_async(vec![1_u8; kolo.size()])?)
                };
                in_step(kolo, &mut world)?;
                if let Some(wrong) = wrong {
                    differs(kolo, odd, local, wrong.wait(), "refused");
                }
                assert_eq!(before.wait()?, (0..kolo.size() as u16).collect::<Vec<_>>());
            } else {
                // Between hosts a mismatch ends the communicator; ranks may have ended their operation before they hear of it.
                let mut failures = Vec::new();
                for outcome in [before.wait(), wrong.wait(), after.and_then(Handle::wait)] {
                    failures.extend(outcome.err());
                }
                let next = loop {
                    if let Err(error) = world.barrier() {
                        break error;
                    }
                };
                failures.push(next);
                assert!(failures.iter().all(|error| matches!(error, Error::Poisoned(_))), "{failures:?}");
            }
        }
        let mut world = kolo.communicator()?;
        in_step(kolo, &mut world)?;
    }
);

mpi_test!(one_that_gives_up_ends_all, np = [2, 3], hosts = ["1,1", "2,1"], env = [("KOLO_DEADLINE", "30s")], |kolo| {
    let mut world = kolo.communicator()?;
    let last = kolo.size() - 1;
    // The others have done their part; rank `last` gives up before it does its own.
    if kolo.rank() == last {
        let handle = world.recv_async(vec![0_u8; 5], 0)?;
        let tensor = handle.cancel().expect("the tensor comes back");
        assert_eq!(tensor.len(), 5);
        let Err(Error::Poisoned(text)) = world.barrier_async() else { panic!("it has ended") };
        assert!(text.contains("given up"), "{text}");
    } else {
        // Those that are submitted after it is known end at once.
        let handles: Vec<_> = (0..5).map(|_| world.allreduce_async(vec![1.0; 3000], ReduceOp::Sum)).collect();
        for handle in handles {
            let Err(Error::Poisoned(text)) = handle.and_then(Handle::wait) else { panic!("rank {last} gave up") };
            assert!(text.contains(&format!("rank {last}")), "{text}");
            assert_eq!(text.matches("make a new one").count(), 1, "{text}");
        }
    }
});

mpi_test!(a_wait_may_be_short, np = [2], hosts = ["1,1"], env = [("KOLO_DEADLINE", "30s")], |kolo| {
    let mut world = kolo.communicator()?;
    if kolo.rank() == 0 {
        let handle = world.allreduce_async(vec![1_i32], ReduceOp::Sum)?;
        assert!(handle.name().starts_with("allreduce"), "{}", handle.name());
        let Waited::Pending(handle) = handle.wait_timeout(Duration::from_millis(1))? else {
            panic!("rank 1 waits for this rank")
        };
        kolo.allreduce("go", &mut [0_u8], ReduceOp::Max)?;
        assert_eq!(handle.wait()?, [2]);
    } else {
        kolo.allreduce("go", &mut [0_u8], ReduceOp::Max)?;
        let handle = world.allreduce_async(vec![1_i32], ReduceOp::Sum)?;
        // It goes on without anybody who waits.
        while !handle.poll() {
            std::thread::yield_now();
        }
        assert_eq!(handle.wait()?, [2]);
    }
});

/// A matrix, to see that rows stay whole.
struct Matrix {
    columns: usize,
    values: Vec<i32>,
}

impl kolo::Tensor for Matrix {
    type Element = i32;

    fn shape(&self) -> Vec<usize> {
        vec![self.values.len() / self.columns, self.columns]
    }

    fn as_slice(&self) -> &[i32] {
        &self.values
    }

    fn as_mut_slice(&mut self) -> &mut [i32] {
        &mut self.values
    }
}

mpi_test!(rows_stay_whole, np = [1, 2, 3], hosts = ["2,1"], env = [("KOLO_DEADLINE", "30s")], |kolo| {
    let (ranks, me) = (kolo.size(), kolo.rank());
    let mut world = kolo.communicator()?;
    let matrix = |rows: usize| Matrix { columns: 3, values: vec![me as i32 + 1; rows * 3] };
    // One row more than comes out even: the first rank gets it.
    let rows = world.reduce_scatter_async(matrix(ranks + 1), ReduceOp::Max)?;
    let of_group = world.reduce_scatter_group_async(vec![matrix(1), matrix(2 * ranks)], ReduceOp::Max)?;
    let gathered = world.allgatherv_async(matrix(me))?;
    let groups = world.allgather_group_async(vec![matrix(2), matrix(me)])?;
    let exchanged = world.alltoallv_async(matrix(ranks), &vec![1; ranks])?;
    let scattered = world.scatterv_async(matrix(ranks), &vec![1; ranks], ranks - 1)?;
    assert_eq!(rows.wait()?, vec![ranks as i32; if me == 0 { 6 } else { 3 }]);
    let of_group = of_group.wait()?;
    assert_eq!(of_group[0], vec![ranks as i32; if me == 0 { 3 } else { 0 }]);
    assert_eq!(of_group[1], vec![ranks as i32; 6]);
    let counts: Vec<usize> = (0..ranks).map(|rank| rank * 3).collect();
    assert_eq!(gathered.wait()?.counts(), counts);
    let groups = groups.wait()?;
    assert!(groups[0].counts() == vec![6; ranks] && groups[1].counts() == counts);
    let exchanged = exchanged.wait()?;
    assert!((0..ranks).all(|from| exchanged.block(from) == [from as i32 + 1; 3]));
    assert_eq!(scattered.wait()?, [ranks as i32; 3]);

    // By hand, the same.
    let input = vec![me as i32 + 1; 3 * (ranks + 1)];
    let blocks = world.reduce_scatter_group_rows(&[(&input, 3), (&input[..3], 3)], ReduceOp::Max)?;
    assert_eq!(blocks[0], vec![ranks as i32; if me == 0 { 6 } else { 3 }]);
    assert_eq!(blocks[1], vec![ranks as i32; if me == 0 { 3 } else { 0 }]);
});

mpi_test!(groups_and_rows_that_differ, np = [2, 3], env = [("KOLO_DEADLINE", "30s")], |kolo| {
    let mut world = kolo.communicator()?;
    for odd in 0..kolo.size() {
        let is_odd = kolo.rank() == odd;
        let tensors: &[&[u8]] = if is_odd { &[&[1], &[2], &[3]] } else { &[&[1], &[2]] };
        differs(kolo, odd, true, world.allgather_group(tensors), "a group of 3");
        let tensors: &[&[u8]] = if is_odd { &[&[1; 5], &[2; 3]] } else { &[&[1; 3], &[2; 5]] };
        differs(kolo, odd, true, world.reduce_scatter_group(tensors, ReduceOp::Max), "shapes");
        let group = tensors.iter().map(|tensor| tensor.to_vec()).collect();
        let handle = world.reduce_scatter_group_async::<Vec<u8>>(group, ReduceOp::Max)?;
        differs(kolo, odd, true, handle.wait(), "shapes");
        let columns = if is_odd { 2 } else { 3 };
        let handle = world.allgatherv_async(Matrix { columns, values: vec![0; 6] })?;
        differs(kolo, odd, true, handle.wait(), "rows of 2");
        let handle = world.allgather_group_async(vec![Matrix { columns, values: vec![0; 6] }])?;
        differs(kolo, odd, true, handle.wait(), "rows of lengths");

        let row = if is_odd { 4 } else { 3 };
        let outcome = world.reduce_scatter_group_rows(&[(&[1_u8; 6], row)], ReduceOp::Max);
        if is_odd {
            let Err(Error::Argument(text)) = outcome else { panic!("no whole rows") };
            assert!(text.contains("pass whole rows"), "{text}");
        } else {
            differs(kolo, odd, true, outcome, "refused");
        }
        let shape = Matrix { columns: 4, values: vec![0; 6] };
        if is_odd {
            let Err(Error::Argument(text)) = world.broadcast_async(shape, 0) else { panic!("it is no matrix") };
            assert!(text.contains("make Tensor::shape fit"), "{text}");
        } else {
            differs(kolo, odd, true, world.broadcast_async(vec![0; 6], 0)?.wait(), "refused");
        }
        in_step(kolo, &mut world)?;
    }
});

mpi_test!(
    messages_beside_collectives,
    np = [2, 3, 4],
    hosts = ["1,1", "2,1"],
    env = [("KOLO_DEADLINE", "30s")],
    |kolo| {
        let (ranks, me) = (kolo.size(), kolo.rank());
        let mut world = kolo.communicator()?;
        for round in 0..3 {
            let count = [1, 5000, 700_000][round];
            let mut received = Vec::new();
            // Received in another order than sent, and waited for in a third.
            for far in 1..ranks {
                let from = (me + far) % ranks;
                received.push((from, 0, world.recv_async(vec![0_i64; count], from)?));
                received.push((from, 1, world.recv_async(vec![0_i64; 3], from)?));
            }
            let sum = world.allreduce_async(vec![1_i64; 4000], ReduceOp::Sum)?;
            let mut sent = Vec::new();
            for far in (1..ranks).rev() {
                let to = (me + far) % ranks;
                let message = |number: usize, count: usize| vec![(me * 100 + number * 10 + round) as i64; count];
                sent.push(world.send_async(message(0, count), to)?);
                sent.push(world.send_async(message(1, 3), to)?);
            }
            assert_eq!(sum.wait()?, vec![ranks as i64; 4000]);
            for (from, number, handle) in received.into_iter().rev() {
                let data = handle.wait()?;
                assert!(
                    data.iter().all(|&value| value == (from * 100 + number * 10 + round) as i64),
                    "from rank {from}"
                );
            }
            for handle in sent {
                assert_eq!(handle.wait()?[0] / 100, me as i64, "the tensor comes back as it was");
            }
            // One side blocks, the other does not; a message of another type is that one's alone.
            if me == 0 {
                world.send(&[7_u8; 9], 1)?;
                world.send(&[8_u32; 2], 1)?;
                let handle = world.recv_async(vec![false; 4], 1)?;
                assert_eq!(handle.wait()?, [true, false, true, true]);
            } else if me == 1 {
                let wrong = world.recv_async(vec![0_u16; 9], 0)?;
                let right = world.recv_async(vec![0_u32; 2], 0)?;
                let Err(Error::Mismatch(mismatch)) = wrong.wait() else { panic!("u8 is no u16") };
                assert!(mismatch.to_string().contains("9 u8"), "{mismatch}");
                assert_eq!(right.wait()?, [8, 8]);
                world.send(&[true, false, true, true], 0)?;
            }
            let Err(Error::Argument(text)) = world.send_async(vec![1], me) else { panic!("to itself") };
            assert!(text.contains("this rank itself"), "{text}");
            let Err(Error::Argument(text)) = world.recv_async(vec![1], ranks) else { panic!("no rank") };
            assert!(text.contains("is not a rank"), "{text}");
            in_step(kolo, &mut world)?;
        }
    }
);

// The operations of a communicator move on while the ranks compute: none waits for one before the last has ended.
mpi_test!(
    operations_go_on_while_ranks_compute,
    np = [2, 3],
    hosts = ["1,1", "2,1"],
    env = [("KOLO_DEADLINE", "30s")],
    |kolo| {
        let mut world = kolo.communicator()?;
        let handles: Vec<_> =
            (0..6).map(|_| world.allreduce_async(vec![1_u32; 600_000], ReduceOp::Sum)).collect::<Result<_>>()?;
        let mut work = 0_u64;
        while !handles.iter().all(Handle::poll) {
            work = std::hint::black_box(work.wrapping_mul(31).wrapping_add(7));
            std::thread::yield_now();
        }
        assert!(work > 0 || handles.len() == 6);
        for handle in handles {
            assert_eq!(handle.wait()?, vec![kolo.size() as u32; 600_000]);
        }
    }
);
