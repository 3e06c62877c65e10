//! How a process ended that is not our child.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It exited with a code.
    Exited(u8),
    /// A signal ended it.
    Killed(u8),
}

impl Ending {
    /// From the status that `waitpid` would give the parent.
    fn from_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8 & 0xff) as u8),
            signal => Self::Killed(signal as u8),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Killed(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "was killed by signal {signal} ({name})"),
                None => write!(f, "was killed by signal {signal}"),
            },
        }
    }
}

fn signal_name(signal: u8) -> Option<&'static str> {
    Some(match i32::from(signal) {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL; often the kernel's answer to too little memory",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        _ => return None,
    })
}

/// How the process of a pidfd ended, as far as the kernel tells strangers: `None` while it runs, and where it does not.
///
/// Once the parent has reaped it, Linux 6.15 and later tell; before, `/proc` does.
pub(crate) fn ending(pidfd: impl AsFd, pid: u32) -> Option<Ending> {
    reaped(pidfd.as_fd().as_raw_fd()).or_else(|| zombie(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// `struct pidfd_info` as of its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

fn reaped(pidfd: i32) -> Option<Ending> {
    const EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, struct pidfd_info)`
    const PIDFD_GET_INFO: libc::c_ulong = 3 << 30 | (size_of::<PidfdInfo>() as libc::c_ulong) << 16 | 0xff << 8 | 11;
    let mut info = PidfdInfo { mask: EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel writes at most the bytes that the request number carries, the size of `info`.
    let answer = unsafe { libc::ioctl(pidfd, PIDFD_GET_INFO as _, &raw mut info) };
    (answer == 0 && info.mask & EXIT != 0).then(|| Ending::from_status(info.exit_code))
}

/// From `/proc/PID/stat` of a zombie, whose last field is the status (of others it reads 0).
fn zombie(stat: &[u8]) -> Option<Ending> {
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    // Counted from 1 as in proc(5), the state is field 3 and the status field 52.
    let status = fields.nth(48)?.parse().ok()?;
    (state == "Z").then(|| Ending::from_status(status))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::os::process::PidFd;

    fn ends(script: &str) -> (Option<Ending>, Option<Ending>) {
        let mut child = Command::new("sh").arg("-c").arg(script).stdin(Stdio::piped()).spawn().expect("sh runs");
        let fd = PidFd::open(child.id()).expect("a pidfd");
        assert_eq!(ending(&fd, child.id()), None, "it waits for its input");
        drop(child.stdin.take());
        while !fd.ended() {
            std::thread::yield_now();
        }
        let before = ending(&fd, child.id());
        child.wait().expect("reaped");
        (before, ending(&fd, child.id()))
    }

    #[test]
    fn a_zombie_tells_and_so_does_a_reaped_child_where_the_kernel_can() {
        for (script, ending) in [
            ("cat; exit 3", Ending::Exited(3)),
            ("cat; exit 0", Ending::Exited(0)),
            ("cat; kill -9 $$", Ending::Killed(9)),
        ] {
            let (zombie, reaped) = ends(script);
            assert_eq!(zombie, Some(ending), "{script}");
            assert!(reaped == Some(ending) || reaped.is_none(), "{script}: {reaped:?}");
        }
    }

    #[test]
    fn endings_read_as_sentences() {
        assert_eq!(Ending::from_status(0x300).to_string(), "exited with code 3");
        assert_eq!(Ending::from_status(0x8b).to_string(), "was killed by signal 11 (SIGSEGV)");
        assert_eq!(Ending::Killed(64).to_string(), "was killed by signal 64");
    }
}
