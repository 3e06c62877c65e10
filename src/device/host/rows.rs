//! Sums of rows that a rank has more than once.

use super::{Finish, Sink, Source, reduce};
use crate::tensor::{ReduceOp, Reducible};

/// Adds rows in order into `sum`, each element rounded once.
///
/// # Panics
/// If there is no row, or one has another length than `sum`.
pub(crate) fn add_rows<T: Reducible>(rows: &[&[T]], sum: &mut [T]) {
    assert!(rows.iter().all(|row| row.len() == sum.len()), "rows of one length");
    let inputs: Vec<Source> = rows.iter().map(|row| Source::Elements(row.as_ptr().cast())).collect();
    let output = [Sink::Elements(sum.as_mut_ptr().cast())];
    // SAFETY: all have `sum.len()` elements of the type, and `sum`, borrowed exclusively, overlaps no row.
    unsafe { reduce(T::DTYPE, ReduceOp::Sum, &inputs, sum.len(), &output, Finish::NONE) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::f16;

    #[test]
    fn each_element_is_rounded_once() {
        let row = |value: f32| [f16::from_f32(value), f16::from_f32(1.0)];
        let mut sum = [f16::from_f32(0.0); 2];
        // 2048 is the first f16 to which a 1 adds nothing.
        add_rows(&[&row(2048.0), &row(1.0), &row(1.0)], &mut sum);
        assert_eq!(sum, [f16::from_f32(2050.0), f16::from_f32(3.0)]);
        let mut sum = [0_i8; 1];
        add_rows(&[&[127], &[2]], &mut sum);
        assert_eq!(sum, [-127]);
    }

    #[test]
    #[should_panic(expected = "rows of one length")]
    fn rows_of_other_lengths_are_refused() {
        add_rows(&[&[1.0_f32, 2.0], &[1.0]], &mut [0.0; 2]);
    }
}
