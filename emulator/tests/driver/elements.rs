//! Elements of every type as bytes, to and from numbers that the type holds exactly.

use half::{bf16, f16};

/// A type by its name in the names of kernels.
pub(crate) type Kind = &'static str;

pub(crate) const FLOATS: &[Kind] = &["f16", "bf16", "f32", "f64"];
pub(crate) const KINDS: &[Kind] = &["f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"];

/// Bytes of an element.
pub(crate) fn bytes(kind: Kind) -> usize {
    let digits = kind.trim_start_matches(char::is_alphabetic);
    digits.parse::<usize>().expect("the name ends with its bits") / 8
}

macro_rules! types {
    ($($name:literal $type:ty, $from:expr, $to:expr;)*) => {
        pub(crate) fn encode(kind: Kind, values: &[f64]) -> Vec<u8> {
            match kind {
                $($name => values.iter().flat_map(|&value| {
                    let element: $type = $from(value);
                    assert_eq!($to(element), value, "{kind} does not hold it");
                    element.to_le_bytes()
                }).collect(),)*
                other => panic!("there is no type {other}"),
            }
        }

        pub(crate) fn decode(kind: Kind, bytes: &[u8]) -> Vec<f64> {
            match kind {
                $($name => bytes.chunks_exact(size_of::<$type>()).map(|bytes| {
                    $to(<$type>::from_le_bytes(bytes.try_into().expect("the chunks are as long")))
                }).collect(),)*
                other => panic!("there is no type {other}"),
            }
        }
    };
}

types! {
    "f16" f16, f16::from_f64, f16::to_f64;
    "bf16" bf16, bf16::from_f64, bf16::to_f64;
    "f32" f32, |value: f64| value as f32, |element: f32| f64::from(element);
    "f64" f64, |value: f64| value, |element: f64| element;
    "i8" i8, |value: f64| value as i8, |element: i8| f64::from(element);
    "i16" i16, |value: f64| value as i16, |element: i16| f64::from(element);
    "i32" i32, |value: f64| value as i32, |element: i32| f64::from(element);
    "i64" i64, |value: f64| value as i64, |element: i64| element as f64;
    "u8" u8, |value: f64| value as u8, |element: u8| f64::from(element);
    "u16" u16, |value: f64| value as u16, |element: u16| f64::from(element);
    "u32" u32, |value: f64| value as u32, |element: u32| f64::from(element);
    "u64" u64, |value: f64| value as u64, |element: u64| element as f64;
}
