//! A common start: every rank gets one rank's parameters.

use crate::{Element, Kolo, Result};

/// Gives every rank the parameters of rank `root`, in place: before the first step, and after a checkpoint was read.
///
/// All parameters travel at once and are fused. Their names on the wire are `parameter.` and the given name.
///
/// # Collective
/// Every rank, with the same names, shapes and root. The order of the names does not matter.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) where the ranks disagree about a shape, a type or the root.
pub fn broadcast_parameters<N, V, T>(
    kolo: &Kolo,
    parameters: impl IntoIterator<Item = (N, V)>,
    root: usize,
) -> Result<()>
where
    N: AsRef<str>,
    V: AsMut<[T]>,
    T: Element,
{
    let mut parameters: Vec<(String, V)> =
        parameters.into_iter().map(|(name, values)| (format!("parameter.{}", name.as_ref()), values)).collect();
    let lent = parameters.iter_mut();
    kolo.scope(|scope| {
        for (name, values) in lent {
            scope.broadcast_async(name, values.as_mut(), root)?;
        }
        Ok(())
    })
}
