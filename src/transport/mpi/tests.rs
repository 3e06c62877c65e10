//! Jobs under a real launcher: streams, mix-ups, and every way in which a process can end.

use std::sync::Arc;
use std::time::Duration;

use super::testing::{
    self, DEADLINE, Ending, under_bare_mpirun, under_bare_mpirun_saying, under_mpirun, under_mpirun_ending,
    under_mpirun_failing,
};
use super::world::Pace;
use super::{MpiChannel, MpiJob, MpiWorld, leftover};
use crate::error::{Error, Result};
use crate::transport::Link;

const PIECE: usize = 100_000;

fn job(world: &Arc<MpiWorld>, id: u128) -> Arc<MpiJob> {
    MpiJob::join(world, id, 7, DEADLINE).expect("the ranks agree")
}

fn all(world: &MpiWorld) -> Vec<u32> {
    (0..world.size() as u32).collect()
}

fn channel(job: &Arc<MpiJob>, set: u32) -> MpiChannel {
    MpiChannel::new(job, set, 1, all(job.world()), PIECE).expect("a good channel")
}

/// The n-th piece of a stream: its length jumps between nothing, eager and rendezvous sizes.
fn piece(from: usize, to: usize, number: usize, salt: usize) -> Vec<u8> {
    let mixed = (from * 7919 + to * 104_729 + number * 1_299_709 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let length = match mixed % 5 {
        0 => 0,
        1 => mixed % 64,
        2 => mixed % 5000,
        3 => mixed % PIECE,
        _ => PIECE,
    };
    (0..length).map(|i| (i * 31 + mixed) as u8).collect()
}

/// Streams `count` pieces between all pairs at once, in both directions, and checks each byte.
fn stream(link: &mut MpiChannel, me: usize, size: usize, count: usize, salt: usize) -> Result<()> {
    let (mut sent, mut received) = (vec![0; size], vec![0; size]);
    let mut pace = Pace::new();
    let peers: Vec<usize> = (0..size).filter(|&peer| peer != me).collect();
    while !link.idle() || peers.iter().any(|&peer| sent[peer] < count || received[peer] < count) {
        let mut moved = false;
        for &peer in &peers {
            if sent[peer] < count && link.try_send(peer, &piece(me, peer, sent[peer], salt))? {
                sent[peer] += 1;
                moved = true;
            }
            let expected = piece(peer, me, received[peer], salt);
            let mut check = |bytes: &[u8]| assert!(bytes == expected, "piece {} of {peer}", received[peer]);
            if received[peer] < count && link.try_recv(peer, &mut check)? {
                received[peer] += 1;
                moved = true;
            }
        }
        link.progress()?;
        if !moved {
            pace.wait();
        }
    }
    Ok(())
}

#[test]
fn streams_between_all_pairs_arrive_whole_and_in_order() {
    under_mpirun(&[2, 3, 4], |world| {
        let mut link = channel(&job(world, 1), 0);
        stream(&mut link, world.rank(), world.size(), 100, 0).expect("streaming");
    });
}

#[test]
fn sets_and_jobs_at_once_do_not_mix() {
    under_mpirun(&[3], |world| {
        let (first, second) = (job(world, 1), job(world, 2));
        let mut links = [channel(&first, 0), channel(&first, 1), channel(&second, 0), channel(&second, 1)];
        // Each thread drives one stream, so MPI sees all four threads, one at a time.
        std::thread::scope(|scope| {
            for (salt, link) in links.iter_mut().enumerate() {
                let world = Arc::clone(world);
                scope.spawn(move || stream(link, world.rank(), world.size(), 30, salt).expect("streaming"));
            }
        });
    });
}

#[test]
fn a_set_of_some_ranks_in_another_order_works() {
    under_mpirun(&[3], |world| {
        let job = job(world, 1);
        let member = [None, Some(1), Some(0)][world.rank()];
        let made = MpiChannel::new(&job, 5, 0, vec![2, 1], PIECE);
        match member {
            Some(me) => stream(&mut made.expect("a member"), me, 2, 20, 0).expect("streaming"),
            None => assert!(matches!(made, Err(Error::Argument(_)))),
        }
        for ranks in [vec![0, 0], vec![0, 1, 2, 3], vec![]] {
            assert!(matches!(MpiChannel::new(&job, 5, 0, ranks, PIECE), Err(Error::Argument(_))));
        }
    });
}

#[test]
fn jobs_come_and_go_and_leave_nothing_behind() {
    under_mpirun(&[2], |world| {
        for id in 0..20 {
            let mut link = channel(&job(world, id), 0);
            // A small message that the peer never asks for, and receives that no message ever matches.
            assert!(link.try_send(1 - world.rank(), &[id as u8]).expect("send"));
            if id % 2 == 0 {
                let mut got = false;
                let mut pace = Pace::new();
                while !got {
                    got = link.try_recv(1 - world.rank(), &mut |bytes| assert_eq!(bytes, [id as u8])).expect("receive");
                    pace.wait();
                }
            }
            drop(link);
            assert_eq!(leftover::parked(), 0, "job {id}");
        }
        assert!(Arc::ptr_eq(world, &MpiWorld::start(None, DEADLINE).expect("the same world")));
    });
}

#[test]
fn ranks_that_join_different_jobs_are_told() {
    under_mpirun(&[2], |world| {
        let error = MpiJob::join(world, world.rank() as u128, 0, DEADLINE).expect_err("different jobs");
        assert!(error.to_string().contains("joins another job"), "{error}");
    });
}

/// Asks for pieces until there is an error.
fn first_error(link: &mut MpiChannel, from: usize) -> Error {
    let mut pace = Pace::new();
    loop {
        match link.try_recv(from, &mut |_| panic!("a wrong piece was handed over")) {
            Ok(_) => pace.wait(),
            Err(error) => return error,
        }
    }
}

#[test]
fn a_piece_of_another_epoch_is_an_error_that_names_sender_and_values() {
    under_mpirun(&[2], |world| {
        if world.rank() == 0 {
            let stale = MpiJob::join(world, 1, 7, DEADLINE).expect("join");
            let mut link = channel(&stale, 0);
            link.pretend_epoch(6);
            assert!(link.try_send(1, b"from the past").expect("send"));
            testing::wait_for(1);
        } else {
            let mut link = channel(&job(world, 1), 0);
            let error = first_error(&mut link, 0);
            assert!(error.to_string().contains("rank 0"), "{error}");
            assert!(error.to_string().contains("epoch 6, expected 7"), "{error}");
            let again = link.try_send(0, b"").expect_err("final");
            assert_eq!(again.to_string(), error.to_string());
        }
    });
}

#[test]
fn a_piece_larger_than_agreed_is_an_error_in_words_of_mpi() {
    let judge = |text: &str| {
        assert_eq!(text.matches("but MPI cannot be finalised").count(), 1, "{text}");
        assert!(text.contains("kolo: rank 1 on "), "{text}");
    };
    under_mpirun_failing(&[2], judge, |world| {
        let job = job(world, 1);
        if world.rank() == 0 {
            let mut link = MpiChannel::new(&job, 0, 0, all(world), 2000).expect("a good channel");
            assert!(link.try_send(1, &[1; 2000]).expect("send"));
            testing::wait_for(1);
        } else {
            let mut link = MpiChannel::new(&job, 0, 0, all(world), 1000).expect("a good channel");
            let error = first_error(&mut link, 0);
            assert!(matches!(error, Error::Mpi { .. }), "{error:?}");
            assert!(error.to_string().to_lowercase().contains("truncat"), "{error}");
        }
    });
}

/// Sends large pieces until the channel takes no more.
fn fill(link: &mut MpiChannel, to: usize, payload: &[u8]) {
    let mut sent = 0;
    while link.try_send(to, payload).expect("send") {
        sent += 1;
        assert!(sent < 1000, "sends to a deaf peer go on for ever");
    }
    assert!(!link.idle());
}

#[test]
fn sends_that_nobody_receives_are_bounded_and_taken_at_the_exit() {
    under_mpirun(&[2], |world| {
        let mut link = MpiChannel::new(&job(world, 1), 0, 0, all(world), 1 << 20).expect("a good channel");
        if world.rank() == 0 {
            fill(&mut link, 1, &vec![1; 1 << 20]);
            drop(link);
            assert!(leftover::parked() > 0 && !super::exit::failed());
            testing::done();
        }
        testing::wait_for(0);
    });
}

#[test]
fn streams_that_end_in_the_middle_on_both_sides_end_in_order() {
    under_mpirun(&[2, 3], |world| {
        let mut worlds = vec![job(world, 1)];
        // Another communicator, with the ranks in another order.
        let reversed = {
            use mpi::topology::{AsCommunicator, Communicator, SimpleCommunicator};
            let whole = SimpleCommunicator::world();
            let color = mpi::topology::Color::with_value(0);
            let part = whole.split_by_color_with_key(color, -(world.rank() as i32)).expect("a member");
            let raw = mpi::raw::AsRaw::as_raw(&part.as_communicator());
            let reversed = MpiWorld::start(Some(raw), DEADLINE).expect("adopted");
            assert_eq!(reversed.rank(), world.size() - 1 - world.rank());
            reversed
        };
        worlds.push(job(&reversed, 2));
        for job in &worlds {
            for set in 0..2 {
                let me = job.world().rank();
                let mut link = channel(job, set);
                for peer in (0..world.size()).filter(|&rank| rank != me) {
                    // More small ones than receives are posted: they are with the receiver before any large one.
                    for number in 0..10 {
                        assert!(link.try_send(peer, &[number]).expect("send"));
                    }
                    fill(&mut link, peer, &vec![7; PIECE]);
                }
                // Some have receives posted that match what comes, some have none.
                if (me + set as usize).is_multiple_of(2) {
                    let from = (me + 1) % world.size();
                    let mut pace = Pace::new();
                    while !link.try_recv(from, &mut |bytes| assert_eq!(bytes, [0])).expect("receive") {
                        pace.wait();
                    }
                }
            }
        }
        assert!(leftover::parked() > 0 && !super::exit::failed());
        // A channel that begins afterwards is not disturbed.
        let mut link = channel(&worlds[0], 9);
        stream(&mut link, world.rank(), world.size(), 10, 0).expect("streaming");
    });
}

#[test]
fn a_rank_whose_messages_cannot_end_says_so_once() {
    let judge = |text: &str| {
        assert_eq!(text.matches("but MPI cannot be finalised").count(), 1, "{text}");
        assert!(text.contains("kolo: rank 1 on ") && text.contains("1 messages of a set"), "{text}");
    };
    under_mpirun_failing(&[3], judge, |world| {
        if world.rank() == 1 {
            leftover::park_for_ever(world);
        }
    });
}

#[test]
fn an_orderly_exit_from_any_thread_finalises() {
    under_mpirun(&[2], |world| {
        let guard = world.live_guard(|_| panic!("it is dropped before the exit"));
        drop(guard);
        testing::done();
        std::thread::scope(|scope| {
            scope.spawn(|| std::process::exit(0));
        });
    });
}

#[test]
fn an_exit_with_a_live_kolo_calls_back_and_fails_the_job() {
    under_mpirun_ending(Ending::Failure, &[3], |world| {
        if world.rank() == 1 {
            // The mark is what the test checks, so it proves that the callback ran.
            std::mem::forget(world.live_guard(|_| testing::done()));
            std::process::exit(0);
        }
        testing::wait_for(1);
        testing::done();
        // Ends only because the launcher ends the job.
        drop(world.allgather(b"", DEADLINE));
        panic!("the launcher let a job go on that had lost a rank");
    });
}

#[test]
fn abort_ends_every_rank() {
    under_mpirun_ending(Ending::Failure, &[3], |world| {
        testing::done();
        if world.rank() == 2 {
            (0..3).for_each(testing::wait_for);
            world.abort(3);
        }
        drop(world.allgather(b"", DEADLINE));
        panic!("the job was not aborted");
    });
}

#[test]
fn a_forked_child_leaves_mpi_alone() {
    under_mpirun(&[2], |world| {
        let job = job(world, 1);
        let (mut link, mut waiting) = (channel(&job, 0), channel(&job, 1));
        assert!(!waiting.try_recv(1 - world.rank(), &mut |_| ()).expect("receive"), "nobody sends here");
        let guard = world.live_guard(|_| panic!("called in the parent or in the child"));
        // SAFETY: the child only drops and exits, which is what this test is about.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop((link, waiting, guard));
            std::process::exit(33);
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 33));
        stream(&mut link, world.rank(), 2, 5, 0).expect("the parent goes on");
        drop(guard);
    });
}

#[test]
fn a_rank_that_never_starts_is_a_timeout_for_the_others() {
    under_bare_mpirun(Ending::Failure, &[2], || {
        if crate::transport::launcher::launched().and_then(|launcher| launcher.rank) == Some(1) {
            return testing::wait_for(0);
        }
        let error = MpiWorld::start(None, Duration::from_millis(500)).expect_err("rank 1 stays away");
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        assert!(error.to_string().contains("kolo::init"), "{error}");
    });
}

#[test]
fn an_mpi_of_the_application_is_adopted_and_left_to_it() {
    under_bare_mpirun(Ending::Success, &[2], || {
        use mpi::topology::{AsCommunicator, Communicator};
        let asked = mpi::Threading::Serialized;
        let (universe, granted) = mpi::initialize_with_threading(asked).expect("MPI starts once");
        assert!(granted >= asked);
        let whole = MpiWorld::start(None, DEADLINE).expect("adopted");
        // Another order of ranks shows that the given communicator is used.
        let reversed =
            universe.world().split_by_color_with_key(mpi::topology::Color::with_value(0), -universe.world().rank());
        let reversed = reversed.expect("a member");
        let raw = mpi::raw::AsRaw::as_raw(&reversed.as_communicator());
        let part = MpiWorld::start(Some(raw), DEADLINE).expect("adopted");
        assert_eq!((whole.rank(), part.rank()), (universe.world().rank() as usize, 1 - whole.rank()));
        for world in [&whole, &part] {
            stream(&mut channel(&job(world, 1), 0), world.rank(), 2, 10, 0).expect("streaming");
        }
        drop(reversed);
        // Finalises: had kolo done so at exit, or before, this job would fail.
        drop(universe);
    });
}

#[test]
fn an_mpi_of_the_application_is_told_what_was_left() {
    let judge = |text: &str| {
        assert_eq!(text.matches("MPI_Finalize may wait for them").count(), 1, "{text}");
        assert!(text.contains("kolo: rank 0 on "), "{text}");
    };
    under_bare_mpirun_saying(&[2], judge, || {
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Serialized).expect("MPI starts once");
        let world = MpiWorld::start(None, DEADLINE).expect("adopted");
        let guard = world.live_guard(|_| panic!("it is dropped before the exit"));
        let mut link = channel(&job(&world, 1), 0);
        if world.rank() == 0 {
            fill(&mut link, 1, &vec![1; PIECE]);
        } else {
            testing::wait_for(0);
        }
        drop(link);
        drop(guard);
        testing::done();
        // What MPI_Finalize would do is not kolo's: only that the process can end.
        std::mem::forget(universe);
        (0..2).for_each(testing::wait_for);
    });
}

#[test]
fn an_mpi_of_the_application_below_serialized_is_refused() {
    under_bare_mpirun(Ending::Success, &[1], || {
        let (_universe, granted) = mpi::initialize_with_threading(mpi::Threading::Single).expect("MPI starts once");
        if granted < mpi::Threading::Serialized {
            let error = MpiWorld::start(None, DEADLINE).expect_err("too low");
            assert!(matches!(error, Error::Config(_)), "{error:?}");
            assert!(error.to_string().contains("request MPI_THREAD_SERIALIZED"), "{error}");
        }
    });
}

#[test]
fn an_mpi_that_is_over_is_refused() {
    under_bare_mpirun(Ending::Success, &[1], || {
        drop(mpi::initialize().expect("MPI starts once"));
        let error = MpiWorld::start(None, DEADLINE).expect_err("too late");
        assert!(error.to_string().contains("already finalised"), "{error}");
    });
}
