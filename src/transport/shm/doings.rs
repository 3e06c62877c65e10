//! What each rank of the job did last: one line a rank. A rank writes its own, the host's leader those of other hosts.

use std::time::Duration;

use crate::os::sync::{AtomicU32, AtomicU64, Ordering, fence};

use super::memory::{Cursor, Line, Lines, Memory};

/// Words of a name. Every further word multiplies what loom has to explore, and none is unlike another.
const WORDS: usize = if cfg!(kolo_loom) { 1 } else { 9 };
/// Bytes of a name that are kept.
pub(crate) const NAME: usize = WORDS * 8;
/// How often a reader looks at a line that is being written. A writer that dies in the middle never ends it.
const TRIES: u32 = 64;

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct DoingLine {
    /// Odd while the fields below `ended` are being written.
    version: AtomicU32,
    /// Of ranks of other hosts: what their process does, in the code of whoever reports it.
    process: AtomicU32,
    submitted: AtomicU64,
    ended: AtomicU64,
    /// Which of the rank's submissions the name belongs to, from 1.
    sequence: AtomicU64,
    /// When it was submitted, in nanoseconds of the host's monotonic clock.
    since: AtomicU64,
    /// Of ranks of other hosts: when the report came, in the same.
    heard: AtomicU64,
    /// Bytes of the name, and the name.
    length: AtomicU32,
    name: [AtomicU64; WORDS],
}

// SAFETY: atomics only.
unsafe impl Line for DoingLine {}

/// What is known of a rank's named operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doing {
    /// How many it has submitted, and how many of those have ended.
    pub(crate) submitted: u64,
    pub(crate) ended: u64,
    /// The last one that was noted: its number from 1, when it was submitted, its name. All zero before the first.
    pub(crate) sequence: u64,
    pub(crate) since: Duration,
    pub(crate) name: String,
    /// Of a rank of another host: what its process did when that was reported, and when it was. Zero: never.
    pub(crate) process: u32,
    pub(crate) heard: Duration,
}

/// One line for each rank of the job.
#[derive(Debug)]
pub(crate) struct Doings {
    lines: Lines<DoingLine>,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Doings {
    pub(crate) fn place(cursor: &mut Cursor, ranks: usize) -> usize {
        cursor.lines::<DoingLine>(ranks)
    }

    pub(crate) fn new(memory: &Memory, offset: usize, ranks: usize) -> Self {
        Self { lines: memory.lines(offset, ranks) }
    }

    /// This process's `rank` submits an operation. From any thread.
    #[inline]
    pub(crate) fn submit(&self, rank: usize, name: &str, now: Duration) {
        let line = &self.lines[rank];
        let sequence = line.submitted.fetch_add(1, Ordering::Relaxed) + 1;
        line.write(|line| {
            line.sequence.store(sequence, Ordering::Relaxed);
            line.since.store(nanos(now), Ordering::Relaxed);
            line.set_name(name);
        });
    }

    /// So many operations of this process's `rank` have ended.
    #[inline]
    pub(crate) fn end(&self, rank: usize, count: u64) {
        self.lines[rank].ended.fetch_add(count, Ordering::Relaxed);
    }

    /// What the leader of another host reports of a rank of its.
    pub(crate) fn report(&self, rank: usize, doing: &Doing) {
        let line = &self.lines[rank];
        line.submitted.store(doing.submitted, Ordering::Relaxed);
        line.ended.store(doing.ended, Ordering::Relaxed);
        line.write(|line| {
            line.process.store(doing.process, Ordering::Relaxed);
            line.heard.store(nanos(doing.heard), Ordering::Relaxed);
            line.sequence.store(doing.sequence, Ordering::Relaxed);
            line.since.store(nanos(doing.since), Ordering::Relaxed);
            line.set_name(&doing.name);
        });
    }

    /// What is known of `rank`. `None` if it is being written for ever: its writer died in the middle.
    pub(crate) fn read(&self, rank: usize) -> Option<Doing> {
        let line = &self.lines[rank];
        (0..TRIES).find_map(|_| {
            let before = line.version.load(Ordering::Acquire);
            if before % 2 == 1 {
                crate::os::sync::yield_now();
                return None;
            }
            let doing = line.copy();
            // Nothing above may be read after this look.
            fence(Ordering::Acquire);
            (line.version.load(Ordering::Relaxed) == before).then_some(doing)
        })
    }
}

impl DoingLine {
    /// Changes the line unless another thread of the writer does so at this moment: that is as good a last operation.
    fn write(&self, change: impl FnOnce(&Self)) {
        let version = self.version.load(Ordering::Relaxed);
        let taken = version.is_multiple_of(2)
            && self
                .version
                .compare_exchange(version, version.wrapping_add(1), Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        if taken {
            // Whoever sees a field changed sees the odd version, or a later one ("torn lines").
            fence(Ordering::Release);
            change(self);
            self.version.store(version.wrapping_add(2), Ordering::Release);
        }
    }

    fn set_name(&self, name: &str) {
        let mut end = name.len().min(NAME);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        self.length.store(end as u32, Ordering::Relaxed);
        for (word, bytes) in self.name.iter().zip(name.as_bytes()[..end].chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
    }

    fn copy(&self) -> Doing {
        let length = (self.length.load(Ordering::Relaxed) as usize).min(NAME);
        let mut bytes: Vec<u8> = self
            .name
            .iter()
            .take(length.div_ceil(8))
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        bytes.truncate(length);
        Doing {
            submitted: self.submitted.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
            sequence: self.sequence.load(Ordering::Relaxed),
            since: Duration::from_nanos(self.since.load(Ordering::Relaxed)),
            name: String::from_utf8_lossy(&bytes).into_owned(),
            process: self.process.load(Ordering::Relaxed),
            heard: Duration::from_nanos(self.heard.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    fn doings(ranks: usize) -> Doings {
        let mut cursor = Cursor::default();
        let place = Doings::place(&mut cursor, ranks);
        Doings::new(&Memory::anonymous(cursor.end()).expect("memory"), place, ranks)
    }

    #[test]
    fn the_last_submission_is_kept_with_its_number_and_time() {
        let doings = doings(2);
        assert_eq!(doings.read(1), Some(Doing::default()));
        doings.submit(1, "first", Duration::from_secs(3));
        doings.submit(1, "", Duration::from_secs(4));
        doings.end(1, 1);
        let now = doings.read(1).expect("nobody writes");
        assert_eq!((now.submitted, now.ended, now.sequence), (2, 1, 2));
        assert_eq!((now.since, &*now.name), (Duration::from_secs(4), ""));
        let long = "é".repeat(NAME);
        doings.submit(1, &long, Duration::ZERO);
        assert_eq!(doings.read(1).expect("nobody writes").name, "é".repeat(NAME / 2), "cut between characters");
        assert_eq!(doings.read(0), Some(Doing::default()));
        assert_eq!(size_of::<DoingLine>(), 128);
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let doings = doings(3);
        let doing = Doing {
            submitted: 9,
            ended: 8,
            sequence: 9,
            since: Duration::from_millis(5),
            name: "grad".to_owned(),
            process: 3,
            heard: Duration::from_millis(7),
        };
        doings.report(2, &doing);
        assert_eq!(doings.read(2), Some(doing));
    }

    #[test]
    fn threads_of_a_rank_never_leave_a_mixture() {
        let doings = doings(1);
        std::thread::scope(|scope| {
            for thread in 0..3_u64 {
                let doings = &doings;
                scope.spawn(move || {
                    for at in 0..5000 {
                        let number = thread * 1_000_000 + at;
                        doings.submit(0, &format!("{number:064}"), Duration::from_nanos(number));
                        doings.end(0, 1);
                    }
                });
            }
            scope.spawn(|| {
                while doings.read(0).is_none_or(|doing| doing.ended < 15_000) {
                    if let Some(doing) = doings.read(0).filter(|doing| doing.sequence > 0) {
                        assert_eq!(doing.name, format!("{:064}", doing.since.as_nanos()));
                    }
                }
            });
        });
        assert_eq!(doings.read(0).map(|doing| (doing.submitted, doing.ended)), Some((15_000, 15_000)));
    }
}

#[cfg(all(test, kolo_loom))]
mod loom_tests {
    use std::sync::Arc;

    use loom::thread;

    use super::*;

    #[test]
    fn loom_a_line_is_never_torn() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let mut cursor = Cursor::default();
            let place = Doings::place(&mut cursor, 1);
            let doings = Arc::new(Doings::new(&Memory::anonymous(cursor.end()).expect("memory"), place, 1));
            let other = Arc::clone(&doings);
            let writing = thread::spawn(move || {
                other.submit(0, "a", Duration::from_nanos(1));
                other.submit(0, "bb", Duration::from_nanos(2));
            });
            let reading = thread::spawn(move || {
                // One look: a reader that waits for the writer is no scenario of its own.
                let line = &doings.lines[0];
                let before = line.version.load(Ordering::Acquire);
                let doing = line.copy();
                fence(Ordering::Acquire);
                if before % 2 == 0 && line.version.load(Ordering::Relaxed) == before {
                    let wanted = ["", "a", "bb"][doing.sequence as usize];
                    assert_eq!((&*doing.name, doing.since), (wanted, Duration::from_nanos(doing.sequence)));
                }
            });
            writing.join().expect("the writer ends");
            reading.join().expect("the reader ends");
        });
    }
}
