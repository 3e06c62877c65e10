//! Why a rank that others wait for does not come.

use std::fmt;
use std::sync::Arc;

use super::hosts::{HostState, Hosts};
use crate::os::process::{self, State};
use crate::topology::Topology;
use crate::transport::shm::{Control, MemberState};

/// What keeps a rank from taking part, as far as its host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It dropped its last handle: it will not come.
    Left,
    /// Its process ended: it will not come.
    Dead,
    /// Its process is stopped, by a signal or a debugger: it may go on.
    Stopped,
}

/// A rank that does not come, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Absence {
    pub(crate) rank: u32,
    pub(crate) cause: Cause,
    text: String,
}

impl Absence {
    /// Whether waiting longer is in vain.
    pub(crate) fn is_final(&self) -> bool {
        self.cause != Cause::Stopped
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Who the ranks of this host are, and how they are.
#[derive(Clone, Debug)]
pub(crate) struct Roster {
    pub(crate) topology: Arc<Topology>,
    pub(crate) control: Control,
    pub(crate) hosts: Hosts,
    /// This process.
    pub(crate) pid: u32,
}

impl Roster {
    /// A rank as messages name it: `rank 3 on node7`.
    pub(crate) fn who(&self, rank: usize) -> String {
        format!("rank {rank} on {}", self.topology.host_name(rank))
    }

    /// Why the global rank does not come, if it sits on this host and there is something to tell. Reads `/proc`: for
    /// waits that take long, not for each turn of a loop.
    pub(crate) fn missing(&self, rank: usize) -> Option<Absence> {
        if self.topology.host_of(rank) != self.topology.host_index() {
            return None;
        }
        let local = self.topology.local_rank_of(rank);
        let pid = self.topology.place(rank).pid;
        let who = self.who(rank);
        let absence = |cause, text: String| Some(Absence { rank: rank as u32, cause, text });
        match self.control.state(local) {
            MemberState::Left => absence(
                Cause::Left,
                format!(
                    "{who} has left the job (its last Kolo was dropped); keep it alive for as long as others need it"
                ),
            ),
            MemberState::Dead => absence(Cause::Dead, format!("{who} (pid {pid}) has ended")),
            MemberState::Absent | MemberState::Joined if pid == self.pid => None,
            MemberState::Absent | MemberState::Joined => match process::state(pid) {
                State::Stopped => absence(
                    Cause::Stopped,
                    format!("{who} (pid {pid}) is stopped by a signal or a debugger; `kill -CONT {pid}` lets it go on"),
                ),
                State::Zombie | State::Gone => absence(Cause::Dead, format!("{who} (pid {pid}) has ended")),
                State::Running | State::Sleeping => None,
            },
        }
    }

    /// What is known of a global rank, as a remark beside its number.
    pub(crate) fn whereabouts(&self, rank: usize) -> String {
        let place = self.topology.place(rank);
        let host = self.topology.host_name(rank);
        match self.missing(rank).map(|absence| absence.cause) {
            Some(Cause::Left) => format!("left the job on {host}: its last Kolo was dropped"),
            Some(Cause::Dead) => format!("ended on {host}, pid {}", place.pid),
            Some(Cause::Stopped) => {
                format!("stopped on {host} by a signal or a debugger; `kill -CONT {}` lets it go on", place.pid)
            }
            None => match self.hosts.state(self.topology.host_of(rank)) {
                HostState::Up => format!("on {host}, pid {}", place.pid),
                HostState::Left => format!("on {host}, whose first rank has left the job"),
                HostState::Silent => format!("on {host}, which does not answer: stopped, or the network is cut"),
                HostState::Lost => format!("on {host}, to which the connection is lost"),
            },
        }
    }
}
