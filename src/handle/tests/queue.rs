//! A communicator's queue on ranks of one thread, over the shipping code, with a clock of the test's own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::driver;
use super::super::{Collectively, Driver, Handle, LaneOf, Line, Queue};
use crate::engine::testing::{Random, Shape};
use crate::engine::{Built, Channel, Collective, Operation, Receiving, Sending, Step};
use crate::error::{Error, Result};
use crate::tensor::{DType, Hold, Piece, ReduceOp, Tensor};
use crate::transport::sim::Network;
use crate::transport::{Link, Stamp};

pub(super) struct Ranks {
    pub(super) queues: Vec<Arc<Queue>>,
    time: Duration,
}

/// A tensor that counts its drops.
struct Counted(Vec<f32>, Arc<AtomicUsize>);

impl Tensor for Counted {
    type Element = f32;

    fn shape(&self) -> Vec<usize> {
        vec![self.0.len()]
    }

    fn as_slice(&self) -> &[f32] {
        &self.0
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

impl Ranks {
    pub(super) fn new(hosts: &[usize], seed: u64) -> Self {
        let shape = Shape { hosts: hosts.to_vec(), seed, ..Shape::one_host(1) };
        let ranks: usize = hosts.iter().sum();
        let network = Network::seeded(ranks, seed);
        let all: Vec<u32> = (0..ranks as u32).collect();
        let queue = |(rank, channel): (usize, Channel)| {
            let driver = Driver::manual(Arc::clone(channel.port()));
            let stamp = Stamp { job: 2, epoch: 0, set: 0, channel: 1 };
            let user: Box<dyn Link> = Box::new(network.link(stamp, all.clone(), rank, 64).expect("a link"));
            let queue = Queue::new(driver);
            queue.admit(Box::new(Line::new(Built { channel, user, negotiation: None })));
            queue
        };
        Self { queues: shape.channels().into_iter().enumerate().map(queue).collect(), time: Duration::ZERO }
    }

    fn submit<B: Tensor<Element = f32> + Send + 'static>(&self, rank: usize, tensor: B) -> Result<Handle<B>> {
        let (hold, view) = Hold::new(tensor);
        let (sum, count) = (Collective::Allreduce(ReduceOp::Sum), view.len() / 4);
        let operation = Operation::new(sum, DType::F32, count, Some(Piece::in_place(view)));
        let task = Box::new(Collectively::One(Some(operation)));
        self.queues[rank].submit(LaneOf::Collectives, "allreduce", task, Some(Arc::clone(&hold) as _), hold)
    }

    fn send(&self, rank: usize, to: usize, data: Vec<u8>) -> Handle<Vec<u8>> {
        let (hold, view) = Hold::new(data);
        let task = Box::new(Sending::new(view, DType::U8, to));
        self.queues[rank].submit(LaneOf::To(to), "send", task, Some(Arc::clone(&hold) as _), hold).expect("submitted")
    }

    fn receive(&self, rank: usize, from: usize, count: usize) -> Handle<Vec<u8>> {
        let (hold, view) = Hold::new(vec![0; count]);
        let task = Box::new(Receiving::new(view, DType::U8, from));
        self.queues[rank]
            .submit(LaneOf::From(from), "recv", task, Some(Arc::clone(&hold) as _), hold)
            .expect("submitted")
    }

    pub(super) fn ones(&self, rank: usize, count: usize) -> Handle<Vec<f32>> {
        self.submit(rank, vec![1.0; count]).expect("submitted")
    }

    pub(super) fn poll(&mut self, rank: usize) {
        self.step(rank);
    }

    fn step(&mut self, rank: usize) -> Step {
        self.time += Duration::from_micros(10);
        self.queues[rank].driver().set_time(self.time);
        self.queues[rank].try_poll(self.time).expect("no other thread").0
    }

    /// Polls everyone, in turn, until `over`.
    pub(super) fn until(&mut self, over: impl Fn() -> bool) {
        for turn in 0.. {
            if over() {
                return;
            }
            (0..self.queues.len()).for_each(|rank| self.poll(rank));
            assert!(turn < 100_000, "nothing comes of it: {:?}", self.queues);
        }
    }

    pub(super) fn busy(&self) -> usize {
        self.queues.iter().map(|queue| queue.driver().busy()).sum()
    }
}

const SPREADS: [&[usize]; 4] = [&[1], &[3], &[2, 1], &[1, 1, 1]];

#[test]
fn operations_end_in_the_order_in_which_they_were_submitted() {
    for hosts in SPREADS {
        let mut ranks = Ranks::new(hosts, 7);
        let size = ranks.queues.len();
        let mut flying: Vec<Vec<Handle<Vec<f32>>>> = Vec::new();
        for rank in 0..size {
            // Those that are quick by themselves stand behind others that are not.
            flying.push([5000, 1, 0, 3000, 2].map(|count| ranks.ones(rank, count)).into());
        }
        let ended = |flying: &[Handle<Vec<f32>>]| flying.iter().filter(|handle| handle.poll()).count();
        for turn in 0.. {
            for (rank, flying) in flying.iter().enumerate() {
                ranks.poll(rank);
                let first = ended(flying);
                assert!(flying[..first].iter().all(|handle| handle.poll()), "an earlier one has not ended");
            }
            if flying.iter().all(|flying| ended(flying) == flying.len()) {
                break;
            }
            assert!(turn < 100_000, "nothing comes of it");
        }
        for handle in flying.into_iter().flatten() {
            let data = handle.wait().expect("it has ended well");
            assert!(data.iter().all(|&value| value == size as f32));
        }
        ranks.until(|| true);
        assert_eq!(ranks.busy(), 0, "nobody polls an empty queue");
    }
}

#[test]
fn a_mismatch_ends_one_operation_alone() {
    for odd in 0..3 {
        let mut ranks = Ranks::new(&[3], odd as u64);
        let counts = |rank: usize| [40, if rank == odd { 31 } else { 30 }, 2000];
        let flying: Vec<Vec<_>> = (0..3).map(|rank| counts(rank).map(|count| ranks.ones(rank, count)).into()).collect();
        ranks.until(|| flying.iter().flatten().all(|handle| handle.poll()));
        for mut flying in flying {
            let last = flying.pop().expect("three").wait().expect("as if nothing had been");
            assert_eq!(last, vec![3.0; 2000]);
            let Err(Error::Mismatch(mismatch)) = flying.pop().expect("two").wait() else { panic!("they differ") };
            assert!(mismatch.views[odd].1.contains("of 31 f32"), "{mismatch}");
            assert_eq!(flying.pop().expect("one").wait().expect("before it"), vec![3.0; 40]);
        }
    }
}

#[test]
fn messages_wait_for_those_of_their_pair_alone() {
    // The network of these tests carries 64 bytes at a time.
    let bytes = |rank: usize, count: usize| (0..count).map(|at| (at * 7 + rank) as u8).collect::<Vec<u8>>();
    for hosts in [&[3][..], &[2, 1], &[1, 1, 1]] {
        let mut ranks = Ranks::new(hosts, 10);
        let sum = ranks.ones(0, 3000);
        let (late, behind) = (ranks.receive(0, 1, 500), ranks.receive(0, 1, 2));
        let soon = ranks.receive(0, 2, 700);
        let sent = ranks.send(2, 0, bytes(2, 700));
        ranks.until(|| soon.poll() && sent.poll());
        assert!(!(sum.poll() || late.poll() || behind.poll()), "nobody has done his part of these");
        assert_eq!(soon.wait().expect("it came"), bytes(2, 700));

        let others = [ranks.ones(1, 3000), ranks.ones(2, 3000)];
        ranks.until(|| sum.poll() && others.iter().all(|other| other.poll()));
        assert!(sum.wait().is_ok_and(|data| data == [3.0; 3000]));
        assert!(!(late.poll() || behind.poll()), "rank 1 has sent nothing");

        // Another length than that of the first: it is taken and dropped, and the second is as it was to be.
        let sent = [ranks.send(1, 0, bytes(1, 499)), ranks.send(1, 0, vec![8, 9])];
        ranks.until(|| sent.iter().all(|sent| sent.poll()) && late.poll() && behind.poll());
        let Err(Error::Mismatch(mismatch)) = late.wait() else { panic!("one byte less") };
        assert!(mismatch.to_string().contains("499 u8"), "{mismatch}");
        assert_eq!(behind.wait().expect("as sent"), [8, 9]);
    }
}

#[test]
fn a_refused_call_takes_its_turn() {
    for odd in 0..3 {
        let mut ranks = Ranks::new(&[3], odd as u64);
        let mut flying = Vec::new();
        for rank in 0..3 {
            let before = ranks.ones(rank, 3000);
            let wrong = (rank != odd).then(|| ranks.ones(rank, 5));
            if rank == odd {
                ranks.queues[rank].refuse();
            }
            flying.push((before, wrong, ranks.ones(rank, 3000)));
        }
        ranks.until(|| flying.iter().all(|(.., after)| after.poll()));
        for (before, wrong, after) in flying {
            assert!(before.wait().is_ok() && after.wait().is_ok());
            if let Some(wrong) = wrong {
                let Err(Error::Mismatch(mismatch)) = wrong.wait() else { panic!("rank {odd} did not make the call") };
                assert!(mismatch.views[odd].1.contains("refused"), "{mismatch}");
            }
        }
    }
}

#[test]
fn an_error_ends_all_that_wait_behind_it_on_every_rank() {
    for hosts in [&[3][..], &[2, 1], &[1, 1, 1]] {
        for victim in 0..3 {
            let mut ranks = Ranks::new(hosts, victim as u64);
            let drops = Arc::new(AtomicUsize::new(0));
            let counted = |count| Counted(vec![1.0; count], Arc::clone(&drops));
            let mut flying = Vec::new();
            for rank in (0..3).filter(|&rank| rank != victim) {
                flying.extend([5000, 1].map(|count| ranks.submit(rank, counted(count)).expect("submitted")));
            }
            // It gives up what the others wait for.
            let first = ranks.submit(victim, counted(5000)).expect("submitted");
            let behind = ranks.submit(victim, counted(2)).expect("submitted");
            assert!(!first.poll(), "its peers have not moved since");
            assert_eq!(first.cancel().map(|tensor| tensor.0.len()), Some(5000), "the tensor comes back");
            let Err(Error::Poisoned(text)) = behind.wait() else { panic!("it waited behind that") };
            assert!(text.contains("'allreduce 1' was given up"), "{text}");
            assert!(matches!(ranks.submit(victim, counted(1)), Err(Error::Poisoned(_))));
            ranks.until(|| flying.iter().all(|handle| handle.poll()));
            for handle in flying {
                let Err(Error::Poisoned(text)) = handle.wait() else { panic!("rank {victim} gave up") };
                assert!(text.contains(&format!("rank {victim}")), "{hosts:?}: {text}");
            }
            assert_eq!(drops.load(Ordering::SeqCst), 7, "every tensor is dropped once");
            for turn in 0.. {
                (0..3).for_each(|rank| ranks.poll(rank));
                if ranks.busy() == 0 {
                    break;
                }
                assert!(turn < 200_000, "a queue that is over rests once the others know");
            }
        }
    }
}

#[test]
fn an_operation_whose_handle_is_dropped_goes_on_and_one_whose_is_leaked() {
    let mut ranks = Ranks::new(&[2], 3);
    let drops = Arc::new(AtomicUsize::new(0));
    for rank in 0..2 {
        drop(ranks.submit(rank, Counted(vec![1.0; 500], Arc::clone(&drops))).expect("submitted"));
        std::mem::forget(ranks.submit(rank, Counted(vec![1.0; 500], Arc::clone(&drops))).expect("submitted"));
    }
    assert!(drops.load(Ordering::SeqCst) < 2, "in flight, and kept alive");
    let last: Vec<_> = (0..2).map(|rank| ranks.ones(rank, 500)).collect();
    ranks.until(|| last.iter().all(|handle| handle.poll()));
    assert_eq!(drops.load(Ordering::SeqCst), 2, "the dropped ones; the leaked ones never");
    assert!(last.into_iter().all(|handle| handle.wait().is_ok_and(|data| data == [2.0; 500])));
}

#[test]
fn a_wait_that_is_too_long_names_the_rank_and_the_next_names_that() {
    let mut ranks = Ranks::new(&[2], 4);
    let (late, behind) = (ranks.ones(0, 300), ranks.ones(0, 3));
    while !late.poll() {
        ranks.time += Duration::from_secs(1);
        ranks.poll(0);
        assert!(ranks.time < Duration::from_secs(90), "beyond the deadline");
    }
    let Err(Error::Timeout { missing, .. }) = late.wait() else { panic!("rank 1 did not come") };
    assert!(missing.contains("rank 1"), "{missing}");
    let Err(Error::Poisoned(text)) = behind.wait() else { panic!("nothing follows") };
    assert!(text.contains("gave up after") && text.contains("rank 1"), "{text}");
}

#[test]
fn a_deadline_counts_from_ones_turn() {
    let mut ranks = Ranks::new(&[2], 5);
    let flying: Vec<_> = (0..2).map(|rank| [ranks.ones(rank, 3000), ranks.ones(rank, 3000)]).collect();
    for [first, second] in &flying {
        while !(first.poll() && second.poll()) {
            // Every step is late, and none is too late: in all it is far beyond the deadline.
            ranks.time += Duration::from_secs(20);
            (0..2).for_each(|rank| ranks.poll(rank));
        }
    }
    assert!(ranks.time > Duration::from_secs(60));
    assert!(flying.into_iter().flatten().all(|handle| handle.wait().is_ok()));
}

#[test]
fn the_line_comes_home_when_nothing_is_in_flight() {
    let mut ranks = Ranks::new(&[2], 6);
    let flying: Vec<_> = (0..2).map(|rank| ranks.ones(rank, 100)).collect();
    ranks.until(|| flying.iter().all(|handle| handle.poll()));
    for queue in &ranks.queues {
        let line = queue.take_line().expect("nothing is in flight");
        assert!(!line.channel.is_busy());
        queue.admit(line);
    }
    let flying: Vec<_> = (0..2).map(|rank| ranks.ones(rank, 100)).collect();
    ranks.until(|| flying.iter().all(|handle| handle.poll()));
}

#[test]
fn what_a_panic_leaves_in_flight_goes_on() {
    for hosts in [&[2][..], &[1, 1]] {
        let mut ranks = Ranks::new(hosts, 8);
        let (own, other) = (ranks.ones(0, 5000), ranks.ones(1, 5000));
        ranks.queues[0].leave();
        ranks.until(|| own.poll() && other.poll());
        assert!(own.wait().is_ok() && other.wait().is_ok());
    }
}

#[test]
fn a_rank_that_leaves_ends_what_is_in_flight() {
    for hosts in [&[2][..], &[1, 1]] {
        let mut ranks = Ranks::new(hosts, 8);
        let (own, behind, other) = (ranks.ones(0, 5000), ranks.ones(0, 1), ranks.ones(1, 5000));
        driver::Driven::shut(Arc::clone(&ranks.queues[0]), &Error::Poisoned("the rank leaves".into()));
        for handle in [own, behind] {
            let Err(Error::Poisoned(text)) = handle.wait() else { panic!("it is over") };
            assert!(text.contains("the rank leaves"), "{text}");
        }
        assert_eq!(ranks.queues[0].driver().busy(), 0, "there is nothing left to poll");
        ranks.until(|| other.poll());
        let Err(Error::Poisoned(text)) = other.wait() else { panic!("rank 0 is gone") };
        assert!(text.contains("rank 0") && text.contains("the rank leaves"), "{text}");
    }
}

#[test]
fn a_panic_under_the_lock_ends_the_communicator() {
    let mut ranks = Ranks::new(&[2], 9);
    let (own, other) = (ranks.ones(0, 5000), ranks.ones(1, 5000));
    let queue = Arc::clone(&ranks.queues[0]);
    assert!(catch_unwind(AssertUnwindSafe(|| queue.panic_inside())).is_err());
    ranks.poll(0);
    let Err(Error::Poisoned(text)) = own.wait() else { panic!("half done") };
    assert!(text.contains("kolo panicked"), "{text}");
    ranks.until(|| other.poll());
    assert!(matches!(other.wait(), Err(Error::Poisoned(_))));
}

/// A random program: sums of all lengths, some of them wrong on one rank of one host, with handles that are dropped at once
/// and ranks that run ahead. Returns how many ended well, and how many in a mismatch.
fn program(seed: u64) -> (usize, usize) {
    let mut random = Random::new(seed ^ 0x6a09_e667_f3bc_c908);
    let hosts = SPREADS[random.below(SPREADS.len())];
    let mut ranks = Ranks::new(hosts, seed);
    let size = ranks.queues.len();
    let plans: Vec<(usize, Option<usize>)> = (0..1 + random.below(12))
        .map(|_| {
            let count = [0, 1, 5, 12, 13, 100, 1024, 3000][random.below(8)];
            let odd = (hosts.len() == 1 && size > 1 && random.below(6) == 0).then(|| random.below(size));
            (count, odd)
        })
        .collect();
    let mut next = vec![0; size];
    let mut flying: Vec<(usize, Handle<Vec<f32>>)> = Vec::new();
    let (mut well, mut wrong, mut quiet) = (0, 0, 0);
    while next.iter().any(|&next| next < plans.len()) || !flying.is_empty() {
        let rank = random.below(size);
        if next[rank] < plans.len() && random.below(3) == 0 {
            let (count, odd) = plans[next[rank]];
            let handle = ranks.ones(rank, count + usize::from(odd == Some(rank)));
            if random.below(8) > 0 {
                flying.push((next[rank], handle));
            }
            next[rank] += 1;
        }
        quiet = if ranks.step(rank) == Step::Pending { quiet + 1 } else { 0 };
        assert!(quiet < 100_000, "nothing moves: {hosts:?}, {plans:?}");
        for at in (0..flying.len()).rev() {
            if !flying[at].1.poll() {
                continue;
            }
            let (place, handle) = flying.swap_remove(at);
            match (plans[place], handle.wait()) {
                ((count, None), Ok(data)) => {
                    assert_eq!(data, vec![size as f32; count]);
                    well += 1;
                }
                ((_, Some(odd)), Err(Error::Mismatch(mismatch))) => {
                    assert_eq!(mismatch.views.len(), size);
                    assert!(odd < size);
                    wrong += 1;
                }
                (plan, outcome) => panic!("{plan:?} became {outcome:?}"),
            }
        }
    }
    // What was dropped goes on as well.
    ranks.until(|| true);
    for turn in 0.. {
        if ranks.busy() == 0 {
            break;
        }
        (0..size).for_each(|rank| ranks.poll(rank));
        assert!(turn < 100_000, "a queue does not come to rest");
    }
    (well, wrong)
}

#[test]
fn seeded_queues_of_operations_in_order() {
    let (first, count) = match super::number("KOLO_SEED") {
        Some(seed) => (seed, 1),
        None => (0, super::number("KOLO_SEEDS").unwrap_or(300)),
    };
    let mut total = (0, 0);
    for seed in first..first + count {
        match catch_unwind(|| program(seed)) {
            Ok((well, wrong)) => total = (total.0 + well, total.1 + wrong),
            Err(panic) => {
                eprintln!("replay it with KOLO_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{count} seeds: {total:?}");
    assert!(count < 200 || (total.0 > 0 && total.1 > 0), "{total:?}");
}
