//! Everything that a rank can do to end badly, on many layouts. Slow; `failures.rs` is the short form.
#![cfg(feature = "mpi")]

#[path = "common/failing.rs"]
#[macro_use]
mod failing;

use std::os::unix::process::CommandExt as _;

use failing::Layout;
use rustix::process::{Signal, getpid, kill_process};
use xtask::mpi;

const LAYOUTS: [Layout; 5] = [(0, 1, ""), (1, 2, ""), (0, 4, ""), (2, 4, "2,2"), (1, 2, "1,1")];

fails!(an_error_of_the_program, LAYOUTS, ["failed: the cheese is out"], |kolo| {
    let _ = kolo;
    Err(kolo::Error::Argument("the cheese is out".into()))
});

fails!(a_panic, LAYOUTS, ["failed: panicked at tests/faults.rs:", ": no cheese for rank"], |kolo| {
    panic!("no cheese for rank {}", kolo.rank())
});

fails!(an_abort, LAYOUTS, ["failed: the loss is not a number"], |kolo| Err(kolo.abort("the loss is not a number")));

fails!(an_abort_that_is_ignored, LAYOUTS, ["failed: the loss is not a number"], |kolo| {
    drop(kolo.abort("the loss is not a number"));
    std::thread::sleep(failing::PATIENCE * 2);
    Ok(())
});

fails!(an_exit_with_a_code, LAYOUTS, ["its process exited with code 3 while"], |kolo| {
    let _ = kolo;
    std::process::exit(3)
});

fails!(an_exit_that_looks_like_success, LAYOUTS, ["its process exited with code 0 while"], |kolo| {
    let _ = kolo;
    std::process::exit(0)
});

fails!(a_leaked_handle, LAYOUTS, ["its process exited with code 0 while", "never dropped"], |kolo| {
    std::mem::forget(kolo.clone());
    std::process::exit(0)
});

/// Layouts in which somebody is left to tell.
const SURVIVED: [Layout; 5] = [(1, 2, ""), (0, 4, ""), (2, 4, "2,2"), (3, 4, "2,2"), (1, 2, "1,1")];

fails!(a_kill, SURVIVED, ["its process (pid "], |kolo| {
    let _ = kolo;
    kill_process(getpid(), Signal::KILL).expect("it may kill itself");
    std::thread::sleep(failing::PATIENCE * 2);
    Ok(())
});

fails!(a_kill_on_the_same_host_is_named, [(1, 2, "")], ["was killed by signal 9 (SIGKILL"], |kolo| {
    let _ = kolo;
    kill_process(getpid(), Signal::KILL).expect("it may kill itself");
    std::thread::sleep(failing::PATIENCE * 2);
    Ok(())
});

fails!(an_exit_past_all_handlers, [(1, 2, "")], ["exited with code 0 without leaving the job"], |kolo| {
    let _ = kolo;
    // What follows the exec knows nothing of kolo, and no handler of an exit runs.
    let error = std::process::Command::new("true").exec();
    Err(kolo::Error::Argument(error.to_string().into()))
});

/// Layouts with ranks on the victim's host that wait for it.
const AWAITED: [Layout; 6] = [(1, 2, ""), (0, 3, ""), (3, 4, "2,2"), (0, 4, "2,2"), (1, 4, "1,1,2"), (1, 4, "")];

#[test]
fn a_wait_for_a_rank_that_left_names_it() {
    if mpi::rank().is_some() {
        failing::rank_that_others_wait_for(|_| Ok(()));
    }
    failing::named_by_others(&failing::failing("a_wait_for_a_rank_that_left_names_it", &AWAITED));
}

#[test]
fn a_wait_for_a_stopped_rank_names_it_and_ends_at_the_deadline() {
    if mpi::rank().is_some() {
        failing::rank_that_others_wait_for(|_| failing::stop());
    }
    let output = failing::stopped("a_wait_for_a_stopped_rank_names_it_and_ends_at_the_deadline");
    let told = failing::told(&output);
    assert_eq!(told.len(), 2, "a warning, then the failure: {output}");
    assert!(told.iter().all(|line| line.contains("rank 1") && line.contains("is stopped")), "{output}");
    assert!(told[1].starts_with("kolo: rank 0 on ") && told[1].contains(" failed: "), "{output}");
}
