//! Random data whose reduction is known exactly.
//!
//! Every rank's values repeat with a prime period, so that data displaced by any power of two shows, and start at
//! another place in each iteration, so that a result left over from the iteration before shows. The values are small
//! whole numbers: every type holds their reductions exactly (averages round once), in whatever order they are added.

use kolo::{ReduceOp, bf16, f16};

/// Values before the pattern repeats: a prime, and 1 to 8 KiB of any type, so that writing it is bound by the writes.
pub(crate) const PERIOD: usize = 1021;

/// An element type that can hold a whole number, or the quotient of two.
pub(crate) trait Sample: kolo::Reducible {
    /// `numerator / denominator` as a reduction computes it: floats round once, integers truncate and wrap.
    fn of(numerator: i64, denominator: i64) -> Self;
}

macro_rules! sample {
    (whole: $($whole:ty),*; float: $($float:ty => $convert:expr),*) => {
        $(impl Sample for $whole {
            fn of(numerator: i64, denominator: i64) -> Self {
                (numerator / denominator) as Self
            }
        })*
        $(impl Sample for $float {
            fn of(numerator: i64, denominator: i64) -> Self {
                $convert(numerator as f64 / denominator as f64)
            }
        })*
    };
}

sample! {
    whole: i8, i16, i32, i64, u8, u16, u32, u64;
    float: f16 => f16::from_f64, bf16 => bf16::from_f64, f32 => |x| x as f32, f64 => |x| x
}

/// What one rank contributes, and what the reduction over all ranks must give.
#[derive(Debug)]
pub(crate) struct Pattern<T> {
    own: Vec<T>,
    expected: Vec<T>,
    poison: T,
}

impl<T: Sample> Pattern<T> {
    pub(crate) fn new(rank: usize, ranks: usize, op: ReduceOp) -> Self {
        let own = (0..PERIOD).map(|i| T::of(value(op, rank, ranks, i), 1)).collect();
        let expected = (0..PERIOD)
            .map(|i| {
                let values = (0..ranks).map(|rank| value(op, rank, ranks, i));
                match op {
                    ReduceOp::Sum => T::of(values.sum(), 1),
                    ReduceOp::Average => T::of(values.sum(), ranks as i64),
                    ReduceOp::Min => T::of(values.min().unwrap_or(0), 1),
                    ReduceOp::Max => T::of(values.max().unwrap_or(0), 1),
                    ReduceOp::Product => T::of(values.product(), 1),
                    ReduceOp::And => T::of(values.fold(!0, |all, value| all & value), 1),
                    ReduceOp::Or => T::of(values.fold(0, |all, value| all | value), 1),
                    ReduceOp::Xor => T::of(values.fold(0, |all, value| all ^ value), 1),
                    other => unreachable!("the command line admits no {other}"),
                }
            })
            .collect();
        // No reduction of the values gives it: sums end at 127, products at 6, and what bits make at 15.
        Self { own, expected, poison: T::of(250, 1) }
    }

    /// Writes this rank's input.
    pub(crate) fn fill(&self, data: &mut [T], shift: usize) {
        for (chunk, tile) in tiles(data.len(), shift) {
            data[chunk].copy_from_slice(&self.own[tile]);
        }
    }

    /// Writes one value into each cache line of the input: afterwards this core owns all of it, as if it had written it.
    pub(crate) fn touch(&self, data: &mut [T], shift: usize) {
        let value = self.own[shift % PERIOD];
        for element in data.iter_mut().step_by(64 / size_of::<T>()) {
            *element = value;
        }
    }

    /// Overwrites an output, so that what is not written later shows.
    pub(crate) fn poison(&self, data: &mut [T]) {
        data.fill(self.poison);
    }

    /// How many values are not what the reduction must give.
    pub(crate) fn wrong(&self, data: &[T], shift: usize) -> u64 {
        tiles(data.len(), shift)
            .map(|(chunk, tile)| (&data[chunk], &self.expected[tile]))
            .filter(|(got, expected)| got != expected)
            .map(|(got, expected)| got.iter().zip(expected).filter(|(got, expected)| got != expected).count() as u64)
            .sum()
    }
}

/// Cuts `0..len` where the pattern, entered at `shift`, starts over: (part of the data, part of the pattern).
fn tiles(len: usize, shift: usize) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut at = 0;
    let mut tile = shift % PERIOD;
    std::iter::from_fn(move || {
        let n = (PERIOD - tile).min(len - at);
        if n == 0 {
            return None;
        }
        let parts = (at..at + n, tile..tile + n);
        at += n;
        tile = 0;
        Some(parts)
    })
}

/// What `rank` contributes at a place of the pattern.
fn value(op: ReduceOp, rank: usize, ranks: usize, place: usize) -> i64 {
    if op == ReduceOp::Product {
        // A single 2 and a single 3 among ones: 6 at most, exact in every type for any number of ranks.
        let two = random(place as u64) % ranks as u64 == rank as u64;
        let three = random(place as u64 + (1 << 32)) % ranks as u64 == rank as u64;
        return if two { 2 } else { 1 } * if three { 3 } else { 1 };
    }
    // 7 bits hold every sum: bf16 has 8, and i8 would wrap.
    let largest = (124 / ranks as u64).clamp(1, 8);
    (random(((rank as u64) << 32) + place as u64) % (largest + 1)) as i64
}

/// Splitmix64: a well-mixed number for each seed.
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce<T: Sample + std::ops::Add<Output = T>>(ranks: usize, len: usize, shift: usize) -> Vec<T> {
        let mut sum = vec![T::of(0, 1); len];
        let mut data = sum.clone();
        for rank in 0..ranks {
            Pattern::new(rank, ranks, ReduceOp::Sum).fill(&mut data, shift);
            for (sum, value) in sum.iter_mut().zip(&data) {
                *sum = *sum + *value;
            }
        }
        sum
    }

    fn sums_are_expected<T: Sample + std::ops::Add<Output = T>>() {
        for ranks in [1, 2, 3, 16] {
            for (len, shift) in [(0, 0), (1, 5), (PERIOD - 1, 1), (3 * PERIOD + 7, PERIOD - 1), (100, 3 * PERIOD)] {
                let sum = reduce::<T>(ranks, len, shift);
                let pattern = Pattern::<T>::new(0, ranks, ReduceOp::Sum);
                assert_eq!(pattern.wrong(&sum, shift), 0, "{ranks} ranks, {len} values, shift {shift}");
            }
        }
    }

    #[test]
    fn sums_are_exact_in_every_type() {
        sums_are_expected::<f16>();
        sums_are_expected::<bf16>();
        sums_are_expected::<f32>();
        sums_are_expected::<f64>();
        sums_are_expected::<i16>();
        sums_are_expected::<i32>();
        sums_are_expected::<i64>();
        sums_are_expected::<u8>();
        sums_are_expected::<u16>();
        sums_are_expected::<u32>();
        sums_are_expected::<u64>();
    }

    #[test]
    fn displaced_stale_and_missing_data_show() {
        let pattern = Pattern::<f32>::new(0, 2, ReduceOp::Sum);
        let good = reduce::<f32>(2, 1 << 16, 17);
        let mut bad = good.clone();
        bad[5] += 1.0;
        assert_eq!(pattern.wrong(&bad, 17), 1);
        let mut bad = good.clone();
        bad.rotate_left(1 << 14);
        assert!(pattern.wrong(&bad, 17) > 1 << 14);
        assert!(pattern.wrong(&good, 18) > 1 << 14, "another iteration's result");
        let mut bad = good.clone();
        pattern.poison(&mut bad[100..200]);
        assert_eq!(pattern.wrong(&bad, 17), 100);
    }

    #[test]
    fn other_operations() {
        let expected = |op| Pattern::<f32>::new(0, 3, op).expected;
        let values: Vec<Vec<f32>> = (0..3).map(|rank| Pattern::<f32>::new(rank, 3, ReduceOp::Sum).own).collect();
        let (average, min, max) = (expected(ReduceOp::Average), expected(ReduceOp::Min), expected(ReduceOp::Max));
        for i in 0..PERIOD {
            let (a, b, c) = (values[0][i], values[1][i], values[2][i]);
            assert_eq!((average[i], min[i], max[i]), ((a + b + c) / 3.0, a.min(b).min(c), a.max(b).max(c)));
        }
        assert!(expected(ReduceOp::Product).iter().all(|product| *product == 6.0));
        let average = Pattern::<i32>::new(0, 2, ReduceOp::Average);
        let (a, b) = (value(ReduceOp::Average, 0, 2, 9), value(ReduceOp::Average, 1, 2, 9));
        assert_eq!(i64::from(average.expected[9]), (a + b) / 2);
    }

    #[test]
    fn touching_writes_every_cache_line() {
        let pattern = Pattern::<f64>::new(0, 1, ReduceOp::Sum);
        let mut data = vec![-1.0; 64];
        pattern.touch(&mut data, 3);
        assert!(data.chunks(8).all(|line| line[0] != -1.0 && line[1] == -1.0));
    }
}
