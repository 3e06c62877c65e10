//! The failures of real jobs that every change must get right; `faults.rs` has the rest.
//!
//! Whatever a rank does to end badly, the job ends soon, with a code that is not zero, and with exactly one message of
//! kolo's, which names the rank, its host and the cause.
#![cfg(feature = "mpi")]

#[path = "common/failing.rs"]
#[macro_use]
mod failing;

use failing::Layout;
use rustix::process::{Signal, getpid, kill_process};

const LAYOUTS: [Layout; 2] = [(1, 2, ""), (2, 4, "2,2")];

fails!(an_error_of_the_program, LAYOUTS, ["failed: the cheese is out"], |kolo| {
    let _ = kolo;
    Err(kolo::Error::Argument("the cheese is out".into()))
});

fails!(a_panic, LAYOUTS, ["failed: panicked at tests/failures.rs:", ": no cheese for rank"], |kolo| {
    panic!("no cheese for rank {}", kolo.rank())
});

fails!(an_exit_that_looks_like_success, LAYOUTS, ["its process exited with code 0 while"], |kolo| {
    let _ = kolo;
    std::process::exit(0)
});

fails!(a_kill, LAYOUTS, ["was killed by signal 9 (SIGKILL"], |kolo| {
    let _ = kolo;
    kill_process(getpid(), Signal::KILL).expect("it may kill itself");
    std::thread::sleep(failing::PATIENCE * 2);
    Ok(())
});
