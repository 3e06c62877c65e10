//! Scenarios of README.md, one by one, with a clock of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::super::{Handle, NamedSet, Options};
use super::world::sets;
use crate::coordinator::{Kind, Params};
use crate::engine::testing::Shape;
use crate::error::{Error, Result};
use crate::os::time;
use crate::tensor::ReduceOp;

const SUM: Kind = Kind::Allreduce { op: ReduceOp::Sum };

struct Ranks {
    sets: Vec<Arc<NamedSet>>,
    time: Duration,
}

impl Ranks {
    fn new(hosts: &[usize], params: &Params) -> Self {
        let shape = Shape { hosts: hosts.to_vec(), ..Shape::one_host(1) };
        Self { sets: sets(&shape, params), time: Duration::ZERO }
    }

    fn begin(&self, rank: usize, name: &str, options: Options) -> Handle<Vec<f32>> {
        self.sets[rank].owned(name, SUM, vec![1.0; 3], options).expect("submitted")
    }

    fn poll(&mut self, rank: usize) {
        self.time += Duration::from_micros(10);
        self.sets[rank].driver.set_time(self.time);
        self.sets[rank].try_poll(self.time).expect("no other thread");
    }

    /// Polls everyone, in turn, until `over`.
    fn until(&mut self, over: impl Fn(&Self) -> bool) {
        for turn in 0.. {
            if over(self) {
                return;
            }
            (0..self.sets.len()).for_each(|rank| self.poll(rank));
            assert!(turn < 100_000, "nothing comes of it: {:?}", self.sets);
        }
    }

    fn sleep(&mut self, time: Duration) {
        self.time += time;
    }
}

fn outcome(handle: Handle<Vec<f32>>) -> Result<Vec<f32>> {
    assert!(handle.poll(), "it has ended");
    handle.wait()
}

#[test]
fn a_cancel_after_agreement_ends_the_set_on_every_rank_of_every_host() {
    for hosts in [&[3][..], &[2, 1], &[1, 2], &[1, 1, 1]] {
        for victim in 0..3 {
            let mut ranks = Ranks::new(hosts, &Params::default());
            let mut handles: Vec<_> = (0..3).map(|rank| Some(ranks.begin(rank, "x", Options::default()))).collect();
            let queued = ranks.begin(victim, "never agreed", Options::default());
            // Without the victim nobody gets further than to wait for it.
            while !ranks.sets[victim].is_running() {
                (0..3).filter(|rank| *rank != victim).for_each(|rank| ranks.poll(rank));
                ranks.poll(victim);
            }
            let handle = handles[victim].take().expect("in flight");
            assert_eq!(handle.cancel().map(|data| data.len()), Some(3), "the memory is the caller's again");
            ranks.until(|_| handles.iter().flatten().all(|handle| handle.poll()));
            for handle in handles.into_iter().flatten() {
                let error = outcome(handle).expect_err("rank gave up").to_string();
                assert!(error.contains(&format!("rank {victim}")), "{hosts:?}, {victim}: {error}");
            }
            assert!(matches!(outcome(queued), Err(Error::Poisoned(_))));
            let later = ranks.sets[0].owned("later", SUM, vec![0.0_f32], Options::default());
            assert!(matches!(later, Err(Error::Poisoned(_))));
            // Who lingers for other hosts stops at last.
            ranks.sleep(Duration::from_secs(2));
            ranks.until(|ranks| ranks.sets.iter().all(|set| set.driver.busy() == 0));
        }
    }
}

#[test]
fn a_panic_inside_ends_the_set_and_nothing_is_said_to_have_gone_well() {
    let mut ranks = Ranks::new(&[2], &Params::default());
    let handles = [0, 1].map(|rank| ranks.begin(rank, "x", Options::default()));
    while !ranks.sets[0].is_running() {
        ranks.poll(0);
        ranks.poll(1);
    }
    let set = Arc::clone(&ranks.sets[0]);
    assert!(catch_unwind(AssertUnwindSafe(|| set.panic_inside())).is_err());
    ranks.until(|_| handles.iter().all(|handle| handle.poll()));
    let [first, second] = handles.map(|handle| outcome(handle).expect_err("lost").to_string());
    assert!(first.contains("kolo panicked"), "{first}");
    assert!(second.contains("rank 0"), "{second}");
}

#[test]
fn a_set_that_its_user_drops_ends_what_it_began() {
    let mut ranks = Ranks::new(&[2], &Params::default());
    drop(ranks.begin(0, "x", Options::default()));
    let weak = Arc::downgrade(&ranks.sets[0]);
    let driver = Arc::clone(&ranks.sets[0].driver);
    ranks.sets.remove(0);
    assert_eq!(driver.busy(), 1);
    let other = ranks.begin(0, "x", Options::default());
    for turn in 0.. {
        ranks.poll(0);
        match weak.upgrade() {
            Some(set) => drop(set.try_poll(ranks.time)),
            None => break,
        }
        assert!(turn < 10_000, "it is never let go of");
    }
    ranks.until(|_| other.poll());
    assert_eq!((outcome(other).expect("a sum"), driver.busy()), (vec![2.0; 3], 0));
}

#[test]
fn a_deadline_passes_whatever_else_goes_on() {
    for hosts in [&[2][..], &[1, 1]] {
        let mut ranks = Ranks::new(hosts, &Params::default());
        let deadline = Some(Duration::from_secs(1));
        let late = ranks.begin(1, "late", Options { deadline, ..Options::default() });
        // Traffic that asks for ticks of its own, more often than the coordinator wants to look for late names.
        while ranks.time < Duration::from_secs(5) && !late.poll() {
            let pair = [0, 1].map(|rank| ranks.sets[rank].owned("busy", SUM, vec![1.0_f32], Options::default()));
            let [Ok(a), Ok(b)] = pair else { break };
            ranks.until(|_| late.poll() || a.poll() && b.poll());
            ranks.sleep(Duration::from_millis(10));
        }
        ranks.until(|_| late.poll());
        assert!(ranks.time < Duration::from_secs(2), "{:?}", ranks.time);
        let error = outcome(late).expect_err("rank 0 never came");
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(error.to_string().contains("tensor 'late'") && error.to_string().contains("rank 0"), "{error}");
    }
}

#[test]
fn a_pause_holds_deadlines_up() {
    let mut ranks = Ranks::new(&[2], &Params::default());
    ranks.sets[0].driver.port().control.pause_until(time::monotonic() + Duration::from_secs(3600));
    let deadline = Some(Duration::from_secs(1));
    let late = ranks.begin(0, "late", Options { deadline, ..Options::default() });
    for _ in 0..100 {
        ranks.sleep(Duration::from_millis(100));
        ranks.poll(0);
    }
    assert!(!late.poll(), "ten seconds of an hour");
    let other = ranks.begin(1, "late", Options::default());
    ranks.until(|_| late.poll() && other.poll());
    assert_eq!(outcome(late).expect("a sum"), [2.0; 3]);
}

#[test]
fn a_refused_call_is_told_though_this_rank_has_nothing_in_flight() {
    for hosts in [&[2][..], &[1, 1]] {
        for refuser in 0..2 {
            let mut ranks = Ranks::new(hosts, &Params::default());
            ranks.sets[refuser].refuse("x", "on purpose");
            assert_eq!(ranks.sets[refuser].driver.busy(), 1, "its leader's part is still to be done");
            let other = ranks.begin(1 - refuser, "x", Options::default());
            ranks.until(|ranks| other.poll() && ranks.sets.iter().all(|set| set.driver.busy() == 0));
            let error = outcome(other).expect_err("refused").to_string();
            assert!(error.contains("refused there: on purpose"), "{error}");
        }
    }
}

#[test]
fn the_end_gives_all_memory_back() {
    let mut ranks = Ranks::new(&[2], &Params::default());
    let handles: Vec<_> = (0..3).map(|at| ranks.begin(0, &format!("x{at}"), Options::default())).collect();
    let other = ranks.begin(1, "x0", Options::default());
    while !ranks.sets[0].is_running() {
        ranks.poll(0);
        ranks.poll(1);
    }
    ranks.sets[0].shut(&Error::Poisoned("the end".into()));
    assert_eq!(ranks.sets[0].driver.busy(), 0);
    for handle in handles {
        assert_eq!(handle.cancel().map(|data| data.len()), Some(3));
    }
    assert!(matches!(ranks.sets[0].owned("y", SUM, vec![0.0_f32], Options::default()), Err(Error::Poisoned(_))));
    drop(other);
}
