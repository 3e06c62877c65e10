//! Joining a job and leaving it: alone, and as threads of one process.

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};

use kolo::{Builder, Error, Kolo};

fn seat(kolo: &Kolo) -> [usize; 6] {
    [kolo.rank(), kolo.size(), kolo.local_rank(), kolo.local_size(), kolo.cross_rank(), kolo.cross_size()]
}

/// Works until the job fails; the error says how.
fn work(kolo: &Kolo) -> Error {
    loop {
        if let Err(error) = kolo.check() {
            return error;
        }
        std::thread::yield_now();
    }
}

#[test]
fn alone_without_a_launcher() {
    let kolo = kolo::init().expect("a job of one rank");
    assert_eq!(seat(&kolo), [0, 1, 0, 1, 0, 1]);
    assert!(kolo.is_homogeneous() && !kolo.host().is_empty());
    let second = kolo::init().expect("several live in one process");
    drop(kolo);
    assert!(second.check().is_ok());
}

#[test]
fn sixteen_ranks_in_one_process() {
    let met = AtomicUsize::new(0);
    let seats = kolo::threads(16, |kolo| {
        met.fetch_add(1, Ordering::Relaxed);
        while met.load(Ordering::Relaxed) < 16 {
            std::thread::yield_now();
        }
        seat(kolo)
    });
    let expected: Vec<_> = (0..16).map(|rank| [rank, 16, rank, 16, 0, 1]).collect();
    assert_eq!(seats.expect("nobody failed"), expected);
}

#[test]
fn pretended_hosts_of_threads() {
    let seats = Builder::new().hosts([1, 3, 2]).threads(6, |kolo| (seat(kolo), kolo.is_homogeneous()));
    let expected = [
        [0, 6, 0, 1, 0, 3],
        [1, 6, 0, 3, 1, 3],
        [2, 6, 1, 3, 0, 2],
        [3, 6, 2, 3, 0, 1],
        [4, 6, 0, 2, 2, 3],
        [5, 6, 1, 2, 1, 2],
    ];
    assert_eq!(seats.expect("nobody failed"), expected.map(|seat| (seat, false)));
}

#[test]
fn a_panic_of_a_thread_reaches_the_others_and_the_caller() {
    for hosts in [&[][..], &[2, 2], &[1, 1, 1, 1]] {
        let outcome = Builder::new().hosts(hosts.iter().copied()).threads(4, |kolo| {
            if kolo.rank() == 2 {
                panic!("out of cheese");
            }
            let error = work(kolo).to_string();
            assert!(error.starts_with("rank 2 on ") && error.ends_with("out of cheese"), "{error}");
        });
        let error = outcome.expect_err("a rank panicked");
        let Error::Failed(failure) = &error else { panic!("{error:?}") };
        assert_eq!(failure.rank, 2, "hosts {hosts:?}");
        assert!(failure.cause.contains("panicked at tests/runtime.rs:"), "{error}");
        assert!(failure.cause.ends_with(": out of cheese"), "{error}");
    }
}

#[test]
fn an_abort_of_a_thread_is_the_same_error_for_all() {
    let errors = kolo::threads(3, |kolo| {
        let error = if kolo.rank() == 1 { kolo.abort("enough") } else { work(kolo) };
        assert_eq!(kolo.abort("too late").to_string(), error.to_string(), "the first failure stands");
        error.to_string()
    });
    let errors = errors.expect("nobody panicked");
    assert!(
        errors.iter().all(|error| error.starts_with("rank 1 on ") && error.ends_with(" failed: enough")),
        "{errors:?}"
    );
}

#[test]
fn no_ranks_are_an_error() {
    assert!(matches!(kolo::threads(0, |_| ()), Err(Error::Argument(_))));
    let error = Builder::new().hosts([2, 2]).threads(3, |_| ()).expect_err("four are no three").to_string();
    assert!(error.contains("KOLO_HOSTS is '2,2', which makes 4 ranks, but the job has 3"), "{error}");
}

#[test]
fn shared_buffers_outlive_their_job_and_give_their_memory_back() {
    let kolo = Builder::new().shared_reserve(4096).init().expect("a job");
    let mut buffer = kolo.alloc::<f32>(1024).expect("all of it");
    let error = kolo.alloc::<u8>(1).expect_err("nothing is left").to_string();
    assert!(error.contains("0 of 4096 bytes are left") && error.contains("KOLO_SHARED_RESERVE"), "{error}");
    buffer.fill(3.0);
    drop(kolo);
    assert_eq!(buffer.iter().sum::<f32>(), 3072.0);
    drop(buffer);
}

/// Runs test `case` of this binary alone, and returns its exit code and what it wrote to stderr.
fn again(case: &str) -> (Option<i32>, String) {
    let binary = std::env::current_exe().expect("the path of this binary");
    let output = Command::new(binary)
        .args(["--exact", case, "--nocapture", "--quiet"])
        .env("TEST_AGAIN", "1")
        .env("KOLO_DEADLIN", "1s")
        .output()
        .expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn is_again() -> bool {
    std::env::var_os("TEST_AGAIN").is_some()
}

#[test]
fn run_alone_reports_an_error_once_and_warns_of_unknown_knobs() {
    if is_again() {
        let code = kolo::run(|_| Err::<(), _>("the disk is full"));
        std::process::exit(i32::from(code != ExitCode::SUCCESS) * 7);
    }
    let (code, stderr) = again("run_alone_reports_an_error_once_and_warns_of_unknown_knobs");
    assert_eq!(code, Some(7), "{stderr}");
    assert!(stderr.contains("kolo: KOLO_DEADLIN is no knob; did you mean KOLO_DEADLINE?\n"), "{stderr}");
    assert_eq!(stderr.matches(" failed: the disk is full\n").count(), 1, "{stderr}");
    assert_eq!(stderr.matches("kolo: ").count(), 2, "{stderr}");
}

#[test]
fn a_drop_while_panicking_is_a_failure_and_a_caught_panic_is_none() {
    if is_again() {
        let kolo = kolo::init().expect("a job");
        std::panic::catch_unwind(|| panic!("caught")).expect_err("it panics");
        kolo.check().expect("nobody is harmed");
        let last = kolo.clone();
        drop(kolo);
        std::thread::spawn(move || {
            let _last = last;
            panic!("not caught");
        })
        .join()
        .expect_err("it panics");
        std::process::exit(0);
    }
    let (code, stderr) = again("a_drop_while_panicking_is_a_failure_and_a_caught_panic_is_none");
    assert_eq!(code, Some(0), "{stderr}");
    let told: Vec<&str> = stderr.lines().filter(|line| line.starts_with("kolo: rank")).collect();
    assert_eq!(told.len(), 1, "{stderr}");
    assert!(
        told[0].contains(" failed: panicked at tests/runtime.rs:") && told[0].ends_with(": not caught"),
        "{stderr}"
    );
}
