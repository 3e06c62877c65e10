//! Averages over the whole job where ranks have unequally many samples.

use super::Real;
use crate::{Error, Kolo, ReduceOp, Result};

/// The average of a metric over ranks, weighted by `weight`: usually the number of samples behind `value`.
///
/// Loss and accuracy of a rank are means over its own samples; weighting by their number gives the mean over all samples,
/// also where the last batches are uneven. A rank with weight 0 takes part without a value (it may pass anything). The
/// name on the wire is `metric.` and `name`; the result has the same bits on every rank.
///
/// # Collective
/// Every rank that has not [joined](Kolo::join), with the same name.
///
/// # Errors
/// [`Error::Argument`], on every rank, if a rank's weight is negative or not finite, or if all are 0.
pub fn average_metric(kolo: &Kolo, name: &str, value: f64, weight: f64) -> Result<f64> {
    let metric = format!("metric.{name}");
    weighted(kolo, &metric, &format!("metric '{name}'"), value, weight).map(|(sum, total)| sum / total)
}

/// The average of a tensor over ranks, weighted by `weight`: usually the number of samples behind it. In place.
///
/// With it a rank whose last batch is short counts for as much as it has. A rank with weight 0 takes part without a value,
/// as one that has [joined](Kolo::join) takes no part at all.
///
/// Each rank's elements are multiplied by its share of all weights, rounded to the type, and summed in the order that the
/// algorithm has; the shares come from sums in `f64`. On the wire this is two operations: `name` with `.weight` behind it,
/// and `name`.
///
/// ```
/// # kolo::threads(2, |kolo| -> kolo::Result<()> {
/// let (mut gradient, samples) = [([1.0_f32], 30.0), ([5.0], 10.0)][kolo.rank()];
/// kolo::optim::average_weighted(kolo, "gradient", &mut gradient, samples)?;
/// assert_eq!(gradient, [2.0]);
/// # Ok(())
/// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
/// # Ok::<(), kolo::Error>(())
/// ```
///
/// # Collective
/// Every rank that has not joined, with the same name, type and length.
///
/// # Errors
/// [`Error::Argument`], on every rank, if a rank's weight is negative or not finite, or if all are 0; else as
/// [`Kolo::allreduce`].
pub fn average_weighted<T: Real>(kolo: &Kolo, name: &str, data: &mut [T], weight: f64) -> Result<()> {
    let (_, total) = weighted(kolo, &format!("{name}.weight"), &format!("tensor '{name}'"), 0.0, weight)?;
    let share = weight / total;
    for element in data.iter_mut() {
        // Whatever a rank without samples passes, also what is no number.
        *element = if weight > 0.0 { T::from_f64(element.to_f64() * share) } else { T::default() };
    }
    kolo.allreduce(name, data, ReduceOp::Sum)
}

/// The weighted sum of the ranks' values, and the sum of the weights.
fn weighted(kolo: &Kolo, name: &str, what: &str, value: f64, weight: f64) -> Result<(f64, f64)> {
    let valid = weight.is_finite() && weight >= 0.0;
    // A rank with a bad weight still takes part, as the others wait for it; the third sum counts such ranks.
    let mut sums = match (valid, weight > 0.0) {
        (true, true) => [value * weight, weight, 0.0],
        (true, false) => [0.0; 3],
        (false, _) => [0.0, 0.0, 1.0],
    };
    kolo.allreduce(name, &mut sums, ReduceOp::Sum)?;
    let [sum, total, bad] = sums;
    if !valid {
        return Err(Error::argument(format!(
            "{what}: the weight is {weight} on this rank; pass the number of samples, 0 or more and finite"
        )));
    }
    if bad > 0.0 {
        return Err(Error::argument(format!(
            "{what}: {bad} other rank(s) passed a weight that is negative or not finite; see their errors"
        )));
    }
    if total == 0.0 {
        return Err(Error::argument(format!("{what}: the weight is 0 on every rank; no rank has a sample")));
    }
    Ok((sum, total))
}
