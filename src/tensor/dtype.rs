//! Element types and reduction operations.

use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum DType {
    /// IEEE half precision.
    F16 = 1,
    /// bfloat16.
    BF16 = 2,
    /// IEEE single precision.
    F32 = 3,
    /// IEEE double precision.
    F64 = 4,
    /// Signed 32-bit integer.
    I32 = 5,
    /// Signed 64-bit integer.
    I64 = 6,
    /// Unsigned 8-bit integer.
    U8 = 7,
    /// Unsigned 64-bit integer.
    U64 = 8,
}

impl DType {
    /// Every type, in the order of their codes.
    pub const ALL: [Self; 8] = [Self::F16, Self::BF16, Self::F32, Self::F64, Self::I32, Self::I64, Self::U8, Self::U64];

    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// The type's name as Rust and the field write it: `f32`, `bf16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U64 => "u64",
        }
    }

    /// Whether the type has a fraction: its average keeps one, and it takes scale factors.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| *dtype as u8 == code)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the ranks' elements become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum, in rank order. Integers wrap.
    Sum = 1,
    /// The sum divided once by the number of ranks. Integers truncate toward zero.
    Average = 2,
    /// The smallest. A NaN on any rank gives NaN.
    Min = 3,
    /// The largest. A NaN on any rank gives NaN.
    Max = 4,
    /// The product, in rank order. Integers wrap.
    Product = 5,
}

impl ReduceOp {
    /// Every operation, in the order of their codes.
    pub const ALL: [Self; 5] = [Self::Sum, Self::Average, Self::Min, Self::Max, Self::Product];

    /// The operation's name: `sum`, `average`, `min`, `max`, `product`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Average => "average",
            Self::Min => "min",
            Self::Max => "max",
            Self::Product => "product",
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|op| *op as u8 == code)
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type that tensors are made of. Implemented for `f16 bf16 f32 f64 i32 i64 u8 u64`, and sealed.
pub trait Element: sealed::Sealed + bytemuck::Pod + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// The type's code.
    const DTYPE: DType;
}

macro_rules! element {
    ($($t:ty => $code:ident),* $(,)?) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$code;
        }
    )*};
}

element! {
    half::f16 => F16, half::bf16 => BF16, f32 => F32, f64 => F64,
    i32 => I32, i64 => I64, u8 => U8, u64 => U64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_code(dtype as u8), Some(dtype));
        }
        for op in ReduceOp::ALL {
            assert_eq!(ReduceOp::from_code(op as u8), Some(op));
        }
        assert_eq!(DType::from_code(0), None);
        assert_eq!(ReduceOp::from_code(0), None);
    }

    #[test]
    fn sizes_are_those_of_the_types() {
        fn check<T: Element>() {
            assert_eq!(T::DTYPE.size(), size_of::<T>());
        }
        check::<half::f16>();
        check::<half::bf16>();
        check::<f32>();
        check::<f64>();
        check::<i32>();
        check::<i64>();
        check::<u8>();
        check::<u64>();
    }
}
