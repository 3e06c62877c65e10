//! Wrong calls: each is an error that says what is wrong, and a right call afterwards works.

use kolo::{Algorithm, Communicator, Error, ReduceOp, Result};

use super::bench::Bench;
use super::sample::{poison, same};

/// The text of an argument error.
fn argument(outcome: Result<()>) -> String {
    let Err(Error::Argument(text)) = outcome else { panic!("no argument error: {outcome:?}") };
    text.to_string()
}

impl Bench<'_> {
    /// A call that must work, and does not if a rank is out of step.
    fn right_call(&mut self) -> Result<()> {
        let (ranks, me) = (self.kolo.size() as i64, self.kolo.rank() as i64);
        for count in [1, 3000] {
            let mut data = vec![me + 1; count];
            self.world.allreduce(&mut data, ReduceOp::Sum)?;
            assert_eq!(data, vec![ranks * (ranks + 1) / 2; count]);
        }
        Ok(())
    }

    /// Each of them on one rank only, of each rank: the others learn of it where they make the call.
    pub(crate) fn wrong_arguments(&mut self) -> Result<()> {
        let ranks = self.kolo.size();
        for odd in 0..ranks {
            for wrong in Wrong::ALL {
                self.wrong_argument(wrong, odd)?;
            }
            self.wrong_peers(odd);
            self.right_call()?;
        }
        Ok(())
    }

    fn wrong_argument(&mut self, wrong: Wrong, odd: usize) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let what = format!("{wrong:?} of rank {odd}");
        self.cases += 1;
        let outcome = wrong.call(&mut self.world, me == odd);
        if me == odd {
            let text = argument(outcome);
            assert!(wrong.words(ranks).iter().all(|word| text.contains(word)), "{what}: {text}");
        } else if self.local {
            let Err(Error::Mismatch(mismatch)) = outcome else { panic!("{what}: {outcome:?}") };
            assert!(mismatch.views[odd].1.contains("refused"), "{what}: {mismatch}");
        } else {
            // Between hosts some ranks may be done before they hear of it.
            let next = outcome.and_then(|()| self.world.barrier()).and_then(|()| self.world.barrier());
            assert!(matches!(next, Err(Error::Poisoned(_))), "{what}: {next:?}");
        }
        if !self.local && ranks > 1 {
            if me == odd {
                let next = self.world.barrier();
                assert!(matches!(next, Err(Error::Poisoned(_))), "{what}: {next:?}");
            }
            self.world = self.kolo.communicator()?;
        }
        self.right_call()
    }

    /// Messages have no turn that could be taken.
    fn wrong_peers(&mut self, odd: usize) {
        let (ranks, me, world) = (self.kolo.size(), self.kolo.rank(), &mut self.world);
        if me == odd {
            let text = argument(world.send(&[1_u8], me)) + &argument(world.recv(&mut [1_u8], me));
            assert!(text.matches("this rank itself").count() == 2, "{text}");
            let text = argument(world.send(&[1_u8], ranks)) + &argument(world.recv(&mut [1_u8], ranks + 5));
            assert!(text.matches("is not a rank").count() == 2, "{text}");
        }
        self.cases += 4;
    }

    /// An algorithm that cannot serve leaves the one that was set.
    pub(crate) fn wrong_algorithms(&mut self) -> Result<()> {
        self.world.set_algorithm(Algorithm::BinomialTree)?;
        for algorithm in [Algorithm::OneShot, Algorithm::TwoShot] {
            let outcome = self.world.set_algorithm(algorithm);
            if self.local {
                outcome?;
            } else {
                let text = argument(outcome);
                assert!(text.contains(algorithm.name()) && text.contains("hosts") && text.contains("ring"), "{text}");
            }
            self.right_call()?;
            self.cases += 1;
        }
        self.world.set_algorithm(Algorithm::Auto)?;
        self.right_call()
    }

    /// A receive of another type or length names both sides, takes the message, and leaves the buffer.
    pub(crate) fn wrong_messages(&mut self) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        for (from, to) in (0..ranks).flat_map(|from| (0..ranks).map(move |to| (from, to))).filter(|(a, b)| a != b) {
            for count in [2, 100_000] {
                if me == from {
                    self.world.send(&vec![1.5_f32; count], to)?;
                    self.world.send(&vec![1.5_f32; count], to)?;
                    self.world.send(&[7_u64], to)?;
                } else if me == to {
                    let mut longer = vec![poison::<f32>(); count + 1];
                    let outcome = self.world.recv(&mut longer, from);
                    check_views(
                        outcome,
                        from,
                        &format!("sends {count} f32"),
                        to,
                        &format!("receives {} f32", count + 1),
                    );
                    assert!(same(&longer, &vec![poison(); count + 1]));
                    let mut other = vec![poison::<i32>(); count];
                    let outcome = self.world.recv(&mut other, from);
                    check_views(outcome, from, &format!("sends {count} f32"), to, &format!("receives {count} i32"));
                    assert!(same(&other, &vec![poison(); count]));
                    let mut right = [0_u64];
                    self.world.recv(&mut right, from)?;
                    assert_eq!(right, [7]);
                }
                self.cases += 2;
            }
        }
        self.right_call()
    }

    /// One rank asks for something else than the others: every one of them in turn, in every way.
    pub(crate) fn mismatches(&mut self) -> Result<()> {
        let ranks = self.kolo.size();
        for odd in 0..ranks {
            for way in Way::ALL {
                for count in [5, 2000] {
                    if ranks > 1 {
                        self.mismatch(way, odd, count)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The ranks of the first host wait for a root on the last, all others for one on the first. So no message tells them:
    /// the hosts have to ask each other.
    pub(crate) fn roots_across_hosts(&mut self) -> Result<()> {
        if self.local {
            return Ok(());
        }
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let mut hosts = vec![0; ranks];
        self.world.allgather(&[self.kolo.cross_rank() as u64], &mut hosts)?;
        let root = |rank: usize| if hosts[rank] == 0 { ranks - 1 } else { 0 };
        for count in [1, 2000, 100_000] {
            let mut data = vec![poison::<f32>(); count];
            let outcome = self.world.broadcast(&mut data, root(me));
            let Err(Error::Poisoned(text)) = outcome else { panic!("{count} elements: {outcome:?}") };
            for view in [0, ranks - 1].map(|root| format!(": broadcast of {count} f32 from rank {root}")) {
                assert!(text.contains(&view), "{text}");
            }
            assert!(same(&data, &vec![poison(); count]), "data moved");
            self.cases += 1;
            self.world = self.kolo.communicator()?;
            self.right_call()?;
        }
        Ok(())
    }

    fn mismatch(&mut self, way: Way, odd: usize, count: usize) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let mut data = vec![poison::<f32>(); count + 1];
        let outcome = if me == odd {
            way.call(&mut self.world, &mut data, count)
        } else {
            way.usual(&mut self.world, &mut data[..count])
        };
        let what = format!("{way:?} of rank {odd}, {count} elements");
        self.cases += 1;
        if self.local {
            let Err(Error::Mismatch(mismatch)) = outcome else { panic!("{what}: {outcome:?}") };
            let views: Vec<(u32, String)> = (0..ranks)
                .map(|rank| (rank as u32, if rank == odd { way.odd_view(count) } else { way.usual_view(count) }))
                .collect();
            assert_eq!(mismatch.views, views, "{what}");
            assert!(same(&data, &vec![poison(); count + 1]), "{what}: data moved");
            return self.right_call();
        }
        // Between hosts some ranks may be done before the mistake is found; no rank waits for long, and those that find it
        // name both views.
        let next = outcome.and_then(|()| self.world.barrier()).and_then(|()| self.world.barrier());
        let Err(Error::Poisoned(text)) = next else { panic!("{what}: {next:?}") };
        assert!(text.contains("make every rank pass the same"), "{what}: {text}");
        let later = self.world.barrier();
        assert!(matches!(later, Err(Error::Poisoned(_))), "{what}: {later:?}");
        self.world = self.kolo.communicator()?;
        self.right_call()
    }
}

fn check_views(outcome: Result<()>, from: usize, sends: &str, to: usize, receives: &str) {
    let Err(Error::Mismatch(mismatch)) = outcome else { panic!("{sends}, {receives}: {outcome:?}") };
    assert_eq!(mismatch.views, [(from as u32, sends.to_owned()), (to as u32, receives.to_owned())]);
}

/// A call that has a wrong argument on the odd rank.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    AllreduceLength,
    AllgatherLength,
    ReduceScatterLength,
    ReduceScatterRows,
    BroadcastRoot,
    ReduceRoot,
    GatherRoot,
    ScattervRoot,
    AlltoallLength,
    AlltoallvCounts,
    AllreduceType,
    ReduceScatterType,
    ReduceWhole,
}

impl Wrong {
    const ALL: [Self; 13] = [
        Self::AllreduceLength,
        Self::AllgatherLength,
        Self::ReduceScatterLength,
        Self::ReduceScatterRows,
        Self::BroadcastRoot,
        Self::ReduceRoot,
        Self::GatherRoot,
        Self::ScattervRoot,
        Self::AlltoallLength,
        Self::AlltoallvCounts,
        Self::AllreduceType,
        Self::ReduceScatterType,
        Self::ReduceWhole,
    ];

    fn call(self, world: &mut Communicator, wrong: bool) -> Result<()> {
        let ranks = world.size();
        let (input, mut output) = (vec![0.0_f32; 3 * ranks], vec![0.0_f32; 3 * ranks]);
        let root = if wrong { [ranks, usize::MAX][world.rank() % 2] } else { 0 };
        let one = usize::from(wrong);
        let op = |other| if wrong { other } else { ReduceOp::Sum };
        match self {
            Self::AllreduceLength => world.allreduce_into(&input, &mut output[one..], ReduceOp::Sum),
            Self::AllgatherLength => world.allgather(&input[..3 - one], &mut output),
            Self::ReduceScatterLength => world.reduce_scatter(&input, &mut output[..3 - one], ReduceOp::Max),
            Self::ReduceScatterRows => world.reduce_scatter_rows(&input[one..], 3, &mut output[..3], ReduceOp::Max),
            Self::BroadcastRoot => world.broadcast(&mut output, root),
            Self::ReduceRoot => world.reduce(&mut output, ReduceOp::Sum, root),
            Self::GatherRoot => world.gatherv(&input, root).map(drop),
            Self::ScattervRoot => world.scatterv(&input, &vec![3; ranks], root).map(drop),
            Self::AlltoallLength => world.alltoall(&input, &mut output[one..]),
            Self::AlltoallvCounts => world.alltoallv(&input, &vec![3 + one; ranks]).map(drop),
            Self::AllreduceType => world.allreduce(&mut output, op(ReduceOp::And)),
            Self::ReduceScatterType => world.reduce_scatter(&input, &mut output[..3], op(ReduceOp::Xor)),
            Self::ReduceWhole => world.reduce(&mut output, op(ReduceOp::Adasum), 0),
        }
    }

    /// What the error must say.
    fn words(self, ranks: usize) -> Vec<String> {
        let words: &[&str] = match self {
            Self::AllreduceLength => &["allreduce of", "equally long"],
            Self::AllgatherLength => &["allgather of 2 elements", "size times"],
            Self::ReduceScatterLength => &["into 2", "gets 3"],
            Self::ReduceScatterRows => &["in rows of 3", "whole rows"],
            Self::BroadcastRoot => &["broadcast root"],
            Self::ReduceRoot => &["reduce root"],
            Self::GatherRoot => &["gather root"],
            Self::ScattervRoot => &["scatter root"],
            Self::AlltoallLength => &["alltoall of", "one block for each rank"],
            Self::AlltoallvCounts => &["alltoallv of", "one count for each"],
            Self::AllreduceType => &["and does not take f32, only i32", "reduce it by sum"],
            Self::ReduceScatterType => &["xor does not take f32"],
            Self::ReduceWhole => &["adasum combines whole tensors", "use allreduce"],
        };
        let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        if words[0].ends_with("root") {
            words.push(format!("its ranks are 0 to {}", ranks - 1));
        }
        words
    }
}

/// In what the odd rank differs.
#[derive(Clone, Copy, Debug)]
enum Way {
    Type,
    Count,
    Op,
    Kind,
    Root,
}

impl Way {
    const ALL: [Self; 5] = [Self::Type, Self::Count, Self::Op, Self::Kind, Self::Root];

    fn usual(self, world: &mut Communicator, data: &mut [f32]) -> Result<()> {
        match self {
            Self::Root => world.broadcast(data, 0),
            _ => world.allreduce(data, ReduceOp::Sum),
        }
    }

    fn usual_view(self, count: usize) -> String {
        match self {
            Self::Root => format!("broadcast of {count} f32 from rank 0"),
            _ => format!("allreduce sum of {count} f32"),
        }
    }

    /// `data` has one element more than `count`.
    fn call(self, world: &mut Communicator, data: &mut [f32], count: usize) -> Result<()> {
        match self {
            Self::Type => world.allreduce(bytemuck::cast_slice_mut::<f32, i32>(&mut data[..count]), ReduceOp::Sum),
            Self::Count => world.allreduce(data, ReduceOp::Sum),
            Self::Op => world.allreduce(&mut data[..count], ReduceOp::Max),
            Self::Kind => world.barrier(),
            Self::Root => world.broadcast(&mut data[..count], 1),
        }
    }

    fn odd_view(self, count: usize) -> String {
        match self {
            Self::Type => format!("allreduce sum of {count} i32"),
            Self::Count => format!("allreduce sum of {} f32", count + 1),
            Self::Op => format!("allreduce max of {count} f32"),
            Self::Kind => "barrier".to_owned(),
            Self::Root => format!("broadcast of {count} f32 from rank 1"),
        }
    }
}
