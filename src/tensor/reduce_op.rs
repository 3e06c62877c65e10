//! Reduction operations: which types they take, and what leaves every element as it is.

use std::fmt;

use half::{bf16, f16};

use super::DType;

/// How the ranks' elements become one. What it gives for each type stands in `docs/types.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum, in rank order. Integers wrap. NaN and infinity go through it as IEEE says.
    Sum = 1,
    /// The sum divided once by the number of ranks. Integers truncate toward zero, after the sum has wrapped.
    Average = 2,
    /// The smallest; -0 is below +0. A NaN on any rank gives NaN.
    Min = 3,
    /// The largest; -0 is below +0. A NaN on any rank gives NaN.
    Max = 4,
    /// The product, in rank order. Integers wrap.
    Product = 5,
    /// The bits that are set on every rank. Integers only.
    And = 6,
    /// The bits that are set on some rank. Integers only.
    Or = 7,
    /// The bits that are set on an odd number of ranks. Integers only.
    Xor = 8,
    /// Adasum: tensors that point the same way are averaged, orthogonal ones added, in between in between, along a tree of
    /// pairs of ranks. Floats only, and only whole tensors: an allreduce. `docs/types.md` has the formula.
    Adasum = 9,
}

impl ReduceOp {
    /// Every operation, in the order of their codes.
    pub const ALL: [Self; 9] =
        [Self::Sum, Self::Average, Self::Min, Self::Max, Self::Product, Self::And, Self::Or, Self::Xor, Self::Adasum];

    /// The operation's name: `sum`, `average`, `min`, `max`, `product`, `and`, `or`, `xor`, `adasum`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Average => "average",
            Self::Min => "min",
            Self::Max => "max",
            Self::Product => "product",
            Self::And => "and",
            Self::Or => "or",
            Self::Xor => "xor",
            Self::Adasum => "adasum",
        }
    }

    /// Whether the operation reduces elements of `dtype`.
    ///
    /// ```
    /// use kolo::{DType, ReduceOp};
    /// assert!(ReduceOp::Sum.takes(DType::F32) && ReduceOp::Xor.takes(DType::I16));
    /// assert!(!ReduceOp::Xor.takes(DType::F32) && !ReduceOp::Max.takes(DType::Bool));
    /// ```
    #[must_use]
    pub const fn takes(self, dtype: DType) -> bool {
        match self {
            Self::Sum | Self::Average | Self::Min | Self::Max | Self::Product => !matches!(dtype, DType::Bool),
            Self::And | Self::Or | Self::Xor => dtype.is_integer(),
            Self::Adasum => dtype.is_float(),
        }
    }

    /// What to say of a type that the operation does not take: which it takes, and which operations take this one.
    pub(crate) fn refusal(self, dtype: DType) -> Option<String> {
        if self.takes(dtype) {
            return None;
        }
        let types: Vec<&str> = DType::ALL.into_iter().filter(|other| self.takes(*other)).map(DType::name).collect();
        let ops: Vec<&str> = Self::ALL.into_iter().filter(|other| other.takes(dtype)).map(Self::name).collect();
        let advice = if ops.is_empty() {
            format!("{dtype} only moves, so convert it first")
        } else {
            format!("convert the tensor, or reduce it by {}", ops.join(", "))
        };
        Some(format!("{self} does not take {dtype}, only {}; {advice}", types.join(", ")))
    }

    /// The element that leaves every other as it is under this operation, in native byte order: the first
    /// [`size`](DType::size) bytes of `dtype` are it, the others 0. `None` if the operation does not [take](Self::takes)
    /// the type.
    ///
    /// It is zero for Sum, Average, Adasum, Or and Xor (of floats -0, because +0 would turn a -0 into +0); one for Product;
    /// +infinity or the greatest integer for Min; -infinity or the least integer for Max; all ones for And. An average
    /// counts it as a rank all the same.
    ///
    /// ```
    /// use kolo::{DType, ReduceOp};
    /// assert_eq!(ReduceOp::Product.identity(DType::I32), Some([1_i32.to_ne_bytes(), [0; 4]].concat().try_into().unwrap()));
    /// assert_eq!(ReduceOp::And.identity(DType::F64), None);
    /// ```
    #[must_use]
    pub fn identity(self, dtype: DType) -> Option<[u8; 8]> {
        if !self.takes(dtype) {
            return None;
        }
        macro_rules! float {
            ($t:ty: $from:expr) => {
                padded(
                    &match self {
                        Self::Product => $from(1.0),
                        Self::Min => <$t>::INFINITY,
                        Self::Max => <$t>::NEG_INFINITY,
                        _ => $from(-0.0),
                    }
                    .to_ne_bytes(),
                )
            };
        }
        macro_rules! integer {
            ($t:ty) => {
                padded(
                    &match self {
                        Self::Product => 1,
                        Self::Min => <$t>::MAX,
                        Self::Max => <$t>::MIN,
                        Self::And => !0,
                        _ => 0 as $t,
                    }
                    .to_ne_bytes(),
                )
            };
        }
        Some(match dtype {
            DType::F16 => float!(f16: f16::from_f32_const),
            DType::BF16 => float!(bf16: bf16::from_f32_const),
            DType::F32 => float!(f32: |x: f32| x),
            DType::F64 => float!(f64: |x: f64| x),
            DType::I8 => integer!(i8),
            DType::I16 => integer!(i16),
            DType::I32 => integer!(i32),
            DType::I64 => integer!(i64),
            DType::U8 => integer!(u8),
            DType::U16 => integer!(u16),
            DType::U32 => integer!(u32),
            DType::U64 => integer!(u64),
            DType::Bool => return None,
        })
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|op| *op as u8 == code)
    }
}

/// What to say of Adasum where a rank gets a part of the result, or none.
pub(crate) const NOT_IN_PARTS: &str = "adasum combines whole tensors, which every rank gets; use allreduce";

fn padded(element: &[u8]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..element.len()].copy_from_slice(element);
    bytes
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_never_change() {
        for op in ReduceOp::ALL {
            assert_eq!(ReduceOp::from_code(op as u8), Some(op));
        }
        assert_eq!((ReduceOp::from_code(0), ReduceOp::from_code(99)), (None, None));
        let codes = ReduceOp::ALL.map(|op| (op as u8, op.name()));
        let known = [
            (1, "sum"),
            (2, "average"),
            (3, "min"),
            (4, "max"),
            (5, "product"),
            (6, "and"),
            (7, "or"),
            (8, "xor"),
            (9, "adasum"),
        ];
        assert_eq!(codes, known);
    }

    #[test]
    fn a_refusal_says_what_goes_instead() {
        let text = |op: ReduceOp, dtype| op.refusal(dtype).expect("refused");
        let found = text(ReduceOp::And, DType::BF16);
        assert!(found.contains("and does not take bf16, only i32, i64, u8, u64, i8, i16, u16, u32"), "{found}");
        assert!(found.contains("reduce it by sum, average, min, max, product, adasum"), "{found}");
        let found = text(ReduceOp::Sum, DType::Bool);
        assert!(found.contains("sum does not take bool") && found.contains("only moves"), "{found}");
        for dtype in DType::ALL {
            for op in ReduceOp::ALL {
                assert_eq!(op.refusal(dtype).is_none(), op.takes(dtype));
                assert_eq!(op.identity(dtype).is_some(), op.takes(dtype));
            }
        }
    }
}
