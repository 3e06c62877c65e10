//! Every collective, on every layout, under seeded schedules, against plain references.

use super::testing::{Random, Shape, run};
use super::{Collective, Operation, Pieces};
use crate::error::Error;
use crate::plan::Algorithm;
use crate::tensor::{DType, Piece, RawSlice, ReduceOp};

fn inputs(ranks: usize, count: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let value = |random: &mut Random| (random.any() % 2_000_003) as f32 / 1009.0 - 900.0;
    (0..ranks).map(|_| (0..count).map(|_| value(random)).collect()).collect()
}

fn fold(inputs: &[Vec<f32>], op: ReduceOp) -> Vec<f32> {
    let mut result = inputs[0].clone();
    for input in &inputs[1..] {
        for (into, &value) in result.iter_mut().zip(input) {
            *into = match op {
                ReduceOp::Sum | ReduceOp::Average => *into + value,
                ReduceOp::Min => into.min(value),
                ReduceOp::Max => into.max(value),
                ReduceOp::Product => *into * value,
                other => panic!("{other} of floats"),
            };
        }
    }
    if op == ReduceOp::Average {
        result.iter_mut().for_each(|value| *value /= inputs.len() as f32);
    }
    result
}

/// Cuts a buffer into a list of tensors of random lengths, some of them empty.
fn pieces(data: &mut [f32], random: &mut Random) -> Vec<Piece> {
    let mut rest = data;
    let mut list = Vec::new();
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at_mut(random.below(rest.len() + 1));
        list.push(Piece::in_place(RawSlice::of_mut(piece)));
        rest = tail;
    }
    list
}

fn layouts() -> Vec<Vec<usize>> {
    vec![vec![1], vec![2], vec![3], vec![5], vec![17], vec![2, 2], vec![3, 1], vec![1, 1], vec![1, 3, 2]]
}

fn close(got: f32, want: f32) -> bool {
    (got - want).abs() <= 1e-4 * want.abs().max(1000.0)
}

#[test]
fn allreduce_on_every_layout_and_algorithm() {
    let mut random = Random::new(7);
    for hosts in layouts() {
        let ranks: usize = hosts.iter().sum();
        for algorithm in Algorithm::ALL {
            for count in [0, 1, 5, 12, 13, 1000, 1024, 1025, 5000] {
                let op = ReduceOp::ALL[random.below(4)];
                let shape = Shape { algorithm, hosts: hosts.clone(), seed: random.any(), ..Shape::one_host(1) };
                if hosts.len() > 1 && matches!(algorithm, Algorithm::OneShot | Algorithm::TwoShot) {
                    continue;
                }
                let mut channels = shape.channels();
                for round in 0..3 {
                    let mut data = inputs(ranks, count, &mut random);
                    let want = fold(&data, op);
                    for (channel, data) in channels.iter_mut().zip(&mut data) {
                        let list = Pieces::Many(pieces(data, &mut random));
                        let operation = Operation {
                            pieces: list,
                            ..Operation::new(Collective::Allreduce(op), DType::F32, count, None)
                        };
                        channel.begin(operation).unwrap();
                    }
                    for end in run(&mut channels, &mut random) {
                        end.unwrap();
                    }
                    let context = format!("{hosts:?} {algorithm} {op} of {count}, round {round}");
                    for got in &data {
                        assert!(got.iter().zip(&data[0]).all(|(a, b)| a.to_bits() == b.to_bits()), "{context}");
                        assert!(got.iter().zip(&want).all(|(&a, &b)| close(a, b)), "{context}");
                        let ordered =
                            hosts.len() == 1 && matches!(algorithm, Algorithm::Auto) || algorithm.is_ordered();
                        if ordered {
                            assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{context}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_other_collectives_on_every_layout() {
    let mut random = Random::new(11);
    for hosts in layouts() {
        let ranks: usize = hosts.iter().sum();
        let mut channels = Shape { hosts: hosts.clone(), ..Shape::one_host(1) }.channels();
        for count in [0, 1, 7, 100, 1024, 3000] {
            for root in 0..ranks {
                let mut data = inputs(ranks, count, &mut random);
                let want = data[root].clone();
                for (channel, data) in channels.iter_mut().zip(&mut data) {
                    let piece = Piece::in_place(RawSlice::of_mut(data));
                    channel
                        .begin(Operation::new(Collective::Broadcast { root }, DType::F32, count, Some(piece)))
                        .unwrap();
                }
                run(&mut channels, &mut random).into_iter().for_each(|end| end.unwrap());
                assert!(data.iter().all(|got| *got == want), "{hosts:?} broadcast of {count} from {root}");
            }
            let data = inputs(ranks, count, &mut random);
            let mut gathered = vec![vec![-1.0_f32; count * ranks]; ranks];
            for ((channel, input), output) in channels.iter_mut().zip(&data).zip(&mut gathered) {
                let piece = Piece { input: RawSlice::of(input), output: RawSlice::of_mut(output) };
                channel.begin(Operation::new(Collective::Allgather, DType::F32, count, Some(piece))).unwrap();
            }
            run(&mut channels, &mut random).into_iter().for_each(|end| end.unwrap());
            assert!(gathered.iter().all(|got| *got == data.concat()), "{hosts:?} allgather of {count}");

            let data = inputs(ranks, count * ranks, &mut random);
            let want = fold(&data, ReduceOp::Sum);
            let mut blocks = vec![vec![-1.0_f32; count]; ranks];
            for ((channel, input), output) in channels.iter_mut().zip(&data).zip(&mut blocks) {
                let piece = Piece { input: RawSlice::of(input), output: RawSlice::of_mut(output) };
                let collective = Collective::ReduceScatter { op: ReduceOp::Sum, row: 1 };
                channel.begin(Operation::new(collective, DType::F32, count * ranks, Some(piece))).unwrap();
            }
            run(&mut channels, &mut random).into_iter().for_each(|end| end.unwrap());
            let got = blocks.concat();
            assert!(got.iter().zip(&want).all(|(&a, &b)| close(a, b)), "{hosts:?} reduce_scatter of {count}");

            for channel in &mut channels {
                channel.begin(Operation::new(Collective::Barrier, DType::U8, 0, None)).unwrap();
            }
            run(&mut channels, &mut random).into_iter().for_each(|end| end.unwrap());
        }
    }
}

#[test]
fn a_mismatch_is_an_error_on_every_rank_and_the_next_call_works() {
    let mut random = Random::new(3);
    for odd in 0..3 {
        let mut channels = Shape::one_host(3).channels();
        for count in [4, 4000] {
            let mut data = inputs(3, count + 1, &mut random);
            let before = data.clone();
            for (rank, (channel, data)) in channels.iter_mut().zip(&mut data).enumerate() {
                let count = count + usize::from(rank == odd);
                let piece = Piece::in_place(RawSlice::of_mut(&mut data[..count]));
                let collective = Collective::Allreduce(ReduceOp::Sum);
                channel.begin(Operation::new(collective, DType::F32, count, Some(piece))).unwrap();
            }
            for end in run(&mut channels, &mut random) {
                let Err(Error::Mismatch(mismatch)) = end else { panic!("{end:?}") };
                assert_eq!(mismatch.views.len(), 3);
                assert_eq!(mismatch.views[odd], (odd as u32, format!("allreduce sum of {} f32", count + 1)));
            }
            assert_eq!(data, before, "nothing moved");
            let want = fold(&before, ReduceOp::Sum);
            for (channel, data) in channels.iter_mut().zip(&mut data) {
                let piece = Piece::in_place(RawSlice::of_mut(data));
                let collective = Collective::Allreduce(ReduceOp::Sum);
                channel.begin(Operation::new(collective, DType::F32, count + 1, Some(piece))).unwrap();
            }
            run(&mut channels, &mut random).into_iter().for_each(|end| end.unwrap());
            assert!(data.iter().all(|got| *got == want));
        }
    }
}

/// A byte that is no bool: no rank takes it for one, and whoever meets it says where it came from.
#[test]
fn bytes_that_are_no_bools_end_the_operation() {
    let mut random = Random::new(5);
    for hosts in [vec![3], vec![2, 2], vec![1, 2]] {
        let ranks: usize = hosts.iter().sum();
        for count in [1, 49, 4096, 9000] {
            for collective in [Collective::Broadcast { root: 1 }, Collective::Allgather] {
                let shape = Shape { hosts: hosts.clone(), seed: random.any(), ..Shape::one_host(1) };
                let mut channels = shape.channels();
                // Ranks lend bytes, of which those of rank 1 have one wrong.
                let mut inputs = vec![vec![1_u8; count]; ranks];
                inputs[1][random.below(count)] = [2, 3, 0x80, 0xff][random.below(4)];
                let mut outputs = vec![vec![0_u8; count * ranks]; ranks];
                for ((channel, input), output) in channels.iter_mut().zip(&mut inputs).zip(&mut outputs) {
                    let piece = match collective {
                        Collective::Allgather => Piece { input: RawSlice::of(input), output: RawSlice::of_mut(output) },
                        _ => Piece::in_place(RawSlice::of_mut(input)),
                    };
                    channel.begin(Operation::new(collective, DType::Bool, count, Some(piece))).unwrap();
                }
                for (rank, end) in run(&mut channels, &mut random).into_iter().enumerate() {
                    let what = format!("{hosts:?} {collective:?} of {count}, rank {rank}: {end:?}");
                    match end {
                        // The root has nothing to look at, and may be done before the others are.
                        Ok(()) => assert!(rank == 1 && collective != Collective::Allgather, "{what}"),
                        Err(error) => {
                            let text = error.to_string();
                            assert!(text.contains("are no bool") || text.contains("gave up"), "{what}");
                        }
                    }
                }
                let received = inputs.iter().enumerate().filter(|(rank, _)| *rank != 1).flat_map(|(_, input)| input);
                assert!(received.chain(outputs.iter().flatten()).all(|byte| *byte <= 1), "{hosts:?} {collective:?}");
            }
        }
    }
}
