//! What a reduction must give: to the bit where sums are in rank order, else within the documented bounds of f64.

use std::fmt;
use std::hash::Hasher;
use std::ops::Range;

use kolo::ReduceOp;

use super::sample::{Rows, Sample};
use super::value::{Number, Value, is_close};

/// Factors before and after a reduction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    pub(crate) before: f64,
    pub(crate) after: f64,
}

impl Scale {
    pub(crate) const NONE: Self = Self { before: 1.0, after: 1.0 };
    /// The last one saturates unsigned integers at 0.
    pub(crate) const SOME: [Self; 3] =
        [Self { before: 0.3, after: 0.9 }, Self { before: 1.0, after: 1.7 }, Self { before: -0.5, after: 1.0 }];
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE { Ok(()) } else { write!(f, " scaled {} and {}", self.before, self.after) }
    }
}

/// The operations that the type takes, Adasum apart.
pub(crate) fn operations<T: Number>() -> impl Iterator<Item = ReduceOp> {
    ReduceOp::ALL.into_iter().filter(|op| op.takes(T::DTYPE) && *op != ReduceOp::Adasum)
}

/// The reduction of some ranks' data.
pub(crate) struct Want<T> {
    op: ReduceOp,
    postscale: f64,
    ranks: usize,
    /// The ranks' elements at each place, after the factor that comes before: `ranks` of them a place.
    columns: Vec<T>,
    ordered: Vec<T>,
    /// The weighted sum and its bound, of Adasum.
    bounded: Option<Vec<(f64, f64)>>,
    /// What was reduced, in words that do not tell how or where.
    pub(crate) words: String,
}

impl<T: Number> Want<T> {
    pub(crate) fn new(data: &Rows<T>, sample: Sample, op: ReduceOp, scale: Scale) -> Self {
        let (ranks, count) = (data.len(), data[0].len());
        let words = format!("{op} of {sample} {} over {ranks}{scale}", T::DTYPE);
        if op == ReduceOp::Adasum {
            assert_eq!(scale, Scale::NONE, "no reference");
            let bounded = Some(adasum(data));
            return Self { op, postscale: 1.0, ranks, columns: Vec::new(), ordered: Vec::new(), bounded, words };
        }
        let mut columns = Vec::with_capacity(ranks * count);
        for at in 0..count {
            columns.extend(data.iter().map(|row| row[at].scaled(scale.before)));
        }
        let ordered: Vec<T> = columns.chunks_exact(ranks).map(|column| T::ordered(column, op, scale.after)).collect();
        let want = Self { op, postscale: scale.after, ranks, columns, ordered, bounded: None, words };
        // Two references that disagree judge nothing.
        if let Err(why) = want.check_close(&want.ordered, 0) {
            panic!("the reference of {}: {why}", want.words);
        }
        want
    }

    /// The same, in words that tell whose data are left out.
    pub(crate) fn without(mut self, whom: &str) -> Self {
        self.words += &format!(", without {whom}");
        self
    }

    /// Whether `got` is that part of the result. `ordered`: with the bits of a sum in rank order.
    pub(crate) fn check(&self, got: &[T], part: Range<usize>, ordered: bool) -> Result<(), String> {
        if got.len() != part.len() {
            return Err(format!("{} elements, not {}", got.len(), part.len()));
        }
        match &self.bounded {
            Some(bounded) => check_bounded(got, &bounded[part]),
            None if ordered => check_same(got, &self.ordered[part]),
            None => self.check_close(got, part.start),
        }
    }

    fn check_close(&self, got: &[T], start: usize) -> Result<(), String> {
        let columns = self.columns.chunks_exact(self.ranks).skip(start);
        match got.iter().zip(columns).position(|(&got, column)| !is_close(got, column, self.op, self.postscale)) {
            None => Ok(()),
            Some(at) => {
                let column = &self.columns[(start + at) * self.ranks..][..self.ranks];
                Err(format!("element {at} of {} is {:?}: not the {} of {column:?}", got.len(), got[at], self.op))
            }
        }
    }

    pub(crate) fn is_adasum(&self) -> bool {
        self.bounded.is_some()
    }

    /// Whether a NaN is among them, whose payload is nobody's promise.
    pub(crate) fn has_nan(&self) -> bool {
        self.ordered.iter().any(|value| value.wide().is_nan())
    }

    /// How many elements the whole result has.
    pub(crate) fn len(&self) -> usize {
        self.bounded.as_ref().map_or(self.ordered.len(), Vec::len)
    }
}

/// Bit for bit, but for the payload of NaN.
pub(crate) fn check_same<T: Value>(got: &[T], want: &[T]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} elements, not {}", got.len(), want.len()));
    }
    match got.iter().zip(want).position(|(&got, &want)| !got.is(want)) {
        Some(at) => Err(format!("element {at} of {} is {:?}, not {:?}", got.len(), got[at], want[at])),
        None => Ok(()),
    }
}

fn check_bounded<T: Number>(got: &[T], want: &[(f64, f64)]) -> Result<(), String> {
    for (at, (got, (want, bound))) in got.iter().zip(want).enumerate() {
        let far = (got.wide() - want).abs();
        // A NaN is far as well.
        if !matches!(far.partial_cmp(bound), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            return Err(format!("element {at} is {got:?}, not {want} within {bound:e}"));
        }
    }
    Ok(())
}

/// A number that tells results with different bits apart.
pub(crate) fn digest<T: Value>(data: &[T]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytemuck::cast_slice(data));
    hasher.finish()
}

/// Adasum by its definition in `docs/types.md`, in f64: each element, and by how much it may be off.
fn adasum<T: Number>(data: &Rows<T>) -> Vec<(f64, f64)> {
    let rows: Vec<Vec<f64>> = data.iter().map(|row| row.iter().map(|value| value.wide()).collect()).collect();
    let mut least = 1.0;
    let (_, weights) = combine(&rows, &mut least);
    let (rounding, accumulator, tiny) = T::ROUNDING;
    // Each term is rounded to the type, each step to the accumulator, the sum to the type. Where a node cancels out, the
    // roundings of its dot products are multiplied up.
    let steps = data.len() as f64;
    let relative = (steps + 2.0) * (rounding + accumulator) + 1e-14 * steps / least;
    let element = |at: usize| {
        let terms = || rows.iter().zip(&weights).map(|(row, weight)| row[at] * weight);
        let magnitude: f64 = terms().map(f64::abs).sum();
        (terms().sum(), 2.0 * (relative * magnitude + steps * tiny))
    };
    (0..rows[0].len()).map(element).collect()
}

/// The tree over the vectors: its vector, and the factor of each. `least`: the smallest share of a node's squared norm that
/// cancelling out has left.
fn combine(vectors: &[Vec<f64>], least: &mut f64) -> (Vec<f64>, Vec<f64>) {
    if let [alone] = vectors {
        return (alone.clone(), vec![1.0]);
    }
    let (left, right) = vectors.split_at(vectors.len().next_power_of_two() / 2);
    let ((a, mut of_a), (b, of_b)) = (combine(left, least), combine(right, least));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (aa, ab, bb) = (dot(&a, &a), dot(&a, &b), dot(&b, &b));
    let factor = |norm: f64| if norm == 0.0 { 1.0 } else { 1.0 - ab / (2.0 * norm) };
    let (x, y) = (factor(aa), factor(bb));
    let mut sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| x * a + y * b).collect();
    let (norm, whole) = (dot(&sum, &sum), x * x * aa + y * y * bb);
    if norm < whole / (1_u64 << 40) as f64 {
        sum.fill(0.0);
    } else if whole > 0.0 {
        *least = least.min(norm / whole);
    }
    of_a.iter_mut().for_each(|weight| *weight *= x);
    of_a.extend(of_b.iter().map(|weight| weight * y));
    (sum, of_a)
}
