//! Tests that start themselves again under a real `mpirun`.
//!
//! A test calls [`under_mpirun`]. In the test process that starts the launcher with this very test binary and this
//! very test; in the ranks it runs the body. A missing launcher fails the test.

use std::any::type_name;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::exit;
use super::world::{MpiWorld, Pace};

/// Far beyond what any of these tests takes, and short enough to see a hang.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Where the ranks of a test leave their marks. Only ranks have it.
const MARKS: &str = "KOLO_TEST_MARKS";

/// How a job is expected to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Success,
    Failure,
}

/// Runs `body` on every rank of jobs of each of the `sizes`, and expects them to end well.
pub(crate) fn under_mpirun(sizes: &[usize], body: impl Fn(&Arc<MpiWorld>)) {
    run(sizes, Ending::Success, name(&body), &|_| (), || {
        let world = MpiWorld::start(None, DEADLINE).expect("MPI starts");
        body(&world);
    });
}

/// The same, with a chosen ending. Every rank must have got through `body`, or have called [`done`].
pub(crate) fn under_mpirun_ending(ending: Ending, sizes: &[usize], body: impl Fn(&Arc<MpiWorld>)) {
    run(sizes, ending, name(&body), &|_| (), || {
        let world = MpiWorld::start(None, DEADLINE).expect("MPI starts");
        body(&world);
    });
}

/// A job that fails, and what it printed.
pub(crate) fn under_mpirun_failing(sizes: &[usize], judge: impl Fn(&str), body: impl Fn(&Arc<MpiWorld>)) {
    run(sizes, Ending::Failure, name(&body), &judge, || {
        let world = MpiWorld::start(None, DEADLINE).expect("MPI starts");
        body(&world);
    });
}

/// The same, without starting MPI.
pub(crate) fn under_bare_mpirun(ending: Ending, sizes: &[usize], body: impl Fn()) {
    run(sizes, ending, name(&body), &|_| (), &body);
}

/// The same for a job that leaves its MPI as it is, hence fails, and what it printed.
pub(crate) fn under_bare_mpirun_saying(sizes: &[usize], judge: impl Fn(&str), body: impl Fn()) {
    run(sizes, Ending::Failure, name(&body), &judge, &body);
}

/// The test's name, from the path of the closure written in it.
fn name<F>(_: &F) -> &'static str {
    let path = type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_, rest)| rest);
    path.split("::{{closure}}").next().unwrap_or(path)
}

fn run(sizes: &[usize], ending: Ending, name: &str, judge: &dyn Fn(&str), body: impl Fn()) {
    if std::env::var_os(MARKS).is_some() {
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(()) => done(),
            Err(panic) => {
                // Without it the other ranks would be waited for at exit.
                exit::mark_failed("a test failed");
                resume_unwind(panic);
            }
        }
        return;
    }
    for &size in sizes {
        let marks = tempfile::tempdir().expect("a folder for the ranks' marks");
        let output = launch(size, name, marks.path());
        let text = format!(
            "{size} ranks of {name}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.success(), ending == Ending::Success, "{text}");
        for rank in 0..size {
            assert!(mark(marks.path(), rank).exists(), "rank {rank} did not get through: {text}");
        }
        judge(&text);
    }
}

fn mark(marks: &Path, rank: usize) -> PathBuf {
    marks.join(format!("{rank}.done"))
}

fn marks() -> PathBuf {
    std::env::var_os(MARKS).expect("only ranks ask for their marks").into()
}

/// Says that this rank has seen all that its test wants to see. For bodies that end the process themselves.
pub(crate) fn done() {
    let rank = crate::transport::launcher::launched().and_then(|launcher| launcher.rank).expect("a launched rank");
    std::fs::write(mark(&marks(), rank), b"").expect("leaving a mark");
}

/// Waits, without MPI, until `rank` is done.
pub(crate) fn wait_for(rank: usize) {
    let (mark, mut pace) = (mark(&marks(), rank), Pace::new());
    while !mark.exists() {
        pace.wait();
    }
}

fn launch(size: usize, name: &str, marks: &Path) -> Output {
    let mpirun = std::env::var("MPIRUN").unwrap_or_else(|_| "mpirun".to_owned());
    let version = Command::new(&mpirun).arg("--version").output().unwrap_or_else(|error| {
        panic!("{mpirun}: {error}; install an MPI launcher (Debian: openmpi-bin) or set MPIRUN")
    });
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let mut command = Command::new(&mpirun);
    if version.contains("Open MPI") || version.contains("OpenRTE") {
        command.args(["--oversubscribe", "--allow-run-as-root", "--mca", "mpi_yield_when_idle", "1"]);
    }
    command
        .arg("-np")
        .arg(size.to_string())
        .arg(std::env::current_exe().expect("the test binary has a path"))
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(MARKS, marks)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("mpirun starts");
    let (finished, wait) = mpsc::channel();
    let mut pipes: [Box<dyn Read + Send>; 2] =
        [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
    let pid = child.id();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut texts = pipes.each_mut().map(|_| Vec::new());
            let [out, err] = &mut pipes;
            let [out_text, err_text] = &mut texts;
            std::thread::scope(|both| {
                both.spawn(|| err.read_to_end(err_text));
                out.read_to_end(out_text).map(drop).expect("reading the ranks' output");
            });
            let status = child.wait().expect("mpirun ends");
            let [stdout, stderr] = texts;
            // The receiver is gone only if it gave up.
            drop(finished.send(Output { status, stdout, stderr }));
        });
        wait.recv_timeout(DEADLINE).unwrap_or_else(|_| {
            // SAFETY: a signal to a child that has not been waited for; the launcher passes it on to its ranks.
            unsafe { libc::kill(pid as i32, libc::SIGTERM) };
            panic!("{size} ranks of {name} did not end within {DEADLINE:?}");
        })
    })
}
