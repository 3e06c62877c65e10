//! Random elements of every type, and what `docs/types.md` says that reductions make of them.

use kolo::{Element, ReduceOp, Reducible, bf16, f16};

/// SplitMix64: every rank draws every rank's elements from the seed they share.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// An element type.
pub(crate) trait Value: Element {
    fn draw(random: &mut Random) -> Self;

    /// What nobody contributes, as far as the type leaves room for it.
    fn poison() -> Self;

    /// Bit for bit. Only the payload of a NaN is left open.
    fn is(self, other: Self) -> bool;
}

/// A type that reduces, with its references.
pub(crate) trait Number: Value + Reducible {
    /// The rounding of the type, and of its accumulator, relative to the value; and the least that either can tell apart.
    /// All are zero where results are exact.
    const ROUNDING: (f64, f64, f64);

    /// An element that arithmetic has rules of its own for: NaN, infinities and zeros, or the ends of an integer type.
    fn special(random: &mut Random) -> Self;

    /// The element multiplied by a factor before the reduction.
    fn scaled(self, factor: f64) -> Self;

    /// The reduction in rank order as one process does it: 16-bit floats accumulate in f32 and are rounded once.
    fn ordered(column: &[Self], op: ReduceOp, postscale: f64) -> Self;

    fn wide(self) -> f64;
}

/// The reduction of a column in f64, and the sum of magnitudes that its error is relative to.
pub(crate) fn in_f64<T: Number>(column: &[T], op: ReduceOp, postscale: f64) -> (f64, f64) {
    let values = || column.iter().map(|value| value.wide());
    let (sum, magnitude) = values().fold((-0.0, 0.0), |(sum, all), value| (sum + value, all + value.abs()));
    let (want, magnitude) = match op {
        ReduceOp::Sum => (sum, magnitude),
        ReduceOp::Average => (sum / column.len() as f64, magnitude / column.len() as f64),
        ReduceOp::Product => {
            let product: f64 = values().product();
            (product, product.abs())
        }
        other => panic!("{other} is exact"),
    };
    (want * postscale, magnitude * postscale.abs())
}

/// Whether `got` is the reduction in whatever order. Integers, and what is chosen, are exact. Float sums and products may err by
/// a rounding of the accumulator for each step, relative to the sum of magnitudes, and by the final rounding; times two, for
/// the reference errs as well.
pub(crate) fn is_close<T: Number>(got: T, column: &[T], op: ReduceOp, postscale: f64) -> bool {
    let rounded = matches!(op, ReduceOp::Sum | ReduceOp::Average | ReduceOp::Product);
    if !rounded || !T::DTYPE.is_float() {
        return got.is(T::ordered(column, op, postscale));
    }
    let (want, magnitude) = in_f64(column, op, postscale);
    let got = got.wide();
    if !want.is_finite() {
        return if want.is_nan() { got.is_nan() } else { got == want };
    }
    // The steps of the sum, a division, a factor.
    let steps = column.len() + 1;
    let (rounding, accumulator, least) = T::ROUNDING;
    let error = rounding * want.abs() + steps as f64 * accumulator * magnitude + least;
    (got - want).abs() <= 2.0 * error
}

/// Half a unit in the last place, for a significand of so many bits.
const fn half_unit(bits: u32) -> f64 {
    1.0 / (1_u64 << bits) as f64
}

macro_rules! floats {
    ($($t:ty, $accumulator:ty, $rounding:expr, |$from:ident| $widen:expr, |$into:ident| $narrow:expr;)*) => {$(
        impl Value for $t {
            fn draw(random: &mut Random) -> Self {
                // Magnitudes of 0.5 to 2, either sign: five of them multiply to what f16 can hold.
                let bits = random.next();
                let magnitude = 0.5 + 1.5 * ((bits >> 12) as f64 / (1_u64 << 52) as f64);
                let $into = (if bits & 1 == 0 { magnitude } else { -magnitude }) as $accumulator;
                $narrow
            }

            fn poison() -> Self {
                bytemuck::pod_read_unaligned(&[0xa5; 8][..size_of::<Self>()])
            }

            fn is(self, other: Self) -> bool {
                self.to_bits() == other.to_bits() || self.is_nan() && other.is_nan()
            }
        }

        impl Number for $t {
            const ROUNDING: (f64, f64, f64) = $rounding;

            fn special(random: &mut Random) -> Self {
                match random.below(12) {
                    0 => <$t>::NAN,
                    1 => <$t>::INFINITY,
                    2 => <$t>::NEG_INFINITY,
                    3 | 4 => { let $into: $accumulator = 0.0; $narrow }
                    5 | 6 => { let $into: $accumulator = -0.0; $narrow }
                    _ => Self::draw(random),
                }
            }

            fn scaled(self, factor: f64) -> Self {
                if factor == 1.0 {
                    return self;
                }
                let $from = self;
                let $into: $accumulator = $widen * factor as $accumulator;
                $narrow
            }

            fn ordered(column: &[Self], op: ReduceOp, postscale: f64) -> Self {
                let widen = |&$from: &$t| -> $accumulator { $widen };
                let mut values = column.iter().map(widen);
                let first = values.next().expect("a rank");
                let mut all = values.fold(first, |all, value| match op {
                    ReduceOp::Sum | ReduceOp::Average => all + value,
                    ReduceOp::Product => all * value,
                    _ if all.is_nan() || value.is_nan() => <$accumulator>::NAN,
                    ReduceOp::Min => if value.total_cmp(&all).is_lt() { value } else { all },
                    ReduceOp::Max => if value.total_cmp(&all).is_gt() { value } else { all },
                    other => panic!("no reference for {other}"),
                });
                if op == ReduceOp::Average {
                    all /= column.len() as $accumulator;
                }
                if postscale != 1.0 {
                    all *= postscale as $accumulator;
                }
                let $into = all;
                $narrow
            }

            fn wide(self) -> f64 {
                let $from = self;
                f64::from($widen)
            }
        }
    )*};
}

floats! {
    f16, f32, (half_unit(11), half_unit(24), half_unit(25)), |x| x.to_f32(), |x| f16::from_f32(x);
    bf16, f32, (half_unit(8), half_unit(24), 0.0), |x| x.to_f32(), |x| bf16::from_f32(x);
    f32, f32, (half_unit(24), half_unit(24), 0.0), |x| x, |x| x;
    f64, f64, (half_unit(53), half_unit(53), 0.0), |x| x, |x| x;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Value for $t {
            fn draw(random: &mut Random) -> Self {
                random.next() as Self
            }

            fn poison() -> Self {
                bytemuck::pod_read_unaligned(&[0xa5; 8][..size_of::<Self>()])
            }

            fn is(self, other: Self) -> bool {
                self == other
            }
        }

        impl Number for $t {
            const ROUNDING: (f64, f64, f64) = (0.0, 0.0, 0.0);

            fn special(random: &mut Random) -> Self {
                [Self::MIN, Self::MAX, Self::MAX - 1, 0, 1, !0][random.below(6)]
            }

            fn scaled(self, factor: f64) -> Self {
                // Rust's conversion truncates toward zero and saturates, as ours is documented to do.
                if factor == 1.0 { self } else { (self as f64 * factor) as Self }
            }

            fn ordered(column: &[Self], op: ReduceOp, postscale: f64) -> Self {
                // In 128 bits, then modulo 2^bits.
                let values = column.iter().map(|&value| i128::from(value));
                let all = match op {
                    ReduceOp::Sum => values.fold(0, i128::wrapping_add) as Self,
                    // The sum as it wrapped, divided where every type holds the count.
                    ReduceOp::Average => {
                        (i128::from(values.fold(0, i128::wrapping_add) as Self) / column.len() as i128) as Self
                    }
                    ReduceOp::Product => values.fold(1, i128::wrapping_mul) as Self,
                    ReduceOp::Min => values.min().expect("a rank") as Self,
                    ReduceOp::Max => values.max().expect("a rank") as Self,
                    ReduceOp::And => values.fold(!0, |all, value| all & value) as Self,
                    ReduceOp::Or => values.fold(0, |all, value| all | value) as Self,
                    ReduceOp::Xor => values.fold(0, |all, value| all ^ value) as Self,
                    other => panic!("no reference for {other}"),
                };
                all.scaled(postscale)
            }

            fn wide(self) -> f64 {
                self as f64
            }
        }
    )*};
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

impl Value for bool {
    fn draw(random: &mut Random) -> Self {
        random.next() & 1 == 1
    }

    fn poison() -> Self {
        true
    }

    fn is(self, other: Self) -> bool {
        self == other
    }
}
