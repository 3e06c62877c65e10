//! Other processes: who they are, whether they live, and a descriptor that tells when they end.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, Result};

/// A process, told apart from a later one with the same pid by the time it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// In the kernel's ticks since boot.
    pub(crate) start_time: u64,
}

impl Identity {
    /// This process.
    pub(crate) fn current() -> Result<Self> {
        let pid = std::process::id();
        Self::of(pid).ok_or_else(|| {
            Error::system(
                format!("/proc/{pid}/stat tells nothing of this process; mount /proc"),
                std::io::Error::from(std::io::ErrorKind::NotFound),
            )
        })
    }

    /// The process that has `pid` now, if there is one.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, start_time: Stat::read(pid)?.start_time })
    }

    /// Whether this very process still runs (a stopped one does, a zombie does not).
    pub(crate) fn is_alive(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.start_time == self.start_time && stat.state() != State::Zombie)
    }
}

/// What a process does, as `/proc` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Sleeping,
    /// By a signal, or by a debugger.
    Stopped,
    /// Ended, and not yet reaped by its parent.
    Zombie,
    /// There is no such process.
    Gone,
}

/// What the process with `pid` does now.
pub(crate) fn state(pid: u32) -> State {
    Stat::read(pid).map_or(State::Gone, |stat| stat.state())
}

/// The fields of `/proc/PID/stat` that are of use here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    letter: u8,
    threads: u64,
    start_time: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        // A process that ends while its file is read gives ESRCH, which is an absent process too.
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The command's name stands in parentheses and may hold parentheses, spaces and newlines itself.
        let after = text.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(&text[after..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        // Counted from 1 as in proc(5): the state is field 3, the threads 20, the start time 22.
        let letter = *fields.next()?.as_bytes().first()?;
        let threads = fields.nth(16)?.parse().ok()?;
        let start_time = fields.nth(1)?.parse().ok()?;
        Some(Self { letter, threads, start_time })
    }

    fn state(&self) -> State {
        match self.letter {
            b'R' => State::Running,
            b'T' | b't' => State::Stopped,
            // A first thread that ended alone leaves its process alive.
            b'Z' | b'X' | b'x' if self.threads <= 1 => State::Zombie,
            _ => State::Sleeping,
        }
    }
}

/// A descriptor of a process: readable (to poll) once the process has ended.
#[derive(Debug)]
pub(crate) struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Opens the process that has `pid` now.
    pub(crate) fn open(pid: u32) -> Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| {
            Error::system(format!("{pid} is no process id"), std::io::Error::from(std::io::ErrorKind::InvalidInput))
        })?;
        let fd = pidfd_open(raw, PidfdFlags::empty())
            .map_err(|error| Error::system(format!("pidfd_open({pid}), to see when that rank ends"), error))?;
        Ok(Self { fd })
    }

    /// Opens the process, if it is still the one that `identity` names: `None` when it has ended.
    pub(crate) fn open_identity(identity: &Identity) -> Result<Option<Self>> {
        let fd = match Self::open(identity.pid) {
            Ok(fd) => fd,
            Err(_) if !identity.is_alive() => return Ok(None),
            Err(error) => return Err(error),
        };
        // The pid may have passed to another process before it was opened; after that it cannot.
        Ok(identity.is_alive().then_some(fd))
    }

    /// Whether the process has ended.
    pub(crate) fn ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        // An interrupted poll knows nothing; whoever asks, asks again.
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Signal, kill_process};

    use super::*;

    /// A child that waits for its standard input to end.
    fn child() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat runs")
    }

    fn wait_for(pid: u32, wanted: State) {
        while state(pid) != wanted {
            std::thread::yield_now();
        }
    }

    #[test]
    fn this_process_is_alive() {
        let me = Identity::current().expect("an identity");
        assert!(me.is_alive());
        assert_eq!(Identity::of(me.pid), Some(me));
        assert!(!Identity { start_time: me.start_time + 1, ..me }.is_alive());
        assert_ne!(state(me.pid), State::Gone);
    }

    #[test]
    fn a_stopped_a_dead_and_a_reaped_child_are_told_apart() {
        let mut child = child();
        let pid = child.id();
        let identity = Identity::of(pid).expect("it runs");
        let fd = PidFd::open_identity(&identity).expect("opens").expect("it runs");
        let raw = Pid::from_raw(pid as i32).expect("a pid");

        kill_process(raw, Signal::STOP).expect("stops");
        wait_for(pid, State::Stopped);
        assert!(identity.is_alive());
        assert!(!fd.ended());

        kill_process(raw, Signal::KILL).expect("dies");
        wait_for(pid, State::Zombie);
        assert!(!identity.is_alive());
        while !fd.ended() {
            std::thread::yield_now();
        }
        assert!(PidFd::open_identity(&identity).expect("an answer").is_none());

        child.wait().expect("reaped");
        assert_eq!(state(pid), State::Gone);
        assert!(!identity.is_alive());
    }

    #[test]
    fn names_with_parentheses_and_spaces_are_skipped() {
        let text = b"42 (a) b) (c\n) T 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 777 1 2 3";
        let stat = Stat::parse(text).expect("parses");
        assert_eq!(stat, Stat { letter: b'T', threads: 3, start_time: 777 });
        assert_eq!(stat.state(), State::Stopped);
        assert_eq!(Stat { letter: b'Z', ..stat }.state(), State::Sleeping);
        assert_eq!(Stat::parse(b"42 (short) R 1"), None);
        assert_eq!(Stat::parse(b""), None);
    }

    #[test]
    fn a_pid_that_cannot_be_is_an_error() {
        assert!(PidFd::open(0).is_err());
        assert!(PidFd::open(u32::MAX).is_err());
        assert_eq!(state(u32::MAX), State::Gone);
    }
}
