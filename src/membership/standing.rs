//! What each rank of the job does, as far as this one can know: for reports of stalls, and for users who ask.

use std::fmt;
use std::time::Duration;

use super::absence::Roster;
use crate::os::process::{self, State};
use crate::os::time;
use crate::transport::link::Report;
use crate::transport::shm::{Doing, MemberState, Presence};

/// What a rank does, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RankState {
    /// Its process computes.
    Running,
    /// Its process sleeps: it waits for something.
    Sleeping,
    /// Its process is stopped by a signal or a debugger. It may go on.
    Stopped,
    /// Its process has ended.
    Dead,
    /// It left the job in order: its last `Kolo` was dropped.
    Left,
    /// The first rank of its host does not answer: that one is stopped, or the network is cut.
    Silent,
    /// The connection to its host is lost.
    Lost,
    /// It is on another host, which has not been asked yet, or has not answered. Hosts are asked when a rank has waited
    /// for half a second.
    Unknown,
}

impl fmt::Display for RankState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::Stopped => "stopped",
            Self::Dead => "dead",
            Self::Left => "left the job",
            Self::Silent => "not answering",
            Self::Lost => "lost",
            Self::Unknown => "not heard of",
        })
    }
}

impl From<State> for RankState {
    fn from(state: State) -> Self {
        match state {
            State::Running => Self::Running,
            State::Sleeping => Self::Sleeping,
            State::Stopped => Self::Stopped,
            State::Zombie | State::Gone => Self::Dead,
        }
    }
}

/// The states of a process as leaders report them, by their codes. 0 is none.
const CODES: [RankState; 5] =
    [RankState::Unknown, RankState::Running, RankState::Sleeping, RankState::Stopped, RankState::Dead];

/// A rank's last named operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastOperation {
    /// The tensor's name; of a long one, the first 72 bytes.
    pub name: String,
    /// Which of the rank's named operations it is, counted from 1 over all its sets.
    pub sequence: u64,
    /// How long ago it was submitted.
    pub age: Duration,
    /// How many named operations of the rank had not ended.
    pub in_flight: u64,
}

/// What a rank does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RankStatus {
    /// The global rank.
    pub rank: usize,
    /// The name of its host.
    pub host: String,
    /// The id of its process on that host.
    pub pid: u32,
    /// What its process does. On this rank's host at this moment, on others when [`heard`](Self::heard) says.
    pub state: RankState,
    /// Its last named operation, if one is known.
    pub last: Option<LastOperation>,
    /// Of a rank of another host: how long ago that host told of it. `None` if it never did, and for this host.
    pub heard: Option<Duration>,
}

impl RankStatus {
    /// What is worth a word when it changes. A process that lives computes and sleeps in turn.
    pub(crate) fn gist(&self) -> (usize, RankState) {
        let state = match self.state {
            RankState::Running | RankState::Sleeping | RankState::Unknown => RankState::Running,
            other => other,
        };
        (self.rank, state)
    }

    /// What a test without processes knows.
    #[cfg(test)]
    pub(crate) fn unknown(rank: u32) -> Self {
        let host = "nowhere".to_owned();
        Self { rank: rank as usize, host, pid: 0, state: RankState::Unknown, last: None, heard: None }
    }
}

impl fmt::Display for RankStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} on {} (pid {}) is {}", self.rank, self.host, self.pid, self.state)?;
        match &self.last {
            None => write!(f, "; no named operation is known of it"),
            Some(last) => {
                write!(f, "; its last operation was '{}', number {}, {:.1?} ago", last.name, last.sequence, last.age)?;
                match last.in_flight {
                    0 => write!(f, ", and has ended"),
                    1 => write!(f, "; one is in flight"),
                    more => write!(f, "; {more} are in flight"),
                }
            }
        }
    }
}

impl Roster {
    /// What the global rank does, as far as this one can know. Reads `/proc`: not for each turn of a loop.
    pub(crate) fn standing(&self, rank: usize) -> RankStatus {
        let place = self.topology.place(rank);
        let here = self.topology.host_of(rank) == self.topology.host_index();
        let doing = self.control.doings().read(rank).unwrap_or_default();
        let now = time::monotonic();
        let known = here || !doing.heard.is_zero();
        let state = match self.control.presence(rank) {
            _ if here => self.state_here(rank),
            Presence::Left => RankState::Left,
            Presence::Silent => RankState::Silent,
            Presence::Lost => RankState::Lost,
            Presence::There => CODES.get(doing.process as usize).copied().unwrap_or(RankState::Unknown),
        };
        let last = (known && doing.sequence > 0).then(|| LastOperation {
            age: now.saturating_sub(doing.since),
            sequence: doing.sequence,
            in_flight: doing.submitted.saturating_sub(doing.ended),
            name: doing.name,
        });
        RankStatus {
            rank,
            host: self.topology.host_name(rank).to_owned(),
            pid: place.pid,
            state,
            last,
            heard: (known && !here).then(|| now.saturating_sub(doing.heard)),
        }
    }

    fn state_here(&self, rank: usize) -> RankState {
        match self.control.state(self.topology.local_rank_of(rank)) {
            MemberState::Left => RankState::Left,
            MemberState::Dead => RankState::Dead,
            MemberState::Absent | MemberState::Joined => process::state(self.topology.place(rank).pid).into(),
        }
    }

    /// What this host's leader tells another of a rank of this host. `None` once it has left, which is told otherwise.
    pub(super) fn report(&self, rank: usize) -> Option<Report> {
        let standing = self.standing(rank);
        let process = CODES.iter().position(|state| *state == standing.state)?;
        let last = standing.last;
        let doing = self.control.doings().read(rank).unwrap_or_default();
        Some(Report {
            rank: rank as u32,
            process: process as u8,
            submitted: doing.submitted,
            ended: doing.ended,
            sequence: last.as_ref().map_or(0, |last| last.sequence),
            age: last.as_ref().map_or(Duration::ZERO, |last| last.age),
            name: last.map_or_else(String::new, |last| last.name),
        })
    }

    /// Lets the ranks of this host know what was reported of a rank of another.
    pub(super) fn take_report(&self, report: Report) {
        let now = time::monotonic();
        let Report { rank, process, submitted, ended, sequence, age, name } = report;
        let (since, heard) = (now.saturating_sub(age), now);
        let doing = Doing { submitted, ended, sequence, since, name, process: process.into(), heard };
        self.control.doings().report(rank as usize, &doing);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::membership::Hosts;
    use crate::os::cpu::CpuMask;
    use crate::os::memory::Mapping;
    use crate::os::process::Identity;
    use crate::topology::{Place, Topology};
    use crate::transport::shm::{Control, Memory};

    /// Two hosts of two ranks, each rank this very process.
    fn rosters() -> Vec<Roster> {
        let me = Identity::current().expect("/proc");
        let place = |host: &str| Place {
            identity: host.to_owned(),
            hostname: host.to_owned(),
            pid: me.pid,
            start_time: me.start_time,
            cpus: CpuMask::default(),
            quota: None,
        };
        let places = vec![place("a"), place("a"), place("b"), place("b")];
        let memories: Vec<Memory> =
            (0..2).map(|_| Memory::new(Arc::new(Mapping::anonymous(Control::bytes(2, 4)).expect("memory")))).collect();
        let roster = |rank: usize| {
            let topology = Arc::new(Topology::new(rank, places.clone(), &[]).expect("valid"));
            let control = Control::new(&memories[rank / 2], 2, 4, rank % 2).expect("control");
            control.join(rank as u32, me);
            Roster { topology, control, hosts: Hosts::new(2), pid: me.pid }
        };
        (0..4).map(roster).collect()
    }

    #[test]
    fn a_host_knows_its_own_ranks_and_what_others_report() {
        let rosters = rosters();
        let record = |rank: usize, name: &str| {
            rosters[rank].control.doings().submit(rank, name, time::monotonic());
        };
        record(1, "a");
        record(3, "grad/6");
        record(3, "grad/7");
        rosters[3].control.doings().end(3, 1);

        let neighbour = rosters[0].standing(1);
        assert!(matches!(neighbour.state, RankState::Running | RankState::Sleeping), "{neighbour}");
        assert_eq!(neighbour.last.as_ref().map(|last| (&*last.name, last.sequence, last.in_flight)), Some(("a", 1, 1)));
        let stranger = rosters[0].standing(3);
        assert_eq!((stranger.state, &stranger.last, stranger.heard), (RankState::Unknown, &None, None));

        rosters[0].take_report(rosters[2].report(3).expect("it is there"));
        for rank in [0, 1] {
            let known = rosters[rank].standing(3);
            assert!(matches!(known.state, RankState::Running | RankState::Sleeping), "{known}");
            let last = known.last.clone().expect("reported");
            assert_eq!((&*last.name, last.sequence, last.in_flight), ("grad/7", 2, 1));
            assert!(known.heard.is_some());
            assert!(known.to_string().contains("its last operation was 'grad/7', number 2, "), "{known}");
            assert!(known.to_string().ends_with("; one is in flight"), "{known}");
        }
        assert_eq!(rosters[1].standing(2).state, RankState::Unknown, "nobody told of it");
        rosters[0].control.set_presence(3, Presence::Silent);
        assert_eq!(rosters[1].standing(3).state, RankState::Silent);
        assert!(rosters[3].control.leave());
        assert_eq!(rosters[2].report(3), None, "a departure is told otherwise");
        assert_eq!(rosters[2].standing(3).state, RankState::Left);
    }

    #[test]
    fn only_lasting_changes_are_news() {
        let status = |state| RankStatus { state, ..RankStatus::unknown(3) };
        let gist = |state| status(state).gist();
        assert_eq!(gist(RankState::Running), gist(RankState::Sleeping));
        assert_eq!(gist(RankState::Running), gist(RankState::Unknown));
        assert_ne!(gist(RankState::Running), gist(RankState::Stopped));
        assert_ne!(gist(RankState::Dead), gist(RankState::Left));
    }
}
