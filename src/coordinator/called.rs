//! What tensors, and the steps of operations on them, may be called.

use super::wire::cut;
use crate::error::{Error, Result};

/// The longest name in bytes.
pub(crate) const MAX_NAME: usize = 512;
/// Stands between a name and what a later step of its operation is called. No user's name holds it, and it does not show: the
/// two read as one.
const JOINT: char = '\u{2063}';
/// The longest that a step is called, in bytes, with what comes before it.
const MAX_STEP: usize = 32;
/// The longest name of a step in bytes.
pub(crate) const MAX_STEP_NAME: usize = MAX_NAME + MAX_STEP;

/// Whether `name` can be sent to the peers.
pub(super) fn check_name(name: &str) -> Result<()> {
    let user = without_step(name);
    if user.is_empty() {
        return Err(Error::argument("a tensor's name is empty; give it one that is the same on every rank"));
    }
    if user.len() > MAX_NAME || name.len() - user.len() > MAX_STEP {
        return Err(Error::argument(format!(
            "the name '{}...' has {} bytes; at most {MAX_NAME} are supported, shorten it",
            cut(user, 60),
            name.len()
        )));
    }
    Ok(())
}

/// Whether a user may call a tensor so.
///
/// # Errors
/// It might be the name of a step.
pub(crate) fn check_user_name(name: &str) -> Result<()> {
    if !name.contains(JOINT) {
        return Ok(());
    }
    let shown = cut(name, 60).replace(JOINT, "\\u{2063}");
    Err(Error::argument(format!(
        "the name '{shown}' holds the character U+2063, with which kolo names the steps of operations; leave it out"
    )))
}

/// What a later step of the operation `name` is called: it reads as `name, step`.
pub(crate) fn step_name(name: &str, step: &str) -> String {
    format!("{name}{JOINT}, {step}")
}

/// The user's name of what may be a step.
pub(crate) fn without_step(name: &str) -> &str {
    name.split(JOINT).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_user_is_that_of_a_step() {
        let longest = "n".repeat(MAX_NAME);
        for name in ["x", "x, its rows", "\u{2064}ü", &longest] {
            let step = step_name(name, "its rows");
            assert!(check_user_name(name).is_ok() && check_name(name).is_ok() && check_name(&step).is_ok(), "{name}");
            assert!(check_user_name(&step).is_err(), "{name}");
            assert_eq!((without_step(&step), without_step(name)), (name, name));
            assert_eq!(step.replace(JOINT, ""), format!("{name}, its rows"), "it reads as one");
        }
        for wrong in [step_name("", "its rows"), step_name("x", &"y".repeat(MAX_STEP)), longest + "n"] {
            assert!(check_name(&wrong).is_err(), "{wrong}");
        }
    }
}
