//! What a stretch of time costs this process: CPU time and wake-ups of all its threads.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// The beginning of a measured stretch.
#[derive(Debug)]
pub(crate) struct Meter {
    before: HashMap<u64, Switches>,
    cpu: f64,
    wall: Instant,
}

/// What a stretch cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// CPU seconds of all threads, those that ended included.
    pub(crate) cpu: f64,
    /// Seconds that passed.
    pub(crate) wall: f64,
    /// Times that a thread blocked, so that something had to wake it.
    pub(crate) wakeups: u64,
    /// Times that a thread was taken off its core, or yielded it.
    pub(crate) preemptions: u64,
    /// Threads alive at the end.
    pub(crate) threads: usize,
}

impl Cost {
    /// CPU time over the time passed, in percent of one core.
    pub(crate) fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu / self.wall
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Switches {
    voluntary: u64,
    involuntary: u64,
}

impl Meter {
    /// Starts measuring.
    ///
    /// # Errors
    ///
    /// When `/proc` does not tell.
    pub(crate) fn start() -> Result<Self> {
        // The clock is read last, and first in `stop`: reading /proc itself is not charged.
        let before = threads()?;
        Ok(Self { before, cpu: cpu_seconds(), wall: Instant::now() })
    }

    /// Ends the stretch; `own_sleeps` are blockings of the measuring thread that are the measurement's and not the
    /// runtime's.
    ///
    /// # Errors
    ///
    /// When `/proc` does not tell.
    pub(crate) fn stop(self, own_sleeps: u64) -> Result<Cost> {
        let wall = self.wall.elapsed().as_secs_f64();
        let cpu = cpu_seconds() - self.cpu;
        let after = threads()?;
        let (mut wakeups, mut preemptions) = (0, 0);
        for (thread, after) in &after {
            // A thread that is new has all its switches within the stretch.
            let before = self.before.get(thread).copied().unwrap_or_default();
            wakeups += after.voluntary - before.voluntary;
            preemptions += after.involuntary - before.involuntary;
        }
        Ok(Cost { cpu, wall, wakeups: wakeups.saturating_sub(own_sleeps), preemptions, threads: after.len() })
    }
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The context switches of every thread of this process.
fn threads() -> Result<HashMap<u64, Switches>> {
    let mut threads = HashMap::new();
    for entry in fs::read_dir("/proc/self/task").context("cannot list this process's threads")? {
        let path = entry.context("cannot list this process's threads")?.path();
        // A thread may end between the listing and the reading.
        let Ok(status) = fs::read_to_string(path.join("status")) else {
            continue;
        };
        threads.insert(thread_id(&path)?, switches(&status)?);
    }
    Ok(threads)
}

fn thread_id(path: &Path) -> Result<u64> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.parse().with_context(|| format!("'{}' is not a thread", path.display()))
}

fn switches(status: &str) -> Result<Switches> {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .with_context(|| format!("/proc gives no {name}"))
    };
    Ok(Switches { voluntary: field("voluntary_ctxt_switches:")?, involuntary: field("nonvoluntary_ctxt_switches:")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn reads_the_status_of_a_thread() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t17\nnonvoluntary_ctxt_switches:\t4\n";
        assert_eq!(switches(status).unwrap(), Switches { voluntary: 17, involuntary: 4 });
        assert!(switches("Name:\tx\n").unwrap_err().to_string().contains("voluntary_ctxt_switches"));
    }

    #[test]
    fn counts_the_blockings_of_another_thread() {
        let (to, from) = mpsc::sync_channel::<()>(0);
        let (back, done) = mpsc::sync_channel::<()>(0);
        let meter = std::thread::scope(|scope| {
            scope.spawn(move || {
                while from.recv().is_ok() {
                    if back.send(()).is_err() {
                        break;
                    }
                }
            });
            let meter = Meter::start().unwrap();
            for _ in 0..100 {
                to.send(()).unwrap();
                done.recv().unwrap();
            }
            let cost = meter.stop(0).unwrap();
            drop(to);
            cost
        });
        assert!(meter.wakeups > 0, "{meter:?}");
        assert!(meter.threads >= 2, "{meter:?}");
        assert!(meter.cpu > 0.0 && meter.wall > 0.0, "{meter:?}");
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let meter = Meter::start().unwrap();
        let mut x = 1u64;
        while cpu_seconds() - meter.cpu < 0.005 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let cost = meter.stop(0).unwrap();
        assert!(cost.cpu >= 0.005 && cost.cpu_percent() > 0.0, "{cost:?}");
    }
}
