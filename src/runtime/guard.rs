//! Runs a program as a rank and turns its end into the job's.

use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::{Builder, Kolo};
use crate::error::Error;
use crate::event;
use crate::membership::panic_text;

/// How long a rank whose set was poisoned waits for the failure that did it.
const CAUSE: Duration = Duration::from_millis(300);

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
            let error = error.into();
            if is_consequence(&*error) {
                await_cause(&kolo);
            }
            kolo.job.fail(in_words(&*error));
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

/// Whether another rank's error is behind this one, and says more.
fn is_consequence(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if matches!(error.downcast_ref(), Some(Error::Poisoned(_))) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Lets the rank with the cause be the first to fail.
fn await_cause(kolo: &Kolo) {
    let end = Instant::now() + CAUSE;
    while kolo.job.check().is_ok() && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
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

    #[test]
    fn an_error_behind_a_poisoned_set_is_known() {
        let boxed = |error: Error| -> Box<dyn StdError + Send + Sync> { error.into() };
        assert!(is_consequence(&*boxed(Error::Poisoned("gave up".into()))));
        assert!(!is_consequence(&*boxed(Error::argument("wrong"))));
        #[derive(Debug, thiserror::Error)]
        #[error("step 7")]
        struct Outer(#[source] Error);
        assert!(is_consequence(&Outer(Error::Poisoned("gave up".into()))));
    }

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
