//! Failures of real jobs: whatever a rank does to end badly, the job ends soon, with a code that is not zero, and with
//! exactly one message of kolo's, which names the rank, its host and the cause.
#![cfg(feature = "mpi")]

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use xtask::harness::mpirun;
use xtask::mpi;

/// Far above the two seconds that a job may live on after a failure, for machines that are busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which rank goes wrong, of how many, on which hosts.
type Layout = (usize, usize, &'static str);

const LAYOUTS: [Layout; 5] = [(0, 1, ""), (1, 2, ""), (0, 4, ""), (2, 4, "2,2"), (1, 2, "1,1")];

/// Runs test `case` on each layout and returns what each job printed. The job must fail, soon, and leave nothing behind.
#[track_caller]
fn failing(case: &str, layouts: &[Layout]) -> Vec<(Layout, String)> {
    let run = |&(victim, ranks, hosts): &Layout| {
        let finished = mpirun(ranks)
            .hosts(hosts)
            .env("TEST_VICTIM", victim.to_string())
            // Longer than the test waits: no failure may be seen by a deadline that passes.
            .env("KOLO_DEADLINE", "10min")
            .timeout(PATIENCE)
            .try_self(case);
        let what = format!("{case}, rank {victim} of {ranks} on hosts '{hosts}': {}", finished.ending());
        assert!(!finished.timed_out() && !finished.success(), "{what}\n{}", finished.output);
        assert!(finished.left_behind.is_empty(), "{what}: {:?} left\n{}", finished.left_behind, finished.output);
        ((victim, ranks, hosts), finished.output)
    };
    layouts.iter().map(run).collect()
}

/// The one message, which must name the victim, its host and all of `parts`.
#[track_caller]
fn one_message(outcomes: &[(Layout, String)], parts: &[&str]) {
    for ((victim, ranks, hosts), output) in outcomes {
        let told: Vec<&str> = output.lines().filter(|line| line.starts_with("kolo: ")).collect();
        let what = format!("rank {victim} of {ranks} on hosts '{hosts}'");
        assert_eq!(told.len(), 1, "{what}: {output}");
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert!(told[0].starts_with(&format!("kolo: rank {victim} on {host}")), "{what}: {output}");
        for part in parts {
            assert!(told[0].contains(part), "{what} should say '{part}': {output}");
        }
    }
}

fn is_victim(kolo: &kolo::Kolo) -> bool {
    std::env::var("TEST_VICTIM").is_ok_and(|victim| victim == kolo.rank().to_string())
}

/// What healthy ranks do: they work until they hear of the failure.
fn work(kolo: &kolo::Kolo) -> kolo::Result<()> {
    loop {
        kolo.check()?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The program of a rank: in the victim `fate`, in others work. Ends the process.
fn rank(fate: impl FnOnce(&kolo::Kolo) -> kolo::Result<()>) -> ! {
    let code = kolo::run(|kolo| if is_victim(kolo) { fate(kolo) } else { work(kolo) });
    std::process::exit(i32::from(code != ExitCode::SUCCESS))
}

/// A test whose ranks do `$fate`; the message must hold `$parts`.
macro_rules! fails {
    ($name:ident, $layouts:expr, [$($part:expr),*], |$kolo:ident| $fate:expr) => {
        #[test]
        fn $name() {
            if mpi::rank().is_some() {
                rank(|$kolo: &kolo::Kolo| $fate);
            }
            one_message(&failing(stringify!($name), &$layouts), &[$($part),*]);
        }
    };
}

fails!(an_error_of_the_program, LAYOUTS, ["failed: the cheese is out"], |kolo| {
    let _ = kolo;
    Err(kolo::Error::Argument("the cheese is out".into()))
});

fails!(a_panic, LAYOUTS, ["failed: panicked at tests/failures.rs:", ": no cheese for rank"], |kolo| {
    panic!("no cheese for rank {}", kolo.rank())
});

fails!(an_abort, LAYOUTS, ["failed: the loss is not a number"], |kolo| Err(kolo.abort("the loss is not a number")));

fails!(an_abort_that_is_ignored, LAYOUTS, ["failed: the loss is not a number"], |kolo| {
    drop(kolo.abort("the loss is not a number"));
    std::thread::sleep(PATIENCE * 2);
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
    std::thread::sleep(PATIENCE * 2);
    Ok(())
});

fails!(a_kill_on_the_same_host_is_named, [(1, 2, "")], ["was killed by signal 9 (SIGKILL"], |kolo| {
    let _ = kolo;
    kill_process(getpid(), Signal::KILL).expect("it may kill itself");
    std::thread::sleep(PATIENCE * 2);
    Ok(())
});

fails!(an_exit_past_all_handlers, [(1, 2, "")], ["exited with code 0 without leaving the job"], |kolo| {
    let _ = kolo;
    // What follows the exec knows nothing of kolo, and no handler of an exit runs.
    let error = std::process::Command::new("true").exec();
    Err(kolo::Error::Argument(error.to_string().into()))
});

/// Layouts with ranks on the victim's host that wait for it.
const AWAITED: [Layout; 4] = [(1, 2, ""), (0, 3, ""), (3, 4, "2,2"), (1, 4, "")];

/// A program in which the victim goes its way at a point where the others wait for it.
fn rank_that_others_wait_for(fate: impl FnOnce(&kolo::Kolo) -> kolo::Result<()>) -> ! {
    let code = kolo::run(|kolo| {
        let mut all = kolo.communicator()?;
        all.barrier()?;
        if is_victim(kolo) {
            return fate(kolo);
        }
        let error = all.barrier().expect_err("the victim does not come");
        Err(error)
    });
    std::process::exit(i32::from(code != ExitCode::SUCCESS))
}

#[test]
fn a_wait_for_a_rank_that_left_names_it() {
    if mpi::rank().is_some() {
        rank_that_others_wait_for(|_| Ok(()));
    }
    for ((victim, ranks, hosts), output) in failing("a_wait_for_a_rank_that_left_names_it", &AWAITED) {
        let told: Vec<&str> = output.lines().filter(|line| line.starts_with("kolo: ")).collect();
        let what = format!("rank {victim} of {ranks} on hosts '{hosts}': {output}");
        assert_eq!(told.len(), 1, "{what}");
        assert!(told[0].contains(&format!("rank {victim} on ")) && told[0].contains("has left the job"), "{what}");
        assert!(!told[0].starts_with(&format!("kolo: rank {victim} ")), "leaving is legal: {what}");
    }
}

#[test]
fn a_wait_for_a_stopped_rank_names_it_and_ends_at_the_deadline() {
    if mpi::rank().is_some() {
        rank_that_others_wait_for(|_| {
            kill_process(getpid(), Signal::STOP).expect("it may stop itself");
            std::thread::sleep(PATIENCE * 2);
            Ok(())
        });
    }
    let finished = mpirun(2)
        .env("TEST_VICTIM", "1")
        .env("KOLO_STALL_WARNING", "500ms")
        .env("KOLO_DEADLINE", "2s")
        .timeout(PATIENCE)
        .try_self("a_wait_for_a_stopped_rank_names_it_and_ends_at_the_deadline");
    let output = &finished.output;
    assert!(!finished.timed_out() && !finished.success() && finished.left_behind.is_empty(), "{finished:?}");
    let told: Vec<&str> = output.lines().filter(|line| line.starts_with("kolo: ")).collect();
    assert_eq!(told.len(), 2, "a warning, then the failure: {output}");
    assert!(told.iter().all(|line| line.contains("rank 1") && line.contains("is stopped")), "{output}");
    assert!(told[1].starts_with("kolo: rank 0 on ") && told[1].contains(" failed: "), "{output}");
}
