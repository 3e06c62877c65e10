//! A forked child is not the rank: whatever it does with its copy of a `Kolo`, the job goes on.
#![cfg(feature = "mpi")]
#![allow(unsafe_code, reason = "fork is a foreign function")]

#[macro_use]
mod common;

use std::process::ExitCode;

mpi_test!(a_forked_child_that_drops_its_kolo_harms_nobody, np = [1, 2], hosts = ["1,1"], seconds = 20, || {
    let kolo = kolo::init().expect("a job");
    let mut all = kolo.communicator().expect("a communicator");
    all.barrier().expect("a barrier");
    // SAFETY: the child calls nothing that waits for another thread: it drops, which does nothing there, and exits.
    match unsafe { libc::fork() } {
        -1 => panic!("no child: {}", std::io::Error::last_os_error()),
        0 => {
            let error = kolo.abort("a child has no say").to_string();
            drop(all);
            drop(kolo);
            std::process::exit(i32::from(!error.contains("a child has no say")))
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for a child of this process, and writes the status.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child exits without a word");
        }
    }
    all.barrier().expect("the job goes on");
    kolo.check().expect("nobody failed");
    drop(all);
    drop(kolo);
    ExitCode::SUCCESS
});
