//! Random elements of every type, and what a collective must make of them.

use kolo::{ReduceOp, Reducible, bf16, f16};
pub(crate) use xtask::random::Random;

/// An element type with its references.
pub(crate) trait Sample: Reducible {
    fn draw(random: &mut Random) -> Self;

    /// The reduction in rank order as one process does it: 16-bit floats add up in f32 and round once.
    fn ordered(column: &[Self], op: ReduceOp) -> Self;

    /// Whether `got` is the reduction in whatever order. Integers are exact: sums and products modulo 2^bits, computed in
    /// 128 bits. Floats are compared with f64, and may err by the final rounding, plus a rounding of the accumulator for
    /// each rank, of the sum of magnitudes (of the product's magnitude); times two, for the reference errs as well.
    fn is_close(got: Self, column: &[Self], op: ReduceOp) -> bool;
}

macro_rules! floats {
    ($($t:ty, $accumulator:ty, $rounding:expr, $accumulator_rounding:expr, $least:expr,
       |$from:ident| $widen:expr, |$into:ident| $narrow:expr;)*) => {$(
        impl Sample for $t {
            fn draw(random: &mut Random) -> Self {
                // Magnitudes of 0.5 to 2, either sign: four of them multiply to what f16 can hold.
                let bits = random.any();
                let magnitude = 0.5 + 1.5 * ((bits >> 12) as f64 / (1_u64 << 52) as f64);
                let $into = (if bits & 1 == 0 { magnitude } else { -magnitude }) as $accumulator;
                $narrow
            }

            fn ordered(column: &[Self], op: ReduceOp) -> Self {
                let widen = |&$from: &$t| -> $accumulator { $widen };
                let mut values = column.iter().map(widen);
                let first = values.next().expect("a rank");
                let mut all = values.fold(first, |all, value| match op {
                    ReduceOp::Sum | ReduceOp::Average => all + value,
                    ReduceOp::Product => all * value,
                    ReduceOp::Min => if value.total_cmp(&all).is_lt() { value } else { all },
                    ReduceOp::Max => if value.total_cmp(&all).is_gt() { value } else { all },
                    other => panic!("no reference for {other}"),
                });
                if op == ReduceOp::Average {
                    all /= column.len() as $accumulator;
                }
                let $into = all;
                $narrow
            }

            fn is_close(got: Self, column: &[Self], op: ReduceOp) -> bool {
                let widen = |&$from: &$t| -> f64 { f64::from($widen) };
                let ranks = column.len() as f64;
                let (sum, magnitude): (f64, f64) =
                    column.iter().map(widen).fold((0.0, 0.0), |(sum, all), value| (sum + value, all + value.abs()));
                let product: f64 = column.iter().map(widen).product();
                let (want, magnitude) = match op {
                    ReduceOp::Sum => (sum, magnitude),
                    ReduceOp::Average => (sum / ranks, magnitude / ranks),
                    ReduceOp::Product => (product, product.abs()),
                    _ => return got == Self::ordered(column, op),
                };
                let error: f64 = $rounding * want.abs() + ranks * $accumulator_rounding * magnitude + $least;
                (widen(&got) - want).abs() <= 2.0 * error
            }
        }
    )*};
}

/// Half a unit in the last place, for a significand of so many bits.
const fn half_unit(bits: u32) -> f64 {
    1.0 / (1_u64 << bits) as f64
}

floats! {
    f16, f32, half_unit(11), half_unit(24), half_unit(25), |x| x.to_f32(), |x| f16::from_f32(x);
    bf16, f32, half_unit(8), half_unit(24), 0.0, |x| x.to_f32(), |x| bf16::from_f32(x);
    f32, f32, half_unit(24), half_unit(24), 0.0, |x| x, |x| x;
    f64, f64, half_unit(53), half_unit(53), 0.0, |x| x, |x| x;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Sample for $t {
            fn draw(random: &mut Random) -> Self {
                random.any() as Self
            }

            fn ordered(column: &[Self], op: ReduceOp) -> Self {
                let values = column.iter().map(|&value| i128::from(value));
                match op {
                    ReduceOp::Sum => values.fold(0, i128::wrapping_add) as Self,
                    ReduceOp::Average => {
                        // The wrapped sum, divided where every type holds the count.
                        (i128::from(values.fold(0, i128::wrapping_add) as Self) / column.len() as i128) as Self
                    }
                    ReduceOp::Product => values.fold(1, i128::wrapping_mul) as Self,
                    ReduceOp::Min => values.min().expect("a rank") as Self,
                    ReduceOp::Max => values.max().expect("a rank") as Self,
                    ReduceOp::And => values.fold(!0, |all, value| all & value) as Self,
                    ReduceOp::Or => values.fold(0, |all, value| all | value) as Self,
                    ReduceOp::Xor => values.fold(0, |all, value| all ^ value) as Self,
                    other => panic!("no reference for {other}"),
                }
            }

            fn is_close(got: Self, column: &[Self], op: ReduceOp) -> bool {
                got == Self::ordered(column, op)
            }
        }
    )*};
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

/// What `rank` contributes.
pub(crate) fn draw<T: Sample>(seed: u64, rank: usize, count: usize) -> Vec<T> {
    let mut random = Random::new(seed ^ (rank as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93));
    (0..count).map(|_| T::draw(&mut random)).collect()
}

/// What nobody contributes: every byte is 0xa5.
pub(crate) fn poison<T: Sample>() -> T {
    bytemuck::pod_read_unaligned(&[0xa5; 8][..size_of::<T>()])
}

/// Bit for bit.
pub(crate) fn same<T: Sample>(got: &[T], want: &[T]) -> bool {
    bytemuck::cast_slice::<T, u8>(got) == bytemuck::cast_slice::<T, u8>(want)
}
