//! Objects under a real `mpirun`: from every rank, of every size that takes another path, and mistakes of one rank.

#[macro_use]
mod common;

use std::collections::BTreeMap;

use kolo::{Error, Kolo, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Schedule {
    Constant,
    Steps { every: u32, factor: f64 },
}

/// What a training loop keeps beside its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Checkpoint {
    rank: usize,
    epoch: u64,
    schedule: Schedule,
    metrics: BTreeMap<String, Vec<f32>>,
    weights: Vec<f32>,
}

fn checkpoint(rank: usize, weights: usize) -> Checkpoint {
    Checkpoint {
        rank,
        epoch: 1 << (40 + rank),
        schedule: if rank.is_multiple_of(2) { Schedule::Constant } else { Schedule::Steps { every: 3, factor: 0.1 } },
        metrics: (0..rank).map(|at| (format!("metric {at}"), vec![at as f32; at])).collect(),
        weights: (0..weights * (rank + 1)).map(|at| at as f32 / 8.0).collect(),
    }
}

/// All of it beside the label, some of it there, and much more than that.
const WEIGHTS: [usize; 4] = [0, 20, 5000, 200_000];

fn objects_move(kolo: &Kolo) -> Result<usize> {
    let (ranks, me) = (kolo.size(), kolo.rank());
    let mut world = kolo.communicator()?;
    let mut cases = 0;
    for weights in WEIGHTS {
        let all: Vec<Checkpoint> = (0..ranks).map(|rank| checkpoint(rank, weights / ranks)).collect();
        assert!(kolo.allgather_object("checkpoint", &all[me])? == all, "{weights} weights");
        assert!(world.allgather_object(&all[me])? == all, "{weights} weights");
        // All of them under way at once, and nobody waits before all have begun.
        let by_name = kolo.allgather_object_async("checkpoints", &all[me])?;
        let in_order = world.allgather_object_async(&all[me])?;
        let mut from = Vec::new();
        for (root, want) in all.iter().enumerate() {
            let mine = (me == root).then(|| want.clone());
            from.push((root, kolo.broadcast_object_async(&format!("of {root}"), mine.clone(), root)?));
            from.push((root, world.broadcast_object_async(mine, root)?));
        }
        for (root, handle) in from.into_iter().rev() {
            assert!(handle.wait()? == all[root], "{weights} weights of {root}, async");
            cases += 1;
        }
        assert!(in_order.wait()? == all && by_name.wait()? == all, "{weights} weights, async");
        cases += 2;
        for (root, want) in all.iter().enumerate() {
            let mine = (me == root).then(|| want.clone());
            assert!(&kolo.broadcast_object("checkpoint", mine.clone(), root)? == want, "{weights} weights of {root}");
            assert!(&world.broadcast_object(mine, root)? == want, "{weights} weights of {root}");
            cases += 2;
        }
        cases += 2;
    }
    Ok(cases)
}

/// A refusal of rank `odd`, as each rank sees it.
fn check_refusal<T: std::fmt::Debug>(kolo: &Kolo, odd: usize, outcome: Result<T>, words: &str) {
    match outcome {
        Err(Error::Argument(text)) if kolo.rank() == odd => assert!(text.contains(words), "{text}"),
        Err(Error::Mismatch(mismatch)) if kolo.rank() != odd => {
            let (_, view) = &mismatch.views[odd];
            assert!(view.contains("refused there") && view.contains(words), "{mismatch}");
        }
        other => panic!("rank {odd} passes too much: {other:?}"),
    }
}

mpi_test!(
    objects_of_every_rank,
    np = [1, 2, 3, 4],
    hosts = ["2,2", "3,1"],
    env = [("KOLO_SLOT_BYTES", "4KiB"), ("KOLO_DEADLINE", "30s")],
    |kolo| {
        let cases = objects_move(kolo)?;
        if kolo.rank() == 0 {
            println!("cases: {cases} of objects on {} ranks", kolo.size());
        }
    }
);

mpi_test!(
    mistakes_with_objects_are_told_to_every_rank,
    np = [1, 2, 4],
    hosts = ["3,1"],
    env = [("KOLO_DEADLINE", "30s"), ("KOLO_OBJECT_BYTES", "1MiB")],
    |kolo| {
        let ranks = kolo.size();
        let mut world = kolo.communicator()?;
        for odd in 0..ranks {
            let object = "x".repeat(if kolo.rank() == odd { 2 << 20 } else { 9 });
            let words = "more than KOLO_OBJECT_BYTES (1MiB)";
            check_refusal(kolo, odd, kolo.allgather_object("large", &object), words);
            check_refusal(kolo, odd, kolo.broadcast_object("large", Some(object.clone()), odd), words);
            check_refusal(kolo, odd, world.allgather_object(&object), words);
            check_refusal(kolo, odd, world.broadcast_object(Some(object), odd), words);
            check_refusal(kolo, odd, kolo.broadcast_object("none", None::<u8>, odd), "passes no object");
            check_refusal(kolo, odd, world.broadcast_object(None::<u8>, odd), "passes no object");
            let none = kolo.broadcast_object_async("none", None::<u8>, odd)?;
            let none_in_order = world.broadcast_object_async(None::<u8>, odd)?;
            let large = "x".repeat(if kolo.rank() == odd { 2 << 20 } else { 9 });
            let too_large = kolo.allgather_object_async("large", &large)?;
            check_refusal(kolo, odd, none_in_order.wait(), "passes no object");
            check_refusal(kolo, odd, too_large.wait(), words);
            check_refusal(kolo, odd, none.wait(), "passes no object");
            if ranks > 1 {
                // One rank has another type.
                let outcome = if kolo.rank() == odd {
                    world.allgather_object(&1_u64).map(drop)
                } else {
                    world.allgather_object(&1_i64).map(drop)
                };
                let Err(Error::Mismatch(mismatch)) = outcome else { panic!("the types differ: {outcome:?}") };
                assert_eq!(mismatch.views[odd], (odd as u32, "allgather_object of u64".to_owned()));
            }
            assert_eq!(world.allgather_object(&kolo.rank())?, (0..ranks).collect::<Vec<_>>());
            assert_eq!(kolo.allgather_object("large", &kolo.rank())?, (0..ranks).collect::<Vec<_>>());
        }
    }
);
