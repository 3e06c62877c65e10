//! Runs a program as a rank and turns its end into the job's.

use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use super::{Builder, Kolo};
use crate::event;
use crate::membership::panic_text;

/// What Rust programs exit with after a panic.
const PANICKED: u8 = 101;

pub(super) fn run<F, E>(builder: Builder, program: F) -> ExitCode
where
    F: FnOnce(&Kolo) -> Result<(), E>,
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    let kolo = match builder.boot() {
        Ok(kolo) => kolo,
        Err(refusal) => {
            if refusal.tell {
                event::tell_error(&refusal.to_string());
            }
            return ExitCode::FAILURE;
        }
    };
    // What the program leaves half done after a panic is seen by nobody: the process ends.
    let code = match catch_unwind(AssertUnwindSafe(|| program(&kolo))) {
        Ok(Ok(())) if kolo.job.check().is_ok() => return ExitCode::SUCCESS,
        // Somebody failed, and this rank did not need them any more.
        Ok(Ok(())) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            kolo.job.fail(in_words(&*error.into()));
            ExitCode::FAILURE
        }
        Err(payload) => {
            kolo.job.fail(panic_text(Some(&*payload)));
            ExitCode::from(PANICKED)
        }
    };
    kolo.job.end_if_winner();
    code
}

/// An error and what it came from, on one line.
fn in_words(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        // Many errors already end with the words of what they came from.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn errors_are_told_with_what_they_came_from_but_not_twice() {
        let io = std::io::Error::other("no such disk");
        assert_eq!(in_words(&Error::system("reading the data", io)), "reading the data: no such disk");
        #[derive(Debug, thiserror::Error)]
        #[error("epoch 3")]
        struct Outer(#[source] Error);
        assert_eq!(in_words(&Outer(Error::argument("too short"))), "epoch 3: too short");
    }
}
