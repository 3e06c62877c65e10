//! A command that ends by its deadline, together with everything it started.
//!
//! Killing a launcher is not enough: `mpirun` puts ranks into process groups of their own, and a rank outlives a launcher
//! that was killed. So each run marks the environment of its command, children inherit the mark, and on a deadline every
//! process that carries it goes, stopped ones included. No process group is made: Ctrl-C still reaches all of them.

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, kill_process};

/// The variable that carries the mark; nested runs append to it.
const MARK: &str = "XTASK_RUN";

/// How long a command's descendants may take to close its output once it has ended, and to react to a polite signal.
const GRACE: Duration = Duration::from_secs(2);

/// How often `/proc` is looked at while processes end.
const POLL: Duration = Duration::from_millis(20);

/// What became of a command.
#[derive(Debug)]
pub struct Finished {
    /// The exit status; `None` if the deadline came first.
    pub status: Option<ExitStatus>,
    /// Standard output and standard error, in the order they were written.
    pub output: String,
    /// How long the command ran.
    pub elapsed: Duration,
    /// Processes that it left behind. They have been killed.
    pub left_behind: Vec<i32>,
}

impl Finished {
    /// Whether the command ended by itself with exit code 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Whether the deadline ended the command.
    pub fn timed_out(&self) -> bool {
        self.status.is_none()
    }

    /// How it ended, in words: "exit status: 1", "signal: 9 (SIGKILL)", "killed after 60.0 s: its deadline".
    pub fn ending(&self) -> String {
        match self.status {
            Some(status) => status.to_string(),
            None => format!("killed after {:.1} s: its deadline", self.elapsed.as_secs_f64()),
        }
    }
}

/// Where the output of a command goes besides [`Finished::output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Nowhere.
    Quiet,
    /// To our own standard output, as it comes.
    Live,
}

enum Event {
    Output(Vec<u8>),
    OutputClosed,
    Ended(io::Result<ExitStatus>),
}

/// Runs `command` for at most `limit`; then kills it and all that it started.
///
/// Its standard input is empty.
///
/// # Errors
/// When the command cannot be started or waited for. That it fails, or takes too long, is not an error of this call:
/// look at [`Finished`].
pub fn run(command: &mut Command, limit: Duration, echo: Echo) -> io::Result<Finished> {
    run_with(command, limit, echo, |_| {})
}

/// As [`run`], and calls `heard` with each line of output as it comes.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    command: &mut Command,
    limit: Duration,
    echo: Echo,
    mut heard: impl FnMut(&str),
) -> io::Result<Finished> {
    let mark = next_mark();
    let started = Instant::now();
    let (reader, writer) = io::pipe()?;
    command.env(MARK, &mark).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // `command` still holds the writing ends; while it does, the pipe never closes.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (events, inbox) = mpsc::channel();
    let lines = events.clone();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        // Bytes, not text: a rank that dies may cut a character. The receiver may be gone already; then nobody cares.
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            if lines.send(Event::Output(std::mem::take(&mut line))).is_err() {
                return;
            }
        }
        drop(lines.send(Event::OutputClosed));
    });
    thread::spawn(move || drop(events.send(Event::Ended(child.wait()))));

    let mut output = String::new();
    let (mut status, mut closed) = (None, false);
    let mut deadline = started + limit;
    while !(closed && status.is_some()) {
        match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Output(line)) => {
                let line = String::from_utf8_lossy(&line);
                if echo == Echo::Live {
                    let mut out = io::stdout().lock();
                    out.write_all(line.as_bytes()).and_then(|()| out.flush())?;
                }
                output.push_str(&line);
                heard(&line);
            }
            Ok(Event::OutputClosed) => closed = true,
            Ok(Event::Ended(ended)) => {
                status = Some(ended?);
                deadline = Instant::now() + GRACE;
            }
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => unreachable!("both threads send a last event before they end"),
        }
    }
    let elapsed = started.elapsed();
    if status.is_some() {
        settle(&mark);
    }
    let left_behind = kill_marked(&mark);
    Ok(Finished { status, output, elapsed, left_behind })
}

fn next_mark() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let outer = std::env::var(MARK).unwrap_or_default();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    // Process ids are reused; the time since boot is not.
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split(' ').next().unwrap_or_default();
    format!("{outer}{}-{uptime}-{number}/", getpid().as_raw_nonzero())
}

/// Lets descendants that are about to exit do so: a launcher's ranks may still be leaving when it has left.
fn settle(mark: &str) {
    let until = Instant::now() + GRACE / 4;
    while !marked(mark).is_empty() && Instant::now() < until {
        thread::sleep(POLL);
    }
}

/// Ends every process whose environment carries `mark`: politely first, so that a launcher can clean up, then for good.
fn kill_marked(mark: &str) -> Vec<i32> {
    let found = marked(mark);
    let polite_until = Instant::now() + GRACE;
    let mut asked = HashSet::new();
    loop {
        let alive = marked(mark);
        if alive.is_empty() {
            return found.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        }
        let patient = Instant::now() < polite_until;
        for pid in alive {
            // A process that is gone by now is what we want: nothing to do about an error.
            if !patient {
                let _ = kill_process(pid, Signal::KILL);
            } else if asked.insert(pid) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        thread::sleep(POLL);
    }
}

/// Living processes that carry `mark`.
fn marked(mark: &str) -> Vec<Pid> {
    let wanted = format!("{MARK}={mark}");
    let carries = |environment: &[&[u8]]| environment.iter().any(|word| word.starts_with(wanted.as_bytes()));
    living(|environment| carries(environment).then_some(())).into_iter().map(|((), pid)| pid).collect()
}

/// Living processes of which `choose` likes the environment, with what it says. A zombie has none, so it does not count.
pub(crate) fn living<T>(choose: impl Fn(&[&[u8]]) -> Option<T>) -> Vec<(T, Pid)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?));
    let chosen = pids.filter_map(|pid| {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        let words: Vec<&[u8]> = environment.split(|&byte| byte == 0).collect();
        Some((choose(&words)?, pid))
    });
    chosen.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_are_kept_in_order() {
        let finished = run(&mut shell("echo one; echo two >&2; echo three"), GRACE * 5, Echo::Quiet).unwrap();
        assert!(finished.success());
        assert_eq!(finished.output, "one\ntwo\nthree\n");
        assert!(finished.left_behind.is_empty());
    }

    #[test]
    fn an_exit_code_is_reported() {
        let finished = run(&mut shell("exit 7"), GRACE * 5, Echo::Quiet).unwrap();
        assert_eq!(finished.status.and_then(|status| status.code()), Some(7));
    }

    #[test]
    fn a_deadline_ends_the_whole_tree_even_where_it_is_stopped() {
        // The grandchild leaves its parent's process group and stops itself: only the mark finds it.
        let script = "setsid sh -c 'kill -STOP $$; sleep 100' & echo started; sleep 100";
        let finished = run(&mut shell(script), Duration::from_millis(500), Echo::Quiet).unwrap();
        assert!(finished.timed_out());
        assert_eq!(finished.output, "started\n");
        assert!(finished.left_behind.len() >= 2, "{:?}", finished.left_behind);
    }

    #[test]
    fn an_orphan_that_holds_the_output_does_not_block_us() {
        let finished = run(&mut shell("sleep 100 & echo done"), Duration::from_secs(60), Echo::Quiet).unwrap();
        assert!(finished.success());
        assert_eq!(finished.left_behind.len(), 1);
        assert!(finished.elapsed < Duration::from_secs(30));
    }

    #[test]
    fn an_inner_run_does_not_hide_from_the_outer_mark() {
        let inner = next_mark();
        assert!(inner.starts_with(&std::env::var(MARK).unwrap_or_default()));
    }
}
