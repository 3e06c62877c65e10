//! The arithmetic that optimizers need of an element type.

use std::ops::{Add, Div, Mul, Sub};

use crate::{Reducible, bf16, f16};

/// A floating point element that an optimizer computes with: `f32`, `f64`, and the 16-bit types.
///
/// Every operation rounds once to the type itself. That is what makes an update reproducible, and why a model in 16 bits
/// is better trained on a copy of its parameters in `f32`: small updates vanish in 8 or 11 bits of precision.
pub trait Real:
    Reducible + PartialOrd + Default + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// The nearest value of this type.
    #[must_use]
    fn from_f64(value: f64) -> Self;

    /// The same value in `f64`.
    #[must_use]
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as Self
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }
}

impl Real for f16 {
    fn from_f64(value: f64) -> Self {
        Self::from_f64(value)
    }

    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
}

impl Real for bf16 {
    fn from_f64(value: f64) -> Self {
        Self::from_f64(value)
    }

    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
}
