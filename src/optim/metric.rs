//! Metrics of the whole job.

use crate::{Error, Kolo, ReduceOp, Result};

/// The average of a metric over ranks, weighted by `weight`: usually the number of samples behind `value`.
///
/// Loss and accuracy of a rank are means over its own samples; weighting by their number gives the mean over all samples,
/// also where the last batches are uneven. A rank with weight 0 takes part without a value (it may pass anything). The
/// name on the wire is `metric.` and `name`; the result has the same bits on every rank.
///
/// # Collective
/// Every rank, with the same name.
///
/// # Errors
/// [`Error::Argument`], on every rank, if a rank's weight is negative or not finite, or if all are 0.
pub fn average_metric(kolo: &Kolo, name: &str, value: f64, weight: f64) -> Result<f64> {
    let valid = weight.is_finite() && weight >= 0.0;
    // A rank with a bad weight still takes part, as the others wait for it; the third sum counts such ranks.
    let mut sums = match (valid, weight > 0.0) {
        (true, true) => [value * weight, weight, 0.0],
        (true, false) => [0.0; 3],
        (false, _) => [0.0, 0.0, 1.0],
    };
    kolo.allreduce(&format!("metric.{name}"), &mut sums, ReduceOp::Sum)?;
    let [sum, total, bad] = sums;
    if !valid {
        return Err(Error::argument(format!(
            "metric '{name}': the weight is {weight} on this rank; pass the number of samples, 0 or more and finite"
        )));
    }
    if bad > 0.0 {
        return Err(Error::argument(format!(
            "metric '{name}': {bad} other rank(s) passed a weight that is negative or not finite; see their errors"
        )));
    }
    if total == 0.0 {
        return Err(Error::argument(format!("metric '{name}': the weight is 0 on every rank; no rank has a sample")));
    }
    Ok(sum / total)
}
