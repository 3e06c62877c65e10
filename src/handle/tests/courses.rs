//! Operations of several steps: scenarios of README.md, by name and by order, with a clock of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::course::{Course, Declined, Desk, Label, Step, What};
use super::super::{Handle, NamedSet, Options};
use super::{queue, scenarios};
use crate::coordinator::{Kind, Params, step_name};
use crate::error::{Error, Result};
use crate::tensor::{Blocks, GiveBack, Lent, Received, ReduceOp};

const ROWS: Label = "its rows";
const LAST: Label = "what came last";
const SPREADS: [&[usize]; 4] = [&[1], &[3], &[2, 1], &[1, 1, 1]];

/// What is done after a step, by the thread that works out what follows: an error ends the course.
type Between = Box<dyn FnMut(usize) -> Result<(), (Option<Declined>, Error)> + Send>;

/// The elements that came of it.
struct Total(Mutex<Option<Vec<f32>>>);

impl GiveBack<Vec<f32>> for Total {
    fn take(&self) -> Option<Vec<f32>> {
        self.0.lock().expect("no panic").take()
    }

    fn cancelled(&self) -> Option<Vec<f32>> {
        None
    }
}

/// Ranks meet, add `rows` rows of three, and rank 0's sum goes to all.
fn course(rows: usize, mut between: Between) -> (Box<Course>, Arc<Total>) {
    let (desk, total) = (Arc::<Desk>::default(), Arc::new(Total(Mutex::new(None))));
    let (at, sum) = (Arc::clone(&desk), Arc::clone(&total));
    let steps = async move {
        let mut after = |step| {
            between(step).map_err(|(declined, error)| {
                declined.into_iter().for_each(|next| at.decline(next));
                error
            })
        };
        let (mine, result) = (Lent::new(vec![7_u8]), Received::<u8>::new());
        let meet = What::Gather { mine: mine.all(), result: Arc::clone(&result) as _ };
        at.take(Step { label: None, what: meet }).await;
        let who: Blocks<u8> = GiveBack::take(&*result).expect("it came");
        after(1)?;
        let all_know = who.counts().iter().all(|count| *count == 1);
        let some = Lent::new(vec![1.0_f32; rows * 3]);
        let combine = What::Combine { data: some.all(), op: ReduceOp::Sum, rows_of: all_know.then_some(3) };
        at.take(Step { label: Some(ROWS), what: combine }).await;
        after(2)?;
        at.take(Step { label: Some(LAST), what: What::Spread { data: some.part(0..3), root: 0, all_know } }).await;
        after(3)?;
        *sum.0.lock().expect("no panic") = Some(some.take());
        Ok(())
    };
    (Course::new(desk, steps), total)
}

fn nothing() -> Between {
    Box::new(|_| Ok(()))
}

fn named(ranks: &scenarios::Ranks, rank: usize, name: &str, rows: usize, between: Between) -> Handle<Vec<f32>> {
    let (course, total) = course(rows, between);
    ranks.sets[rank].begin_course(name, course, total).expect("submitted")
}

fn ordered(ranks: &queue::Ranks, rank: usize, rows: usize, between: Between) -> Handle<Vec<f32>> {
    let (course, total) = course(rows, between);
    ranks.queues[rank].embark("course", course, total).expect("submitted")
}

fn over(handles: &[Handle<Vec<f32>>]) -> bool {
    handles.iter().all(Handle::poll)
}

fn sums(handles: Vec<Handle<Vec<f32>>>, rows: usize) {
    let size = handles.len();
    for handle in handles {
        assert_eq!(handle.wait().expect("a sum"), vec![size as f32; rows * 3]);
    }
}

fn text(handle: Handle<Vec<f32>>) -> String {
    assert!(handle.poll(), "it has ended");
    handle.wait().expect_err("it has failed").to_string()
}

#[test]
fn a_course_goes_on_while_nobody_waits_and_its_steps_are_cached() {
    for hosts in SPREADS {
        let mut ranks = scenarios::Ranks::new(hosts, &Params::default());
        let size = ranks.sets.len();
        let mut published = Vec::new();
        // Another number of rows each time.
        for rows in [1, 40, 2, 700, 3] {
            let handles: Vec<_> = (0..size).map(|rank| named(&ranks, rank, "rows", rows, nothing())).collect();
            ranks.until(|_| over(&handles));
            sums(handles, rows);
            published.push(ranks.sets.iter().map(|set| set.published()).collect::<Vec<_>>());
        }
        assert!(published[0].iter().all(|frames| *frames == 3), "a full request a step: {published:?}");
        assert!(published.iter().all(|frames| *frames == published[0]), "{published:?}");
        ranks.until(|ranks| ranks.sets.iter().all(|set| set.driver.busy() == 0));
    }
    for hosts in SPREADS {
        let mut ranks = queue::Ranks::new(hosts, 11);
        let size = ranks.queues.len();
        // What is submitted behind it waits for all of it.
        let handles: Vec<_> = (0..size).map(|rank| ordered(&ranks, rank, 50, nothing())).collect();
        let behind: Vec<_> = (0..size).map(|rank| ranks.ones(rank, 4)).collect();
        ranks.until(|| {
            assert!(handles.iter().zip(&behind).all(|(first, second)| first.poll() || !second.poll()));
            over(&behind)
        });
        sums(handles, 50);
        for handle in behind {
            assert_eq!(handle.wait().expect("a sum"), vec![size as f32; 4]);
        }
        assert_eq!(ranks.busy(), 0);
    }
}

#[test]
fn many_courses_are_under_way_at_once_and_those_that_are_dropped_go_on() {
    let mut ranks = scenarios::Ranks::new(&[2, 1], &Params::default());
    let name = |at: usize| format!("course {at}");
    let mut kept = Vec::new();
    for at in 0..20 {
        for rank in 0..3 {
            // Each in an order of its own.
            let at = [at, 19 - at, (at * 7) % 20][rank];
            let handle = named(&ranks, rank, &name(at), at + 1, nothing());
            if rank == at % 3 { drop(handle) } else { kept.push((at, handle)) }
        }
    }
    ranks.until(|_| kept.iter().all(|(_, handle)| handle.poll()));
    for (at, handle) in kept {
        assert_eq!(handle.wait().expect("a sum"), vec![3.0; (at + 1) * 3]);
    }
    ranks.until(|ranks| ranks.sets.iter().all(|set| set.driver.busy() == 0));
}

/// The name is taken until the last step has ended, whatever the ranks have agreed on meanwhile.
#[test]
fn no_other_call_may_use_the_name_meanwhile_nor_that_of_a_step() {
    let mut ranks = scenarios::Ranks::new(&[2], &Params::default());
    let tried = Arc::new(AtomicUsize::new(0));
    let handles: Vec<_> = (0..2)
        .map(|rank| {
            let (set, tried) = (Arc::clone(&ranks.sets[rank]), Arc::clone(&tried));
            let again = move |_| {
                let sum = Kind::Allreduce { op: ReduceOp::Sum };
                let other = set.owned("x", sum, vec![1.0_f32], Options::default()).expect_err("taken").to_string();
                let (course, _) = course(1, nothing());
                let same = set.run_course("x", course).expect_err("taken").to_string();
                assert!(other.contains("'x' is already in flight"), "{other}");
                assert_eq!(same, other);
                tried.fetch_add(1, Ordering::SeqCst);
                Ok(())
            };
            named(&ranks, rank, "x", 2, Box::new(again))
        })
        .collect();
    ranks.until(|_| over(&handles));
    sums(handles, 2);
    assert_eq!(tried.load(Ordering::SeqCst), 6);
    // It is free again, for anything.
    let handles: Vec<_> = (0..2).map(|rank| ranks.begin(rank, "x", Options::default())).collect();
    ranks.until(|_| over(&handles));
    let foreign = step_name("x", ROWS);
    let sum = Kind::Allreduce { op: ReduceOp::Sum };
    let error = ranks.sets[0].owned(&foreign, sum, vec![1.0_f32], Options::default()).expect_err("kolo's own");
    assert!(error.to_string().contains(r"'x\u{2063}, its rows' holds the character U+2063"), "{error}");
    assert_eq!(foreign.replace('\u{2063}', ""), "x, its rows");
}

#[test]
fn ranks_that_call_other_things_by_the_name_meet_in_a_mismatch() {
    for hosts in [&[2][..], &[1, 1]] {
        let mut ranks = scenarios::Ranks::new(hosts, &Params::default());
        for round in 0..3 {
            let handles = [named(&ranks, 0, "x", 1, nothing()), ranks.begin(1, "x", Options::default())];
            ranks.until(|_| over(&handles));
            for handle in handles {
                let Err(Error::Mismatch(mismatch)) = handle.wait() else { panic!("round {round}") };
                assert_eq!(mismatch.name, "x");
                assert_eq!(mismatch.views[0].1, "an operation on objects or sparse rows");
                assert!(mismatch.views[1].1.contains("allreduce sum of f32[3]"), "{mismatch}");
            }
        }
        let handles: Vec<_> = (0..2).map(|rank| named(&ranks, rank, "x", 9, nothing())).collect();
        ranks.until(|_| over(&handles));
        sums(handles, 9);
    }
}

#[test]
fn a_cancel_in_the_first_step_is_that_of_any_operation() {
    for hosts in [&[2][..], &[1, 1]] {
        let mut ranks = scenarios::Ranks::new(hosts, &Params::default());
        let other = named(&ranks, 0, "x", 4, nothing());
        let given_up = named(&ranks, 1, "y", 4, nothing());
        (0..50).for_each(|turn| ranks.poll(turn % 2));
        assert_eq!(given_up.cancel(), None);
        let handles = vec![other, named(&ranks, 1, "x", 4, nothing())];
        ranks.until(|_| over(&handles));
        sums(handles, 4);
        // The name that was given up is as good as any.
        let handles: Vec<_> = (0..2).map(|rank| named(&ranks, rank, "y", 2, nothing())).collect();
        ranks.until(|_| over(&handles));
        sums(handles, 2);
    }
}

/// A handle that the course itself gives up between two steps: so no lock is held then, and the thread that works it out finds
/// that there is no such course any more.
#[test]
fn a_cancel_between_two_steps_or_in_a_later_one_ends_the_set_on_every_rank() {
    for hosts in [&[3][..], &[2, 1]] {
        for (victim, step) in (0..3).flat_map(|victim| [(victim, 1), (victim, 2), (victim, 3)]) {
            let mut ranks = scenarios::Ranks::new(hosts, &Params::default());
            let own = Arc::new(Mutex::new(None::<Handle<Vec<f32>>>));
            let mut handles = Vec::new();
            for rank in 0..3 {
                let to_cancel = Arc::clone(&own);
                let between = move |at: usize| {
                    if rank == victim && at == step {
                        let handle = to_cancel.lock().expect("no panic").take().expect("its own");
                        assert_eq!(handle.cancel(), None);
                    }
                    Ok(())
                };
                let handle = named(&ranks, rank, "x", 2, Box::new(between));
                if rank == victim { *own.lock().expect("no panic") = Some(handle) } else { handles.push(handle) }
            }
            // After the last step the others may have ended well.
            ranks.until(|_| over(&handles));
            for handle in handles {
                match handle.wait() {
                    Ok(_) => assert_eq!(step, 3),
                    Err(error) => {
                        let error = error.to_string();
                        assert!(error.contains(&format!("rank {victim}")), "{hosts:?}, {victim}, {step}: {error}");
                    }
                }
            }
            ranks.sleep(Duration::from_secs(2));
            ranks.until(|ranks| ranks.sets.iter().all(|set| set.driver.busy() == 0));
        }
    }
}

#[test]
fn a_cancel_of_a_later_step_in_flight_ends_the_set() {
    let mut ranks = scenarios::Ranks::new(&[2], &Params::default());
    let met = Arc::new(AtomicUsize::new(0));
    let counts = |met: &Arc<AtomicUsize>| -> Between {
        let met = Arc::clone(met);
        Box::new(move |_| {
            met.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    };
    let first = named(&ranks, 0, "x", 1, counts(&met));
    let second = named(&ranks, 1, "x", 1, nothing());
    while met.load(Ordering::SeqCst) == 0 {
        ranks.poll(0);
        ranks.poll(1);
    }
    // Rank 0 waits in its second step, to which rank 1 may not have come.
    assert_eq!(first.cancel(), None);
    ranks.until(|_| second.poll());
    assert!(text(second).contains("rank 0"));
    let (course, _) = course(1, nothing());
    assert!(matches!(ranks.sets[0].run_course("y", course), Err(Error::Poisoned(_))));
}

#[test]
fn a_rank_that_fails_between_steps_tells_the_others_and_all_go_on() {
    for hosts in [&[3][..], &[2, 1]] {
        let mut ranks = scenarios::Ranks::new(hosts, &Params::default());
        let mut in_order = queue::Ranks::new(&[3], 5);
        for round in 0..4 {
            let (odd, step) = (round % 3, 1 + round % 2);
            let label = [ROWS, LAST][step - 1];
            let between = |rank: usize| -> Between {
                Box::new(move |at| {
                    let error = Error::argument("no room here");
                    if rank == odd && at == step { Err((Some(Declined::Step(label)), error)) } else { Ok(()) }
                })
            };
            let by_name: Vec<_> = (0..3).map(|rank| named(&ranks, rank, "x", 2, between(rank))).collect();
            let by_order: Vec<_> = (0..3).map(|rank| ordered(&in_order, rank, 2, between(rank))).collect();
            ranks.until(|_| over(&by_name));
            in_order.until(|| over(&by_order));
            for (rank, handle) in (0..3).cycle().zip(by_name.into_iter().chain(by_order)) {
                match handle.wait() {
                    Err(Error::Argument(text)) => assert_eq!((rank, &*text), (odd, "no room here")),
                    Err(Error::Mismatch(mismatch)) => {
                        assert!(rank != odd, "{mismatch}");
                        let views: Vec<_> = mismatch.views.iter().map(|(_, view)| view.contains("refused")).collect();
                        assert!(views[odd], "{mismatch}");
                        assert!(mismatch.name == "x" || mismatch.name.contains("communicator"), "{mismatch}");
                    }
                    other => panic!("{other:?}"),
                }
            }
            // All is well again.
            let by_name: Vec<_> = (0..3).map(|rank| named(&ranks, rank, "x", 5, nothing())).collect();
            let by_order: Vec<_> = (0..3).map(|rank| ordered(&in_order, rank, 5, nothing())).collect();
            ranks.until(|_| over(&by_name));
            in_order.until(|| over(&by_order));
            sums(by_name, 5);
            sums(by_order, 5);
        }
    }
}

#[test]
fn a_rank_that_cannot_tell_which_step_comes_next_ends_the_set() {
    let mut ranks = scenarios::Ranks::new(&[2], &Params::default());
    let fails: Between = Box::new(|_| Err((Some(Declined::Unknown), Error::argument("all is noise"))));
    let handles = vec![named(&ranks, 0, "x", 2, fails), named(&ranks, 1, "x", 2, nothing())];
    ranks.until(|_| over(&handles));
    let [first, second]: [_; 2] = handles.try_into().expect("two");
    assert_eq!(text(first), "all is noise");
    assert!(text(second).contains("rank 0"));
}

#[test]
fn a_panic_between_two_steps_ends_the_set_or_the_communicator() {
    let panics = || -> Between { Box::new(|_| panic!("on purpose, between two steps")) };
    let mut ranks = scenarios::Ranks::new(&[2], &Params::default());
    let handles = vec![named(&ranks, 0, "x", 2, panics()), named(&ranks, 1, "x", 2, nothing())];
    let mut caught = 0;
    while !over(&handles) {
        for rank in 0..2 {
            caught += usize::from(catch_unwind(AssertUnwindSafe(|| ranks.poll(rank))).is_err());
        }
    }
    let [first, second]: [_; 2] = handles.try_into().expect("two");
    assert!(text(first).contains("kolo panicked between two steps"));
    assert!(text(second).contains("rank 0"));
    assert_eq!(caught, 1);

    let mut ranks = queue::Ranks::new(&[2], 3);
    let handles = vec![ordered(&ranks, 0, 2, panics()), ordered(&ranks, 1, 2, nothing())];
    while !over(&handles) {
        for rank in 0..2 {
            caught += usize::from(catch_unwind(AssertUnwindSafe(|| ranks.poll(rank))).is_err());
        }
    }
    let [first, second]: [_; 2] = handles.try_into().expect("two");
    assert!(text(first).contains("kolo panicked between two steps"));
    assert!(text(second).contains("rank 0"));
    assert_eq!(caught, 2);
}

#[test]
fn a_communicator_ends_with_a_course_that_is_given_up_wherever_it_is() {
    for step in 1..=3 {
        let mut ranks = queue::Ranks::new(&[2], step as u64);
        let own = Arc::new(Mutex::new(None::<Handle<Vec<f32>>>));
        let to_cancel = Arc::clone(&own);
        let between = move |at: usize| {
            if at == step {
                assert_eq!(to_cancel.lock().expect("no panic").take().expect("its own").cancel(), None);
            }
            Ok(())
        };
        *own.lock().expect("no panic") = Some(ordered(&ranks, 0, 2, Box::new(between)));
        let behind = ranks.ones(0, 1);
        let other = ordered(&ranks, 1, 2, nothing());
        ranks.until(|| behind.poll() && other.poll());
        assert!(text(behind).contains("was given up"));
        match other.wait() {
            Ok(_) => assert_eq!(step, 3),
            Err(error) => assert!(error.to_string().contains("rank 0"), "{error}"),
        }
    }
}

/// Nobody goes on with what is due: the end of the set does not wait for it.
#[test]
fn the_end_of_a_set_ends_what_is_between_two_steps() {
    let mut ranks = scenarios::Ranks::new(&[2], &Params::default());
    let at_end = Arc::new(Mutex::new(None::<Arc<NamedSet>>));
    let to_shut = Arc::clone(&at_end);
    let between = move |_| {
        if let Some(set) = to_shut.lock().expect("no panic").take() {
            set.shut(&Error::Poisoned("the rank leaves".into()));
        }
        Ok(())
    };
    *at_end.lock().expect("no panic") = Some(Arc::clone(&ranks.sets[0]));
    let handle = named(&ranks, 0, "x", 2, Box::new(between));
    let other = named(&ranks, 1, "x", 2, nothing());
    ranks.until(|_| handle.poll());
    assert_eq!(text(handle), "the rank leaves");
    // The other one hears of it, or finds in time that nobody comes.
    drop(other);
}

#[test]
fn a_join_takes_effect_once_the_courses_before_it_have_ended() {
    for hosts in [&[3][..], &[1, 2]] {
        let mut ranks = scenarios::Ranks::new(hosts, &Params::default());
        let joins = Arc::new(Mutex::new(Vec::new()));
        let mut handles = Vec::new();
        for rank in 0..3 {
            let (set, joins) = (Arc::clone(&ranks.sets[rank]), Arc::clone(&joins));
            let between = move |at: usize| {
                if rank == 1 && at == 1 {
                    let join = set.join_async(None).expect("begun");
                    let refused = set.owned("y", Kind::Allreduce { op: ReduceOp::Sum }, vec![1_u8], Options::default());
                    assert!(refused.expect_err("joined").to_string().contains("this rank has joined"));
                    joins.lock().expect("no panic").push(join);
                }
                Ok(())
            };
            handles.push(named(&ranks, rank, "x", 6, Box::new(between)));
        }
        ranks.until(|_| over(&handles));
        sums(handles, 6);
        // Without rank 1, which does not know how many rows there are: with full requests.
        let others: Vec<_> = [0, 2].map(|rank| named(&ranks, rank, "x", 8, nothing())).into();
        ranks.until(|_| over(&others));
        sums(others, 8);
        joins.lock().expect("no panic").extend([0, 2].map(|rank| ranks.sets[rank].join_async(None).expect("begun")));
        ranks.until(|_| joins.lock().expect("no panic").iter().all(Handle::poll));
        let handles: Vec<_> = (0..3).map(|rank| named(&ranks, rank, "x", 3, nothing())).collect();
        ranks.until(|_| over(&handles));
        sums(handles, 3);
    }
}

#[test]
fn a_join_that_waits_for_a_course_can_be_taken_back() {
    let mut ranks = scenarios::Ranks::new(&[2], &Params::default());
    let handles = vec![named(&ranks, 0, "x", 6, nothing())];
    let join = ranks.sets[0].join_async(None).expect("begun");
    assert_eq!(join.cancel(), None);
    let handles: Vec<_> = handles.into_iter().chain([named(&ranks, 1, "x", 6, nothing())]).collect();
    ranks.until(|_| over(&handles));
    sums(handles, 6);
    let handles: Vec<_> = (0..2).map(|rank| named(&ranks, rank, "x", 3, nothing())).collect();
    ranks.until(|_| over(&handles));
    sums(handles, 3);
}

#[test]
fn a_deadline_passes_in_a_later_step_as_well() {
    let params = Params { stall_deadline: Duration::from_secs(2), ..Params::default() };
    let mut ranks = scenarios::Ranks::new(&[2], &params);
    let waits = named(&ranks, 0, "x", 2, nothing());
    // Rank 1 meets, and goes no further.
    let stops: Between = Box::new(|_| Err((None, Error::argument("it goes no further"))));
    let stopped = named(&ranks, 1, "x", 2, stops);
    ranks.until(|_| stopped.poll());
    while !waits.poll() {
        ranks.sleep(Duration::from_millis(50));
        (0..2).for_each(|rank| ranks.poll(rank));
    }
    let error = text(waits);
    assert!(error.contains("tensor 'x\u{2063}, its rows'") && error.contains("rank 1 did not submit it"), "{error}");
}
