//! `KOLO_EMULATOR_TRACE=PATH`: a line for each call, operation and complaint, with process and thread; `-` is standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

struct Trace {
    file: Mutex<Option<File>>,
    started: Instant,
}

fn trace() -> Option<&'static Trace> {
    static TRACE: OnceLock<Option<Trace>> = OnceLock::new();
    let open = || {
        let path = std::env::var("KOLO_EMULATOR_TRACE").ok().filter(|path| !path.is_empty())?;
        let file = (path != "-").then(|| {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.unwrap_or_else(|error| panic!("kolo emulator: KOLO_EMULATOR_TRACE={path}: {error}"))
        });
        Some(Trace { file: Mutex::new(file), started: Instant::now() })
    };
    TRACE.get_or_init(open).as_ref()
}

/// A call has ended.
pub(crate) fn call(name: &str, code: u32) {
    line(|| format!("{name} -> {code}"));
}

/// A stream begins an operation.
pub(crate) fn operation(stream: usize, what: &str) {
    line(|| format!("stream {stream:#x}: {what}"));
}

/// Something worth knowing.
pub(crate) fn note(text: &str) {
    line(|| text.to_owned());
}

fn line(text: impl FnOnce() -> String) {
    let Some(trace) = trace() else { return };
    // SAFETY: gettid takes nothing, and cannot fail.
    let thread = unsafe { libc::gettid() };
    let at = trace.started.elapsed().as_micros();
    let text = format!("{at:9} us {}/{thread} {}\n", std::process::id(), text());
    let mut file = trace.file.lock().unwrap_or_else(PoisonError::into_inner);
    let written = match file.as_mut() {
        Some(file) => file.write_all(text.as_bytes()),
        None => io::stderr().write_all(text.as_bytes()),
    };
    if let Err(error) = written {
        panic!("kolo emulator: the trace cannot be written: {error}");
    }
}
