//! What is there now, and what has run: for tests that look for leaks or count launches.

use std::ffi::c_char;

use crate::entry::Out;
use crate::memory::{self, Kind};
use crate::{event, graph, launch, module, stream};

/// A line a kind of object and a line a kernel, as "device_memory 3" and "kernel/kolo_pack 12".
fn text() -> String {
    let counts = [
        ("device_memory", memory::count(|kind| matches!(kind, Kind::Device(_) | Kind::Pool(_)))),
        ("pinned_memory", memory::count(|kind| kind == Kind::Pinned)),
        ("registered_memory", memory::count(|kind| kind == Kind::Registered)),
        ("imported_memory", memory::count(|kind| matches!(kind, Kind::Imported(_)))),
        ("streams", stream::count()),
        ("events", event::count()),
        ("modules", module::count()),
        ("graphs", graph::count()),
    ];
    let objects = counts.iter().map(|(name, count)| format!("{name} {count}\n"));
    let kernels: Vec<_> = launch::runs().iter().map(|(name, count)| format!("kernel/{name} {count}\n")).collect();
    objects.chain(kernels).collect()
}

/// Writes the statistics, and a zero behind them. Returns how many bytes they have, whatever had room.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn koloEmulatorStatistics(place: Out<c_char>, bytes: usize) -> usize {
    let text = text();
    // Without a place the caller asks for the length alone.
    match place.set_text(&text, bytes) {
        Ok(()) | Err(_) => text.len(),
    }
}

/// With `KOLO_EMULATOR_LEAKS=1`: tells what is left when the process exits.
pub(crate) fn report_at_exit() {
    extern "C" fn report() {
        let left: Vec<_> = text()
            .lines()
            .filter(|line| !line.starts_with("kernel/") && !line.ends_with(" 0"))
            .map(str::to_owned)
            .collect();
        if !left.is_empty() {
            eprintln!("kolo emulator: left at exit: {}", left.join(", "));
        }
    }
    if std::env::var("KOLO_EMULATOR_LEAKS").is_ok_and(|value| value == "1") {
        // SAFETY: the function is one of this library, which is never unloaded.
        let registered = unsafe { libc::atexit(report) };
        assert_eq!(registered, 0, "no room for another function at exit");
    }
}
