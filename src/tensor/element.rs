//! Rust's side of the element types: what moves, and what reduces.

use std::fmt;

use bytemuck::{CheckedBitPattern, NoUninit, Pod, Zeroable};

use super::DType;

mod sealed {
    pub trait Sealed {}
}

/// A type that tensors are made of: it can be sent, received, broadcast and gathered.
///
/// Implemented for what [reduces](Reducible), and for `bool`; sealed. A `bool` travels as a byte, and a received byte that
/// is neither 0 nor 1 ends the operation with an error: it never becomes a `bool`.
pub trait Element:
    sealed::Sealed + NoUninit + CheckedBitPattern + Zeroable + fmt::Debug + PartialEq + Send + Sync + 'static
{
    /// The type's code.
    const DTYPE: DType;
}

/// An element type that the ranks can reduce: `i8 i16 i32 i64 u8 u16 u32 u64 f16 bf16 f32 f64`. Sealed.
///
/// Which [`ReduceOp`](crate::ReduceOp) takes which of them, and what it gives, stands in `docs/types.md`.
///
/// ```compile_fail,E0277
/// # fn main() -> kolo::Result<()> {
/// let kolo = kolo::init()?;
/// kolo.allreduce("mask", &mut [true, false], kolo::ReduceOp::Max)?; // a bool only moves
/// # Ok(())
/// # }
/// ```
pub trait Reducible: Element + Pod {}

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
    i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    bool => Bool,
}

macro_rules! reducible {
    ($($t:ty),* $(,)?) => {$(
        impl Reducible for $t {}
    )*};
}

reducible!(half::f16, half::bf16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64);

/// Overwrites the bytes of `data` from byte `start` on, unless that would make no elements of the type: then it leaves
/// them as they are and returns `false`.
///
/// # Panics
/// If the bytes do not lie inside.
pub(crate) fn overwrite<T: Element>(data: &mut [T], start: usize, bytes: &[u8]) -> bool {
    let whole = size_of_val(data);
    assert!(start <= whole && bytes.len() <= whole - start, "{} bytes from {start} of {whole}", bytes.len());
    if T::DTYPE == DType::Bool && bytes.iter().any(|byte| *byte > 1) {
        return false;
    }
    // SAFETY: the target lies inside `data`, which is borrowed exclusively. Of all types but
    // `bool`, which was looked at, any bits are elements.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.as_mut_ptr().cast::<u8>().add(start), bytes.len()) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_types() {
        fn check<T: Element>() -> DType {
            assert_eq!(T::DTYPE.size(), size_of::<T>());
            T::DTYPE
        }
        let mut all = [
            check::<half::f16>(),
            check::<half::bf16>(),
            check::<f32>(),
            check::<f64>(),
            check::<i8>(),
            check::<i16>(),
            check::<i32>(),
            check::<i64>(),
            check::<u8>(),
            check::<u16>(),
            check::<u32>(),
            check::<u64>(),
            check::<bool>(),
        ];
        all.sort_unstable();
        assert_eq!(all, DType::ALL);
    }

    #[test]
    fn no_other_byte_becomes_a_bool() {
        let mut data = [true, false, true, false];
        assert!(overwrite(&mut data, 1, &[1, 0]));
        assert_eq!(data, [true, true, false, false]);
        for byte in 2..=u8::MAX {
            assert!(!overwrite(&mut data, 0, &[0, 0, 0, byte]));
        }
        assert_eq!(data, [true, true, false, false], "left as it was");
        let mut data = [7_u32; 2];
        assert!(overwrite(&mut data, 2, &[0xff; 4]));
        assert_eq!(bytemuck::cast_slice::<u32, u8>(&data), [[7, 0, 0xff, 0xff], [0xff, 0xff, 0, 0]].concat());
    }

    #[test]
    #[should_panic(expected = "2 bytes from 1 of 2")]
    fn bytes_beyond_the_elements_are_refused() {
        overwrite(&mut [true, false], 1, &[0, 0]);
    }
}
