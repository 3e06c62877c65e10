//! Ranks on several hosts that call different things, and ranks that are only late, in a time that passes as the
//! schedule says.

use std::time::{Duration, Instant};

use super::inquiry::STALLED;
use super::seeded::{Task, for_each_seed, for_each_seed_and, shape};
use super::testing::{Random, Shape, assert_moves};
use super::{Channel, Collective, Operation, Pieces, Step};
use crate::error::{Error, Result};
use crate::plan::Algorithm;
use crate::tensor::{DType, Piece, RawSlice};

/// How each rank ended, after how many operations.
type Ends = Vec<(usize, Result<()>)>;

/// Runs operations on every rank, each at its own pace; whoever has not moved for long is stalled, as it is in `wait`.
///
/// `operation` gives a rank's n-th operation. With `late_ranks`, ranks are away between operations. Returns how the ranks ended, and how often one was stalled.
fn run(
    channels: &mut [Channel],
    random: &mut Random,
    late_ranks: bool,
    mut operation: impl FnMut(usize, usize, &mut Random) -> Option<Operation>,
) -> (Ends, usize) {
    let start = Instant::now();
    let mut now = Duration::ZERO;
    let mut next = vec![0; channels.len()];
    let mut moved = vec![Duration::ZERO; channels.len()];
    let mut late = vec![Duration::ZERO; channels.len()];
    let mut ended: Vec<Option<Result<()>>> = channels.iter().map(|_| None).collect();
    let (mut stuck, mut stalls) = (0, 0);
    while ended.iter().any(Option::is_none) {
        now += Duration::from_millis(1 + random.below(2) as u64);
        let rank = random.below(channels.len());
        let channel = &mut channels[rank];
        if ended[rank].is_some() {
            channel.take_leave();
            continue;
        }
        if late[rank] > now {
            continue;
        }
        if !channel.is_busy() {
            // Between operations, a rank may be away for longer than others wait.
            if late_ranks && random.below(8) == 0 && moved[rank] < now {
                (late[rank], moved[rank]) = (now + STALLED * random.below(8) as u32, now);
                continue;
            }
            match operation(rank, next[rank], random) {
                None => ended[rank] = Some(Ok(())),
                Some(operation) => ended[rank] = channel.begin(operation).err().map(Err),
            }
            moved[rank] = now;
            continue;
        }
        stuck += 1;
        match channel.poll() {
            Ok(Step::Ready(())) => {
                next[rank] += 1;
                (stuck, moved[rank]) = (0, now);
            }
            Ok(Step::Progress) => (stuck, moved[rank]) = (0, now),
            Ok(Step::Pending) if now - moved[rank] >= STALLED => {
                stalls += 1;
                ended[rank] = channel.stalled(start + now).err().map(Err);
            }
            Ok(Step::Pending) => {}
            Err(error) => ended[rank] = Some(Err(error)),
        }
        assert_moves(stuck, channels);
    }
    (next.into_iter().zip(ended.into_iter().flatten()).collect(), stalls)
}

/// Several hosts, without the settings that would make ranks call different algorithms.
fn far_shape(random: &mut Random) -> Shape {
    loop {
        let shape = shape(random);
        if shape.hosts.len() > 1 {
            return shape;
        }
    }
}

#[test]
fn seeded_ranks_that_are_late_make_no_mistake() {
    let stalled = std::cell::Cell::new(0);
    for_each_seed(100, |seed| {
        let mut random = Random::new(seed ^ 0x1a7e);
        let shape = far_shape(&mut random);
        let ranks = shape.hosts.iter().sum();
        let mut channels = shape.channels();
        if random.below(2) == 0 {
            channels.iter_mut().for_each(Channel::look_always);
        }
        let mut tasks: Vec<Task> = (0..5).map(|_| Task::random(ranks, shape.slot_bytes, &mut random)).collect();
        let (ends, stalls) = run(&mut channels, &mut random, true, |rank, at, random| {
            tasks.get_mut(at).map(|task| task.operation(rank, random))
        });
        for (rank, (_, end)) in ends.into_iter().enumerate() {
            end.unwrap_or_else(|error| panic!("{shape:?}, rank {rank}: {error}"));
        }
        tasks.iter().for_each(|task| task.check(&format!("{shape:?}")));
        stalled.set(stalled.get() + stalls);
    });
    assert!(stalled.get() > 0, "nobody was late");
}

/// Whatever a rank calls instead, and whenever: nobody waits for the deadline, and everybody is told.
#[test]
fn seeded_different_calls_end_every_rank() {
    for_each_seed_and(200, &[1645, 3391], |seed| {
        let mut random = Random::new(seed ^ 0xd1ff);
        let shape = far_shape(&mut random);
        let ranks: usize = shape.hosts.iter().sum();
        let mut channels = shape.channels();
        if random.below(2) == 0 {
            channels.iter_mut().for_each(Channel::look_always);
        }
        let mut task = || Task::random(ranks, shape.slot_bytes, &mut random);
        let mut tasks: Vec<Task> = (0..4).map(|_| task()).collect();
        tasks.extend([Task::meeting(ranks), Task::meeting(ranks)]);
        let mut wrong = task();
        // One rank, or all of a host.
        let odd: Vec<usize> = {
            let first = random.below(ranks);
            let host = channels[first].team().members().to_vec();
            if random.below(2) == 0 { vec![first] } else { host }
        };
        let at = random.below(4);
        if wrong.is_like(&tasks[at]) {
            return;
        }
        let (ends, _) = run(&mut channels, &mut random, true, |rank, next, random| {
            let task = if next == at && odd.contains(&rank) { &mut wrong } else { tasks.get_mut(next)? };
            Some(task.operation(rank, random))
        });
        let what = format!("{shape:?}: operation {at} differs on {odd:?}: {ends:?}");
        // Somebody sent what nobody looked at, or nothing at all: ranks may have all behind them before it is found.
        let unseen = wrong.may_pass_unseen() || tasks[at].may_pass_unseen();
        for (done, end) in &ends {
            match end {
                Ok(()) => assert!(unseen && *done == tasks.len(), "{what}"),
                Err(Error::Poisoned(text)) => assert!(text.contains("make every rank pass the same"), "{what}"),
                Err(_) => panic!("{what}"),
            }
        }
    });
}

const COUNT: usize = 3;

/// Runs one operation on every rank and returns what each was told.
fn outcomes(hosts: &[usize], call: impl Fn(usize) -> Collective) -> Vec<String> {
    let shape = Shape { hosts: hosts.to_vec(), algorithm: Algorithm::Auto, ..Shape::one_host(1) };
    let mut channels = shape.channels();
    let ranks = channels.len();
    let mut data = vec![vec![0_f32; COUNT * ranks]; ranks];
    let mut output = data.clone();
    let mut operation = |rank: usize, at: usize, _: &mut Random| {
        // What follows is right, and waits for everyone.
        let collective = if at == 0 { call(rank) } else { Collective::Barrier };
        let (input, output) = (&mut data[rank], &mut output[rank]);
        let piece = match collective {
            Collective::Allgather => Piece { input: RawSlice::of(&input[..COUNT]), output: RawSlice::of_mut(output) },
            _ => Piece::in_place(RawSlice::of_mut(&mut input[..COUNT])),
        };
        let pieces = Pieces::One([piece]);
        let operation = match collective {
            Collective::Barrier => Operation::new(Collective::Barrier, DType::U8, 0, None),
            _ => Operation { pieces, ..Operation::new(collective, DType::F32, COUNT, None) },
        };
        (at < 3).then_some(operation)
    };
    let (ends, _) = run(&mut channels, &mut Random::new(5), false, &mut operation);
    ends.into_iter().map(|(_, end)| end.expect_err("the ranks differ").to_string()).collect()
}

#[test]
fn every_rank_is_told_what_each_calls() {
    let broadcast = |root| Collective::Broadcast { root };
    // Each side waits for the root on the other.
    for (hosts, first, views) in [
        (&[2, 2][..], 2, ["ranks 0-1: broadcast of 3 f32 from rank 3", "ranks 2-3: broadcast of 3 f32 from rank 0"]),
        (&[1, 1], 1, ["rank 0: broadcast of 3 f32 from rank 1", "rank 1: broadcast of 3 f32 from rank 0"]),
        (&[3, 1], 3, ["ranks 0-2: broadcast of 3 f32 from rank 3", "rank 3: broadcast of 3 f32 from rank 0"]),
        (&[1, 3], 1, ["rank 0: broadcast of 3 f32 from rank 3", "ranks 1-3: broadcast of 3 f32 from rank 0"]),
    ] {
        let last = hosts.iter().sum::<usize>() - 1;
        told(hosts, |rank| broadcast(if rank < first { last } else { 0 }), &views);
    }
    // Nobody sends to anybody who listens: the ring goes from rank to rank, the broadcast from host to host.
    let ring = |rank: usize| if rank < 2 { broadcast(0) } else { Collective::Allgather };
    told(&[2, 2], ring, &["ranks 0-1: broadcast of 3 f32 from rank 0", "ranks 2-3: allgather of 3 f32"]);
    // The members of a host differ, and one of them cannot announce: it waits for a message first.
    let within = |rank: usize| if rank == 0 { broadcast(2) } else { Collective::Allgather };
    told(&[2, 2], within, &["rank 0: broadcast of 3 f32 from rank 2", "ranks 1-3: allgather of 3 f32"]);
}

fn told(hosts: &[usize], call: impl Fn(usize) -> Collective, views: &[&str]) {
    for text in outcomes(hosts, call) {
        assert!(views.iter().all(|view| text.contains(view)), "{hosts:?}: {text}");
    }
}
