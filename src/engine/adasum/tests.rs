//! Adasum on every layout, against the tree of pairs in f64: fused, alone, on one host and on several.

use std::collections::HashMap;

use half::{bf16, f16};

use super::Blocks;
use super::weights::tests::{adasum, weights_of};
use crate::engine::testing::{Random, Shape, run};
use crate::engine::{Channel, Collective, Operation, Pieces, Prescale};
use crate::error::Error;
use crate::tensor::{DType, Element, Piece, RawSlice, ReduceOp};

/// Shorter and longer than a block, and none.
const LENGTHS: [usize; 7] = [5, 0, 1, 700, 9001, 33, 8192];

trait Float: Element {
    /// Half a unit in the last place, relative.
    const UNIT: f64;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

macro_rules! float {
    ($($t:ty: $bits:expr, $from:expr, $to:expr;)*) => {$(
        impl Float for $t {
            const UNIT: f64 = 1.0 / (1_u64 << $bits) as f64;

            fn from_f64(value: f64) -> Self {
                $from(value)
            }

            fn to_f64(self) -> f64 {
                $to(self)
            }
        }
    )*};
}

float! {
    f16: 11, f16::from_f64, f16::to_f64;
    bf16: 8, bf16::from_f64, bf16::to_f64;
    f32: 24, |value| value as f32, f64::from;
    f64: 53, |value| value, |value| value;
}

/// Each rank's tensors: something in common, and something of its own.
fn tensors<T: Float>(ranks: usize, random: &mut Random) -> Vec<Vec<Vec<T>>> {
    let mut value = || (random.any() % 20_001) as f64 / 1e4 - 1.0;
    let common: Vec<Vec<f64>> = LENGTHS.map(|len| (0..len).map(|_| value()).collect()).into();
    let own = |common: &Vec<f64>, value: &mut dyn FnMut() -> f64| -> Vec<T> {
        common.iter().map(|common| T::from_f64(common + 0.8 * value())).collect()
    };
    (0..ranks).map(|_| common.iter().map(|common| own(common, &mut value)).collect()).collect()
}

/// Runs one Adasum on all ranks, in place of the tensors that `which` names, as one list.
fn reduce<T: Float>(
    channels: &mut [Channel],
    data: &mut [Vec<Vec<T>>],
    which: std::ops::Range<usize>,
    factors: (f64, f64),
    random: &mut Random,
) {
    for (channel, tensors) in channels.iter_mut().zip(data) {
        let tensors = &mut tensors[which.clone()];
        let count = tensors.iter().map(Vec::len).sum();
        let pieces: Vec<Piece> = tensors.iter_mut().map(|tensor| Piece::in_place(RawSlice::of_mut(tensor))).collect();
        let pieces = if let [piece] = pieces[..] { Pieces::One([piece]) } else { Pieces::Many(pieces) };
        let operation = Operation::new(Collective::Allreduce(ReduceOp::Adasum), T::DTYPE, count, None);
        let (prescale, postscale) = (Prescale::All(factors.0), factors.1);
        channel.begin(Operation { pieces, prescale, postscale, ..operation }).unwrap();
    }
    run(channels, random).into_iter().for_each(|end| end.unwrap());
}

fn bits<T: Float>(tensors: &[Vec<T>]) -> Vec<&[u8]> {
    tensors.iter().map(|tensor| bytemuck::cast_slice(tensor)).collect()
}

/// What must come out, per tensor, and how far it may be from that: a rounding of each weighted term and one of the sum.
fn check<T: Float>(inputs: &[Vec<Vec<T>>], got: &[Vec<T>], factor: f64, what: &str) {
    for tensor in 0..LENGTHS.len() {
        let wide = |rank: &Vec<Vec<T>>| rank[tensor].iter().map(|value| value.to_f64()).collect();
        let vectors: Vec<Vec<f64>> = inputs.iter().map(wide).collect();
        let (expected, weights) = (adasum(&vectors), weights_of(&vectors));
        for (at, (got, expected)) in got[tensor].iter().zip(expected).enumerate() {
            let terms: f64 = vectors.iter().zip(&weights).map(|(vector, weight)| (vector[at] * weight).abs()).sum();
            let error = (4.0 * T::UNIT).max(1e-11) * (terms + expected.abs()) * factor.abs() + 1e-7 * T::UNIT;
            let (got, expected) = (got.to_f64(), expected * factor);
            assert!((got - expected).abs() <= error, "{what}, {at} of tensor {tensor}: {got}, not {expected}");
        }
    }
}

fn every_layout<T: Float>() {
    let mut layouts: Vec<Vec<usize>> = (1..=9).map(|ranks| vec![ranks]).collect();
    layouts.extend([vec![1, 1], vec![2, 2], vec![3, 1], vec![1, 3, 2], vec![2, 1, 2, 1]]);
    // By number of ranks: the same bits on one host and on several.
    let mut on_one_host: HashMap<usize, Vec<Vec<T>>> = HashMap::new();
    let mut random = Random::new(T::DTYPE as u64);
    for hosts in layouts {
        let ranks: usize = hosts.iter().sum();
        let what = format!("{hosts:?} {}", T::DTYPE);
        let inputs = tensors::<T>(ranks, &mut Random::new(ranks as u64));
        let mut channels = Shape { hosts, seed: random.any(), ..Shape::one_host(1) }.channels();
        let mut fused = inputs.clone();
        reduce(&mut channels, &mut fused, 0..LENGTHS.len(), (1.0, 1.0), &mut random);
        check(&inputs, &fused[0], 1.0, &what);
        let mut alone = inputs.clone();
        for tensor in 0..LENGTHS.len() {
            reduce(&mut channels, &mut alone, tensor..tensor + 1, (1.0, 1.0), &mut random);
        }
        for (rank, (fused, alone)) in fused.iter().zip(&alone).enumerate() {
            assert_eq!(bits(fused), bits(alone), "{what}: rank {rank}, fused and alone");
        }
        assert!(fused.iter().all(|rank| bits(rank) == bits(&fused[0])), "{what}: the same on every rank");
        let before = on_one_host.entry(ranks).or_insert_with(|| fused[0].clone());
        assert_eq!(bits(before), bits(&fused[0]), "{what}: as on one host");
        // Others of the same communicator still match.
        let mut scaled = inputs.clone();
        reduce(&mut channels, &mut scaled, 0..LENGTHS.len(), (0.5, -4.0), &mut random);
        check(&inputs, &scaled[0], -2.0, &what);
    }
}

#[test]
fn f16_on_every_layout() {
    every_layout::<f16>();
}

#[test]
fn bf16_on_every_layout() {
    every_layout::<bf16>();
}

#[test]
fn f32_on_every_layout() {
    every_layout::<f32>();
}

#[test]
fn f64_on_every_layout() {
    every_layout::<f64>();
}

/// Tiny and huge values, zeros, and what is no number.
#[test]
fn extremes() {
    let mut random = Random::new(1);
    for hosts in [vec![3], vec![2, 1]] {
        let mut channels = Shape { hosts: hosts.clone(), ..Shape::one_host(1) }.channels();
        let mut one = |rows: [[f32; 2]; 3], channels: &mut [Channel]| -> [f32; 2] {
            let mut data: Vec<Vec<Vec<f32>>> = rows.iter().map(|row| vec![row.to_vec()]).collect();
            reduce(channels, &mut data, 0..1, (1.0, 1.0), &mut random);
            assert!(data.iter().all(|rank| bits(rank) == bits(&data[0])), "{hosts:?} {rows:?}: the same on every rank");
            data[0][0].as_slice().try_into().unwrap()
        };
        for scale in [1.0, f32::MIN_POSITIVE, 1e-45, 1e38] {
            let orthogonal = one([[scale, 0.0], [0.0, scale], [0.0; 2]], &mut channels);
            assert_eq!(orthogonal, [scale; 2], "{hosts:?} {scale}");
            let equal = one([[scale, scale]; 3], &mut channels);
            let halves = [scale * 0.25 + scale * 0.25 + scale * 0.5; 2];
            assert_eq!(equal, halves, "{hosts:?} {scale}");
        }
        assert_eq!(one([[0.0; 2]; 3], &mut channels), [0.0; 2]);
        assert_eq!(one([[1.0, 2.0], [-1.0, -2.0], [3.0, 4.0]], &mut channels), [3.0, 4.0], "{hosts:?}: opposed");
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let found = one([[1.0, 2.0], [wrong, 1.0], [1.0, 1.0]], &mut channels);
            assert!(found.iter().all(|value| value.is_nan()), "{hosts:?} {wrong}: {found:?}");
        }
    }
}

/// A rank that asks for something else: an error on every rank, and the next operation works.
#[test]
fn a_mismatch_ends_all_stages_at_the_first() {
    let mut random = Random::new(9);
    for odd in 0..3 {
        for count in [1, 6000] {
            let mut channels = Shape::one_host(3).channels();
            let mut data = vec![vec![1.0_f32; count]; 3];
            for (rank, (channel, data)) in channels.iter_mut().zip(&mut data).enumerate() {
                let op = if rank == odd { ReduceOp::Sum } else { ReduceOp::Adasum };
                let piece = Piece::in_place(RawSlice::of_mut(data));
                channel.begin(Operation::new(Collective::Allreduce(op), DType::F32, count, Some(piece))).unwrap();
            }
            for end in run(&mut channels, &mut random) {
                let Err(Error::Mismatch(mismatch)) = end else { panic!("{end:?}") };
                let view = |rank| if rank == odd { "sum" } else { "adasum" };
                for (rank, (_, text)) in mismatch.views.iter().enumerate() {
                    assert_eq!(*text, format!("allreduce {} of {count} f32", view(rank)));
                }
            }
            assert!(data.iter().flatten().all(|value| *value == 1.0), "nothing moved");
            let mut tensors: Vec<Vec<Vec<f32>>> = data.into_iter().map(|tensor| vec![tensor]).collect();
            reduce(&mut channels, &mut tensors, 0..1, (1.0, 1.0), &mut random);
            assert!(tensors.iter().flatten().flatten().all(|value| *value == 1.0), "of equals, the same");
        }
    }
}

#[test]
fn blocks_end_with_their_tensors_and_portions_are_no_longer_than_blocks() {
    for lengths in [&[][..], &[0], &[5, 0, 10, 11, 1, 1, 1, 25], &[10, 10, 3], &[1; 30], &[100]] {
        let blocks = Blocks::new(lengths.iter().copied(), 10);
        let mut expected = Vec::new();
        let mut at = 0;
        for (tensor, length) in lengths.iter().enumerate() {
            for done in (0..*length).step_by(10) {
                expected.push((tensor, at + length.min(&(done + 10))));
            }
            at += length;
        }
        assert_eq!(blocks.ends, expected, "{lengths:?}");
        let cuts = blocks.cuts();
        assert_eq!((cuts[0], cuts[cuts.len() - 1]), (0, at));
        assert!(cuts.windows(2).all(|cut| cut[1] - cut[0] <= 10), "{lengths:?}: {cuts:?}");
        // No two neighbours would fit together.
        assert!(cuts.windows(3).all(|cut| cut[2] - cut[0] > 10 || cut[2] == at), "{lengths:?}: {cuts:?}");
    }
}
