//! The control area: one a host and job. Who is there, who failed first, until when everyone is patient, the doorbells,
//! and what the host has heard of the ranks of other hosts.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Failure, Result};
use crate::os::futex;
use crate::os::process::Identity;
use crate::os::sync::{AtomicU32, AtomicU64, Ordering};

use super::doings::Doings;
use super::doorbell::{Bells, BellsPlace, Slept};
use super::failure::{Failures, FailuresPlace};
use super::header::{Header, Stamp, digest};
use super::memory::{Cursor, Line, Lines, Memory};

/// How far a member is through the job. Transitions: Absent to Joined by the member itself, Joined to Left by the
/// member itself, Joined to Dead by whoever finds it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MemberState {
    Absent = 0,
    Joined = 1,
    /// Orderly: it dropped its last handle.
    Left = 2,
    Dead = 3,
}

impl MemberState {
    fn from_code(code: u32) -> Self {
        match code {
            0 => Self::Absent,
            1 => Self::Joined,
            2 => Self::Left,
            _ => Self::Dead,
        }
    }
}

/// What a host has heard of a rank of another host. Its leader writes it, who speaks with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Presence {
    /// Nothing that would keep it from taking part.
    There = 0,
    /// It left the job in order. Nothing changes that.
    Left = 1,
    /// The leader of its host does not answer: it is stopped, or the network is cut.
    Silent = 2,
    /// The connection to the leader of its host broke.
    Lost = 3,
}

impl Presence {
    fn from_code(code: u32) -> Self {
        match code {
            0 => Self::There,
            1 => Self::Left,
            2 => Self::Silent,
            _ => Self::Lost,
        }
    }
}

/// What the members of a host know of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberRecord {
    /// The global rank.
    pub(crate) rank: u32,
    pub(crate) process: Identity,
    pub(crate) state: MemberState,
}

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct MemberLine {
    state: AtomicU32,
    rank: AtomicU32,
    pid: AtomicU32,
    start_time: AtomicU64,
}

// SAFETY: atomics only.
unsafe impl Line for MemberLine {}

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct PauseLine {
    /// Nanoseconds of the monotonic clock.
    until: AtomicU64,
}

// SAFETY: atomics only.
unsafe impl Line for PauseLine {}

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct SummonsLine {
    /// How often anyone of the host has summoned the leaders of all hosts.
    count: AtomicU32,
}

// SAFETY: atomics only.
unsafe impl Line for SummonsLine {}

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct AlarmLine {
    /// What the member's background thread sleeps on.
    alarm: AtomicU32,
    /// How often the member was summoned.
    summoned: AtomicU32,
}

// SAFETY: atomics only.
unsafe impl Line for AlarmLine {}

#[derive(Clone, Copy, Debug)]
struct Place {
    header: usize,
    bells: BellsPlace,
    members: usize,
    pause: usize,
    summons: usize,
    alarms: usize,
    presence: usize,
    doings: usize,
    failures: FailuresPlace,
    end: usize,
}

impl Place {
    fn new(members: usize, ranks: usize) -> Self {
        let mut cursor = Cursor::default();
        Self {
            header: Header::place(&mut cursor),
            bells: BellsPlace::new(&mut cursor, members),
            members: cursor.lines::<MemberLine>(members),
            pause: cursor.lines::<PauseLine>(1),
            summons: cursor.lines::<SummonsLine>(1),
            alarms: cursor.lines::<AlarmLine>(members),
            presence: cursor.lines::<AtomicU32>(ranks),
            doings: Doings::place(&mut cursor, ranks),
            failures: FailuresPlace::new(&mut cursor, members),
            end: cursor.end(),
        }
    }
}

/// The control area, as one member sees it. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    me: usize,
    header: Header,
    bells: Bells,
    members: Lines<MemberLine>,
    pause: Lines<PauseLine>,
    summons: Lines<SummonsLine>,
    alarms: Lines<AlarmLine>,
    /// Of every rank of the job; those of other hosts are in use.
    presence: Lines<AtomicU32>,
    doings: Doings,
    failures: Failures,
}

impl Control {
    /// The bytes that a host of `members` ranks needs, in a job of `ranks`.
    pub(crate) fn bytes(members: usize, ranks: usize) -> usize {
        Place::new(members, ranks).end
    }

    /// The control area in `memory`, for the member `me` of `members`, in a job of `ranks`.
    ///
    /// # Errors
    /// When the memory is too small for so many members and ranks.
    pub(crate) fn new(memory: &Memory, members: usize, ranks: usize, me: usize) -> Result<Self> {
        assert!(me < members, "member {me} of {members}");
        let place = Place::new(members, ranks);
        if memory.len() < place.end {
            return Err(Error::argument(format!(
                "{} bytes of shared memory are too few for the control area of {members} of {ranks} ranks ({})",
                memory.len(),
                place.end
            )));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                me,
                header: Header::new(memory, place.header, digest(&[members, ranks, place.end])),
                bells: Bells::new(memory, place.bells, members, me),
                members: memory.lines(place.members, members),
                pause: memory.lines(place.pause, 1),
                summons: memory.lines(place.summons, 1),
                alarms: memory.lines(place.alarms, members),
                presence: memory.lines(place.presence, ranks),
                doings: Doings::new(memory, place.doings, ranks),
                failures: Failures::new(memory, place.failures, members, me),
            }),
        })
    }

    /// Writes what the area belongs to: once, by whoever made the memory, before the others learn of it.
    pub(crate) fn stamp(&self, stamp: &Stamp) {
        self.inner.header.stamp(stamp);
    }

    /// Checks that this is the memory of `stamp`'s job, and really shared.
    pub(crate) fn verify(&self, stamp: &Stamp) -> Result<()> {
        self.inner.header.verify(stamp)
    }

    #[cfg(test)]
    pub(crate) fn members(&self) -> usize {
        self.inner.members.len()
    }

    pub(crate) fn me(&self) -> usize {
        self.inner.me
    }

    /// Tells the others who this member is: from then on it is joined.
    pub(crate) fn join(&self, rank: u32, process: Identity) {
        let line = &self.inner.members[self.inner.me];
        line.rank.store(rank, Ordering::Relaxed);
        line.pid.store(process.pid, Ordering::Relaxed);
        line.start_time.store(process.start_time, Ordering::Relaxed);
        line.state.store(MemberState::Joined as u32, Ordering::Release);
    }

    /// What is known of a member.
    pub(crate) fn member(&self, member: usize) -> MemberRecord {
        let line = &self.inner.members[member];
        let state = MemberState::from_code(line.state.load(Ordering::Acquire));
        MemberRecord {
            rank: line.rank.load(Ordering::Relaxed),
            process: Identity {
                pid: line.pid.load(Ordering::Relaxed),
                start_time: line.start_time.load(Ordering::Relaxed),
            },
            state,
        }
    }

    /// The state of a member alone: one load.
    pub(crate) fn state(&self, member: usize) -> MemberState {
        MemberState::from_code(self.inner.members[member].state.load(Ordering::Acquire))
    }

    /// This member leaves in order. False if somebody had declared it dead. Everyone is woken to see it.
    pub(crate) fn leave(&self) -> bool {
        self.end(self.inner.me, MemberState::Left)
    }

    /// Declares a member dead. True for the one caller that finds it first; false also if it had left. Everyone is
    /// woken to see it.
    pub(crate) fn declare_dead(&self, member: usize) -> bool {
        self.end(member, MemberState::Dead)
    }

    fn end(&self, member: usize, state: MemberState) -> bool {
        let joined = MemberState::Joined as u32;
        let line = &self.inner.members[member];
        let first = line.state.compare_exchange(joined, state as u32, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first {
            self.inner.bells.ring_others();
        }
        first
    }

    /// Makes `failure` the job's first on this host, and wakes everyone. True for the one call that was first.
    pub(crate) fn fail(&self, failure: &Failure) -> bool {
        let first = self.inner.failures.fail(failure);
        if first {
            self.inner.bells.ring_all();
        }
        first
    }

    /// The first failure on this host, the same for all members.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.inner.failures.first()
    }

    /// Whether there is a failure: one load, for every loop that waits.
    #[inline]
    pub(crate) fn aborted(&self) -> bool {
        self.inner.failures.any()
    }

    /// Asks everyone to be patient until that time of `os::time::monotonic`. It only grows.
    pub(crate) fn pause_until(&self, until: Duration) {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.inner.pause[0].until.fetch_max(nanos, Ordering::Relaxed);
    }

    /// Until when everyone is asked to be patient; zero at first.
    pub(crate) fn paused_until(&self) -> Duration {
        Duration::from_nanos(self.inner.pause[0].until.load(Ordering::Relaxed))
    }

    /// What this host has heard of a rank of another host.
    pub(crate) fn presence(&self, rank: usize) -> Presence {
        Presence::from_code(self.inner.presence[rank].load(Ordering::Acquire))
    }

    /// Notes what was heard of a rank of another host, by this host's leader alone. Who left stays so. Ring the bells
    /// afterwards.
    pub(crate) fn set_presence(&self, rank: usize, presence: Presence) {
        if self.presence(rank) != Presence::Left {
            self.inner.presence[rank].store(presence as u32, Ordering::Release);
        }
    }

    /// What each rank of the job did last.
    #[inline]
    pub(crate) fn doings(&self) -> &Doings {
        &self.inner.doings
    }

    /// How often the members of this host have asked for the leaders of all hosts.
    pub(crate) fn summons(&self) -> u32 {
        self.inner.summons[0].count.load(Ordering::Acquire)
    }

    /// Asks for the leaders of all hosts. The host's leader passes it on when it looks.
    pub(crate) fn ask_for_leaders(&self) {
        self.inner.summons[0].count.fetch_add(1, Ordering::Release);
    }

    /// Wakes the background threads of all members, so that those that lead sets look at them ("summons").
    pub(crate) fn summon_members(&self) {
        for line in &*self.inner.alarms {
            line.summoned.fetch_add(1, Ordering::SeqCst);
            line.alarm.fetch_add(1, Ordering::SeqCst);
            futex::wake_all(&line.alarm);
        }
    }

    /// How often this member was summoned.
    pub(crate) fn summoned(&self) -> u32 {
        self.inner.alarms[self.inner.me].summoned.load(Ordering::SeqCst)
    }

    /// What this member's background thread sleeps on: it changes whenever there may be work for it.
    pub(crate) fn alarm(&self) -> &AtomicU32 {
        &self.inner.alarms[self.inner.me].alarm
    }

    #[inline]
    pub(crate) fn bells(&self) -> &Bells {
        &self.inner.bells
    }

    /// Sleeps on this member's own bell until it rings, `ready` holds, or the job fails; see [`Bells::sleep`].
    pub(crate) fn sleep(&self, timeout: Option<Duration>, ready: impl FnOnce() -> bool) -> Slept {
        self.inner.bells.sleep(self.inner.me, timeout, || self.aborted() || ready())
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    fn host(members: usize) -> Vec<Control> {
        let memory = Memory::anonymous(Control::bytes(members, 2 * members)).expect("memory");
        (0..members).map(|me| Control::new(&memory, members, 2 * members, me).expect("control")).collect()
    }

    #[test]
    fn members_join_leave_and_die_once() {
        let host = host(3);
        let process = Identity { pid: 77, start_time: 1 << 40 };
        assert_eq!(host[1].state(0), MemberState::Absent);
        assert!(!host[1].declare_dead(0), "who never joined cannot die");
        assert!(!host[0].leave());
        host[0].join(40, process);
        assert_eq!(host[2].member(0), MemberRecord { rank: 40, process, state: MemberState::Joined });
        assert!(host[0].leave());
        assert!(!host[1].declare_dead(0));
        assert_eq!(host[1].state(0), MemberState::Left);

        host[1].join(41, process);
        assert!(host[0].declare_dead(1));
        assert!(!host[2].declare_dead(1));
        assert!(!host[1].leave());
        assert_eq!(host[1].member(1).state, MemberState::Dead);
        assert_eq!((host[2].members(), host[2].me()), (3, 2));
    }

    #[test]
    fn a_failure_wakes_every_sleeper_for_good() {
        let host = host(3);
        std::thread::scope(|scope| {
            let sleepers: Vec<_> = [1, 1, 2]
                .into_iter()
                .map(|me| {
                    let control = host[me].clone();
                    scope.spawn(move || {
                        while !control.aborted() {
                            control.sleep(None, || false);
                        }
                        control.failure()
                    })
                })
                .collect();
            let failure = Failure::new(0, "host", "on purpose");
            assert!(host[0].fail(&failure));
            for sleeper in sleepers {
                assert_eq!(sleeper.join().expect("it wakes"), Some(failure.clone()));
            }
            assert_eq!(host[0].sleep(None, || false), Slept::Ready, "nobody sleeps after an abort");
        });
    }

    #[test]
    fn a_pause_only_grows() {
        let host = host(2);
        assert_eq!(host[1].paused_until(), Duration::ZERO);
        host[0].pause_until(Duration::from_secs(5));
        host[1].pause_until(Duration::from_secs(3));
        assert_eq!(host[1].paused_until(), Duration::from_secs(5));
        host[1].pause_until(Duration::MAX);
        assert_eq!(host[0].paused_until(), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn who_left_another_host_stays_so() {
        let host = host(2);
        assert_eq!(host[1].presence(3), Presence::There);
        host[0].set_presence(3, Presence::Silent);
        assert_eq!(host[1].presence(3), Presence::Silent);
        host[0].set_presence(3, Presence::Left);
        host[0].set_presence(3, Presence::Lost);
        assert_eq!((host[1].presence(3), host[1].presence(2)), (Presence::Left, Presence::There));
    }

    #[test]
    fn a_summons_wakes_every_member_that_sleeps_on_its_alarm() {
        let host = host(3);
        std::thread::scope(|scope| {
            for member in &host {
                scope.spawn(move || {
                    while member.summoned() == 0 {
                        let alarm = member.alarm().load(Ordering::SeqCst);
                        if member.summoned() == 0 {
                            futex::wait(member.alarm(), alarm, None);
                        }
                    }
                });
            }
            host[1].ask_for_leaders();
            host[1].summon_members();
        });
        assert_eq!((host[0].summons(), host[2].summoned()), (1, 1));
    }

    #[test]
    fn too_little_memory_and_another_shape_are_errors() {
        let memory = Memory::anonymous(Control::bytes(8, 16)).expect("memory");
        assert!(Control::new(&memory, 64, 64, 0).is_err());
        let stamp = Stamp { job: 1, epoch: 0, set: 0 };
        Control::new(&memory, 8, 16, 0).expect("control").stamp(&stamp);
        Control::new(&memory, 8, 16, 7).expect("control").verify(&stamp).expect("the same");
        assert!(Control::new(&memory, 7, 16, 1).expect("control").verify(&stamp).is_err());
        assert!(Control::new(&memory, 8, 15, 1).expect("control").verify(&stamp).is_err());
    }

    #[test]
    fn a_line_that_is_polled_shares_no_block() {
        assert_eq!(size_of::<MemberLine>() % 128, 0);
        assert_eq!(size_of::<PauseLine>() % 128, 0);
        assert_eq!((size_of::<SummonsLine>() % 128, size_of::<AlarmLine>() % 128), (0, 0));
        let Place { bells: _, header, members, pause, summons, alarms, presence, doings, end, failures: _ } =
            Place::new(5, 11);
        assert!([header, members, pause, summons, alarms, presence, doings, end].iter().all(|at| at % 128 == 0));
    }
}
