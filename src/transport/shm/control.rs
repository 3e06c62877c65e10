//! The control area: one a host and job. Who is there, who failed first, until when everyone is patient, the doorbells.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Failure, Result};
use crate::os::process::Identity;
use crate::os::sync::{AtomicU32, AtomicU64, Ordering};

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

#[derive(Clone, Copy, Debug)]
struct Place {
    header: usize,
    bells: BellsPlace,
    members: usize,
    pause: usize,
    failures: FailuresPlace,
    end: usize,
}

impl Place {
    fn new(members: usize) -> Self {
        let mut cursor = Cursor::default();
        Self {
            header: Header::place(&mut cursor),
            bells: BellsPlace::new(&mut cursor, members),
            members: cursor.lines::<MemberLine>(members),
            pause: cursor.lines::<PauseLine>(1),
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
    failures: Failures,
}

impl Control {
    /// The bytes that a host of `members` ranks needs.
    pub(crate) fn bytes(members: usize) -> usize {
        Place::new(members).end
    }

    /// The control area in `memory`, for the member `me` of `members`.
    ///
    /// # Errors
    /// When the memory is too small for so many members.
    pub(crate) fn new(memory: &Memory, members: usize, me: usize) -> Result<Self> {
        assert!(me < members, "member {me} of {members}");
        let place = Place::new(members);
        if memory.len() < place.end {
            return Err(Error::argument(format!(
                "{} bytes of shared memory are too few for the control area of {members} ranks ({})",
                memory.len(),
                place.end
            )));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                me,
                header: Header::new(memory, place.header, digest(&[members, place.end])),
                bells: Bells::new(memory, place.bells, members, me),
                members: memory.lines(place.members, members),
                pause: memory.lines(place.pause, 1),
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
        let memory = Memory::anonymous(Control::bytes(members)).expect("memory");
        (0..members).map(|me| Control::new(&memory, members, me).expect("control")).collect()
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
    fn too_little_memory_and_another_shape_are_errors() {
        let memory = Memory::anonymous(Control::bytes(8)).expect("memory");
        assert!(Control::new(&memory, 64, 0).is_err());
        let stamp = Stamp { job: 1, epoch: 0, set: 0 };
        Control::new(&memory, 8, 0).expect("control").stamp(&stamp);
        Control::new(&memory, 8, 7).expect("control").verify(&stamp).expect("the same");
        assert!(Control::new(&memory, 7, 1).expect("control").verify(&stamp).is_err());
    }

    #[test]
    fn a_line_that_is_polled_shares_no_block() {
        assert_eq!(size_of::<MemberLine>() % 128, 0);
        assert_eq!(size_of::<PauseLine>() % 128, 0);
        let Place { bells: _, header, members, pause, end, failures: _ } = Place::new(5);
        assert!([header, members, pause, end].iter().all(|at| at % 128 == 0));
    }
}
