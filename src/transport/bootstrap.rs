//! How ranks find each other before any transport stands: an allgather, and nothing else.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// What a job is set up with: who am I, how many are we, and an allgather.
pub(crate) trait Bootstrap: Send {
    /// The global rank of the caller.
    fn rank(&self) -> usize;

    /// Gives every rank what every rank passed, by rank. Lengths may differ.
    ///
    /// # Collective
    ///
    /// Every rank calls it, the same number of times in the same order.
    ///
    /// # Errors
    ///
    /// A rank that does not come before the deadline is an error that names it where the transport can tell, and ends
    /// the bootstrap: later calls fail as well.
    fn allgather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>>;
}

/// A job of one rank.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Solo;

impl Bootstrap for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn allgather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![mine.to_vec()])
    }
}

/// One rank of a job whose ranks are threads of this process.
#[derive(Debug)]
pub(crate) struct Threads {
    rank: usize,
    deadline: Duration,
    meeting: Arc<Meeting>,
}

/// Where the threads meet. A round is complete when everyone has arrived, and over when everyone has left with it.
#[derive(Debug)]
struct Meeting {
    round: Mutex<Round>,
    changed: Condvar,
}

#[derive(Debug)]
struct Round {
    /// What each rank brought to the round being gathered.
    brought: Vec<Option<Vec<u8>>>,
    /// The last complete round, until everyone has taken it.
    complete: Option<Arc<Vec<Vec<u8>>>>,
    /// How many ranks still have to take `complete`.
    to_take: usize,
    /// Set once: why no round will ever be complete again.
    broken: Option<Error>,
}

impl Threads {
    /// A group of `size` ranks, by rank. Each waits for the others `deadline` long in each allgather.
    pub(crate) fn group(size: usize, deadline: Duration) -> Vec<Self> {
        let meeting = Arc::new(Meeting {
            round: Mutex::new(Round { brought: vec![None; size], complete: None, to_take: 0, broken: None }),
            changed: Condvar::new(),
        });
        (0..size).map(|rank| Self { rank, deadline, meeting: Arc::clone(&meeting) }).collect()
    }

    /// Waits until `done` holds. Fails when the meeting is broken, and breaks it at the deadline.
    fn wait<'a>(
        &'a self,
        mut round: MutexGuard<'a, Round>,
        end: Instant,
        done: impl Fn(&Round) -> bool,
    ) -> Result<MutexGuard<'a, Round>> {
        loop {
            if done(&round) {
                return Ok(round);
            }
            if let Some(error) = &round.broken {
                return Err(error.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let missing: Vec<String> = (0..round.brought.len())
                    .filter(|&rank| round.brought[rank].is_none())
                    .map(|r| r.to_string())
                    .collect();
                let error = Error::Timeout {
                    what: "setting up the job".into(),
                    waited: self.deadline,
                    missing: format!(
                        "rank(s) {} did not come; every thread of the group must call init",
                        missing.join(", ")
                    )
                    .into(),
                };
                round.broken = Some(error.clone());
                self.meeting.changed.notify_all();
                return Err(error);
            }
            round = self.meeting.changed.wait_timeout(round, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Meeting {
    // A thread that panicked while it held the lock left no half-made state: every change below is a single step.
    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bootstrap for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn allgather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + self.deadline;
        // A fast rank may come back while slow ones still have to take the round before.
        let mut round = self.wait(self.meeting.lock(), end, |round| round.complete.is_none())?;
        if let Some(error) = &round.broken {
            return Err(error.clone());
        }
        round.brought[self.rank] = Some(mine.to_vec());
        if round.brought.iter().all(Option::is_some) {
            let all = round.brought.iter_mut().filter_map(Option::take).collect();
            round.complete = Some(Arc::new(all));
            round.to_take = round.brought.len();
            self.meeting.changed.notify_all();
        }
        round = self.wait(round, end, |round| round.complete.is_some())?;
        round.to_take -= 1;
        let all = if round.to_take == 0 { round.complete.take() } else { round.complete.clone() };
        if round.to_take == 0 {
            self.meeting.changed.notify_all();
        }
        drop(round);
        // `wait` came back because there is one.
        let all = all.unwrap_or_default();
        Ok(Arc::try_unwrap(all).unwrap_or_else(|shared| (*shared).clone()))
    }
}

/// A rank that leaves tells the others, so that nobody waits for it until the deadline.
impl Drop for Threads {
    fn drop(&mut self) {
        let mut round = self.meeting.lock();
        if round.broken.is_none() {
            round.broken = Some(Error::Poisoned(
                format!("rank {} left while the job was being set up; its own error says why", self.rank).into(),
            ));
        }
        drop(round);
        self.meeting.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solo_gathers_itself() {
        assert_eq!(Solo.allgather(b"x").expect("solo"), vec![b"x".to_vec()]);
    }

    #[test]
    fn threads_gather_many_rounds_of_different_lengths() {
        let group = Threads::group(5, Duration::from_secs(60));
        std::thread::scope(|scope| {
            for mut member in group {
                scope.spawn(move || {
                    for round in 0..200_usize {
                        let mine = vec![member.rank() as u8; (round + member.rank()) % 7];
                        let all = member.allgather(&mine).expect("allgather");
                        for (rank, bytes) in all.iter().enumerate() {
                            assert_eq!(bytes, &vec![rank as u8; (round + rank) % 7]);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_missing_rank_is_named_at_the_deadline_and_ends_the_group() {
        let mut group = Threads::group(3, Duration::from_millis(30));
        let error = group[1].allgather(b"").expect_err("nobody else came").to_string();
        assert!(error.contains("rank(s) 0, 2"), "{error}");
        assert!(group[0].allgather(b"").is_err());
    }

    #[test]
    fn a_rank_that_leaves_ends_the_wait_at_once() {
        let mut group = Threads::group(2, Duration::from_secs(600));
        let second = group.pop().expect("two members");
        let mut first = group.pop().expect("two members");
        let waiter = std::thread::spawn(move || first.allgather(b"").expect_err("rank 1 left").to_string());
        drop(second);
        let error = waiter.join().expect("no panic");
        assert!(error.contains("rank 1 left"), "{error}");
    }

    #[test]
    fn leaving_after_the_last_round_does_not_spoil_it() {
        for _ in 0..100 {
            std::thread::scope(|scope| {
                for mut member in Threads::group(3, Duration::from_secs(60)) {
                    scope.spawn(move || {
                        assert_eq!(member.allgather(&[7]).expect("the round is complete").len(), 3);
                    });
                }
            });
        }
    }
}
