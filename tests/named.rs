//! Named operations under a real `mpirun`: any order, any thread, several sets; mistakes that explain themselves; handles
//! and scopes that end as they say.

#[macro_use]
mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use kolo::{Error, Kolo, Options, ReduceOp, Result, Waited};
use rayon::prelude::*;

/// Elements that differ by rank and tensor, with fractions, so that the order of a sum shows in its bits.
fn input(rank: usize, tensor: usize, count: usize) -> Vec<f32> {
    (0..count).map(|at| ((rank * 7919 + tensor * 131 + at * 31) % 1009) as f32 / 7.0 - 60.0).collect()
}

/// The sum in rank order.
fn sum(size: usize, tensor: usize, count: usize) -> Vec<f32> {
    let mut total = input(0, tensor, count);
    for rank in 1..size {
        total.iter_mut().zip(input(rank, tensor, count)).for_each(|(total, value)| *total += value);
    }
    total
}

fn close(got: &[f32], want: &[f32]) -> bool {
    got.len() == want.len()
        && got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 1e-3 * want.abs().max(100.0))
}

/// Lengths of many kinds: none, one, odd ones, several slots.
fn length(tensor: usize) -> usize {
    [5, 0, 1, 1000, 17, 2, 33, 70_000][tensor % 8]
}

/// `count` numbers in an order of the rank's own.
fn shuffled(count: usize, rank: usize, step: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = (rank * 31 + step * 7 + 1) as u64;
    for at in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (state >> 33) as usize % (at + 1));
    }
    order
}

mpi_test!(names_in_any_order_from_several_threads, np = [1, 2, 3, 4], hosts = ["2,2", "3,1"], |kolo| {
    std::thread::scope(|scope| {
        let thread = |thread: usize| -> Result<()> {
            for step in 0..3 {
                let order = shuffled(8, kolo.rank(), step * 4 + thread);
                let begin = |&tensor: &usize| {
                    let tensor = thread * 8 + tensor;
                    let data = input(kolo.rank(), tensor, length(tensor));
                    Ok((tensor, kolo.allreduce_async(&format!("t{tensor}"), data, ReduceOp::Sum)?))
                };
                let begun = order.iter().map(begin).collect::<Result<Vec<_>>>()?;
                for (tensor, handle) in begun.into_iter().rev() {
                    assert!(
                        close(&handle.wait()?, &sum(kolo.size(), tensor, length(tensor))),
                        "t{tensor}, step {step}"
                    );
                }
                let mut own = [kolo.rank() as f64];
                kolo.allreduce(&format!("blocking {thread}"), &mut own, ReduceOp::Max)?;
                assert_eq!(own, [(kolo.size() - 1) as f64]);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..3).map(|at| scope.spawn(move || thread(at))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
});

mpi_test!(from_tasks_of_rayon, np = [1, 3], hosts = ["1,1"], |kolo| {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
    pool.install(|| -> Result<()> {
        for _ in 0..2 {
            let begin = |tensor: usize| {
                let data = input(kolo.rank(), tensor, length(tensor));
                kolo.allreduce_async(&format!("t{tensor}"), data, ReduceOp::Sum).map(|handle| (tensor, handle))
            };
            let begun = (0..24).into_par_iter().map(begin).collect::<Result<Vec<_>>>()?;
            begun.into_par_iter().try_for_each(|(tensor, handle)| {
                assert!(close(&handle.wait()?, &sum(kolo.size(), tensor, length(tensor))));
                Ok::<(), Error>(())
            })?;
        }
        Ok(())
    })?;
    // Each worker waits in a call of its own, in any order among the names.
    let outcomes = pool.broadcast(|worker| {
        let mut data = [1_u64];
        kolo.allreduce(&format!("worker {}", worker.index()), &mut data, ReduceOp::Sum).map(|()| data[0])
    });
    for outcome in outcomes {
        assert_eq!(outcome?, kolo.size() as u64);
    }
});

mpi_test!(a_stalled_set_delays_no_other, np = [2, 3], hosts = ["2,1"], || {
    let first = kolo::init().expect("a job");
    let second = kolo::init().expect("another one");
    let all: Vec<usize> = (0..first.size()).collect();
    let stalled = first.process_set(&all).expect("a set").expect("of all ranks");
    let other = first.process_set(&all[..2]).expect("a set");
    let one = |rank: usize| vec![rank as f32];
    let total: f32 = all.iter().map(|&rank| rank as f32).sum();
    // Rank 0 submits "late" only after everything else has ended on every rank, so whoever ended was not held up.
    let early = (first.rank() > 0)
        .then(|| stalled.allreduce_async("late", one(first.rank()), ReduceOp::Sum).expect("a handle"));
    for step in 0..20 {
        for kolo in [&first, &second] {
            // The same name is in flight in another set.
            let mut data = one(kolo.rank());
            kolo.allreduce("late", &mut data, ReduceOp::Sum).expect("a sum");
            assert_eq!(data, [total], "step {step}");
        }
        if let Some(other) = &other {
            let mut data = one(other.rank());
            other.allreduce("late", &mut data, ReduceOp::Sum).expect("a sum");
            assert_eq!(data, [1.0]);
        }
    }
    first.barrier().expect("all have ended");
    assert!(early.as_ref().is_none_or(|handle| !handle.poll()), "rank 0 has not submitted it");
    second.barrier().expect("all have looked");
    let handle = match early {
        Some(handle) => handle,
        None => stalled.allreduce_async("late", one(0), ReduceOp::Sum).expect("a handle"),
    };
    assert_eq!(handle.wait().expect("a sum"), [total]);
    ExitCode::SUCCESS
});

mpi_test!(
    more_names_than_the_cache_and_changing_shapes,
    np = [1, 3],
    hosts = ["2,2"],
    env = [("KOLO_CACHE_CAPACITY", "3")],
    |kolo| {
        for step in 0..6 {
            let (mut handles, mut whole) = (Vec::new(), None);
            for tensor in shuffled(10, kolo.rank(), step) {
                // Some change their length from step to step, some their type.
                let count = length(tensor + if tensor % 3 == 0 { step } else { 0 });
                if tensor == 4 && step % 2 == 1 {
                    whole = Some(kolo.allreduce_async("t4", vec![kolo.rank() as i64; count], ReduceOp::Max)?);
                    continue;
                }
                let handle =
                    kolo.allreduce_async(&format!("t{tensor}"), input(kolo.rank(), tensor, count), ReduceOp::Sum)?;
                handles.push((tensor, count, handle));
            }
            for (tensor, count, handle) in handles {
                assert!(close(&handle.wait()?, &sum(kolo.size(), tensor, count)), "t{tensor}, step {step}");
            }
            if let Some(handle) = whole {
                assert!(handle.wait()?.iter().all(|x| *x == kolo.size() as i64 - 1));
            }
        }
    }
);

mpi_test!(
    empty_single_and_unaligned_tensors,
    np = [1, 4],
    hosts = ["3,1"],
    env = [("KOLO_CACHE_CAPACITY", "0")],
    |kolo| {
        for step in 0..2 {
            kolo.allreduce::<f32>("empty", &mut [], ReduceOp::Sum)?;
            let mut single = [kolo.rank() as u8 + step];
            kolo.broadcast("single", &mut single, kolo.size() - 1)?;
            assert_eq!(single, [(kolo.size() - 1) as u8 + step]);
            for skip in [1, 3] {
                let mut buffer = vec![7_u8; skip + 300];
                buffer[skip..].fill(1);
                kolo.allreduce("bytes", &mut buffer[skip..], ReduceOp::Sum)?;
                assert!(
                    buffer[..skip].iter().all(|x| *x == 7) && buffer[skip..].iter().all(|x| *x == kolo.size() as u8)
                );
                let mut buffer = vec![-1.0_f32; skip + 9000];
                buffer[skip..].copy_from_slice(&input(kolo.rank(), 1, 9000));
                kolo.allreduce("floats", &mut buffer[skip..], ReduceOp::Sum)?;
                assert!(
                    buffer[..skip].iter().all(|x| *x == -1.0) && close(&buffer[skip..], &sum(kolo.size(), 1, 9000))
                );
            }
            let options = Options { prescale: 0.5, postscale: 4.0, ..Options::default() };
            let mut scaled = [3.0_f64];
            kolo.allreduce_with("scaled", &mut scaled, ReduceOp::Average, &options)?;
            assert_eq!(scaled, [6.0]);
        }
    }
);

/// One wrong call by rank `odd`, the right one by all others; what each rank gets.
fn mismatch(kolo: &Kolo, kind: &str, odd: usize) -> Result<()> {
    let wrong = kolo.rank() == odd;
    let mut data = [1.0_f32; 6];
    let scaled = Options { prescale: 2.0, ..Options::default() };
    match (kind, wrong) {
        ("dtype", true) => kolo.allreduce("x", &mut [1.0_f64; 6], ReduceOp::Sum),
        ("shape", true) => kolo.allreduce("x", &mut data[..5], ReduceOp::Sum),
        ("op", true) => kolo.allreduce("x", &mut data, ReduceOp::Max),
        ("prescale", true) => kolo.allreduce_with("x", &mut data, ReduceOp::Sum, &scaled),
        ("root", true) => kolo.broadcast("x", &mut data, (odd + 1) % kolo.size()),
        ("root", false) => kolo.broadcast("x", &mut data, odd),
        ("kind", true) => kolo.broadcast("x", &mut data, 0),
        ("local", true) => kolo.broadcast("x", &mut data, 99),
        ("type", true) => kolo.allreduce("x", &mut data, ReduceOp::And),
        ("output", true) => kolo.allreduce_into("x", &data, &mut [1.0; 5], ReduceOp::Sum),
        _ => kolo.allreduce("x", &mut data, ReduceOp::Sum),
    }
}

mpi_test!(a_mismatch_lists_every_rank_and_harms_nothing, np = [2, 3], hosts = ["2,2"], |kolo| {
    for kind in ["dtype", "shape", "op", "prescale", "root", "kind", "local", "type", "output"] {
        for odd in 0..kolo.size() {
            let error = mismatch(kolo, kind, odd).expect_err("the ranks disagree");
            let refused = match kind {
                "local" => Some(("broadcast from rank 99", "not in the set")),
                "type" => Some(("'x': and does not take f32, only i32", "and does not take f32")),
                "output" => Some(("'x': allreduce sum of 6 elements into 5; make input", "6 elements into 5")),
                _ => None,
            };
            if let (Some((reason, _)), true) = (refused, kolo.rank() == odd) {
                assert!(matches!(&error, Error::Argument(text) if text.contains(reason)), "{error}");
            } else {
                let Error::Mismatch(mismatch) = &error else { panic!("{kind} of rank {odd}: {error}") };
                let ranks: Vec<usize> = mismatch.views.iter().map(|view| view.0 as usize).collect();
                assert_eq!(ranks, (0..kolo.size()).collect::<Vec<_>>());
                let view = |rank: usize| &mismatch.views[rank].1;
                assert_ne!(view(odd), view((odd + 1) % kolo.size()), "{error}");
                let reason = refused.map_or("not in the set", |(_, reason)| reason);
                assert_eq!(refused.is_some(), view(odd).contains(reason), "{error}");
            }
            let mut right = [1_i32; 3];
            kolo.allreduce("x", &mut right, ReduceOp::Sum)?;
            assert_eq!(right, [kolo.size() as i32; 3], "after {kind} of rank {odd}");
        }
    }
});

mpi_test!(a_name_in_flight_is_refused_here_and_only_here, np = [2], |kolo| {
    for turn in 0..4 {
        if kolo.rank() == turn % 2 {
            let handle = kolo.allreduce_async("x", vec![1.0_f32; 40], ReduceOp::Sum)?;
            let error = kolo.allreduce("x", &mut [1.0_f32; 40], ReduceOp::Sum).expect_err("the other has not come");
            assert!(matches!(&error, Error::Argument(_)), "{error}");
            assert!(error.to_string().contains("'x' is already in flight on this rank"), "{error}");
            kolo.barrier()?;
            assert_eq!(handle.wait()?, [2.0; 40]);
        } else {
            kolo.barrier()?;
            let mut data = [1.0_f32; 40];
            kolo.allreduce("x", &mut data, ReduceOp::Sum)?;
            assert_eq!(data, [2.0; 40]);
        }
        // Nobody waits for this one: the background threads have to end it, after whatever happened before.
        let handle = kolo.allreduce_async("y", vec![1.0_f32], ReduceOp::Sum)?;
        while !handle.poll() {
            std::thread::yield_now();
        }
        assert_eq!(handle.wait()?, [2.0]);
    }
    assert!(matches!(kolo.allreduce("", &mut [1.0_f32], ReduceOp::Sum), Err(Error::Argument(_))));
});

mpi_test!(handles_come_back_and_may_be_dropped, np = [2], hosts = ["1,1"], |kolo| {
    // Rank 0 submits "x" only when the other has had its handle back.
    let own = || kolo.allreduce_async("x", vec![kolo.rank() as f32 + 1.0], ReduceOp::Sum);
    if kolo.rank() == 1 {
        let handle = match own()?.wait_timeout(Duration::from_millis(3))? {
            Waited::Pending(handle) => handle,
            Waited::Done(data) => panic!("rank 0 has not submitted it: {data:?}"),
        };
        assert!(!handle.poll() && handle.name() == "x");
        kolo.barrier()?;
        match handle.wait_timeout(Duration::from_secs(60))? {
            Waited::Done(data) => assert_eq!(data, [3.0]),
            Waited::Pending(handle) => panic!("{handle:?} is still pending"),
        }
    } else {
        kolo.barrier()?;
        assert_eq!(own()?.wait()?, [3.0]);
    }
    // Rank 0 drops its handle before the other submits: the operation goes on, and ends.
    if kolo.rank() == 0 {
        drop(own()?);
        kolo.barrier()?;
    } else {
        kolo.barrier()?;
        assert_eq!(own()?.wait()?, [3.0]);
    }
    // A leaked one goes on as well.
    std::mem::forget(kolo.allreduce_async("leaked", vec![1_u8], ReduceOp::Sum)?);
    kolo.barrier()?;
});

mpi_test!(a_cancel_before_agreement_takes_the_name_back, np = [2, 3], |kolo| {
    for step in 0..3 {
        if kolo.rank() == 1 {
            let handle = kolo.allreduce_async("x", vec![9.0_f32; 3], ReduceOp::Sum)?;
            assert!(handle.cancel().is_some_and(|data| data.len() == 3));
        }
        kolo.barrier()?;
        let mut data = [1.0_f32; 3];
        kolo.allreduce("x", &mut data, ReduceOp::Sum)?;
        assert_eq!(data, [kolo.size() as f32; 3], "step {step}");
    }
});

/// Rank 1 cancels what all have submitted. Either it came first, then nothing happened but a withdrawal; or the ranks had
/// agreed, then the set is over for all, and soon.
fn cancel_what_all_have_submitted() -> Result<()> {
    let kolo = kolo::init()?;
    let judge = kolo::init()?;
    let handle = kolo.allreduce_async("x", vec![1.0_f32; 1 << 20], ReduceOp::Sum)?;
    judge.barrier()?;
    if kolo.rank() == 1 {
        let _ = handle.cancel();
        // What became of it shows in what comes next.
        let again = kolo.allreduce_async("x", vec![1.0_f32; 1 << 20], ReduceOp::Sum).and_then(|again| again.wait());
        let mut over = [u8::from(again.is_err())];
        judge.broadcast("over", &mut over, 1)?;
        match again {
            Ok(data) => assert!(data.iter().all(|x| *x == kolo.size() as f32)),
            Err(error) => assert!(matches!(&error, Error::Poisoned(_)), "{error}"),
        }
    } else {
        let outcome = handle.wait();
        let mut over = [0_u8];
        judge.broadcast("over", &mut over, 1)?;
        match outcome {
            Ok(data) => assert!(data.iter().all(|x| *x == kolo.size() as f32)),
            Err(error) => {
                assert!(over == [1] && matches!(&error, Error::Poisoned(_)), "{error}");
                assert!(error.to_string().contains("rank 1 "), "{error}");
            }
        }
    }
    judge.barrier()
}

mpi_test!(a_late_cancel_is_an_error_on_every_rank, np = [2, 3], hosts = ["1,1", "2,2"], || {
    cancel_what_all_have_submitted().expect("the judge works on");
    ExitCode::SUCCESS
});

mpi_test!(scopes_wait_and_cancel, np = [2, 3], hosts = ["1,1"], |kolo| {
    let size = kolo.size() as f32;
    let mut tensors: Vec<Vec<f32>> = (0..5).map(|tensor| vec![1.0; length(tensor)]).collect();
    kolo.scope(|scope| {
        let mut first = None;
        for (at, tensor) in tensors.iter_mut().enumerate() {
            let handle = scope.allreduce_async(&format!("s{at}"), tensor, ReduceOp::Sum)?;
            first.get_or_insert(handle);
        }
        first.expect("five").wait()
    })?;
    assert!(tensors.iter().flatten().all(|x| *x == size));
    // A scope whose body fails waits as well.
    let mut data = [1.0_f32; 4];
    let outcome: Result<()> = kolo.scope(|scope| {
        scope.allreduce_async("fails", &mut data, ReduceOp::Sum)?;
        Err(kolo.allreduce::<f32>("", &mut [], ReduceOp::Sum).expect_err("no name"))
    });
    assert!(matches!(outcome, Err(Error::Argument(_))));
    assert_eq!(data, [size; 4]);
    // One that panics takes back what the others have not submitted.
    let (tell, told) = mpsc::channel();
    if kolo.rank() == 0 {
        let mut data = [5.0_f32];
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            kolo.scope(|scope| -> Result<()> {
                scope.allreduce_async("panics", &mut data, ReduceOp::Sum)?;
                tell.send(()).expect("it is heard");
                panic!("on purpose");
            })
        }));
        assert!(panicked.is_err() && told.recv().is_ok());
        data = [1.0];
        kolo.barrier()?;
        kolo.allreduce("panics", &mut data, ReduceOp::Sum)?;
        assert_eq!(data, [size]);
    } else {
        kolo.barrier()?;
        let mut data = [1.0_f32];
        kolo.allreduce("panics", &mut data, ReduceOp::Sum)?;
        assert_eq!(data, [size]);
    }
});

mpi_test!(the_last_kolo_may_go_with_operations_in_flight, np = [2, 3], || {
    let kolo = kolo::init().expect("a job");
    // Keeps the others from leaving over what they find.
    let judge = kolo::init().expect("another one");
    let before = kolo.clone();
    before.barrier().expect("all are there");
    if kolo.rank() == 1 {
        let held = kolo.allreduce_async("held", vec![1.0_f32; 3], ReduceOp::Sum).expect("a handle");
        let cancelled = kolo.allreduce_async("cancelled", vec![1.0_f32; 3], ReduceOp::Sum).expect("a handle");
        drop(kolo);
        drop(before);
        assert_eq!(cancelled.cancel().map(|data| data.len()), Some(3), "the memory comes back");
        let error = held.wait().expect_err("nobody advances it any more").to_string();
        assert!(error.contains("the last Kolo of this rank was dropped"), "{error}");
    } else {
        let error = kolo.allreduce("late", &mut [1.0_f32], ReduceOp::Sum).expect_err("rank 1 is gone");
        assert!(matches!(error, Error::Gone { .. } | Error::Poisoned(_)), "{error}");
        assert!(error.to_string().contains("'late'") && error.to_string().contains("rank 1"), "{error}");
    }
    judge.barrier().expect("the other job goes on");
    ExitCode::SUCCESS
});

/// The bits of many tensors, fused or not: sums run in rank order.
fn sums_in_rank_order(kolo: &Kolo) -> Result<()> {
    for step in 0..2 {
        let begin = |tensor: usize| {
            let data = input(kolo.rank(), tensor, length(tensor) + 3);
            Ok((tensor, kolo.allreduce_async(&format!("t{tensor}"), data, ReduceOp::Sum)?))
        };
        let begun = shuffled(20, kolo.rank(), step).into_iter().map(begin).collect::<Result<Vec<_>>>()?;
        for (tensor, handle) in begun {
            let (got, want) = (handle.wait()?, sum(kolo.size(), tensor, length(tensor) + 3));
            assert!(got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits()), "t{tensor}");
        }
    }
    Ok(())
}

mpi_test!(bits_when_fused, np = [2, 4], hosts = ["2,2"], env = [("KOLO_DETERMINISTIC", "1")], |kolo| {
    sums_in_rank_order(kolo)?;
});

mpi_test!(
    bits_when_not_fused,
    np = [2, 4],
    hosts = ["2,2"],
    env = [("KOLO_DETERMINISTIC", "1"), ("KOLO_FUSION_BYTES", "0")],
    |kolo| {
        sums_in_rank_order(kolo)?;
    }
);
