//! Sleeping on a word that other processes see.
//!
//! The futex is shared (not private): its key is the page behind the address, so that processes which map the same
//! memory at different addresses meet on it.

use std::time::Duration;

use super::sync::AtomicU32;

/// Why [`wait`] returned. A signal counts as `Woken`: whoever waits looks again anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Somebody woke the word, or a signal came.
    Woken,
    /// The word did not hold the expected value any more.
    Changed,
    /// The timeout passed.
    TimedOut,
}

#[cfg(not(kolo_loom))]
pub(crate) use kernel::{wait, wake_all};
#[cfg(kolo_loom)]
pub(crate) use model::{wait, wake_all};

#[cfg(not(kolo_loom))]
mod kernel {
    use rustix::io::Errno;
    use rustix::thread::futex;

    use super::{AtomicU32, Duration, Waited};

    /// Sleeps while `word` holds `expected`, at most for `timeout`.
    pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Waited {
        // A timeout beyond the kernel's range is no timeout.
        let timeout = timeout.and_then(|timeout| {
            let tv_sec = i64::try_from(timeout.as_secs()).ok()?;
            Some(futex::Timespec { tv_sec, tv_nsec: timeout.subsec_nanos().into() })
        });
        match futex::wait(word, futex::Flags::empty(), expected, timeout.as_ref()) {
            Ok(()) | Err(Errno::INTR) => Waited::Woken,
            Err(Errno::AGAIN) => Waited::Changed,
            Err(Errno::TIMEDOUT) => Waited::TimedOut,
            Err(error) => panic!("the kernel refused to wait on a mapped word: {error}"),
        }
    }

    /// Wakes everyone who sleeps on `word`, in any process.
    pub(crate) fn wake_all(word: &AtomicU32) {
        if let Err(error) = futex::wake(word, futex::Flags::empty(), i32::MAX as u32) {
            panic!("the kernel refused to wake a mapped word: {error}");
        }
    }
}

/// The futex as loom sees it: a queue a word. Timeouts never pass, so that a lost wake-up shows as a deadlock.
#[cfg(kolo_loom)]
mod model {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use loom::sync::{Condvar, Mutex};

    use super::{AtomicU32, Duration, Waited};
    use crate::os::sync::Ordering;

    loom::lazy_static! {
        // The kernel's hash bucket: its lock orders the waiter's look at the word with the waker's wake.
        static ref QUEUES: Mutex<BTreeMap<usize, Arc<Condvar>>> = Mutex::new(BTreeMap::new());
    }

    fn address(word: &AtomicU32) -> usize {
        std::ptr::from_ref(word).addr()
    }

    pub(crate) fn wait(word: &AtomicU32, expected: u32, _timeout: Option<Duration>) -> Waited {
        let mut queues = QUEUES.lock().expect("no thread of a model panics with the lock");
        if word.load(Ordering::Relaxed) != expected {
            return Waited::Changed;
        }
        let queue = Arc::clone(queues.entry(address(word)).or_insert_with(|| Arc::new(Condvar::new())));
        drop(queue.wait(queues).expect("no thread of a model panics with the lock"));
        Waited::Woken
    }

    pub(crate) fn wake_all(word: &AtomicU32) {
        let queues = QUEUES.lock().expect("no thread of a model panics with the lock");
        if let Some(queue) = queues.get(&address(word)) {
            queue.notify_all();
        }
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;
    use crate::os::sync::Ordering;

    #[test]
    fn a_word_that_changed_does_not_sleep() {
        let word = AtomicU32::new(7);
        assert_eq!(wait(&word, 6, None), Waited::Changed);
    }

    #[test]
    fn a_timeout_passes() {
        let word = AtomicU32::new(7);
        loop {
            match wait(&word, 7, Some(Duration::from_millis(1))) {
                Waited::TimedOut => break,
                Waited::Woken => {} // a signal of the test runner
                Waited::Changed => panic!("nobody changed the word"),
            }
        }
    }

    #[test]
    fn a_wake_after_the_change_is_never_lost() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    wait(&word, 0, Some(Duration::MAX));
                }
            });
            word.store(1, Ordering::Release);
            wake_all(&word);
            sleeper.join().expect("the sleeper ends");
        });
    }
}
