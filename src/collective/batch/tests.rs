//! Batches between ranks that are threads: peers that give up, leave, or are late.

use std::sync::Barrier;
use std::time::Duration;

use super::*;
use crate::runtime::Builder;

fn job() -> Builder {
    Builder::new().knob("KOLO_DEADLINE", "60s")
}

/// One host, and several.
fn jobs(ranks: usize) -> [Builder; 2] {
    [job(), job().hosts(vec![1; ranks])]
}

/// More than mailboxes and networks hold.
const LARGE: usize = 1 << 20;

#[test]
fn large_messages_cross_whoever_lists_his_sends_first() {
    for ranks in 1..=4 {
        for job in jobs(ranks) {
            let outcomes = job.threads(ranks, |kolo| {
                let mut world = kolo.communicator()?;
                let me = kolo.rank();
                let mut got = vec![vec![0_u32; LARGE]; ranks];
                let mine = vec![me as u32 + 1; LARGE];
                let sends = (0..ranks).map(|to| Transfer::send(&mine, to));
                let receives = got.iter_mut().enumerate().map(|(from, room)| Transfer::recv(room, from));
                world.batch(sends.chain(receives))?;
                for (from, got) in got.iter().enumerate() {
                    assert!(got.iter().all(|element| *element == from as u32 + 1), "from {from} to {me}");
                }
                world.barrier()
            });
            outcomes.expect("no rank panics").into_iter().collect::<Result<Vec<()>>>().expect("no rank fails");
        }
    }
}

#[test]
fn a_late_peer_is_named_with_its_messages_at_the_deadline() {
    for job in jobs(3) {
        let over = Barrier::new(2);
        let outcomes = job.deadline(Duration::from_millis(300)).threads(3, |kolo| {
            let mut world = kolo.communicator().expect("all come");
            match kolo.rank() {
                // What rank 2 sends comes; rank 1 neither takes nor sends.
                0 => {
                    let (mut one, mut other) = ([0_u8; 5], [0_u8; 6]);
                    let large = vec![1.0_f32; LARGE];
                    let outcome = world.batch([
                        Transfer::send(&large, 1),
                        Transfer::recv(&mut one, 1),
                        Transfer::recv(&mut other, 2),
                    ]);
                    over.wait();
                    assert_eq!(other, [2; 6]);
                    let again = world.batch([Transfer::send(&[1_u8], 2)]);
                    assert!(matches!(again, Err(Error::Poisoned(_))), "{again:?}");
                    outcome.expect_err("rank 1 is late")
                }
                1 => {
                    over.wait();
                    Error::argument("late")
                }
                _ => {
                    world.send(&[2_u8; 6], 0).expect("taken");
                    Error::argument("done")
                }
            }
        });
        match &outcomes.expect("no rank panics")[0] {
            Error::Timeout { what, missing, .. } => {
                assert!(what.contains("batch of 3 messages"), "{what}");
                assert!(what.contains("send of 1048576 f32 to rank 1, receive of 5 u8 from rank 1"), "{what}");
                assert!(
                    !what.contains("rank 2") && missing.contains("rank 1") && !missing.contains("rank 2"),
                    "{missing}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_peer_that_gives_up_ends_the_batch_at_once() {
    let outcomes = job().threads(2, |kolo| {
        let mut world = kolo.communicator().expect("all come");
        let large = vec![1_u8; LARGE];
        if kolo.rank() == 0 {
            world.batch([Transfer::send(&large, 1), Transfer::recv(&mut [0_u8], 1)]).expect_err("rank 1 gives up")
        } else {
            world.line().expect("nothing is in flight").channel.give_up(Error::Poisoned("enough".into()))
        }
    });
    let outcomes = outcomes.expect("no rank panics");
    let Error::Poisoned(text) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert!(text.contains("rank 1") && text.contains("enough"), "{text}");
}
