//! Why a rank that others wait for does not come.

use std::fmt;
use std::sync::Arc;

use super::hosts::Hosts;
use crate::os::process::{self, State};
use crate::topology::Topology;
use crate::transport::shm::{Control, MemberState, Presence};

/// What keeps a rank from taking part, as far as its host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It dropped its last handle: it will not come.
    Left,
    /// Its process ended: it will not come.
    Dead,
    /// Its process is stopped, by a signal or a debugger: it may go on.
    Stopped,
    /// Its host is gone. The watcher ends the job over that in a moment, with the reason if another host knows it.
    Lost,
}

/// A rank that does not come, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Absence {
    pub(crate) rank: u32,
    pub(crate) cause: Cause,
    /// Heard from another host. What the rank sent before may still be on its way.
    pub(crate) hearsay: bool,
    text: String,
}

impl Absence {
    /// Whether waiting longer is in vain.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.cause, Cause::Left | Cause::Dead)
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

    /// Why the global rank does not come, if there is something to tell. Of ranks of other hosts, what this host's
    /// leader has heard. Reads `/proc`: for waits that take long, not for each turn of a loop.
    pub(crate) fn missing(&self, rank: usize) -> Option<Absence> {
        let host = self.topology.host_of(rank);
        if host == self.topology.host_index() { self.missing_here(rank) } else { self.missing_there(rank) }
    }

    fn missing_here(&self, rank: usize) -> Option<Absence> {
        let local = self.topology.local_rank_of(rank);
        let pid = self.topology.place(rank).pid;
        let who = self.who(rank);
        let absence = |cause, text: String| Some(Absence { rank: rank as u32, cause, hearsay: false, text });
        match self.control.state(local) {
            MemberState::Left => absence(Cause::Left, left(&who)),
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

    fn missing_there(&self, rank: usize) -> Option<Absence> {
        let who = self.who(rank);
        let speaker = self.topology.hosts()[self.topology.host_of(rank)].ranks[0];
        let (cause, text) = match self.control.presence(rank) {
            Presence::There => return None,
            Presence::Left => (Cause::Left, left(&who)),
            Presence::Silent if rank == speaker => {
                (Cause::Stopped, format!("{who} does not answer: it is stopped, or the network is cut"))
            }
            Presence::Silent => (
                Cause::Stopped,
                format!("{who} is not heard of: rank {speaker}, which speaks for its host, does not answer"),
            ),
            Presence::Lost => (Cause::Lost, format!("{who} is gone: the connection to that host is lost")),
        };
        Some(Absence { rank: rank as u32, cause, hearsay: true, text })
    }
}

fn left(who: &str) -> String {
    format!("{who} has left the job (its last Kolo was dropped); keep it alive for as long as others need it")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;
    use crate::os::cpu::CpuMask;
    use crate::os::process::Identity;
    use crate::topology::Place;
    use crate::transport::shm::Memory;

    fn place(identity: &str, process: Identity) -> Place {
        let Identity { pid, start_time } = process;
        Place {
            identity: identity.to_owned(),
            hostname: identity.to_owned(),
            pid,
            start_time,
            cpus: CpuMask::default(),
            quota: None,
        }
    }

    #[test]
    fn left_stopped_and_dead_ranks_are_told_apart() {
        let me = Identity::current().expect("/proc");
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat runs");
        let peer = Identity::of(child.id()).expect("it runs");
        let places = vec![place("a", me), place("a", peer), place("b", me), place("b", me)];
        let topology = Arc::new(Topology::new(0, places, &[]).expect("valid"));
        let mapping = Arc::new(crate::os::memory::Mapping::anonymous(Control::bytes(2, 4)).expect("memory"));
        let control = |member| Control::new(&Memory::new(Arc::clone(&mapping)), 2, 4, member).expect("control");
        control(0).join(0, me);
        control(1).join(1, peer);
        let roster = Roster { topology, control: control(0), hosts: Hosts::new(2), pid: me.pid };
        assert_eq!(roster.missing(1), None);

        let pid = Pid::from_raw(child.id() as i32).expect("a pid");
        kill_process(pid, Signal::STOP).expect("it stops");
        while roster.missing(1).is_none() {
            std::thread::yield_now();
        }
        let absence = roster.missing(1).expect("stopped");
        assert!(!absence.is_final() && absence.rank == 1 && absence.cause == Cause::Stopped);
        assert!(absence.to_string().contains(&format!("kill -CONT {}", child.id())), "{absence}");

        kill_process(pid, Signal::KILL).expect("it dies");
        child.wait().expect("reaped");
        let absence = roster.missing(1).expect("dead");
        assert!(absence.is_final() && absence.to_string().ends_with("has ended"), "{absence}");
        assert!(control(1).leave());
        assert_eq!(roster.missing(1).expect("left").cause, Cause::Left);

        assert_eq!(roster.missing(2), None);
        // What the leader hears, every member of its host knows.
        let set = |rank, presence| control(0).set_presence(rank, presence);
        let there = Roster { control: control(1), ..roster };
        set(2, Presence::Silent);
        set(3, Presence::Silent);
        let silent = there.missing(3).expect("silent");
        assert!(!silent.is_final() && silent.to_string().contains("rank 2, which speaks for its host"), "{silent}");
        assert!(there.missing(2).expect("silent").to_string().starts_with("rank 2 on b does not answer"));
        set(3, Presence::There);
        set(2, Presence::Left);
        let left = there.missing(2).expect("left");
        assert!(left.is_final() && left.hearsay && left.cause == Cause::Left, "{left}");
        assert_eq!(there.missing(3), None);
        set(3, Presence::Lost);
        let lost = there.missing(3).expect("lost");
        assert!(!lost.is_final() && lost.to_string().starts_with("rank 3 on b is gone"), "{lost}");
    }
}
