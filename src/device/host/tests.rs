//! Kernels against references in wider types, on every instruction set that this processor has.

use half::{bf16, f16};

use super::kernel::{self, Isa};
use super::{Finish, Sink, Source, copy_scaled, partial_size, reduce};
use crate::tensor::{DType, ReduceOp, Reducible};
use xtask::random::Random;

/// In -4..4, with few enough bits that sums are inexact in 16-bit types.
fn small(random: &mut Random) -> f64 {
    (random.any() >> 40) as f64 / f64::from(1 << 21) - 4.0
}

/// An element type as the tests see it: random values, and the reference in the accumulator's own steps.
trait Tested: Reducible {
    fn draw(random: &mut Random) -> Self;
    fn specials() -> Vec<Self>;
    /// What `reduce` promises, computed one element at a time.
    fn expected(op: ReduceOp, inputs: &[Self], finish: Finish) -> Self;
    fn scaled(self, by: f64) -> Self;
    /// Equal bits, or both NaN.
    fn same(self, other: Self) -> bool;
}

/// One float step in f64, rounded to the accumulator by `round`. Exact double rounding: f64 has more than twice the bits
/// of f32 plus two, so a sum, product or quotient rounded twice is the one rounded once.
fn float_expected(op: ReduceOp, inputs: impl Iterator<Item = f64>, finish: Finish, round: fn(f64) -> f64) -> f64 {
    let step = |a: f64, b: f64| match op {
        ReduceOp::Sum | ReduceOp::Average => round(a + b),
        ReduceOp::Product => round(a * b),
        _ if a.is_nan() || b.is_nan() => f64::NAN,
        ReduceOp::Min if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        ReduceOp::Max if a == b => {
            if a.is_sign_negative() {
                b
            } else {
                a
            }
        }
        ReduceOp::Min => {
            if a < b {
                a
            } else {
                b
            }
        }
        ReduceOp::Max => {
            if a > b {
                a
            } else {
                b
            }
        }
        other => panic!("{other} of floats"),
    };
    let mut sum = inputs.reduce(step).expect("an input");
    if finish.divide_by != 1 {
        sum = round(sum / finish.divide_by as f64);
    }
    if finish.postscale != 1.0 {
        sum = round(sum * round(finish.postscale));
    }
    sum
}

fn to_f32(value: f64) -> f64 {
    f64::from(value as f32)
}

macro_rules! tested_float {
    ($($t:ty: $round:expr, $from:expr, $to:expr, $bits:ident),* $(,)?) => {$(
        impl Tested for $t {
            fn draw(random: &mut Random) -> Self {
                // One in sixteen values is any bits at all: NaN, infinity, subnormal, huge.
                if random.any() % 16 == 0 { Self::from_bits(random.any() as $bits) } else { $from(small(random)) }
            }

            fn specials() -> Vec<Self> {
                vec![
                    Self::NAN, Self::INFINITY, Self::NEG_INFINITY, $from(0.0), $from(-0.0), Self::MAX, Self::MIN,
                    Self::MIN_POSITIVE, Self::from_bits(1), Self::from_bits(3), $from(1.0), $from(-1.0),
                ]
            }

            fn expected(op: ReduceOp, inputs: &[Self], finish: Finish) -> Self {
                let round: fn(f64) -> f64 = $round;
                $from(float_expected(op, inputs.iter().map(|value| $to(*value)), finish, round))
            }

            fn scaled(self, by: f64) -> Self {
                let round: fn(f64) -> f64 = $round;
                $from(round($to(self) * round(by)))
            }

            fn same(self, other: Self) -> bool {
                self.to_bits() == other.to_bits() || (self.is_nan() && other.is_nan())
            }
        }
    )*};
}

tested_float! {
    // The accumulator's value is exactly an f32, so going through f32 rounds once.
    f16: to_f32, |value: f64| f16::from_f32_const(value as f32), f64::from, u16,
    bf16: to_f32, |value: f64| bf16::from_f32_const(value as f32), f64::from, u16,
    f32: to_f32, |value: f64| value as f32, f64::from, u32,
    f64: |value| value, |value: f64| value, |value: f64| value, u64,
}

macro_rules! tested_integer {
    ($($t:ty),*) => {$(
        impl Tested for $t {
            fn draw(random: &mut Random) -> Self {
                random.any() as Self >> (random.any() % u64::from(Self::BITS)) as u32
            }

            fn specials() -> Vec<Self> {
                vec![0, 1, 2, Self::MAX, Self::MIN, Self::MAX - 1, Self::MAX / 3, (0 as Self).wrapping_sub(7)]
            }

            fn expected(op: ReduceOp, inputs: &[Self], finish: Finish) -> Self {
                // In i128, brought back into the type after each step: that is what wrapping means.
                let step = |a: i128, b: i128| match op {
                    ReduceOp::Sum | ReduceOp::Average => i128::from((a + b) as Self),
                    ReduceOp::Product => i128::from(a.wrapping_mul(b) as Self),
                    ReduceOp::Min => a.min(b),
                    ReduceOp::Max => a.max(b),
                    // Sign extension keeps what the upper bits are.
                    ReduceOp::And => a & b,
                    ReduceOp::Or => a | b,
                    ReduceOp::Xor => a ^ b,
                    ReduceOp::Adasum => panic!("adasum of integers"),
                };
                let sum = inputs.iter().map(|value| i128::from(*value)).reduce(step).expect("an input");
                let mut sum = (sum / i128::from(finish.divide_by)) as Self;
                if finish.postscale != 1.0 {
                    sum = sum.scaled(finish.postscale);
                }
                sum
            }

            fn scaled(self, by: f64) -> Self {
                (self as f64 * by) as Self
            }

            fn same(self, other: Self) -> bool {
                self == other
            }
        }
    )*};
}

tested_integer!(i8, i16, i32, i64, u8, u16, u32, u64);

/// Elements at an address that is `offset` bytes past a multiple of 64, with a guard on both sides.
struct Buffer<T> {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    element: std::marker::PhantomData<T>,
}

const GUARD: u8 = 0xa5;

impl<T: Reducible> Buffer<T> {
    fn new(len: usize, offset: usize) -> Self {
        let bytes = vec![GUARD; len * size_of::<T>() + offset + 192];
        let start = 64 + bytes.as_ptr().align_offset(64) + offset;
        Self { bytes, start, len, element: std::marker::PhantomData }
    }

    fn of(values: &[T], offset: usize) -> Self {
        let mut buffer = Self::new(values.len(), offset);
        let at = buffer.start;
        buffer.bytes[at..at + size_of_val(values)].copy_from_slice(bytemuck::cast_slice(values));
        buffer
    }

    fn ptr(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    fn values(&self) -> Vec<T> {
        let end = self.start + self.len * size_of::<T>();
        assert!(self.bytes[..self.start].iter().chain(&self.bytes[end..]).all(|byte| *byte == GUARD), "wrote outside");
        self.bytes[self.start..end].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}

fn isas() -> Vec<Isa> {
    let mut isas = vec![Isa::Portable];
    if Isa::detect() != Isa::Portable {
        isas.push(Isa::detect());
    }
    isas
}

/// Runs one reduction on every instruction set: apart, to two outputs, and in place of input `at`; compares all.
fn check<T: Tested>(op: ReduceOp, inputs: &[Vec<T>], finish: Finish, offset: usize) {
    let len = inputs[0].len();
    let expected: Vec<T> = (0..len)
        .map(|index| T::expected(op, &inputs.iter().map(|input| input[index]).collect::<Vec<_>>(), finish))
        .collect();
    let compare = |found: &[T], how: &str, isa: Isa| {
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let of: Vec<T> = inputs.iter().map(|input| input[index]).collect();
            assert!(
                found.same(*expected),
                "{} {op} of {of:?} at {index} of {len}, {how}, {isa:?}: {found:?}, not {expected:?}",
                T::DTYPE
            );
        }
    };
    for isa in isas() {
        let mut buffers: Vec<Buffer<T>> =
            inputs.iter().enumerate().map(|(index, input)| Buffer::of(input, offset * (index + 1) % 64)).collect();
        let sources: Vec<Source> = buffers.iter_mut().map(|buffer| Source::Elements(buffer.ptr())).collect();
        let (mut first, mut second) = (Buffer::<T>::new(len, offset), Buffer::<T>::new(len, 0));
        // SAFETY: every buffer holds `len` elements and lives here; outputs are their own buffers or exactly an input's.
        unsafe {
            kernel::reduce(isa, T::DTYPE, op, &sources, len, &[Sink::Elements(first.ptr())], finish);
            compare(&first.values(), "one output", isa);
            let sinks = [Sink::Elements(first.ptr()), Sink::Elements(second.ptr())];
            kernel::reduce(isa, T::DTYPE, op, &sources, len, &sinks, finish);
            compare(&first.values(), "first of two outputs", isa);
            compare(&second.values(), "second of two outputs", isa);
            let at = offset % inputs.len();
            let place = Sink::Elements(buffers[at].ptr());
            kernel::reduce(isa, T::DTYPE, op, &sources, len, &[place], finish);
            compare(&buffers[at].values(), "in place", isa);
        }
    }
}

/// The operations that reduce single elements of the type.
fn operations<T: Tested>() -> impl Iterator<Item = ReduceOp> {
    ReduceOp::ALL.into_iter().filter(|op| op.takes(T::DTYPE) && *op != ReduceOp::Adasum)
}

fn every_operation<T: Tested>() {
    let mut random = Random::new(T::DTYPE as u64);
    for op in operations::<T>() {
        for n in 1..=17 {
            let divide_by = if op == ReduceOp::Average { n as u64 } else { 1 };
            for len in [0, 1, 3, 7, 8, 31, 33, 64, 67, 131] {
                let inputs: Vec<Vec<T>> = (0..n).map(|_| (0..len).map(|_| T::draw(&mut random)).collect()).collect();
                let offset = (random.any() % 64) as usize;
                check(op, &inputs, Finish { divide_by, postscale: 1.0 }, offset);
                if len == 67 {
                    check(op, &inputs, Finish { divide_by, postscale: 0.7 }, offset);
                }
            }
        }
        // Every pair and triple of special values, in both orders.
        let specials = T::specials();
        let pairs = specials.iter().flat_map(|a| specials.iter().map(move |b| (*a, *b)));
        let (left, right): (Vec<T>, Vec<T>) = pairs.unzip();
        let third: Vec<T> = left.iter().map(|_| T::draw(&mut random)).collect();
        for divide_by in [1, 3] {
            check(op, &[left.clone(), right.clone()], Finish { divide_by, postscale: 1.0 }, 0);
            check(op, &[left.clone(), third.clone(), right.clone()], Finish { divide_by, postscale: 1.0 }, 4);
        }
    }
}

/// One test a type.
macro_rules! agrees {
    ($($name:ident: $t:ty),* $(,)?) => {
        $(#[test]
        fn $name() {
            every_operation::<$t>();
        })*
    };
}

agrees! {
    f16_agrees_with_its_reference: f16,
    bf16_agrees_with_its_reference: bf16,
    f32_agrees_with_its_reference: f32,
    f64_agrees_with_its_reference: f64,
    i8_agrees_with_its_reference: i8,
    i16_agrees_with_its_reference: i16,
    i32_agrees_with_its_reference: i32,
    i64_agrees_with_its_reference: i64,
    u8_agrees_with_its_reference: u8,
    u16_agrees_with_its_reference: u16,
    u32_agrees_with_its_reference: u32,
    u64_agrees_with_its_reference: u64,
}

/// Calls a function that is generic over the type with every type that reduces.
macro_rules! each_type {
    ($call:ident) => {
        $call::<f16>();
        $call::<bf16>();
        $call::<f32>();
        $call::<f64>();
        $call::<i8>();
        $call::<i16>();
        $call::<i32>();
        $call::<i64>();
        $call::<u8>();
        $call::<u16>();
        $call::<u32>();
        $call::<u64>();
    };
}

/// Reduces plain values through the public entry.
fn reduced<T: Reducible>(op: ReduceOp, inputs: &[&[T]], finish: Finish) -> Vec<T> {
    let len = inputs[0].len();
    let sources: Vec<Source> = inputs.iter().map(|input| Source::Elements(input.as_ptr().cast())).collect();
    let mut output = Buffer::<T>::new(len, 0);
    // SAFETY: inputs and output hold `len` elements, and the output is its own.
    unsafe { reduce(T::DTYPE, op, &sources, len, &[Sink::Elements(output.ptr())], finish) };
    output.values()
}

#[test]
fn average_is_one_true_division() {
    // 5/3 and 5 * (1/3) differ in the last bit.
    let by = |n| Finish { divide_by: n, postscale: 1.0 };
    for value in 1..2000_u16 {
        let value = f32::from(value);
        assert_eq!(reduced(ReduceOp::Average, &[&[value; 17]], by(3)), [value / 3.0; 17]);
        assert_eq!(reduced(ReduceOp::Average, &[&[f64::from(value)]], by(3)), [f64::from(value) / 3.0]);
    }
    assert_ne!(5.0_f32 / 3.0, 5.0_f32 * (1.0 / 3.0));
    assert_eq!(reduced(ReduceOp::Average, &[&[-7_i32, 7, 8]], by(2)), [-3, 3, 4], "toward zero");
    assert_eq!(reduced(ReduceOp::Average, &[&[-7_i64, i64::MIN]], by(2)), [-3, i64::MIN / 2]);
    assert_eq!(reduced(ReduceOp::Average, &[&[200_u8], &[100]], by(2)), [22], "300 wraps to 44");
    assert_eq!(reduced(ReduceOp::Average, &[&[u64::MAX]], by(300)), [u64::MAX / 300]);
    assert_eq!(reduced(ReduceOp::Average, &[&[255_u8]], by(300)), [0]);
    for divisor in [3, 7, 17, (1 << 31) - 1, 1 << 31, 1 << 40] {
        for value in [i32::MIN, i32::MIN + 1, -1, 0, 1, i32::MAX - 1, i32::MAX] {
            let expected = (i64::from(value) / divisor) as i32;
            assert_eq!(reduced(ReduceOp::Average, &[&[value]], by(divisor as u64)), [expected], "{value}/{divisor}");
        }
    }
}

/// The average of integers is the wrapped sum, truncated toward zero: of every value, by every divisor that matters.
fn averages_truncate<T: Tested + Into<i128> + TryFrom<i128>>() {
    let bits = 8 * size_of::<T>() as u32;
    let least = if T::try_from(-1).is_ok() { -(1_i128 << (bits - 1)) } else { 0 };
    let most = least + (1_i128 << bits) - 1;
    let of = |value: i128| T::try_from(value).ok().expect("a value of the type");
    let values: Vec<i128> = if bits == 8 {
        (least..=most).collect()
    } else {
        let near = |center: i128| (center - 300..=center + 300).filter(move |value| (least..=most).contains(value));
        let middles = [least, 0, most, least / 2, most / 2, most / 3, most / 7, least / 3];
        middles.into_iter().flat_map(near).collect()
    };
    let input: Vec<T> = values.iter().map(|value| of(*value)).collect();
    let divisors = (1..=40).chain([63, 64, 127, 128, 129, 255, 256, 257, 1000, 65_535, 65_536, 1 << 31, 1 << 40]);
    for divide_by in divisors {
        let found = reduced(ReduceOp::Average, &[&input], Finish { divide_by, postscale: 1.0 });
        for (value, found) in values.iter().zip(found) {
            let expected = of(value / i128::from(divide_by));
            assert!(found.same(expected), "{value} / {divide_by}: {found:?}, not {expected:?} ({})", T::DTYPE);
        }
    }
    // A sum that leaves the type comes back at its other end, and is divided there.
    let wrapped = of(most).into() + of(most).into() - (1_i128 << bits);
    let found = reduced(ReduceOp::Average, &[&[of(most)], &[of(most)]], Finish { divide_by: 2, postscale: 1.0 });
    assert!(found[0].same(of(if least == 0 { (most - 1) / 2 } else { wrapped / 2 })), "{found:?}");
}

#[test]
fn integer_averages_truncate_toward_zero_after_wrapping() {
    averages_truncate::<i8>();
    averages_truncate::<i16>();
    averages_truncate::<i32>();
    averages_truncate::<i64>();
    averages_truncate::<u8>();
    averages_truncate::<u16>();
    averages_truncate::<u32>();
    averages_truncate::<u64>();
}

/// A rank that contributes an operation's identity changes no bit, wherever it stands.
fn identity_changes_nothing<T: Tested>() {
    let mut random = Random::new(5 + T::DTYPE as u64);
    let mut values = T::specials();
    values.extend((0..200).map(|_| T::draw(&mut random)));
    for op in operations::<T>() {
        let bytes = op.identity(T::DTYPE).expect("an operation that takes the type");
        assert_eq!(bytes[size_of::<T>()..], [0; 8][size_of::<T>()..]);
        let neutral = vec![bytemuck::pod_read_unaligned::<T>(&bytes[..size_of::<T>()]); values.len()];
        for inputs in [[&neutral, &values, &neutral], [&values, &neutral, &neutral], [&neutral, &neutral, &values]] {
            let found = reduced(op, &inputs.map(Vec::as_slice), Finish::NONE);
            for (found, value) in found.iter().zip(&values) {
                assert!(found.same(*value), "{op} of {value:?} and its identity {:?}: {found:?}", neutral[0]);
            }
        }
    }
}

#[test]
fn an_identity_leaves_every_element_as_it_is() {
    each_type!(identity_changes_nothing);
    let bytes = |op: ReduceOp, dtype| op.identity(dtype).expect("taken");
    assert_eq!(bytes(ReduceOp::Min, DType::F32)[..4], f32::INFINITY.to_ne_bytes());
    assert_eq!(bytes(ReduceOp::Max, DType::BF16)[..2], bf16::NEG_INFINITY.to_ne_bytes());
    assert_eq!(bytes(ReduceOp::Product, DType::F16)[..2], f16::ONE.to_ne_bytes());
    assert_eq!(bytes(ReduceOp::Average, DType::F64), (-0.0_f64).to_ne_bytes());
    assert_eq!(bytes(ReduceOp::Min, DType::I16)[..2], i16::MAX.to_ne_bytes());
    assert_eq!(bytes(ReduceOp::Max, DType::I64), i64::MIN.to_ne_bytes());
    assert_eq!(bytes(ReduceOp::And, DType::U32)[..4], [0xff; 4]);
    assert_eq!(bytes(ReduceOp::Xor, DType::I8), [0; 8]);
}

/// Infinity and NaN go through sums, averages and products as IEEE says, from any rank.
fn specials_go_through<T: Tested>(nan: T, infinity: T, negative: T, one: T) {
    for op in [ReduceOp::Sum, ReduceOp::Average, ReduceOp::Product] {
        let divide_by = if op == ReduceOp::Average { 2 } else { 1 };
        let of = |a, b| reduced(op, &[&[a; 33], &[b; 33]], Finish { divide_by, postscale: 1.0 });
        for (a, b) in [(nan, one), (one, nan), (nan, infinity)] {
            assert!(of(a, b).iter().all(|found| found.same(nan)), "{op} of {a:?} and {b:?}");
        }
        for (a, b) in [(infinity, one), (one, infinity)] {
            assert!(of(a, b).iter().all(|found| found.same(infinity)), "{op} of {a:?} and {b:?}");
        }
        let opposed = if op == ReduceOp::Product { negative } else { nan };
        assert!(of(infinity, negative).iter().all(|found| found.same(opposed)), "{op} of opposed infinities");
    }
}

#[test]
fn nan_and_infinity_go_through() {
    specials_go_through(f16::NAN, f16::INFINITY, f16::NEG_INFINITY, f16::ONE);
    specials_go_through(bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY, bf16::ONE);
    specials_go_through(f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0);
    specials_go_through(f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0);
}

#[test]
fn scale_factors_are_f64_for_integers_and_f32_for_f32() {
    let by = |postscale| Finish { divide_by: 1, postscale };
    // 1/3 in f32 is a little more than a third.
    let big = (1_i64 << 53) - 1;
    assert_eq!(reduced(ReduceOp::Sum, &[&[big]], by(1.0 / 3.0)), [big / 3]);
    assert_eq!(reduced(ReduceOp::Sum, &[&[3_u8], &[0]], by(1.0 / 3.0)), [1]);
    assert_eq!(reduced(ReduceOp::Sum, &[&[-7_i8]], by(0.5)), [-3], "toward zero");
    assert_eq!(reduced(ReduceOp::Max, &[&[100_i8]], by(-2.0)), [i8::MIN], "saturates");
    assert_eq!(reduced(ReduceOp::Or, &[&[1_u16], &[6]], by(1e9)), [u16::MAX], "saturates");
    assert_eq!(reduced(ReduceOp::Xor, &[&[5_i32; 50], &[1; 50]], by(2.5)), [10; 50]);
    assert_eq!(reduced(ReduceOp::Sum, &[&[1_i32]], by(f64::NAN)), [0]);
    let scale = 0.1_f64;
    assert_eq!(reduced(ReduceOp::Sum, &[&[3.0_f32]], by(scale)), [3.0 * scale as f32]);
    assert_eq!(reduced(ReduceOp::Sum, &[&[3.0_f64]], by(scale)), [3.0 * scale]);
}

#[test]
#[should_panic(expected = "xor of f32")]
fn an_operation_on_a_type_that_it_does_not_take_is_refused() {
    reduced(ReduceOp::Xor, &[&[1.0_f32]], Finish::NONE);
}

#[test]
fn sixteen_bit_sums_round_once() {
    // 2048 + 1 is a tie in f16: rounding after each step would lose every 1.
    let (big, one) = ([f16::from_f32_const(2048.0)], [f16::ONE]);
    let sum = reduced(ReduceOp::Sum, &[&big, &one, &one, &one, &one], Finish::NONE);
    assert_eq!(sum[0].to_f32(), 2052.0);
    // 256 + 1 is a tie in bf16.
    let (big, one) = ([bf16::from_f32_const(256.0)], [bf16::ONE]);
    let sum = reduced(ReduceOp::Sum, &[&big, &one, &one, &one, &one], Finish::NONE);
    assert_eq!(sum[0].to_f32(), 260.0);
    // A sum beyond f16 comes back into it when it is averaged.
    let huge = [f16::MAX];
    let average = reduced(ReduceOp::Average, &[&huge, &huge, &huge], Finish { divide_by: 3, postscale: 1.0 });
    assert_eq!(average, huge);
}

/// An ordered chain through partial sums gives the bits of one reduction over everybody; so does a later finish.
fn chain<T: Tested>() {
    let mut random = Random::new(99 + T::DTYPE as u64);
    let len = 77;
    for op in operations::<T>() {
        let n = 7;
        let finish = Finish { divide_by: if op == ReduceOp::Average { n } else { 1 }, postscale: 0.5 };
        let inputs: Vec<Vec<T>> = (0..n).map(|_| (0..len).map(|_| T::draw(&mut random)).collect()).collect();
        let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
        let expected = reduced(op, &slices, finish);
        let sources: Vec<Source> = inputs.iter().map(|input| Source::Elements(input.as_ptr().cast())).collect();
        let mut partial = Buffer::<u8>::new(len * partial_size(T::DTYPE), 3);
        for isa in isas() {
            let place = partial.ptr();
            let (from, to) = (Source::Partial(place), Sink::Partial(place));
            let mut output = Buffer::<T>::new(len, 8);
            // SAFETY: all hold `len` elements or accumulators; the partial is its own, and in place where it is both.
            unsafe {
                kernel::reduce(isa, T::DTYPE, op, &sources[..2], len, &[to], Finish::NONE);
                kernel::reduce(isa, T::DTYPE, op, &[from, sources[2], sources[3]], len, &[to], Finish::NONE);
                kernel::reduce(isa, T::DTYPE, op, &[from, sources[4]], len, &[to], Finish::NONE);
                let last = [from, sources[5], sources[6]];
                kernel::reduce(isa, T::DTYPE, op, &last, len, &[Sink::Elements(output.ptr())], finish);
                assert!(output.values().iter().zip(&expected).all(|(a, b)| a.same(*b)), "{} {op} {isa:?}", T::DTYPE);
                // Finished apart, from the partial alone; and to an accumulator and elements at once.
                kernel::reduce(isa, T::DTYPE, op, &last, len, &[to], Finish::NONE);
                let both = [Sink::Elements(output.ptr()), to];
                kernel::reduce(isa, T::DTYPE, op, &[from], len, &both, finish);
                assert!(output.values().iter().zip(&expected).all(|(a, b)| a.same(*b)), "{} {op} {isa:?}", T::DTYPE);
                kernel::reduce(isa, T::DTYPE, op, &[from], len, &[Sink::Elements(output.ptr())], Finish::NONE);
            }
            assert!(output.values().iter().zip(&expected).all(|(a, b)| a.same(*b)), "{} {op} {isa:?}", T::DTYPE);
            let _ = partial.values();
        }
    }
}

#[test]
fn partial_sums_compose() {
    each_type!(chain);
}

#[test]
fn two_partials_join() {
    let (left, right) = ([1.0_f32 + f32::EPSILON; 9], [2.0_f32; 9]);
    let mut sum = Buffer::<f32>::new(9, 0);
    let sources = [Source::Partial(left.as_ptr().cast()), Source::Partial(right.as_ptr().cast())];
    // SAFETY: nine f32 accumulators each, and the output is its own.
    unsafe { reduce(DType::BF16, ReduceOp::Product, &sources, 9, &[Sink::Partial(sum.ptr())], Finish::NONE) };
    assert_eq!(sum.values(), [2.0 + 2.0 * f32::EPSILON; 9], "no rounding to bf16 in between");
}

fn scaled_copies<T: Tested>() {
    let mut random = Random::new(7);
    for len in [0, 1, 5, 63, 64, 65, 200] {
        let mut values: Vec<T> = (0..len).map(|_| T::draw(&mut random)).collect();
        values.extend(T::specials());
        for scale in [1.0, 0.5, -1.0, 1.0 / 3.0, 1e10, 0.0] {
            let mut source = Buffer::of(&values, 4);
            let mut apart = Buffer::<T>::new(values.len(), 60);
            // SAFETY: both hold `values.len()` elements; they are different buffers, or the same place.
            unsafe {
                copy_scaled(T::DTYPE, source.ptr(), apart.ptr(), values.len(), scale);
                copy_scaled(T::DTYPE, source.ptr(), source.ptr(), values.len(), scale);
            }
            for found in [apart.values(), source.values()] {
                for (found, value) in found.into_iter().zip(&values) {
                    let expected = if scale == 1.0 { *value } else { value.scaled(scale) };
                    assert!(found.same(expected), "{value:?} * {scale} = {found:?}, not {expected:?}");
                }
            }
            if scale == 1.0 {
                assert_eq!(apart.bytes[apart.start..][..64], source.bytes[source.start..][..64], "bit for bit");
            }
        }
    }
}

#[test]
fn copies_scale_and_round_once() {
    each_type!(scaled_copies);
}

#[test]
fn min_and_max_pass_nan_on_and_order_zeros() {
    let nan = [f32::NAN, 1.0, 2.0];
    let plain = [1.0, f32::NAN, 3.0];
    for op in [ReduceOp::Min, ReduceOp::Max] {
        for inputs in [[&nan, &plain], [&plain, &nan]] {
            let found = reduced(op, &[&inputs[0][..], &inputs[1][..]], Finish::NONE);
            assert!(found[0].is_nan() && found[1].is_nan() && !found[2].is_nan());
        }
    }
    for (a, b) in [(0.0_f64, -0.0_f64), (-0.0, 0.0)] {
        assert!(reduced(ReduceOp::Min, &[&[a], &[b]], Finish::NONE)[0].is_sign_negative());
        assert!(reduced(ReduceOp::Max, &[&[a], &[b]], Finish::NONE)[0].is_sign_positive());
    }
}

#[test]
#[should_panic(expected = "a reduction of nothing")]
fn no_input_is_refused() {
    // SAFETY: there is nothing to read or write.
    unsafe { reduce(DType::F32, ReduceOp::Sum, &[], 0, &[], Finish::NONE) };
}

#[test]
#[should_panic(expected = "an average of 0")]
fn a_division_by_zero_is_refused() {
    reduced(ReduceOp::Average, &[&[1_i32]], Finish { divide_by: 0, postscale: 1.0 });
}
