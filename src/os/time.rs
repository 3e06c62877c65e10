//! The clock that processes of one host share.

use std::time::Duration;

/// Time since the host booted, not counting suspension: equal in every process of a host (and of a time namespace), so
/// it can stand in shared memory, which an `Instant` cannot.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the call to fill.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(answer, 0, "CLOCK_MONOTONIC exists on every Linux");
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    #[test]
    fn does_not_run_backwards() {
        let first = super::monotonic();
        assert!(super::monotonic() >= first);
        assert!(!first.is_zero());
    }
}
