//! Objects over communicators and sets of ranks that are threads, with small chunks, and over a wire that damages them.

use std::collections::BTreeMap;

use serde::de::{Deserializer, Error as _};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};

use super::*;
use crate::error::Error;
use crate::runtime::{Builder, Kolo};
use crate::tensor::{Blocks, Element, ReduceOp, Reducible};

/// Small enough that a few kilobytes take many steps.
const SMALL: Terms = Terms { most: Bytes::kib(64), chunk: 700 };

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    rank: usize,
    table: BTreeMap<String, Vec<f32>>,
    note: Option<String>,
}

/// Of a size that depends on the rank: rank 0 has the smallest.
fn report(rank: usize, scale: usize) -> Report {
    let rows = (0..rank * scale).map(|row| (format!("row {row}"), vec![row as f32; row % 9]));
    Report { rank, table: rows.collect(), note: (rank % 2 == 1).then(|| "odd".to_owned()) }
}

/// Refuses to be written or to be read, as it is told.
#[derive(Debug)]
struct Stubborn {
    writes: bool,
}

impl Serialize for Stubborn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.writes { serializer.serialize_u8(7) } else { Err(S::Error::custom("no")) }
    }
}

impl<'de> Deserialize<'de> for Stubborn {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("no"))
    }
}

fn job() -> Builder {
    Builder::new().knob("KOLO_SLOT_BYTES", "4KiB").knob("KOLO_DEADLINE", "60s").knob("KOLO_OBJECT_BYTES", "64KiB")
}

/// Runs the program on every rank of jobs on one host and on several. A rank that fails leaves, and the others with it.
fn everywhere(sizes: impl IntoIterator<Item = usize>, program: impl Fn(&Kolo) -> Result<()> + Sync) {
    let one_host = sizes.into_iter().map(|ranks| (ranks, job()));
    for (ranks, job) in one_host.chain([(2, job().hosts([1, 1])), (4, job().hosts([3, 1]))]) {
        let outcomes = job.threads(ranks, |kolo| program(kolo)).expect("no rank panics");
        outcomes.into_iter().collect::<Result<Vec<()>>>().expect("no rank fails");
    }
}

fn objects_move<W: Wire>(wire: &mut W) -> Result<()> {
    // Beside the label, in a chunk or two, in many.
    for scale in [0, 1, 30, 200] {
        let all: Vec<Report> = (0..wire.ranks()).map(|rank| report(rank, scale)).collect();
        assert_eq!(allgather(wire, SMALL, &all[wire.me()])?, all);
        for (root, want) in all.iter().enumerate() {
            let mine = (wire.me() == root).then(|| want.clone());
            assert_eq!(&broadcast(wire, SMALL, mine, root)?, want);
            // What the others pass does not matter.
            assert_eq!(&broadcast(wire, SMALL, Some(all[wire.me()].clone()), root)?, want);
        }
    }
    assert_eq!(allgather(wire, SMALL, &())?, vec![(); wire.ranks()]);
    Ok(())
}

#[test]
fn objects_reach_every_rank_whole_in_however_many_chunks() {
    everywhere(1..=4, |kolo| {
        objects_move(&mut kolo.communicator()?)?;
        objects_move(&mut Named { set: kolo.world(), name: "object" })
    });
}

#[test]
fn a_set_has_its_own_objects() {
    everywhere([3], |kolo| {
        let ranks: Vec<usize> = (1..kolo.size()).rev().collect();
        let Some(set) = kolo.process_set(&ranks)? else { return kolo.barrier() };
        let all = set.allgather_object("who", &kolo.rank())?;
        assert_eq!(all, ranks);
        let last = kolo.size() - 1;
        let object = (kolo.rank() == last).then(|| report(last, 20));
        assert_eq!(set.broadcast_object("what", object, last)?, report(last, 20));
        // A root is a global rank, and must be in the set.
        match set.broadcast_object("what", Some(1_u8), 0) {
            Err(Error::Argument(text)) => assert!(text.contains("rank 0, which is not in the set"), "{text}"),
            other => panic!("{other:?}"),
        }
        kolo.barrier()
    });
}

#[test]
fn a_rank_that_has_joined_brings_no_object_and_is_no_root() {
    everywhere([3], |kolo| {
        let (ranks, me) = (kolo.size(), kolo.rank());
        if me == 1 {
            return kolo.join().map(drop);
        }
        // The others' operations wait until rank 1 has joined.
        let others: Vec<Report> = (0..ranks).filter(|rank| *rank != 1).map(|rank| report(rank, 40)).collect();
        assert_eq!(kolo.allgather_object("object", &report(me, 40))?, others);
        assert_eq!(kolo.broadcast_object("object", (me == 0).then_some(report(5, 40)), 0)?, report(5, 40));
        let Err(Error::Mismatch(mismatch)) = kolo.broadcast_object("object", None::<u8>, 1) else {
            panic!("the root has joined")
        };
        assert_eq!(mismatch.views[1], (1, "has joined".to_owned()));
        kolo.join().map(drop)
    });
}

/// The outcome where this rank's call is refused: an argument error here, and on the others a mismatch with the reason.
fn refused<R: std::fmt::Debug>(outcome: Result<R>, odd: u32, is_odd: bool, words: &str) {
    match outcome {
        Err(Error::Argument(text)) if is_odd => assert!(text.contains(words), "{text}"),
        Err(Error::Mismatch(mismatch)) if !is_odd => {
            let view = mismatch.views.iter().find(|(rank, _)| *rank == odd);
            assert!(view.is_some_and(|(_, view)| view.contains("refused there") && view.contains(words)), "{mismatch}");
        }
        other => panic!("rank {odd} is refused for '{words}', but: {other:?}"),
    }
}

fn refusals<W: Wire>(wire: &mut W) -> Result<()> {
    let (me, ranks) = (wire.me(), wire.ranks());
    for odd in 0..ranks {
        let (is_odd, who) = (me == odd, wire.global(odd));
        let large = vec![1_u8; if is_odd { SMALL.most.0 } else { 5000 }];
        refused(allgather(wire, SMALL, &large), who, is_odd, "more than KOLO_OBJECT_BYTES (64KiB)");
        refused(broadcast(wire, SMALL, Some(large), odd), who, is_odd, "has 65539 bytes");
        let stubborn = Stubborn { writes: !is_odd };
        refused(allgather(wire, SMALL, &stubborn), who, is_odd, "Stubborn cannot be serialised");
        refused(broadcast(wire, SMALL, Some(stubborn), odd), who, is_odd, "Stubborn cannot be serialised");
        refused(broadcast(wire, SMALL, None::<u8>, odd), who, is_odd, "passes no object");
        // Everything goes on as if nothing had been.
        assert_eq!(allgather(wire, SMALL, &me)?, (0..ranks).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn a_refused_object_is_an_error_on_every_rank_at_once() {
    everywhere(1..=3, |kolo| {
        refusals(&mut kolo.communicator()?)?;
        refusals(&mut Named { set: kolo.world(), name: "object" })?;
        // A root that is no rank, on one of them.
        let (mut world, size) = (kolo.communicator()?, kolo.size());
        let root = if kolo.rank() == 0 { size } else { 0 };
        refused(world.broadcast_object(Some(1), root), 0, kolo.rank() == 0, "there is no rank");
        assert_eq!(world.allgather_object(&1)?, vec![1; size]);
        Ok(())
    });
}

fn disagreements<W: Wire>(wire: &mut W) -> Result<()> {
    let (me, ranks) = (wire.me(), wire.ranks());
    for odd in 0..ranks {
        let outcomes = if me == odd {
            [
                allgather(wire, SMALL, &1_u16).map(drop),
                broadcast(wire, SMALL, Some(1_u8), (odd + 1) % ranks).map(drop),
                allgather(wire, SMALL, &1_u8).map(drop),
            ]
        } else {
            [
                allgather(wire, SMALL, &1_u8).map(drop),
                broadcast(wire, SMALL, Some(1_u8), odd).map(drop),
                broadcast(wire, SMALL, Some(1_u8), odd).map(drop),
            ]
        };
        let who = |rank: usize| wire.global(rank);
        let (this, next) = (who(odd), who((odd + 1) % ranks));
        let odd_views = [
            "allgather_object of u16".to_owned(),
            format!("broadcast_object of u8 from rank {next}"),
            "allgather_object of u8".to_owned(),
        ];
        let views = [
            "allgather_object of u8".to_owned(),
            format!("broadcast_object of u8 from rank {this}"),
            format!("broadcast_object of u8 from rank {this}"),
        ];
        for ((outcome, odd_view), view) in outcomes.into_iter().zip(odd_views).zip(views) {
            let Err(Error::Mismatch(mismatch)) = outcome else { panic!("{odd_view} and {view}: {outcome:?}") };
            let want = |rank| (who(rank), if rank == odd { odd_view.clone() } else { view.clone() });
            assert_eq!(mismatch.views, (0..ranks).map(want).collect::<Vec<_>>());
        }
    }
    assert_eq!(allgather(wire, SMALL, &me)?, (0..ranks).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn ranks_that_call_different_things_are_told_so() {
    everywhere(2..=3, |kolo| {
        disagreements(&mut kolo.communicator()?)?;
        disagreements(&mut Named { set: kolo.world(), name: "object" })
    });
}

#[test]
fn an_object_that_cannot_be_read_names_its_rank() {
    everywhere(1..=3, |kolo| {
        let mut world = kolo.communicator()?;
        let Err(Error::Object { rank, reason, .. }) = world.allgather_object(&Stubborn { writes: true }) else {
            panic!("it refuses to be read")
        };
        assert_eq!(rank, 0);
        assert!(reason.contains("are no kolo::collective::object::tests::Stubborn"), "{reason}");
        // The root does not read its own.
        let root = kolo.size() - 1;
        match kolo.broadcast_object("stubborn", Some(Stubborn { writes: true }), root) {
            Ok(_) => assert_eq!(kolo.rank(), root),
            Err(Error::Object { what, rank, .. }) => assert_eq!((&*what, rank as usize), ("stubborn", root)),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(world.allgather_object(&1)?, vec![1; kolo.size()]);
        Ok(())
    });
}

/// A wire of which one step damages what it brings to this rank.
struct Damaging<'a, W> {
    wire: &'a mut W,
    /// Steps before that.
    after: Option<usize>,
    /// Whose bytes a gather damages.
    of: usize,
}

impl<W: Wire> Damaging<'_, W> {
    /// Whether this step is the one.
    fn now(&mut self) -> bool {
        let now = self.after == Some(0);
        self.after = self.after.and_then(|after| after.checked_sub(1));
        now
    }
}

impl<W: Wire> Wire for Damaging<'_, W> {
    const JOINS: bool = W::JOINS;

    fn me(&self) -> usize {
        self.wire.me()
    }

    fn ranks(&self) -> usize {
        self.wire.ranks()
    }

    fn global(&self, rank: usize) -> u32 {
        self.wire.global(rank)
    }

    fn title(&self) -> String {
        self.wire.title()
    }

    fn gather<T: Element>(&mut self, mine: &[T]) -> Result<Blocks<T>> {
        let blocks = self.wire.gather(mine)?;
        if !self.now() {
            return Ok(blocks);
        }
        let counts = blocks.counts().to_vec();
        let at = counts[..self.of].iter().sum::<usize>() + counts[self.of] / 2;
        let mut data = blocks.into_data();
        data[at] = T::zeroed();
        Ok(Blocks::new(data, counts))
    }

    fn spread<T: Element>(&mut self, data: &mut [T], root: usize) -> Result<()> {
        self.wire.spread(data, root)?;
        if self.now() {
            let at = data.len() / 2;
            data[at] = T::zeroed();
        }
        Ok(())
    }

    /// No object needs it.
    fn combine<T: Reducible>(&mut self, data: &mut [T], op: ReduceOp) -> Result<()> {
        self.wire.combine(data, op)
    }

    fn decline(&mut self, error: Error) -> Error {
        self.wire.decline(error)
    }
}

/// No byte of its object is zero, so that zeroing one is damage.
fn full(len: usize) -> String {
    "x".repeat(len)
}

/// Each step of an allgather and of a broadcast brings damaged bytes to one rank: it names the rank they came from, and no
/// other rank waits for it until the deadline.
#[test]
fn damage_names_the_rank_it_came_from_and_nobody_waits() {
    everywhere(2..=3, |kolo| {
        let (ranks, me) = (kolo.size(), kolo.rank());
        for victim in 0..ranks {
            let culprit = (victim + 1) % ranks;
            for step in 0..4 {
                for broadcasts in [false, true] {
                    // Four steps: the labels, and three chunks.
                    let object = full(1000 + 3 * SMALL.chunk);
                    let mut world = kolo.communicator()?;
                    let after = (me == victim).then_some(step);
                    let mut wire = Damaging { wire: &mut world, after, of: culprit };
                    let outcome = if broadcasts {
                        broadcast(&mut wire, SMALL, Some(object.clone()), culprit).map(|got| assert_eq!(got, object))
                    } else {
                        let check = |got| assert_eq!(got, vec![object.clone(); ranks]);
                        allgather(&mut wire, SMALL, &object).map(check)
                    };
                    let what = format!("step {step} of rank {victim}, broadcast {broadcasts}, here {me}: {outcome:?}");
                    match outcome {
                        Err(Error::Object { rank, reason, .. }) if me == victim => {
                            assert_eq!(rank as usize, culprit, "{what}");
                            assert!(reason.contains("damaged on the way"), "{what}");
                        }
                        // Who has what it needs is done; who goes on hears of the one that does not.
                        Ok(()) if me != victim => {}
                        Err(Error::Mismatch(_) | Error::Poisoned(_)) if me != victim && step == 0 => {}
                        _ => panic!("{what}"),
                    }
                    // On one host the operation is over for everybody. Between hosts a rank that has to be told ends it all.
                    let several = kolo.local_size() < ranks && step == 0;
                    assert_eq!(world.barrier().is_err(), several, "after {what}");
                    kolo.barrier()?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn bytes_that_are_no_object_name_their_rank() {
    everywhere(2..=3, |kolo| {
        let foreign = |outcome: Result<Vec<usize>>| {
            let Err(Error::Object { rank, reason, .. }) = outcome else { panic!("not foreign: {outcome:?}") };
            assert_eq!(rank, 1);
            assert!(reason.contains("nothing of the kind"), "{reason}");
        };
        let mut world = kolo.communicator()?;
        if kolo.rank() == 1 {
            world.allgatherv(b"something else")?;
            kolo.allgather("object", b"something else")?;
        } else {
            foreign(world.allgather_object(&1_usize));
            foreign(kolo.allgather_object("object", &1_usize));
        }
        kolo.barrier()
    });
}
