//! The communicator under a real `mpirun`: every operation, type, op, count, algorithm and kind of buffer, on fresh random
//! data, compared with references; messages between two ranks; several threads; and mistakes.
//!
//! A case is a distinct tuple of operation, type, op, count (and root), algorithm and buffers, on one spread of ranks, run
//! on all of them. Each job prints how many it ran.

#[macro_use]
mod common;
#[path = "collectives/batches.rs"]
mod batches;
#[path = "collectives/bench.rs"]
mod bench;
#[path = "collectives/messages.rs"]
mod messages;
#[path = "collectives/mistakes.rs"]
mod mistakes;
#[path = "collectives/sample.rs"]
mod sample;

use kolo::{Algorithm, Error, bf16, f16};

use bench::Bench;

macro_rules! each_type {
    ($bench:ident.$run:ident) => {
        $bench.$run::<f16>()?;
        $bench.$run::<bf16>()?;
        $bench.$run::<f32>()?;
        $bench.$run::<f64>()?;
        $bench.$run::<i8>()?;
        $bench.$run::<i16>()?;
        $bench.$run::<i32>()?;
        $bench.$run::<i64>()?;
        $bench.$run::<u8>()?;
        $bench.$run::<u16>()?;
        $bench.$run::<u32>()?;
        $bench.$run::<u64>()?;
    };
}

mpi_test!(
    every_collective,
    np = [1, 2, 3, 4],
    hosts = ["1,1", "2,2", "3,1"],
    env = [("KOLO_SLOT_BYTES", "4KiB"), ("KOLO_DEADLINE", "30s")],
    seconds = 180,
    |kolo| {
        let mut bench = Bench::new(kolo)?;
        each_type!(bench.allreduce);
        let allreduces = bench.cases;
        each_type!(bench.others);
        each_type!(bench.blocks);
        bench.bools()?;
        if kolo.rank() == 0 {
            let others = bench.cases - allreduces;
            println!("cases: {allreduces} allreduces and {others} others, each on all {} ranks", kolo.size());
        }
    }
);

mpi_test!(
    deterministic_sums_across_hosts,
    np = [],
    hosts = ["2,2", "3,1"],
    env = [("KOLO_SLOT_BYTES", "4KiB"), ("KOLO_DETERMINISTIC", "1"), ("KOLO_DEADLINE", "30s")],
    |kolo| {
        let mut bench = Bench::new(kolo)?;
        let able: Vec<Algorithm> = bench.algorithms().into_iter().map(|(algorithm, _)| algorithm).collect();
        assert_eq!(able, [Algorithm::Auto, Algorithm::OrderedChain]);
        bench.everything_is_ordered = true;
        bench.allreduce::<f16>()?;
        bench.allreduce::<bf16>()?;
        bench.allreduce::<f32>()?;
        bench.allreduce::<f64>()?;
        let Err(Error::Argument(text)) = bench.world.set_algorithm(Algorithm::Ring) else {
            panic!("a ring has no order")
        };
        assert!(text.contains("ring") && text.contains("deterministic"), "{text}");
        if kolo.rank() == 0 {
            println!("cases: {} allreduces, each on all {} ranks", bench.cases, kolo.size());
        }
    }
);

mpi_test!(
    messages_threads_and_mistakes,
    np = [1, 2, 3, 4],
    hosts = ["1,1", "2,2", "3,1"],
    env = [("KOLO_DEADLINE", "30s")],
    |kolo| {
        let mut bench = Bench::new(kolo)?;
        bench.messages::<u8>(&[0, 1, 4079, 4080, 4081, 65_535, 65_536, 3_000_001])?;
        bench.messages::<f64>(&[0, 1, 513, 400_001])?;
        bench.exchange_both_ways::<f32>(&[1, 1000, 500_000])?;
        bench.messages_do_not_mix_with_collectives()?;
        bench.batches_in_any_order(3)?;
        bench.batches_that_send_first()?;
        bench.wrong_batches()?;
        bench.threads()?;
        bench.wrong_arguments()?;
        bench.wrong_algorithms()?;
        bench.wrong_messages()?;
        bench.mismatches()?;
        bench.roots_across_hosts()?;
        if kolo.rank() == 0 {
            println!("cases: {} of messages, threads and mistakes on {} ranks", bench.cases, kolo.size());
        }
    }
);
