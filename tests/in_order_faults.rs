//! Ranks that die, stop or leave while the queues of a communicator are full.
#![cfg(feature = "mpi")]

#[path = "common/failing.rs"]
#[allow(unused_macros, reason = "the tests here have a program of their own")]
#[macro_use]
mod failing;
#[macro_use]
mod common;

use std::process::ExitCode;

use failing::Layout;
use kolo::{Communicator, Error, Handle, Kolo, ReduceOp, Result};
use rustix::process::{Signal, getpid, kill_process};
use xtask::mpi;

/// Operations that the victim takes part in, and that the others submit beside.
const DONE: usize = 6;
const SUBMITTED: usize = 25;

fn submit(world: &mut Communicator, count: usize) -> Result<Vec<Handle<Vec<f32>>>> {
    let sum = |at: usize| world.allreduce_async(vec![1.0_f32; [1, 3000, 40][at % 3]], ReduceOp::Sum);
    (0..count).map(sum).collect()
}

/// A rank whose queue is full when the victim meets its fate. Ends the process.
fn rank(fate: impl FnOnce(&Kolo, Communicator) -> Result<()>) -> ! {
    let code = kolo::run(|kolo| {
        let mut world = kolo.communicator()?;
        if failing::is_victim(kolo) {
            for handle in submit(&mut world, DONE)? {
                handle.wait()?;
            }
            return fate(kolo, world);
        }
        let messages =
            world.recv_async(vec![0_u8; 9], std::env::var("TEST_VICTIM").map_or(0, |it| it.parse().unwrap_or(0)))?;
        let mut failures = Vec::new();
        // It may be known before all are submitted.
        for at in 0..SUBMITTED {
            match world.allreduce_async(vec![1.0_f32; [1, 3000, 40][at % 3]], ReduceOp::Sum) {
                // Most are not waited for.
                Ok(handle) if at % 4 > 0 && at > DONE => drop(handle),
                Ok(handle) => failures.push(handle),
                Err(error) => return Err(error),
            }
        }
        // The last first: it tells why as well as the first does.
        let mut last = None;
        for handle in failures.into_iter().rev() {
            if let Err(error) = handle.wait() {
                last = Some(error);
            }
        }
        assert!(messages.wait().is_err(), "nobody sends");
        Err(last.expect("the victim does not come"))
    });
    std::process::exit(i32::from(code != ExitCode::SUCCESS))
}

const SURVIVED: [Layout; 4] = [(1, 2, ""), (0, 4, ""), (2, 4, "2,2"), (1, 2, "1,1")];
const FEW: [Layout; 2] = [(1, 2, ""), (2, 4, "2,2")];

#[test]
fn a_rank_that_is_killed_with_a_full_queue() {
    if mpi::rank().is_some() {
        rank(|_, mut world| {
            let _flying = submit(&mut world, 3)?;
            kill_process(getpid(), Signal::KILL).expect("it may kill itself");
            std::thread::sleep(failing::PATIENCE * 2);
            Ok(())
        });
    }
    let outcomes = failing::failing("a_rank_that_is_killed_with_a_full_queue", &SURVIVED);
    failing::one_message(&outcomes, &["its process"]);
}

#[test]
fn a_rank_that_panics_with_a_full_queue() {
    if mpi::rank().is_some() {
        rank(|_, mut world| {
            let _flying = submit(&mut world, 3)?;
            panic!("no cheese");
        });
    }
    let outcomes = failing::failing("a_rank_that_panics_with_a_full_queue", &FEW);
    failing::one_message(&outcomes, &["panicked at tests/in_order_faults.rs", "no cheese"]);
}

#[test]
fn a_rank_that_leaves_is_named_by_those_that_wait_behind() {
    if mpi::rank().is_some() {
        rank(|_, _| Ok(()));
    }
    failing::named_by_others(&failing::failing("a_rank_that_leaves_is_named_by_those_that_wait_behind", &FEW));
}

#[test]
fn a_rank_that_is_stopped_is_named_at_the_deadline() {
    if mpi::rank().is_some() {
        rank(|_, _| failing::stop());
    }
    let output = failing::stopped("a_rank_that_is_stopped_is_named_at_the_deadline");
    let failed = output.lines().find(|line| line.starts_with("kolo: rank 0 on ") && line.contains(" failed: "));
    let failed = failed.unwrap_or_else(|| panic!("rank 0 says why: {output}"));
    assert!(failed.contains("rank 1") && failed.contains("is stopped"), "{output}");
}

mpi_test!(
    a_drop_ends_at_the_deadline_at_the_latest,
    np = [2, 3],
    hosts = ["1,1"],
    env = [("KOLO_DEADLINE", "1500ms"), ("KOLO_STALL_WARNING", "0")],
    |kolo| {
        let options = kolo::Options { deadline: Some(std::time::Duration::from_secs(30)), ..Default::default() };
        let mut world = kolo.communicator()?;
        if kolo.rank() == 0 {
            let late = world.allreduce_async(vec![1.0_f32; 3000], ReduceOp::Sum)?;
            let behind = world.barrier_async()?;
            drop(world);
            assert!(late.poll() && behind.poll(), "nothing is in flight any more");
            assert!(matches!(late.wait(), Err(Error::Timeout { .. })));
            let Err(Error::Poisoned(text)) = behind.wait() else { panic!("it came after that") };
            assert!(text.contains("gave up after"), "{text}");
        }
        kolo.allreduce_with("go", &mut [0_u8], ReduceOp::Max, &options)?;
    }
);
