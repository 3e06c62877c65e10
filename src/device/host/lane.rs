//! What a kernel needs to know of a type: how a group of elements is loaded, stored and accumulated.

use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// An accumulator of sums, products, minima and maxima.
pub(super) trait Value: Copy + Default + 'static {
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn least(self, other: Self) -> Self;
    fn most(self, other: Self) -> Self;
    /// Divides by a count of at least 1 and at most `i64::MAX`.
    fn divide(self, by: u64) -> Self;
    fn scale(self, by: f64) -> Self;
}

/// A reduction of two accumulators. Both orders give the same (the payload of a NaN excepted).
pub(super) trait Op<V>: 'static {
    fn apply(left: V, right: V) -> V;
}

macro_rules! op {
    ($($name:ident => $method:ident),* $(,)?) => {$(
        pub(super) struct $name;

        impl<V: Value> Op<V> for $name {
            #[inline(always)]
            fn apply(left: V, right: V) -> V {
                left.$method(right)
            }
        }
    )*};
}

op! { Sum => add, Product => multiply, Min => least, Max => most }

macro_rules! bit_op {
    ($($name:ident => $operator:tt),* $(,)?) => {$(
        pub(super) struct $name;

        impl Op<u8> for $name {
            #[inline(always)]
            fn apply(left: u8, right: u8) -> u8 {
                left $operator right
            }
        }
    )*};
}

// Bits do not care where an element ends: bytes serve every integer.
bit_op! { And => &, Or => |, Xor => ^ }

/// Orders like the value, with -0 below +0: negative values have their lower bits turned round. NaN apart.
#[inline(always)]
fn key32(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

/// See [`key32`].
#[inline(always)]
fn key64(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

macro_rules! float_value {
    ($($float:ty: $key:ident),*) => {$(
        impl Value for $float {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }

            #[inline(always)]
            fn multiply(self, other: Self) -> Self {
                self * other
            }

            #[inline(always)]
            fn least(self, other: Self) -> Self {
                let ordered = if $key(self) < $key(other) { self } else { other };
                if self.is_nan() | other.is_nan() { self + other } else { ordered }
            }

            #[inline(always)]
            fn most(self, other: Self) -> Self {
                let ordered = if $key(self) > $key(other) { self } else { other };
                if self.is_nan() | other.is_nan() { self + other } else { ordered }
            }

            #[inline(always)]
            fn divide(self, by: u64) -> Self {
                self / by as Self
            }

            #[inline(always)]
            fn scale(self, by: f64) -> Self {
                self * by as Self
            }
        }
    )*};
}

float_value!(f32: key32, f64: key64);

macro_rules! integer_value {
    ($($integer:ty: |$value:ident, $by:ident| $divide:expr),* $(,)?) => {$(
        impl Value for $integer {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn multiply(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            #[inline(always)]
            fn least(self, other: Self) -> Self {
                self.min(other)
            }

            #[inline(always)]
            fn most(self, other: Self) -> Self {
                self.max(other)
            }

            #[inline(always)]
            fn divide(self, by: u64) -> Self {
                let ($value, $by) = (self, by);
                $divide
            }

            #[inline(always)]
            fn scale(self, by: f64) -> Self {
                (self as f64 * by) as Self
            }
        }
    )*};
}

integer_value! {
    // There is no vector division of integers. In f64 the quotient of a 32-bit value truncates exactly: its distance
    // from the next whole number is at least 2^-32 of it.
    i32: |value, by| (f64::from(value) / by as f64) as i32,
    u32: |value, by| (f64::from(value) / by as f64) as u32,
    // The same in f32 of a 16-bit value: at least 2^-16.
    i8: |value, by| (f32::from(value) / by as f32) as i8,
    u8: |value, by| (f32::from(value) / by as f32) as u8,
    i16: |value, by| (f32::from(value) / by as f32) as i16,
    u16: |value, by| (f32::from(value) / by as f32) as u16,
    i64: |value, by| value / by as i64,
    u64: |value, by| value / by,
}

/// An element type: how a group of elements becomes accumulators, and back.
///
/// `F16C` says that the caller runs with that instruction set enabled; it is true only where the processor has it.
pub(super) trait Lane: Copy + Default + 'static {
    type Value: Value;

    /// Exact.
    fn widen<const G: usize, const F16C: bool>(elements: [Self; G]) -> [Self::Value; G];

    /// Rounded once, to nearest even.
    fn narrow<const G: usize, const F16C: bool>(values: [Self::Value; G]) -> [Self; G];
}

macro_rules! plain_lane {
    ($($element:ty),*) => {$(
        impl Lane for $element {
            type Value = Self;

            #[inline(always)]
            fn widen<const G: usize, const F16C: bool>(elements: [Self; G]) -> [Self; G] {
                elements
            }

            #[inline(always)]
            fn narrow<const G: usize, const F16C: bool>(values: [Self; G]) -> [Self; G] {
                values
            }
        }
    )*};
}

plain_lane!(f32, f64, i8, i16, i32, i64, u8, u16, u32, u64);

/// `array::map` as a plain loop: at these lengths the compiler turns only the loop into vector code.
#[inline(always)]
fn each<A: Copy, B: Copy + Default, const G: usize>(from: [A; G], convert: impl Fn(A) -> B) -> [B; G] {
    let mut to = [B::default(); G];
    for (to, from) in to.iter_mut().zip(from) {
        *to = convert(from);
    }
    to
}

/// bfloat16, as bits.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Bf16(u16);

impl Lane for Bf16 {
    type Value = f32;

    #[inline(always)]
    fn widen<const G: usize, const F16C: bool>(elements: [Self; G]) -> [f32; G] {
        each(elements, |element| bf16_to_f32(element.0))
    }

    #[inline(always)]
    fn narrow<const G: usize, const F16C: bool>(values: [f32; G]) -> [Self; G] {
        each(values, |value| Self(f32_to_bf16(value)))
    }
}

/// IEEE half precision, as bits.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct F16(u16);

impl Lane for F16 {
    type Value = f32;

    #[inline(always)]
    fn widen<const G: usize, const F16C: bool>(elements: [Self; G]) -> [f32; G] {
        #[cfg(target_arch = "x86_64")]
        if F16C && G.is_multiple_of(8) {
            use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
            let mut values = [0.0; G];
            for at in (0..G).step_by(8) {
                // SAFETY: eight elements at a time within both arrays of G; the processor has F16C, as the flag says.
                unsafe {
                    let halves = _mm_loadu_si128(elements.as_ptr().add(at).cast());
                    _mm256_storeu_ps(values.as_mut_ptr().add(at), _mm256_cvtph_ps(halves));
                }
            }
            return values;
        }
        each(elements, |element| f16_to_f32(element.0))
    }

    #[inline(always)]
    fn narrow<const G: usize, const F16C: bool>(values: [f32; G]) -> [Self; G] {
        #[cfg(target_arch = "x86_64")]
        if F16C && G.is_multiple_of(8) {
            use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps};
            let mut elements = [Self::default(); G];
            for at in (0..G).step_by(8) {
                // SAFETY: eight elements at a time within both arrays of G; the processor has F16C, as the flag says.
                unsafe {
                    let wide = _mm256_loadu_ps(values.as_ptr().add(at));
                    let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(wide);
                    _mm_storeu_si128(elements.as_mut_ptr().add(at).cast(), halves);
                }
            }
            return elements;
        }
        each(values, |value| Self(f32_to_f16(value)))
    }
}
