//! Dot products of every pair of inputs, in f64.
//!
//! The order of the additions depends on the number of elements alone: eight sums side by side, element i in sum i mod 8,
//! then the eight in order. So equal inputs give equal bits on every rank. The products of f32 and of 16-bit floats are
//! exact in f64.

use super::kernel::read_some;
use super::lane::{Bf16, F16, Lane};
use crate::tensor::DType;

/// Sums side by side.
const LANES: usize = 8;
/// Elements of each input that are widened together: they stay in the first cache.
const STEP: usize = 256;

/// How many pairs `n` inputs make, each with itself included.
pub(crate) const fn pairs(n: usize) -> usize {
    n * (n + 1) / 2
}

/// Which of them inputs `a` and `b` are.
pub(crate) const fn pair(a: usize, b: usize) -> usize {
    if a < b { pairs(b) + a } else { pairs(a) + b }
}

/// Writes the dot product of every pair of inputs of `count` elements to `sums`, at [`pair`].
///
/// # Panics
/// If the type is no float, or `sums` does not hold [`pairs`].
///
/// # Safety
/// For the whole call, every input is readable for `count` elements, and nobody writes it.
pub(crate) unsafe fn dots(dtype: DType, inputs: &[*const u8], count: usize, sums: &mut [f64]) {
    assert_eq!(sums.len(), pairs(inputs.len()), "sums of {} inputs", inputs.len());
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F16 => typed::<F16>(inputs, count, sums),
            DType::BF16 => typed::<Bf16>(inputs, count, sums),
            DType::F32 => typed::<f32>(inputs, count, sums),
            DType::F64 => typed::<f64>(inputs, count, sums),
            other => unreachable!("dot products of {other}"),
        }
    }
}

/// # Safety
/// As [`dots`].
unsafe fn typed<L: Lane<Value: Into<f64>>>(inputs: &[*const u8], count: usize, sums: &mut [f64]) {
    let mut wide = vec![[[0.0; LANES]; STEP / LANES]; inputs.len()];
    let mut lanes = vec![[0.0; LANES]; sums.len()];
    for start in (0..count).step_by(STEP) {
        let len = STEP.min(count - start);
        let groups = len.div_ceil(LANES);
        for (input, wide) in inputs.iter().zip(&mut wide) {
            for (group, wide) in wide[..groups].iter_mut().enumerate() {
                let at = group * LANES;
                // What lies beyond the end is zero, and adds nothing. SAFETY: only elements up to `len` are read.
                let elements = unsafe { read_some::<L, LANES>(*input, start + at, LANES.min(len - at)) };
                for (wide, value) in wide.iter_mut().zip(L::widen::<LANES, false>(elements)) {
                    *wide = value.into();
                }
            }
        }
        for a in 0..inputs.len() {
            for b in 0..=a {
                let mut sum = lanes[pair(a, b)];
                for (left, right) in wide[a][..groups].iter().zip(&wide[b][..groups]) {
                    for lane in 0..LANES {
                        sum[lane] += left[lane] * right[lane];
                    }
                }
                lanes[pair(a, b)] = sum;
            }
        }
    }
    for (sum, lanes) in sums.iter_mut().zip(lanes) {
        *sum = lanes.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Element;
    use half::{bf16, f16};

    /// Whole numbers of few bits, whose products and sums f64 holds exactly, at any alignment.
    fn exact<T: Element>(of: impl Fn(i32) -> T) {
        for n in 1..=9 {
            for count in [0, 1, 7, 8, 9, 255, 256, 257, 1000] {
                let value = |rank: usize, at: usize| ((at * 7 + rank * 13 + at * at % 5) % 17) as i32 - 8;
                let rows: Vec<Vec<u8>> = (0..n)
                    .map(|rank| {
                        let row: Vec<T> = (0..count).map(|at| of(value(rank, at))).collect();
                        // One byte off, so that nothing is aligned.
                        [&[0][..], bytemuck::cast_slice(&row)].concat()
                    })
                    .collect();
                let inputs: Vec<*const u8> = rows.iter().map(|row| row[1..].as_ptr()).collect();
                let mut sums = vec![f64::NAN; pairs(n)];
                // SAFETY: each row holds `count` elements after its first byte.
                unsafe { dots(T::DTYPE, &inputs, count, &mut sums) };
                for a in 0..n {
                    for b in 0..n {
                        let expected: i32 = (0..count).map(|at| value(a, at) * value(b, at)).sum();
                        assert_eq!(sums[pair(a, b)], f64::from(expected), "{a} and {b} of {n}, {count} {}", T::DTYPE);
                    }
                }
            }
        }
    }

    #[test]
    fn every_pair_of_every_type() {
        exact(|value| f16::from_f32(value as f32));
        exact(|value| bf16::from_f32(value as f32));
        exact(|value| value as f32);
        exact(f64::from);
    }

    #[test]
    fn products_do_not_overflow_the_type() {
        let big = [f16::MAX; 3];
        let mut sums = [0.0];
        // SAFETY: three elements.
        unsafe { dots(DType::F16, &[big.as_ptr().cast()], 3, &mut sums) };
        assert_eq!(sums, [3.0 * 65504.0 * 65504.0]);
    }
}
