//! The one loop that waits: spin, yield, then sleep on the rank's doorbell; always with a deadline and an eye on failures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Step;
use super::inquiry::STALLED;
use crate::error::{Error, Failure, Result};
use crate::event::Sink;
use crate::membership::{Absence, Core, RankStatus, Waiting};
use crate::os::sync::{spin_loop, yield_now};
use crate::transport::shm::Control;

/// Polls before the first yield when every rank of the host has a core of its own.
const SPINS: u32 = 2000;
/// A wait this long goes to sleep.
const SLEEP_AFTER: Duration = Duration::from_millis(1);
/// A sleeper looks this often at its deadline, and whether those it waits for still exist; all else rings its doorbell.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// MPI does not wake anybody, and a message that moves in several steps needs its receiver awake: who waits for another
/// host naps so long at first, then twice as long each time, and never longer than the last. The leaders' doorbell ends a
/// nap when something comes after a pause.
const NAPS: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(10)];

/// Missing ranks of which a message says what is known.
pub(crate) const BLAMED: usize = 8;
/// What a rank sent before it left arrives while a waiting rank looks so often, a [`LONGEST_SLEEP`] apart.
const DOUBTS: u32 = 5;

/// How often in a row a wait found that a rank of another host had left.
///
/// News of the leaders' connections may overtake messages, so the first look proves nothing.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    looks: u32,
}

impl Doubt {
    /// Another rank came to the same conclusion: no more looks are needed.
    pub(crate) fn settle(&mut self) {
        self.looks = DOUBTS;
    }
}

/// What a rank needs to wait and to be woken: its place in the host's control segment, and its patience.
pub(crate) struct Port {
    pub(crate) control: Control,
    /// More ranks than cores: yield at once, spinning would keep the awaited peer from running.
    pub(crate) crowded: bool,
    pub(crate) deadline: Duration,
    pub(crate) warning: Duration,
    /// The job's other hosts, where there are any.
    pub(crate) abroad: Option<Arc<Core>>,
    /// Hears of every operation.
    pub(crate) sink: Arc<dyn Sink>,
    /// Says why a global rank does not come, if there is something to tell.
    pub(crate) absence: Box<dyn Fn(u32) -> Option<Absence> + Send + Sync>,
    /// Says what a global rank does.
    pub(crate) standing: Box<dyn Fn(u32) -> RankStatus + Send + Sync>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port")
            .field("local", &self.control.me())
            .field("crowded", &self.crowded)
            .finish_non_exhaustive()
    }
}

impl Port {
    /// The job's first failure as an error, if there is one.
    pub(crate) fn check(&self) -> Result<()> {
        if self.control.aborted() { Err(self.failure()) } else { Ok(()) }
    }

    /// The job's first failure as an error.
    pub(crate) fn failure(&self) -> Error {
        let unknown = || Failure::new(0, "an unknown host", "the job was aborted and the cause could not be read");
        Error::Failed(Arc::new(self.control.failure().unwrap_or_else(unknown)))
    }

    /// Whether `kolo.pause` asks all ranks for patience.
    pub(crate) fn is_paused(&self) -> bool {
        self.control.paused_until() > crate::os::time::monotonic()
    }

    /// Wakes the host's sleeping ranks after something was published.
    #[inline]
    pub(crate) fn ring(&self) {
        self.control.bells().ring_others();
    }

    /// Backs off once after a poll that found nothing: spin, yield, or sleep until the doorbell rings.
    ///
    /// A wait for another host ([`Idle::expect_messages`]) only takes naps. `recheck` is called between announcing a
    /// sleep and sleeping ("publish-then-sleep" in `transport/shm/README.md`), and calls the sleep off by returning true.
    pub(crate) fn back_off(&self, idle: &mut Idle, longest: Duration, recheck: impl FnOnce() -> bool) {
        idle.polls += 1;
        if !self.crowded && idle.polls < SPINS {
            spin_loop();
        } else if idle.waited() < SLEEP_AFTER {
            yield_now();
        } else {
            idle.slept = true;
            if idle.messages && idle.waiting.is_none() {
                idle.waiting = self.abroad.as_ref().map(|core| core.wait_for_hosts());
            }
            let recheck = || recheck() || self.control.aborted();
            self.control.sleep(Some(longest.min(idle.next_sleep())), recheck);
        }
    }
}

/// How long a wait has found nothing, and whether it went to sleep over it.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    polls: u32,
    since: Option<Instant>,
    slept: bool,
    messages: bool,
    /// The last nap, once there was one.
    nap: Option<Duration>,
    /// Keeps this host's leader asking the others whether they are there.
    waiting: Option<Waiting>,
}

impl Idle {
    /// Says whether a message of another host may end the wait.
    pub(crate) fn expect_messages(&mut self, messages: bool) {
        self.messages = messages;
    }

    fn next_sleep(&mut self) -> Duration {
        if !self.messages {
            return LONGEST_SLEEP;
        }
        let [first, longest] = NAPS;
        *self.nap.insert(self.nap.map_or(first, |nap| (nap * 2).min(longest)))
    }

    /// Whether the wait has become long enough to sleep, and to ask why.
    pub(crate) fn sleeps(&self) -> bool {
        self.slept
    }

    /// Time since the clock was first looked at; the spins before that are too short to count.
    pub(crate) fn waited(&mut self) -> Duration {
        let now = Instant::now();
        now - *self.since.get_or_insert(now)
    }
}

/// Polls until the operation is ready, the job fails, or the deadline passes.
///
/// `messages` says whether a message of another host may be what it waits for. `stalled` is asked, again and again, once
/// nothing has moved for long, and ends the wait by an error. `missing` names the operation and the
/// global ranks that it waits for; it is asked only when something must be said.
pub(crate) fn block<S, T>(
    port: &Port,
    state: &mut S,
    mut poll: impl FnMut(&mut S) -> Result<Step<T>>,
    messages: impl Fn(&S) -> bool,
    mut stalled: impl FnMut(&mut S, Instant) -> Result<()>,
    missing: impl Fn(&S) -> (String, Vec<u32>),
) -> Result<T> {
    let mut idle = Idle::default();
    let mut warned = false;
    // How long the wait had lasted when it was last asked who is missing.
    let mut asked = Duration::ZERO;
    let mut doubt = Doubt::default();
    let mut outcome = poll(state)?;
    loop {
        match outcome {
            Step::Ready(value) => return Ok(value),
            Step::Progress => {
                idle = Idle::default();
                asked = Duration::ZERO;
                doubt = Doubt::default();
                outcome = poll(state)?;
                continue;
            }
            Step::Pending => port.check()?,
        }
        if idle.sleeps() && idle.waited() >= STALLED {
            stalled(state, Instant::now())?;
        }
        if idle.sleeps() && idle.waited().saturating_sub(asked) >= LONGEST_SLEEP.min(port.deadline) {
            let waited = idle.waited();
            asked = waited;
            let (what, ranks) = missing(state);
            port.expect(&what, &ranks, &mut doubt)?;
            if waited >= port.deadline && !port.is_paused() {
                return Err(Error::Timeout { what: what.into(), waited, missing: port.blame(&ranks).into() });
            }
            if waited >= port.warning && !warned && !port.is_paused() {
                warned = true;
                crate::event::tell_warning(&format!("{what}: waiting for {waited:.0?}; {}", port.blame(&ranks)));
            }
        }
        idle.expect_messages(messages(state));
        let mut found = Ok(Step::Pending);
        port.back_off(&mut idle, port.deadline, || {
            found = poll(state);
            !matches!(found, Ok(Step::Pending))
        });
        outcome = match found? {
            Step::Pending => poll(state)?,
            moved => moved,
        };
    }
}

impl Port {
    /// Which ranks are missing and what is known of each, with what to do.
    pub(crate) fn blame(&self, ranks: &[u32]) -> String {
        if ranks.is_empty() {
            return "no rank is known to be missing: the network may be cut".to_owned();
        }
        let tell =
            |&rank: &u32| (self.absence)(rank).map_or_else(|| (self.standing)(rank).to_string(), |why| why.to_string());
        let mut list: Vec<String> = ranks.iter().take(BLAMED).map(tell).collect();
        if ranks.len() > BLAMED {
            list.push(format!("and {} more", ranks.len() - BLAMED));
        }
        format!("missing: {}; see what those ranks do, or raise KOLO_DEADLINE", list.join("; "))
    }

    /// Why one of the ranks will never come, if that is certain. To be asked again while nothing moves, with the same
    /// `doubt`, and a [`LONGEST_SLEEP`] or so apart.
    pub(crate) fn gone(&self, ranks: &[u32], doubt: &mut Doubt) -> Option<Absence> {
        let absent = || ranks.iter().filter_map(|&rank| (self.absence)(rank)).filter(Absence::is_final);
        // Of its own host a rank sees everything in the order in which it happened.
        if let Some(absence) = absent().find(|absence| !absence.hearsay) {
            return Some(absence);
        }
        let Some(absence) = absent().next() else {
            *doubt = Doubt::default();
            return None;
        };
        doubt.looks = doubt.looks.saturating_add(1);
        (doubt.looks > DOUBTS).then_some(absence)
    }

    /// An error if one of the ranks that `what` waits for will never come; as [`gone`](Self::gone).
    pub(super) fn expect(&self, what: &str, ranks: &[u32], doubt: &mut Doubt) -> Result<()> {
        let Some(absence) = self.gone(ranks, doubt) else { return Ok(()) };
        self.check()?;
        Err(Error::Gone { what: what.into(), missing: absence.to_string().into() })
    }

    /// Has the leaders of all hosts look at their sets, though they have nothing in flight themselves.
    pub(crate) fn summon(&self) {
        if let Some(core) = &self.abroad {
            core.summon();
        }
    }
}
