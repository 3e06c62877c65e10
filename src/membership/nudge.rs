//! How the threads that see peers end are woken: a pipe each, which peers of the host may open.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Error, Result};

/// Means "look at the state of the job" where a host's number would stand.
pub(super) const LOOK: u16 = u16::MAX;

/// Wakes watchers: that of this rank, and that of the host's leader, who speaks with other hosts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nudge {
    pub(crate) own: Option<Arc<OwnedFd>>,
    pub(crate) leader: Option<Arc<OwnedFd>>,
}

impl Nudge {
    /// Lets both look at the state of the job.
    pub(super) fn look(&self) {
        for pipe in [&self.own, &self.leader].into_iter().flatten() {
            send(pipe, LOOK);
        }
    }

    /// Lets the leader wake the ranks of another host.
    pub(super) fn ring(&self, host: usize) {
        if let (Some(pipe), Ok(host)) = (&self.leader, u16::try_from(host)) {
            send(pipe, host);
        }
    }
}

/// Two bytes go into a pipe whole or not at all.
pub(super) fn send(pipe: &OwnedFd, word: u16) {
    loop {
        match rustix::io::write(pipe, &word.to_le_bytes()) {
            Err(Errno::INTR) => {}
            // Full: thousands of nudges wait, and the watcher is awake. Gone: nobody is there to wake.
            _ => return,
        }
    }
}

/// The pipe of a watcher that is to be.
#[derive(Debug)]
pub(crate) struct Doorway {
    pub(super) read: OwnedFd,
    pub(crate) write: Arc<OwnedFd>,
}

impl Doorway {
    pub(crate) fn new() -> Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|e| {
            Error::system("making a pipe for the thread that watches peers; raise the limit on open files", e)
        })?;
        Ok(Self { read, write: Arc::new(write) })
    }

    /// What a peer needs to [`open`](Self::open_peer) it.
    pub(crate) fn address(&self) -> (u32, RawFd) {
        (std::process::id(), self.write.as_raw_fd())
    }

    /// The writing end of a peer's pipe.
    pub(crate) fn open_peer((pid, fd): (u32, RawFd)) -> Result<OwnedFd> {
        // Open for reading as well: then a leader that went away is no SIGPIPE.
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(format!("/proc/{pid}/fd/{fd}"))
            .map(OwnedFd::from)
            .map_err(|e| {
                let text = format!(
                    "opening the pipe of the host's leader (/proc/{pid}/fd/{fd}); the ranks of a host must run as one \
                     user and be allowed to look into each other's /proc"
                );
                Error::system(text, e)
            })
    }
}
