//! Gradients that a rank did not give: who lacks what.

use std::sync::Arc;

use crate::{Error, Kolo, Mismatch, ReduceOp, Result};

/// The error, the same on every rank, that lists what each rank lacks. `given` is this rank's number of passes by
/// parameter, of `passes` that a step needs; `wire_name` names the exchange.
pub(crate) fn missing_gradients(
    kolo: &Kolo,
    wire_name: &str,
    what: String,
    names: &[&str],
    given: &[u64],
    passes: u64,
) -> Result<Error> {
    // Each rank fills its own row and leaves the others zero, so that the sum has every rank's.
    let mut table = vec![0_u64; kolo.size() * given.len()];
    table[kolo.rank() * given.len()..][..given.len()].copy_from_slice(given);
    kolo.allreduce(wire_name, &mut table, ReduceOp::Sum)?;
    let views = table.chunks_exact(given.len()).map(|row| describe(names, row, passes));
    Ok(Error::Mismatch(Arc::new(Mismatch::new(what, (0..).zip(views).collect()))))
}

/// What a rank lacks of a step, in words: the first few names, and how many more.
fn describe(names: &[&str], given: &[u64], passes: u64) -> String {
    const SHOWN: usize = 8;
    let lacking: Vec<(&str, u64)> =
        names.iter().zip(given).filter(|(_, given)| **given < passes).map(|(name, given)| (*name, *given)).collect();
    if lacking.is_empty() {
        return format!("all {} gradients", names.len());
    }
    let view = |(name, given): &(&str, u64)| match given {
        0 => format!("no gradient for '{name}'"),
        given => format!("{given} of {passes} gradients for '{name}'"),
    };
    let mut text = lacking.iter().take(SHOWN).map(view).collect::<Vec<_>>().join(", ");
    if lacking.len() > SHOWN {
        text += &format!(" and {} more", lacking.len() - SHOWN);
    }
    text + "; give it, or set MissingGradients::Zero if the model does not use it in every pass"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rank_lacks_is_named_and_counted() {
        let names = ["a", "b", "c"];
        assert_eq!(describe(&names, &[2, 2, 2], 2), "all 3 gradients");
        let text = describe(&names, &[0, 2, 1], 2);
        assert!(text.starts_with("no gradient for 'a', 1 of 2 gradients for 'c'; give it"), "{text}");
        let many: Vec<String> = (0..20).map(|index| format!("p{index}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let text = describe(&many, &[0; 20], 1);
        assert!(text.contains("'p7' and 12 more") && !text.contains("'p8'"), "{text}");
    }
}
