//! What a kernel needs to know of a type: how a group of elements is loaded, stored and accumulated.

use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// An accumulator.
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
pub(super) trait Op: 'static {
    fn apply<V: Value>(left: V, right: V) -> V;
}

macro_rules! op {
    ($($name:ident => $method:ident),* $(,)?) => {$(
        pub(super) struct $name;

        impl Op for $name {
            #[inline(always)]
            fn apply<V: Value>(left: V, right: V) -> V {
                left.$method(right)
            }
        }
    )*};
}

op! { Sum => add, Product => multiply, Min => least, Max => most }

macro_rules! float_value {
    ($($float:ty),*) => {$(
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
                // Equal operands have equal bits, but for the two zeros: there the sign bit wins.
                let equal = Self::from_bits(self.to_bits() | other.to_bits());
                let ordered = if self < other { self } else { other };
                let comparable = if self == other { equal } else { ordered };
                if self.is_nan() | other.is_nan() { self + other } else { comparable }
            }

            #[inline(always)]
            fn most(self, other: Self) -> Self {
                let equal = Self::from_bits(self.to_bits() & other.to_bits());
                let ordered = if self > other { self } else { other };
                let comparable = if self == other { equal } else { ordered };
                if self.is_nan() | other.is_nan() { self + other } else { comparable }
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

float_value!(f32, f64);

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
    // from the next whole number is at least 2^-31 of it.
    i32: |value, by| (f64::from(value) / by as f64) as i32,
    u8: |value, by| (f64::from(value) / by as f64) as u8,
    i64: |value, by| value / by as i64,
    u64: |value, by| value / by,
}

/// An element type.
pub(super) trait Lane: Copy + Default + 'static {
    type Value: Value;

    /// Reads `G` elements. `F16C` says that the caller runs with that instruction set enabled.
    ///
    /// # Safety
    /// `at` is readable for `G` elements; `F16C` only where the processor has it.
    unsafe fn load<const G: usize, const F16C: bool>(at: *const Self) -> [Self::Value; G];

    /// Writes `G` elements, rounding once.
    ///
    /// # Safety
    /// `at` is writable for `G` elements; `F16C` only where the processor has it.
    unsafe fn store<const G: usize, const F16C: bool>(at: *mut Self, values: [Self::Value; G]);
}

macro_rules! plain_lane {
    ($($element:ty),*) => {$(
        impl Lane for $element {
            type Value = Self;

            #[inline(always)]
            unsafe fn load<const G: usize, const F16C: bool>(at: *const Self) -> [Self; G] {
                // SAFETY: the caller's promise; any bits are a value.
                unsafe { at.cast::<[Self; G]>().read_unaligned() }
            }

            #[inline(always)]
            unsafe fn store<const G: usize, const F16C: bool>(at: *mut Self, values: [Self; G]) {
                // SAFETY: the caller's promise.
                unsafe { at.cast::<[Self; G]>().write_unaligned(values) }
            }
        }
    )*};
}

plain_lane!(f32, f64, i32, i64, u8, u64);

/// bfloat16, as bits.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Bf16(u16);

impl Lane for Bf16 {
    type Value = f32;

    #[inline(always)]
    unsafe fn load<const G: usize, const F16C: bool>(at: *const Self) -> [f32; G] {
        // SAFETY: the caller's promise; Self is a u16.
        let halves = unsafe { at.cast::<[u16; G]>().read_unaligned() };
        halves.map(bf16_to_f32)
    }

    #[inline(always)]
    unsafe fn store<const G: usize, const F16C: bool>(at: *mut Self, values: [f32; G]) {
        // SAFETY: the caller's promise; Self is a u16.
        unsafe { at.cast::<[u16; G]>().write_unaligned(values.map(f32_to_bf16)) }
    }
}

/// IEEE half precision, as bits.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct F16(u16);

impl Lane for F16 {
    type Value = f32;

    #[inline(always)]
    unsafe fn load<const G: usize, const F16C: bool>(at: *const Self) -> [f32; G] {
        #[cfg(target_arch = "x86_64")]
        if F16C && G.is_multiple_of(8) {
            use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
            let mut values = [0.0; G];
            for eight in 0..G / 8 {
                // SAFETY: eight elements at a time within G, and the processor has F16C, by the caller's promise.
                unsafe {
                    let halves = _mm_loadu_si128(at.add(8 * eight).cast());
                    _mm256_storeu_ps(values.as_mut_ptr().add(8 * eight), _mm256_cvtph_ps(halves));
                }
            }
            return values;
        }
        // SAFETY: the caller's promise; Self is a u16.
        let halves = unsafe { at.cast::<[u16; G]>().read_unaligned() };
        halves.map(f16_to_f32)
    }

    #[inline(always)]
    unsafe fn store<const G: usize, const F16C: bool>(at: *mut Self, values: [f32; G]) {
        #[cfg(target_arch = "x86_64")]
        if F16C && G.is_multiple_of(8) {
            use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps};
            for eight in 0..G / 8 {
                // SAFETY: eight elements at a time within G, and the processor has F16C, by the caller's promise.
                unsafe {
                    let wide = _mm256_loadu_ps(values.as_ptr().add(8 * eight));
                    _mm_storeu_si128(at.add(8 * eight).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(wide));
                }
            }
            return;
        }
        // SAFETY: the caller's promise; Self is a u16.
        unsafe { at.cast::<[u16; G]>().write_unaligned(values.map(f32_to_f16)) }
    }
}
