//! The forms of operations between ranks that are threads: in place and apart, owned and borrowed, blocking and not, which the
//! ranks mix; and the mistakes that each can make.

use std::time::Duration;

use crate::communicator::Communicator;
use crate::error::{Error, Result};
use crate::handle::Options;
use crate::runtime::{Builder, Kolo};
use crate::tensor::ReduceOp;

const SUM: ReduceOp = ReduceOp::Sum;

fn job() -> Builder {
    Builder::new().knob("KOLO_DEADLINE", "60s").knob("KOLO_SLOT_BYTES", "4KiB")
}

/// Runs it on ranks of one host and of several.
fn on_ranks(program: impl Fn(&Kolo) -> Result<()> + Sync) {
    for hosts in [&[1][..], &[2], &[3], &[1, 1], &[2, 1]] {
        let ranks = hosts.iter().sum();
        let outcomes = job().hosts(hosts.iter().copied()).threads(ranks, &program).expect("no rank panics");
        for (rank, outcome) in outcomes.into_iter().enumerate() {
            outcome.unwrap_or_else(|error| panic!("rank {rank} of {hosts:?}: {error}"));
        }
    }
}

/// What a rank has, with fractions: the order of a sum shows in its bits.
fn elements(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|at| ((rank * 7919 + at * 31) % 1009) as f32 / 7.0).collect()
}

/// What nothing has written.
const POISON: f32 = -7.5;

/// Room for elements, at an address that only their type aligns when `skip` is odd.
fn room(skip: usize, count: usize) -> Vec<f32> {
    vec![POISON; skip + count]
}

/// The lengths that take different ways: none, in a line, in a slot, in several.
const COUNTS: [usize; 4] = [0, 5, 300, 5000];

/// One sum in one of the forms by name.
fn named(kolo: &Kolo, form: usize, mine: &[f32]) -> Result<Vec<f32>> {
    let (count, skip) = (mine.len(), 1 + form % 2);
    let mut output = room(skip, count);
    match form % 8 {
        0 => kolo.allreduce_into("x", mine, &mut output[skip..], SUM)?,
        1 => {
            output[skip..].copy_from_slice(mine);
            kolo.allreduce("x", &mut output[skip..], SUM)?;
        }
        2 => {
            let mut shared = kolo.alloc(count)?;
            shared.copy_from_slice(mine);
            let (shared, sum) = kolo.allreduce_into_async("x", shared, room(0, count), SUM)?.wait()?;
            assert_eq!(*shared, *mine);
            return Ok(sum);
        }
        3 => return kolo.allreduce_async("x", mine.to_vec(), SUM)?.wait(),
        4 => {
            let handle = kolo.allreduce_into_async("x", mine.to_vec(), kolo.alloc(count)?, SUM)?;
            let (input, sum) = handle.wait()?;
            assert_eq!(input, mine);
            return Ok(sum.to_vec());
        }
        5 => kolo.scope(|scope| scope.allreduce_into_async("x", mine, &mut output[skip..], SUM)?.wait())?,
        6 => {
            let options = Options { deadline: Some(Duration::from_secs(50)), ..Options::default() };
            kolo.allreduce_into_with("x", mine, &mut output[skip..], SUM, &options)?;
        }
        _ => {
            output[skip..].copy_from_slice(mine);
            kolo.scope(|scope| scope.allreduce_async("x", &mut output[skip..], SUM)?.wait())?;
        }
    }
    assert_eq!(output[..skip], room(skip, 0), "what lies before is nobody's");
    Ok(output.split_off(skip))
}

/// The same in one of the forms by order.
fn ordered(world: &mut Communicator, form: usize, mine: &[f32]) -> Result<Vec<f32>> {
    let mut output = room(0, mine.len());
    match form % 4 {
        0 => world.allreduce_into(mine, &mut output, SUM)?,
        1 => {
            output.copy_from_slice(mine);
            world.allreduce(&mut output, SUM)?;
        }
        2 => {
            let (input, sum) = world.allreduce_into_async(mine.to_vec(), output, SUM)?.wait()?;
            assert_eq!(input, mine);
            return Ok(sum);
        }
        _ => return world.allreduce_async(mine.to_vec(), SUM)?.wait(),
    }
    Ok(output)
}

#[test]
fn ranks_may_each_reduce_in_a_form_of_their_own() {
    on_ranks(|kolo| {
        let mut world = kolo.communicator()?;
        for count in COUNTS {
            let mine = elements(kolo.rank(), count);
            let mut first: Option<Vec<f32>> = None;
            for turn in 0..8 {
                // Another pair of forms meets in each turn.
                let form = kolo.rank() * (1 + turn / 2) + turn;
                let by_name = named(kolo, form, &mine)?;
                let by_order = ordered(&mut world, form, &mine)?;
                let first = first.get_or_insert_with(|| by_name.clone());
                assert!(by_name == *first && by_order == *first, "{count} elements, turn {turn}");
            }
            let sums = first.expect("eight turns");
            let rows: Vec<Vec<f32>> = (0..kolo.size()).map(|rank| elements(rank, count)).collect();
            let wide = |at: usize| rows.iter().map(|row| f64::from(row[at])).sum::<f64>();
            let close = |(at, sum): (usize, &f32)| (f64::from(*sum) - wide(at)).abs() < 1e-3;
            assert!(sums.iter().enumerate().all(close), "{count} elements");
        }
        Ok(())
    });
}

#[test]
fn groups_and_reductions_to_a_root_go_from_one_place_into_another() {
    on_ranks(|kolo| {
        let (ranks, me) = (kolo.size(), kolo.rank());
        let mut world = kolo.communicator()?;
        // Whole numbers: exact in whatever order.
        let inputs = [vec![me as i64 + 1; 700], vec![], vec![2; 3]];
        let sum = (ranks * (ranks + 1) / 2) as i64;
        let want = [vec![sum; 700], vec![], vec![2 * ranks as i64; 3]];
        let views: Vec<&[i64]> = inputs.iter().map(Vec::as_slice).collect();
        for turn in 0..6 {
            let mut outputs = inputs.clone().map(|input| vec![-1; input.len()]);
            let mut slices: Vec<&mut [i64]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            match (turn + me) % 6 {
                0 => kolo.allreduce_group_into("g", &views, &mut slices, SUM)?,
                1 => kolo.scope(|scope| scope.allreduce_group_into_async("g", &views, slices, SUM)?.wait())?,
                2 => {
                    let (inputs, outputs) = (inputs.to_vec(), outputs.to_vec());
                    let (back, sums) = kolo.allreduce_group_into_async("g", inputs, outputs, SUM)?.wait()?;
                    assert!(back == views && sums == want);
                    outputs_are(&mut world, &views, &want)?;
                    continue;
                }
                3 => {
                    assert!(kolo.allreduce_group_async("g", inputs.to_vec(), SUM)?.wait()? == want);
                    outputs_are(&mut world, &views, &want)?;
                    continue;
                }
                in_place => {
                    slices.iter_mut().zip(&views).for_each(|(slice, input)| slice.copy_from_slice(input));
                    if in_place == 4 {
                        kolo.allreduce_group("g", &mut slices, SUM)?;
                    } else {
                        kolo.scope(|scope| scope.allreduce_group_async("g", slices, SUM)?.wait())?;
                    }
                }
            }
            assert!(outputs == want, "turn {turn}");
            outputs_are(&mut world, &views, &want)?;
        }
        for root in 0..ranks {
            // What is not looked at may have any length.
            let len = if me == root { 700 } else { 9 * me };
            let mut output = vec![-1; len];
            kolo.reduce_into("r", &inputs[0], &mut output, SUM, root)?;
            assert!(output == vec![if me == root { sum } else { -1 }; len], "to {root}");
            let (back, output) = kolo.reduce_into_async("r", inputs[0].clone(), vec![-1; len], SUM, root)?.wait()?;
            assert!(back == inputs[0] && output == vec![if me == root { sum } else { -1 }; len], "to {root}");
            let handle = world.reduce_into_async(inputs[0].clone(), vec![-1; len], SUM, root)?;
            let (back, output) = handle.wait()?;
            assert!(back == inputs[0] && output == vec![if me == root { sum } else { -1 }; len], "to {root}");
        }
        Ok(())
    });
}

/// The group by order, blocking and not.
fn outputs_are(world: &mut Communicator, inputs: &[&[i64]], want: &[Vec<i64>]) -> Result<()> {
    let mut outputs: Vec<Vec<i64>> = inputs.iter().map(|input| vec![-1; input.len()]).collect();
    let owned = inputs.iter().map(|input| input.to_vec()).collect();
    let (back, sums) = world.allreduce_group_into_async(owned, outputs.clone(), SUM)?.wait()?;
    let mut slices: Vec<&mut [i64]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    world.allreduce_group_into(inputs, &mut slices, SUM)?;
    assert!(back == inputs && sums == want && outputs == want);
    Ok(())
}

/// The text of an argument error.
fn argument<R>(outcome: Result<R>) -> String {
    match outcome {
        Err(Error::Argument(text)) => text.to_string(),
        Err(error) => panic!("no argument error: {error}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn an_output_of_another_length_is_refused_and_the_others_hear_why() {
    on_ranks(|kolo| {
        let (input, mut short) = ([1.0_f32; 6], [POISON; 5]);
        let wrong = |turn: usize, short: &mut [f32]| -> String {
            match turn {
                0 => argument(kolo.allreduce_into("x", &input, short, SUM)),
                1 => argument(kolo.allreduce_into_async("x", input.to_vec(), short.to_vec(), SUM)),
                2 => argument(kolo.scope(|scope| scope.allreduce_into_async("x", &input, short, SUM)?.wait())),
                3 => argument(kolo.reduce_into("x", &input, short, SUM, 0)),
                4 => argument(kolo.allreduce_group_into("x", &[&input], &mut [short], SUM)),
                5 => argument(kolo.allreduce_group_into("x", &[&input, &input], &mut [short], SUM)),
                _ => argument(kolo.allreduce_group_into_async("x", vec![input.to_vec()], vec![short.to_vec()], SUM)),
            }
        };
        for turn in 0..7 {
            let reason = ["6 elements into 5", "2 tensors into 1"][usize::from(turn == 5)];
            if kolo.rank() == 0 {
                let text = wrong(turn, &mut short);
                assert!(text.contains(reason) && text.contains("'x'"), "{text}");
            } else {
                let Err(Error::Mismatch(mismatch)) = kolo.allreduce("x", &mut [1.0_f32; 6], SUM) else {
                    panic!("rank 0 makes a mistake")
                };
                assert!(mismatch.views[0].1.contains(reason), "{mismatch}");
            }
            // A rank alone has nobody who would hear of it.
            kolo.barrier()?;
        }
        assert_eq!((input, short), ([1.0; 6], [POISON; 5]), "nothing has moved");
        Ok(())
    });
}

#[test]
fn by_order_an_output_of_another_length_takes_its_turn() {
    for ranks in 1..=3 {
        let outcomes = job().threads(ranks, |kolo| {
            let mut world = kolo.communicator()?;
            let input = [1.0_f32; 6];
            for turn in 0..4 {
                if kolo.rank() == 0 {
                    let (input, short) = (input.to_vec(), vec![POISON; 5]);
                    let text = match turn {
                        0 => argument(world.allreduce_into_async(input, short, SUM)),
                        1 => argument(world.reduce_into_async(input, short, SUM, 0)),
                        2 => argument(world.allreduce_group_into(&[&input], &mut [&mut [POISON; 5]], SUM)),
                        _ => argument(world.allreduce_group_into_async(vec![input], vec![short], SUM)),
                    };
                    assert!(text.contains("6 elements into 5"), "{text}");
                } else {
                    let outcome = world.allreduce_async(input.to_vec(), SUM)?.wait();
                    let Err(Error::Mismatch(mismatch)) = outcome else { panic!("rank 0 makes a mistake") };
                    assert!(mismatch.views[0].1.contains("refused"), "{mismatch}");
                }
            }
            world.barrier()
        });
        outcomes.expect("no rank panics").into_iter().collect::<Result<Vec<()>>>().expect("no rank fails");
    }
}

#[test]
fn an_input_is_as_it_was_after_a_mismatch_a_timeout_and_a_cancel() {
    on_ranks(|kolo| {
        let (me, last) = (kolo.rank(), kolo.size() - 1);
        let set = kolo.process_set(&(0..kolo.size()).collect::<Vec<_>>())?.expect("all are in it");
        let input = elements(me, 5000);
        if kolo.size() > 1 {
            let mut output = vec![POISON; 5000];
            let op = if me == last { ReduceOp::Max } else { SUM };
            let outcome = set.allreduce_into("x", &input, &mut output, op);
            assert!(matches!(outcome, Err(Error::Mismatch(_))), "{outcome:?}");
            assert!(input == elements(me, 5000) && output == vec![POISON; 5000]);
        }
        // Nobody else submits it before the cancel: the name is taken back.
        if me == last {
            let handle = set.allreduce_into_async("y", input.clone(), vec![POISON; 5000], SUM)?;
            if kolo.size() > 1 {
                let (back, room) = handle.cancel().expect("both come back");
                assert!(back == input && room.len() == 5000);
            } else {
                assert_eq!(handle.wait()?.1, input);
            }
        }
        kolo.barrier()?;
        if kolo.size() > 1 && me < last {
            let options = Options { deadline: Some(Duration::from_millis(20)), ..Options::default() };
            let mut output = vec![POISON; 5000];
            let outcome = set.allreduce_into_with("z", &input, &mut output, SUM, &options);
            // Who is not the first to see it hears that the set is over.
            assert!(matches!(outcome, Err(Error::Timeout { .. } | Error::Poisoned(_))), "{outcome:?}");
            assert!(input == elements(me, 5000));
        }
        kolo.barrier()
    });
}

#[test]
fn a_barrier_waits_for_all_in_whatever_form() {
    on_ranks(|kolo| {
        let late = kolo.size() - 1;
        for turn in 0..4 {
            let early = (kolo.rank() < late).then(|| kolo.world().barrier_async()).transpose()?;
            // All others have come, and the last one has not.
            if kolo.size() > 1 {
                kolo.allreduce("all are here", &mut [1_u8], SUM)?;
                assert!(early.as_ref().is_none_or(|handle| !handle.poll()), "rank {late} has not come");
                if early.is_some() {
                    let text = argument(kolo.barrier_async());
                    assert!(text.contains("'kolo.barrier' is already in flight on this rank"), "{text}");
                }
                kolo.allreduce("all have looked", &mut [1_u8], SUM)?;
            }
            match early {
                Some(handle) => handle.wait()?,
                None if turn % 2 == 0 => kolo.barrier()?,
                None => kolo.barrier_async()?.wait()?,
            }
        }
        Ok(())
    });
}

#[test]
fn scattered_rows_stay_whole_and_wrong_counts_are_refused_on_the_root() {
    struct Matrix(Vec<u16>);

    impl crate::tensor::Tensor for Matrix {
        type Element = u16;

        fn shape(&self) -> Vec<usize> {
            vec![self.0.len() / 3, 3]
        }

        fn as_slice(&self) -> &[u16] {
            &self.0
        }

        fn as_mut_slice(&mut self) -> &mut [u16] {
            &mut self.0
        }
    }

    on_ranks(|kolo| {
        let (ranks, me) = (kolo.size(), kolo.rank());
        for root in 0..ranks {
            let is_root = me == root;
            let rows: Vec<usize> = (0..ranks).map(|rank| if rank == root { 0 } else { rank + 1 }).collect();
            let all = rows.iter().sum::<usize>();
            let matrix = |rows: usize| Matrix((0..rows as u16 * 3).collect());
            // The others have a matrix of their own, and counts that fit nothing.
            let handle = if is_root {
                kolo.scatter_async("rows", matrix(all), &rows, root)?
            } else {
                kolo.scatter_async("rows", matrix(me), &[9], root)?
            };
            let before = rows[..me].iter().sum::<usize>() as u16 * 3;
            assert_eq!(handle.wait()?, (before..before + rows[me] as u16 * 3).collect::<Vec<u16>>(), "from {root}");

            if is_root {
                for wrong in [vec![1; ranks + 1], vec![all + 1; ranks]] {
                    let text = argument(kolo.scatter_async("rows", matrix(all), &wrong, root));
                    assert!(text.contains("pass one count for each rank of the set"), "{text}");
                    kolo.barrier()?;
                }
            } else {
                for _ in 0..2 {
                    let outcome = kolo.scatter_async("rows", Vec::<u16>::new(), &[], root)?.wait();
                    let Err(Error::Mismatch(mismatch)) = outcome else { panic!("{outcome:?}") };
                    assert!(mismatch.views[root].1.contains("blocks of"), "{mismatch}");
                    kolo.barrier()?;
                }
            }
            let text = argument(kolo.scatter_async("nowhere", Vec::<u16>::new(), &[], ranks));
            assert!(text.contains("not in the set"), "{text}");
            kolo.barrier()?;
        }
        Ok(())
    });
}
