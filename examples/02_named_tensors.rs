//! Named tensors: submitted by each rank in an order of its own, agreed on by name, fused, and waited for when needed.
//!
//! ```text
//! cargo build --release --example 02_named_tensors
//! mpirun -np 2 target/release/examples/02_named_tensors
//! ```

use std::process::ExitCode;

use kolo::{Kolo, ReduceOp, Result};

/// Gradients as backward produces them: name and number of values.
const GRADIENTS: [(&str, usize); 4] =
    [("dense.bias", 10), ("dense.weight", 1_280), ("conv.bias", 32), ("conv.weight", 4_608)];

fn main() -> ExitCode {
    kolo::run(job)
}

fn job(kolo: &Kolo) -> Result<()> {
    let (rank, size) = (kolo.rank(), kolo.size());
    let sum_of_ranks = (0..size).sum::<usize>() as f32;

    // A blocking call: every rank passes the same name, shape and operation.
    let mut loss = [rank as f32];
    kolo.allreduce("loss", &mut loss, ReduceOp::Average)?;
    assert_eq!(loss[0], sum_of_ranks / size as f32);

    // Asynchronous calls take a buffer and give it back from `wait`. The order of the names may differ from rank to rank;
    // what is ready on every rank at the same time travels together.
    let mut handles = Vec::new();
    for place in 0..GRADIENTS.len() {
        let (name, count) = GRADIENTS[(place + rank) % GRADIENTS.len()];
        handles.push(kolo.allreduce_async(name, vec![rank as f32; count], ReduceOp::Sum)?);
    }
    // Time to compute something else. `poll` looks without waiting.
    let ready = handles.iter().filter(|handle| handle.poll()).count();
    for handle in handles {
        let gradient = handle.wait()?;
        assert!(gradient.iter().all(|value| *value == sum_of_ranks));
    }

    // A scope lends buffers instead: they are the operation's until `wait`, or until the scope ends.
    let mut weights = vec![rank as f64; 1_000];
    let mut counts = [1_u64, rank as u64];
    kolo.scope(|scope| {
        scope.broadcast_async("weights", &mut weights, 0)?;
        let handle = scope.allreduce_async("counts", &mut counts, ReduceOp::Sum)?;
        handle.wait() // or leave it to the end of the scope, as for the weights
    })?;
    assert!(weights.iter().all(|value| *value == 0.0), "rank 0's weights");
    assert_eq!(counts, [size as u64, sum_of_ranks as u64]);

    if rank == 0 {
        println!("{size} rank(s) reduced {} gradients, each rank in another order;", GRADIENTS.len());
        println!("{ready} of them were ready on rank 0 before it waited, and all ranks agree on every sum");
    }
    Ok(())
}
