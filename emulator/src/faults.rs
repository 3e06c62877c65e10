//! Faults and delays that a test injects, by environment or while it runs.
//!
//! `KOLO_EMULATOR_FAULTS` is a list of `WHAT[:N[+]]=CODE`, separated by commas. WHAT is a call of the driver API
//! (`cuMemAlloc_v2`), which then returns CODE and does nothing; or an operation of a stream: `kernel`, `kernel/NAME`,
//! `copy`, `set`, `event`, `host`, which then fails as if on the device, so that CODE is sticky in its context. N says
//! which of them (1 if not given), and N+ that one and all after it. CODE is a number or a name, as OUT_OF_MEMORY.
//!
//! `KOLO_EMULATOR_DELAYS` is a list of `OPERATION=MICROSECONDS`: operations of streams begin that much later. A bare number
//! delays each of them.

use std::ffi::c_char;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::codes::{self, Code};
use crate::entry::{self, In};
use crate::settings;

/// The kinds of operations that may fail, and those that may be late besides.
const FALLIBLE: &[&str] = &["kernel", "copy", "set", "host"];
const OTHERS: &[&str] = &["event", "free"];

#[derive(Debug, PartialEq)]
struct Fault {
    what: String,
    first: u64,
    and_later: bool,
    code: Code,
    seen: u64,
}

struct Plan {
    faults: Mutex<Vec<Fault>>,
    delays: Vec<(String, Duration)>,
}

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let read = |name| std::env::var(name).unwrap_or_default();
        let parsed = parse(&read("KOLO_EMULATOR_FAULTS"))
            .and_then(|faults| Ok((faults, settings::delays(&read("KOLO_EMULATOR_DELAYS"))?)));
        match parsed {
            Ok((faults, delays)) => Plan { faults: Mutex::new(faults), delays },
            Err(message) => panic!("kolo emulator: {message}"),
        }
    })
}

/// Checks that a name is that of a kind, or of a kernel. A fault under a wrong name would never happen.
fn kind<'a>(name: &'a str, kinds: &[&str]) -> Result<&'a str, String> {
    let kernel = name.strip_prefix("kernel/").is_some_and(|kernel| !kernel.is_empty());
    if kernel || kinds.contains(&name) {
        return Ok(name);
    }
    Err(format!("{name:?} is none of {}, kernel/NAME", kinds.join(", ")))
}

/// What a delay is for; nothing stands for everything.
pub(crate) fn delayed(name: &str) -> Result<&str, String> {
    if name.is_empty() { Ok(name) } else { kind(name, &[FALLIBLE, OTHERS].concat()) }
}

fn parse(text: &str) -> Result<Vec<Fault>, String> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(parse_one).collect()
}

fn parse_one(entry: &str) -> Result<Fault, String> {
    let (left, code) = entry.split_once('=').ok_or_else(|| format!("the fault {entry:?} has no =CODE"))?;
    let code = codes::parse(code).ok_or_else(|| format!("the fault {entry:?}: there is no code {code:?}"))?;
    let (what, which) = left.split_once(':').unwrap_or((left, "1"));
    let (which, and_later) = which.strip_suffix('+').map_or((which, false), |first| (first, true));
    let first = which.parse().ok().filter(|&first| first > 0);
    let first = first.ok_or_else(|| format!("the fault {entry:?}: {which:?} is not which of them"))?;
    if !entry::exports(what) {
        kind(what, FALLIBLE)
            .map_err(|message| format!("the fault {entry:?}: {message}, and no function of the API"))?;
    }
    Ok(Fault { what: what.to_owned(), first, and_later, code, seen: 0 })
}

/// The code that this call is to return, if it is one that is to fail.
pub(crate) fn of_call(name: &str) -> Option<Code> {
    hit(|what| what == name)
}

/// The code with which this operation is to fail, if it is one. A kernel has a name.
pub(crate) fn of_operation(kind: &str, kernel: Option<&str>) -> Option<Code> {
    hit(|what| matches(what, kind, kernel))
}

fn matches(what: &str, kind: &str, kernel: Option<&str>) -> bool {
    what == kind || what.strip_prefix("kernel/").is_some_and(|name| kernel == Some(name))
}

fn hit(is_meant: impl Fn(&str) -> bool) -> Option<Code> {
    let mut faults = plan().faults.lock().unwrap_or_else(PoisonError::into_inner);
    let mut code = None;
    for fault in faults.iter_mut().filter(|fault| is_meant(&fault.what)) {
        fault.seen += 1;
        if fault.seen == fault.first || (fault.and_later && fault.seen > fault.first) {
            code = code.or(Some(fault.code));
        }
    }
    code
}

/// How much later than now this operation begins.
pub(crate) fn delay(kind: &str, kernel: Option<&str>) -> Duration {
    plan().delays.iter().filter(|(what, _)| what.is_empty() || matches(what, kind, kernel)).map(|entry| entry.1).sum()
}

/// Replaces the faults, and counts from 1 again. The text is as in `KOLO_EMULATOR_FAULTS`; returns 1 if it is not.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn koloEmulatorSetFaults(text: In<c_char>) -> u32 {
    let Ok(faults) = text.text().map_err(|_| String::new()).and_then(|text| parse(&text)) else { return 1 };
    *plan().faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        let faults = parse("cuLaunchKernel:2=719, kernel/kolo_pack:3+=ILLEGAL_ADDRESS,cuInit=100").unwrap();
        let fault = |what: &str, first, and_later, code| Fault { what: what.into(), first, and_later, code, seen: 0 };
        let expected = [
            fault("cuLaunchKernel", 2, false, codes::LAUNCH_FAILED),
            fault("kernel/kolo_pack", 3, true, codes::ILLEGAL_ADDRESS),
            fault("cuInit", 1, false, codes::NO_DEVICE),
        ];
        assert_eq!(faults, expected);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for text in [
            "cuInit",
            "cuInit=1234567",
            "cuInit:0=1",
            "kernle=719",
            "kernel/=719",
            ":2=719",
            "cuInit:x=1",
            "cuMemAlloc=2",
        ] {
            assert!(parse(text).unwrap_err().len() > 10, "{text}");
        }
    }

    #[test]
    fn delays_and_faults_have_names_of_their_own() {
        assert!(delayed("").is_ok() && delayed("free").is_ok() && delayed("kernel/kolo_pack").is_ok());
        assert!(delayed("cuInit").is_err() && parse("free=719").is_err());
    }

    #[test]
    fn a_kernel_is_meant_by_its_name_or_by_its_kind() {
        assert!(matches("kernel", "kernel", Some("kolo_pack")));
        assert!(matches("kernel/kolo_pack", "kernel", Some("kolo_pack")));
        assert!(!matches("kernel/kolo_pack", "kernel", Some("kolo_unpack")));
        assert!(!matches("copy", "kernel", Some("copy")));
    }
}
