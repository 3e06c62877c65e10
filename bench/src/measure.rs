//! The method: contenders take turns by rounds, A B A B; an iteration lasts as long as its slowest rank.
//!
//! Between iterations every rank writes its inputs anew, as a trainer does, outside of what is timed; then a barrier, the
//! same for every contender. Small messages are timed in batches of back-to-back operations, because reading the clock
//! and leaving a barrier take as long as they do; within a batch each operation is preceded by a store into every cache
//! line of the input, so that no contender finds the lines as it left them.

use crate::control::Ranks;
use crate::report::Outcome;
use crate::stats::{Times, median};
use anyhow::Result;
use std::time::Instant;

/// Timed seconds that a round aims at.
const ROUND_SECONDS: f64 = 0.1;
/// Messages up to this size are timed in batches.
const BATCHED_BYTES: u64 = 16 << 10;
/// Operations of a batch.
const BATCH: usize = 100;
/// Operations that take longer than this on any contender are timed one by one: the clock does not disturb them.
const BATCHED_SECONDS: f64 = 0.001;

/// How many back-to-back operations make one timed sample.
pub(crate) fn batch_for(bytes: u64) -> usize {
    if bytes <= BATCHED_BYTES { BATCH } else { 1 }
}

/// The buffers of a case, and what they must hold.
pub(crate) trait Work {
    /// Writes fresh inputs, in another arrangement than before.
    fn refresh(&mut self);
    /// Takes ownership of the inputs' cache lines with one store each.
    fn touch(&mut self);
    /// Overwrites outputs that are not inputs.
    fn poison(&mut self);
    /// How many values of the last result are wrong; `refresh` came before the operation and no `touch` after it.
    fn wrong(&self) -> u64;
}

/// An operation on a work.
pub(crate) type Run<'a, W> = Box<dyn FnMut(&mut W) -> Result<()> + 'a>;

/// One who takes turns: an operation on one of the works.
pub(crate) struct Contender<'a, W> {
    pub(crate) work: usize,
    pub(crate) run: Run<'a, W>,
}

/// Measures all contenders in alternation.
///
/// # Collective
///
/// Every rank calls it with contenders in the same order.
///
/// # Errors
///
/// The first error of a contender or of the communication between ranks.
pub(crate) fn measure<W: Work>(
    ranks: &mut impl Ranks,
    works: &mut [W],
    contenders: &mut [Contender<'_, W>],
    rounds: usize,
    batch: usize,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut slowest = 0.0f64;
    for contender in contenders.iter_mut() {
        let work = &mut works[contender.work];
        let wrong = validate(ranks, work, contender)?;
        let mut time = [sample(ranks, work, contender, 1)?];
        ranks.maximum(&mut time)?;
        slowest = slowest.max(time[0]);
        outcomes.push(Outcome { times: Times::default(), wrong, batch });
    }
    // The same method for all contenders: the slowest decides.
    let batch = if slowest > BATCHED_SECONDS { 1 } else { batch };
    let mut samples = Vec::new();
    for (contender, outcome) in contenders.iter_mut().zip(&mut outcomes) {
        samples.push(samples_for(warm_up(ranks, &mut works[contender.work], contender, batch)?));
        outcome.batch = batch;
    }
    for _ in 0..rounds {
        for ((contender, outcome), samples) in contenders.iter_mut().zip(&mut outcomes).zip(&samples) {
            let work = &mut works[contender.work];
            let mut times = Vec::with_capacity(*samples);
            for _ in 0..*samples {
                times.push(sample(ranks, work, contender, batch)?);
            }
            // The last timed result is checked as it is; that of a batch has been reduced many times over.
            let wrong = if batch == 1 { work.wrong() } else { 0 };
            ranks.maximum(&mut times)?;
            outcome.times.rounds.push(times);
            outcome.wrong += ranks.total(wrong)? + validate(ranks, work, contender)?;
        }
    }
    Ok(outcomes)
}

/// The seconds of one operation on this rank, fresh inputs and a barrier before it.
fn sample<W: Work>(
    ranks: &mut impl Ranks,
    work: &mut W,
    contender: &mut Contender<'_, W>,
    batch: usize,
) -> Result<f64> {
    work.refresh();
    ranks.barrier()?;
    let start = Instant::now();
    if batch == 1 {
        (contender.run)(work)?;
    } else {
        for _ in 0..batch {
            work.touch();
            (contender.run)(work)?;
        }
    }
    Ok(start.elapsed().as_secs_f64() / batch as f64)
}

/// One untimed operation into overwritten outputs: how many values are wrong on all ranks together.
fn validate<W: Work>(ranks: &mut impl Ranks, work: &mut W, contender: &mut Contender<'_, W>) -> Result<u64> {
    work.refresh();
    work.poison();
    (contender.run)(work)?;
    let wrong = work.wrong();
    ranks.total(wrong)
}

/// Runs until caches, connections and pages are as they stay; returns the seconds a sample takes.
fn warm_up<W: Work>(
    ranks: &mut impl Ranks,
    work: &mut W,
    contender: &mut Contender<'_, W>,
    batch: usize,
) -> Result<f64> {
    let mut times = Vec::new();
    while times.len() < 2 || (times.len() < 20 && times.iter().sum::<f64>() < ROUND_SECONDS / 2.0) {
        let mut time = [sample(ranks, work, contender, batch)? * batch as f64];
        // All ranks decide alike whether to go on.
        ranks.maximum(&mut time)?;
        times.push(time[0]);
    }
    Ok(median(&times[times.len() / 2..]))
}

/// Samples of a round, so that it takes about [`ROUND_SECONDS`]; at least 3, or 1 where a single one takes long.
fn samples_for(seconds: f64) -> usize {
    let least = if seconds >= 0.5 { 1 } else { 3 };
    ((ROUND_SECONDS / seconds.max(1e-9)) as usize).clamp(least, 2000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn rounds_take_about_as_long_at_every_size() {
        assert_eq!(samples_for(1e-6), 2000);
        assert_eq!(samples_for(0.001), 100);
        assert_eq!(samples_for(0.05), 3);
        assert_eq!(samples_for(1.0), 1);
    }

    #[test]
    fn small_messages_are_batched() {
        assert_eq!(batch_for(4), 100);
        assert_eq!(batch_for(16 << 10), 100);
        assert_eq!(batch_for(64 << 10), 1);
    }

    type Log = Rc<RefCell<String>>;

    /// A work that logs what happens to it.
    struct Logged(Log);

    impl Work for Logged {
        fn refresh(&mut self) {
            self.0.borrow_mut().push('r');
        }
        fn touch(&mut self) {
            self.0.borrow_mut().push('t');
        }
        fn poison(&mut self) {
            self.0.borrow_mut().push('p');
        }
        fn wrong(&self) -> u64 {
            2
        }
    }

    /// Ranks of which another one is always slower: every sample takes it so many seconds.
    struct Slow(Log, f64);

    impl Ranks for Slow {
        fn barrier(&mut self) -> Result<()> {
            self.0.borrow_mut().push('|');
            Ok(())
        }
        fn maximum(&mut self, values: &mut [f64]) -> Result<()> {
            values.fill(self.1);
            Ok(())
        }
        fn total(&mut self, count: u64) -> Result<u64> {
            Ok(count * 2)
        }
    }

    fn log_of(batch: usize, seconds: f64) -> (String, Vec<Outcome>) {
        let log = Log::default();
        let contender = |name: char| {
            let log = Rc::clone(&log);
            Contender {
                work: 0,
                run: Box::new(move |_: &mut Logged| {
                    log.borrow_mut().push(name);
                    Ok(())
                }) as Run<'_, Logged>,
            }
        };
        let mut contenders = [contender('A'), contender('B')];
        let mut works = [Logged(Rc::clone(&log))];
        let outcomes = measure(&mut Slow(Rc::clone(&log), seconds), &mut works, &mut contenders, 2, batch).unwrap();
        (log.take(), outcomes)
    }

    #[test]
    fn contenders_take_turns_and_wrong_values_are_counted_over_ranks() {
        let (log, outcomes) = log_of(1, 0.06);
        let pilot = |name: &str| format!("rp{name}r|{name}");
        let warm = |name: &str| format!("r|{name}").repeat(2);
        let round = |name: &str| format!("{}rp{name}", format!("r|{name}").repeat(3));
        assert_eq!(
            log,
            [pilot("A"), pilot("B"), warm("A"), warm("B"), round("A"), round("B"), round("A"), round("B")].concat()
        );
        assert_eq!(outcomes.len(), 2);
        for outcome in outcomes {
            assert_eq!(outcome.times.rounds, [[0.06; 3]; 2], "the slowest rank's time counts");
            // 2 on each of 2 ranks: once before, and in each round the last timed result and one more.
            assert_eq!(outcome.wrong, 4 * 5);
        }
    }

    #[test]
    fn batches_touch_before_each_operation_and_are_checked_by_one_more() {
        let (log, outcomes) = log_of(2, 0.0009);
        let round = |name: &str| format!("{}rp{name}", format!("r|t{name}t{name}").repeat(samples_for(0.0009)));
        assert!(log.ends_with(&[round("A"), round("B")].concat()), "{log}");
        assert_eq!(outcomes[0].wrong, 4 * 3);
        assert_eq!(outcomes[0].batch, 2);
    }

    #[test]
    fn slow_operations_are_not_batched_whatever_their_size() {
        let (log, outcomes) = log_of(100, 0.002);
        assert!(!log.contains('t'), "{log}");
        assert!(outcomes.iter().all(|outcome| outcome.batch == 1));
    }
}
