//! Element types.

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
    /// Signed 8-bit integer.
    I8 = 9,
    /// Signed 16-bit integer.
    I16 = 10,
    /// Unsigned 16-bit integer.
    U16 = 11,
    /// Unsigned 32-bit integer.
    U32 = 12,
    /// Truth value: it moves, as a byte that is 0 or 1, and does not reduce.
    Bool = 13,
}

impl DType {
    /// Every type, in the order of their codes.
    pub const ALL: [Self; 13] = [
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
        Self::I32,
        Self::I64,
        Self::U8,
        Self::U64,
        Self::I8,
        Self::I16,
        Self::U16,
        Self::U32,
        Self::Bool,
    ];

    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
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
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::Bool => "bool",
        }
    }

    /// Whether the type has a fraction: its average keeps one.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// Whether the type holds whole numbers, signed or not: And, Or and Xor apply to it.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        !self.is_float() && !matches!(self, Self::Bool)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_never_change() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_code(dtype as u8), Some(dtype));
        }
        assert_eq!((DType::from_code(0), DType::from_code(14)), (None, None));
        // Ranks of different versions must not take one type for another.
        let codes = DType::ALL.map(|dtype| (dtype as u8, dtype.name()));
        let known = [
            (1, "f16"),
            (2, "bf16"),
            (3, "f32"),
            (4, "f64"),
            (5, "i32"),
            (6, "i64"),
            (7, "u8"),
            (8, "u64"),
            (9, "i8"),
            (10, "i16"),
            (11, "u16"),
            (12, "u32"),
            (13, "bool"),
        ];
        assert_eq!(codes, known);
    }

    #[test]
    fn a_type_is_a_float_an_integer_or_bool() {
        for dtype in DType::ALL {
            let kinds = [dtype.is_float(), dtype.is_integer(), dtype == DType::Bool];
            assert_eq!(kinds.into_iter().filter(|is| *is).count(), 1, "{dtype}");
        }
    }
}
