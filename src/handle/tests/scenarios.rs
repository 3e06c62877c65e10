//! Scenarios of README.md, one by one, with a clock of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::super::{Call, Handle, NamedSet, Options};
use super::world::sets;
use crate::coordinator::{Kind, Params};
use crate::engine::testing::{Random, Shape};
use crate::error::{Error, Result};
use crate::os::time;
use crate::tensor::ReduceOp;

const SUM: Kind = Kind::Allreduce { op: ReduceOp::Sum };

pub(super) struct Ranks {
    pub(super) sets: Vec<Arc<NamedSet>>,
    time: Duration,
}

impl Ranks {
    pub(super) fn new(hosts: &[usize], params: &Params) -> Self {
        let shape = Shape { hosts: hosts.to_vec(), ..Shape::one_host(1) };
        Self { sets: sets(&shape, params), time: Duration::ZERO }
    }

    pub(super) fn begin(&self, rank: usize, name: &str, options: Options) -> Handle<Vec<f32>> {
        self.sets[rank].owned(name, SUM, vec![1.0; 3], options).expect("submitted")
    }

    pub(super) fn poll(&mut self, rank: usize) {
        self.time += Duration::from_micros(10);
        self.sets[rank].driver.set_time(self.time);
        self.sets[rank].try_poll(self.time).expect("no other thread");
    }

    /// Polls everyone, in turn, until `over`.
    pub(super) fn until(&mut self, over: impl Fn(&Self) -> bool) {
        for turn in 0.. {
            if over(self) {
                return;
            }
            (0..self.sets.len()).for_each(|rank| self.poll(rank));
            assert!(turn < 100_000, "nothing comes of it: {:?}", self.sets);
        }
    }

    pub(super) fn sleep(&mut self, time: Duration) {
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
fn what_is_reduced_apart_is_as_it_was_wherever_the_set_ends() {
    let element = |rank: usize, at: usize| (rank * 1000 + at) as f32;
    let (mut well, mut ill) = (0, 0);
    for hosts in [&[3][..], &[2, 1], &[1, 1, 1]] {
        // The root of a reduction is the only one to get a result.
        for (kind, roots) in [(SUM, 0..3), (Kind::Reduce { op: ReduceOp::Sum, root: 2 }, 2..3)] {
            for polls in (0..180).step_by(3) {
                let mut ranks = Ranks::new(hosts, &Params::default());
                let inputs: Vec<Vec<f32>> = (0..3).map(|rank| (0..900).map(|at| element(rank, at)).collect()).collect();
                let mut outputs = vec![vec![-1.0_f32; 900]; 3];
                let begin = |(rank, output): (usize, &mut Vec<f32>)| {
                    let (set, input) = (&ranks.sets[rank], &inputs[rank][..]);
                    let memory = set.apart("x", kind, input, output).expect("as long");
                    set.begin("x", &Call::slice(kind, input, Options::default()), memory, false).expect("submitted")
                };
                let begun: Vec<_> = outputs.iter_mut().enumerate().map(begin).collect();
                (0..polls).for_each(|turn| ranks.poll(turn % 3));
                ranks.sets[1].cancel(begun[1].0);
                match begun[1].1.outcome().expect("over") {
                    Ok(()) => well += 1,
                    // The others go on to wait for it.
                    Err(Error::Cancelled(_)) => {
                        [0, 2].into_iter().for_each(|rank| ranks.sets[rank].cancel(begun[rank].0))
                    }
                    Err(_) => ill += 1,
                }
                ranks.until(|_| begun.iter().all(|(_, flight)| flight.is_over()));
                for rank in 0..3 {
                    let is_own = |(at, value): (usize, &f32)| *value == element(rank, at);
                    assert!(inputs[rank].iter().enumerate().all(is_own), "{hosts:?}, {kind}, {polls}: rank {rank}");
                    assert!(roots.contains(&rank) || outputs[rank] == [-1.0; 900], "{hosts:?}, {kind}, {polls}");
                }
            }
        }
    }
    assert!(well > 10 && ill > 10, "{well} ended well, {ill} did not: both must come up");
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
fn an_idle_leader_attends_when_it_is_summoned_and_names_who_is_late() {
    // Rank 0 decides, rank 2 leads the other host: neither has anything in flight.
    let mut ranks = Ranks::new(&[2, 2], &Params::default());
    let options = || Options { deadline: Some(Duration::from_secs(1)), ..Options::default() };
    let waiting = [1, 3].map(|rank| ranks.begin(rank, "late", options()));
    ranks.until(|ranks| ranks.time > Duration::from_millis(300));
    assert_eq!([0, 2].map(|rank| ranks.sets[rank].driver.busy()), [0, 0], "nobody called them");
    for rank in 0..4 {
        ranks.sets[rank].driver.port().control.summon_members();
        ranks.sets[rank].driver.heed_summons();
    }
    assert_eq!([0, 2].map(|rank| ranks.sets[rank].driver.busy()), [1, 1]);
    ranks.sleep(Duration::from_millis(700));
    ranks.until(|_| waiting.iter().all(|handle| handle.poll()));
    for handle in waiting {
        let error = outcome(handle).expect_err("two stay away").to_string();
        assert!(error.contains("tensor 'late'") && error.contains("ranks 0, 2 did not submit it"), "{error}");
    }
    ranks.sleep(Duration::from_secs(3));
    ranks.until(|ranks| ranks.sets.iter().all(|set| set.driver.busy() == 0));
}

#[test]
fn a_farewell_of_one_host_does_not_overtake_what_the_log_says() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let shape = Shape { hosts: vec![1, 1, 2], seed, ..Shape::one_host(1) };
        let mut ranks = Ranks { sets: sets(&shape, &Params::default()), time: Duration::ZERO };
        let options = || Options { deadline: Some(Duration::from_millis(1)), ..Options::default() };
        let handles = [0, 1, 3].map(|rank| ranks.begin(rank, "late", options()));
        // Rank 2 leads ranks 2 and 3, and has nothing in flight.
        ranks.sets[2].attend();
        ranks.sleep(Duration::from_millis(2));
        for turn in 0.. {
            if handles.iter().all(|handle| handle.poll()) {
                break;
            }
            ranks.poll(random.below(4));
            assert!(turn < 100_000, "nothing comes of it: {:?}", ranks.sets);
        }
        for handle in handles {
            let error = outcome(handle).expect_err("rank 2 stays away");
            assert!(error.to_string().contains("; rank 2 did not submit it;"), "seed {seed}: {error}");
        }
    }
}

#[test]
fn what_everyone_has_done_his_part_of_ends_well_whatever_comes_after() {
    let mut met = 0;
    for seed in 0..120 {
        let mut random = Random::new(seed);
        let hosts = [vec![2], vec![1, 1], vec![2, 1]][random.below(3)].clone();
        let last = hosts.iter().sum::<usize>() - 1;
        let shape = Shape { hosts, seed, ..Shape::one_host(1) };
        let mut ranks = Ranks { sets: sets(&shape, &Params::default()), time: Duration::ZERO };
        let mut handles: Vec<_> = (0..=last).map(|rank| ranks.begin(rank, "x", Options::default())).collect();
        while !handles[0].poll() {
            ranks.poll(random.below(last + 1));
        }
        if handles.iter().all(|handle| handle.poll()) {
            continue;
        }
        // Rank 0 is done with it, and ends the set before the others are.
        met += 1;
        let set = Arc::clone(&ranks.sets[0]);
        assert!(catch_unwind(AssertUnwindSafe(|| set.panic_inside())).is_err());
        assert!(set.owned("y", SUM, vec![1.0_f32], Options::default()).is_err());
        let next = ranks.begin(last, "y", Options::default());
        ranks.until(|_| next.poll() && handles.iter().all(|handle| handle.poll()));
        for handle in handles.drain(..) {
            assert_eq!(outcome(handle).expect("all did their part"), vec![last as f32 + 1.0; 3], "seed {seed}");
        }
        let error = outcome(next).expect_err("the set is over").to_string();
        assert!(error.contains("'y' cannot end: rank 0 left, did not come, or gave up"), "seed {seed}: {error}");
    }
    assert!(met > 10, "{met}: the case must come up");
}

#[test]
fn an_idle_leader_attends_for_a_while_and_goes_back_to_sleep() {
    let mut ranks = Ranks::new(&[1, 1], &Params::default());
    ranks.sets[0].driver.port().control.summon_members();
    ranks.sets[0].driver.heed_summons();
    assert_eq!(ranks.sets[0].driver.busy(), 1);
    ranks.sleep(Duration::from_secs(2));
    ranks.poll(0);
    assert_eq!(ranks.sets[0].driver.busy(), 0);
    // Heard once is heard.
    ranks.sets[0].driver.heed_summons();
    assert_eq!(ranks.sets[0].driver.busy(), 0);
}

#[test]
fn who_leaves_in_the_middle_of_what_was_agreed_says_so() {
    for hosts in [&[2][..], &[1, 1], &[2, 1]] {
        let last = hosts.iter().sum::<usize>() - 1;
        let mut ranks = Ranks::new(hosts, &Params::default());
        let handles: Vec<_> = (0..=last).map(|rank| ranks.begin(rank, "x", Options::default())).collect();
        while !ranks.sets[last].is_running() {
            (0..=last).for_each(|rank| ranks.poll(rank));
        }
        ranks.sets[last].shut(&Error::Poisoned("the last Kolo was dropped".into()));
        let (own, others) = handles.split_last().expect("some");
        assert!(own.poll());
        ranks.until(|_| others.iter().all(|handle| handle.poll()));
        for handle in handles.into_iter().take(last) {
            let error = outcome(handle).expect_err("a rank is gone").to_string();
            assert!(error.contains(&format!("rank {last} ")), "{hosts:?}: {error}");
        }
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
