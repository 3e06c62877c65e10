//! The clock that processes of one host share, and a cheaper one for who reads it all the time.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the host booted, not counting suspension: equal in every process of a host (and of a time namespace), so
/// it can stand in shared memory, which an `Instant` cannot.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the call to fill.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(answer, 0, "CLOCK_MONOTONIC exists on every Linux");
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Time since 1970, as the host has it.
pub(crate) fn real() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A clock that costs a few nanoseconds. Its unit is unknown: who keeps ticks also keeps anchors, moments in ticks and
/// in [`monotonic`] time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticker {
    counter: bool,
}

impl Ticker {
    /// The processor's counter where it is fit to be a clock, else the monotonic clock in nanoseconds.
    pub(crate) fn new() -> Self {
        Self { counter: counter_is_fit() }
    }

    /// Whether it is the processor's counter.
    pub(crate) fn is_counter(self) -> bool {
        self.counter
    }

    #[cfg(test)]
    pub(crate) fn portable() -> Self {
        Self { counter: false }
    }

    /// Now. Not ordered with the loads and stores around it, and equal on all processors of the host but for what is far
    /// below a microsecond.
    #[inline]
    pub(crate) fn now(self) -> u64 {
        if self.counter { counter() } else { u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX) }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter() -> u64 {
    // SAFETY: every x86-64 has the instruction; where the system forbids it, `counter_is_fit` said no.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    unreachable!("no counter is fit here")
}

/// Whether the time stamp counter runs evenly, in all states of power, and the kernel has not found it to be unstable.
fn counter_is_fit() -> bool {
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    invariant() && may_read() && source.is_ok_and(|name| name.contains("tsc") || name.trim() == "kvm-clock")
}

#[cfg(target_arch = "x86_64")]
fn invariant() -> bool {
    /// Of CPUID leaf 0x8000_0007, word edx.
    const INVARIANT: u32 = 1 << 8;
    #[allow(unused_unsafe, reason = "safe in newer compilers")]
    // SAFETY: CPUID exists on every x86-64.
    let leaf = |number| unsafe { core::arch::x86_64::__cpuid(number) };
    leaf(0x8000_0000).eax >= 0x8000_0007 && leaf(0x8000_0007).edx & INVARIANT != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn invariant() -> bool {
    false
}

/// Whether the process may read the counter: `prctl` can make it a SIGSEGV.
fn may_read() -> bool {
    let mut mode: libc::c_int = 0;
    // SAFETY: the call writes one int.
    let answer = unsafe { libc::prctl(libc::PR_GET_TSC, &raw mut mode) };
    answer == 0 && mode == libc::PR_TSC_ENABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn does_not_run_backwards() {
        let first = monotonic();
        assert!(monotonic() >= first);
        assert!(!first.is_zero());
    }

    #[test]
    fn ticks_go_on_with_time_on_either_clock() {
        for ticker in [Ticker::new(), Ticker::portable()] {
            let (first, begin) = (ticker.now(), monotonic());
            while monotonic() < begin + Duration::from_millis(2) {}
            let second = ticker.now();
            while monotonic() < begin + Duration::from_millis(6) {}
            let third = ticker.now();
            assert!(first < second && second < third, "{ticker:?}: {first} {second} {third}");
        }
        let (before, after) = (monotonic(), Ticker::portable().now());
        assert!(u128::from(after) >= before.as_nanos());
    }
}
