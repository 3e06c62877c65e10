//! The first failure of a job: every member may fail, one record wins, everyone reads that one.

use crate::error::Failure;
use crate::os::sync::{AtomicU32, Ordering};

use super::memory::{BLOCK, Bytes, Cursor, Line, Lines, Memory};

const CAUSE: usize = 1024;
const HOST: usize = 256;

/// Which record won: its owner's index and one, zero while there is none. Everyone polls it, so nothing that changes
/// lies beside it.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct First {
    record: AtomicU32,
}

// SAFETY: atomics only.
unsafe impl Line for First {}

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct Record {
    /// 1 once a thread of the member writes it; it is written once.
    claimed: AtomicU32,
    rank: AtomicU32,
    host_len: AtomicU32,
    cause_len: AtomicU32,
}

// SAFETY: atomics only.
unsafe impl Line for Record {}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FailuresPlace {
    first: usize,
    records: usize,
    texts: usize,
}

impl FailuresPlace {
    pub(crate) fn new(cursor: &mut Cursor, members: usize) -> Self {
        Self {
            first: cursor.lines::<First>(1),
            records: cursor.lines::<Record>(members),
            texts: cursor.bytes(members * (HOST + CAUSE)),
        }
    }
}

/// "First failure wins".
#[derive(Clone, Debug)]
pub(crate) struct Failures {
    me: usize,
    first: Lines<First>,
    records: Lines<Record>,
    /// One range a member: the host's name, then the cause.
    texts: Vec<Bytes>,
}

impl Failures {
    pub(crate) fn new(memory: &Memory, place: FailuresPlace, members: usize, me: usize) -> Self {
        const _: () = assert!((HOST + CAUSE).is_multiple_of(BLOCK));
        Self {
            me,
            first: memory.lines(place.first, 1),
            records: memory.lines(place.records, members),
            texts: (0..members)
                .map(|member| memory.bytes(place.texts + member * (HOST + CAUSE), HOST + CAUSE))
                .collect(),
        }
    }

    /// True for the one call on the host that made its failure the first.
    pub(crate) fn fail(&self, failure: &Failure) -> bool {
        if self.any() {
            return false;
        }
        let record = &self.records[self.me];
        // Another thread of this member was quicker: its failure goes before ours.
        if record.claimed.swap(1, Ordering::Relaxed) != 0 {
            return false;
        }
        let host = cut(&failure.host, HOST);
        let cause = cut(&failure.cause, CAUSE);
        let text = &self.texts[self.me];
        // SAFETY: the claim makes this thread the only writer, and nobody reads before the record has won.
        unsafe {
            text.write(0, host.as_bytes());
            text.write(HOST, cause.as_bytes());
        }
        record.rank.store(failure.rank, Ordering::Relaxed);
        record.host_len.store(host.len() as u32, Ordering::Relaxed);
        record.cause_len.store(cause.len() as u32, Ordering::Relaxed);
        // Release: whoever sees the record won reads all of it. A member that dies before this leaves no trace.
        self.first[0].record.compare_exchange(0, self.me as u32 + 1, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Whether there is a failure: one load.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.first[0].record.load(Ordering::Relaxed) != 0
    }

    /// The first failure.
    pub(crate) fn first(&self) -> Option<Failure> {
        let owner = self.first[0].record.load(Ordering::Acquire).checked_sub(1)? as usize;
        let record = &self.records[owner];
        let text = &self.texts[owner];
        let read = |at, len: u32, most: usize| {
            // SAFETY: the record has won (acquire), and a record is written once, before that.
            unsafe { text.read(at, (len as usize).min(most), |bytes| String::from_utf8_lossy(bytes).into_owned()) }
        };
        let host = read(0, record.host_len.load(Ordering::Relaxed), HOST);
        let cause = read(HOST, record.cause_len.load(Ordering::Relaxed), CAUSE);
        Some(Failure::new(record.rank.load(Ordering::Relaxed), host, cause))
    }
}

/// At most `most` bytes of `text`, cut between characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    fn failures(members: usize) -> Vec<Failures> {
        let mut cursor = Cursor::default();
        let place = FailuresPlace::new(&mut cursor, members);
        let memory = Memory::anonymous(cursor.end()).expect("memory");
        (0..members).map(|me| Failures::new(&memory, place, members, me)).collect()
    }

    #[test]
    fn the_first_of_many_threads_wins_and_everyone_reads_it() {
        for _ in 0..50 {
            let members = failures(4);
            let wins = std::sync::Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                for (me, failures) in members.iter().enumerate() {
                    for thread in 0..2 {
                        let wins = &wins;
                        scope.spawn(move || {
                            let failure = Failure::new(me as u32 * 2 + thread, "host", format!("cause {me}.{thread}"));
                            if failures.fail(&failure) {
                                wins.lock().expect("the list").push(failure);
                            }
                            assert!(failures.any() || failures.records[me].claimed.load(Ordering::Relaxed) == 1);
                        });
                    }
                }
            });
            let wins = wins.into_inner().expect("the list");
            assert_eq!(wins.len(), 1, "{wins:?}");
            for failures in &members {
                assert_eq!(failures.first().as_ref(), Some(&wins[0]));
            }
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let members = failures(1);
        assert_eq!(members[0].first(), None);
        // A character of two bytes lies across the limit.
        let cause = format!("x{}", "ü".repeat(CAUSE));
        assert!(members[0].fail(&Failure::new(3, "h".repeat(HOST + 1), cause.clone())));
        let first = members[0].first().expect("a failure");
        assert_eq!(first.rank, 3);
        assert_eq!(first.host.len(), HOST);
        assert_eq!(first.cause.len(), CAUSE - 1);
        assert!(cause.starts_with(&first.cause));
        assert!(!members[0].fail(&Failure::new(4, "h", "later")));
    }
}

#[cfg(all(test, kolo_loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// "first failure wins": two members fail, a third looks.
    #[test]
    fn loom_the_first_failure_wins() {
        loom::model(|| {
            let mut cursor = Cursor::default();
            let place = FailuresPlace::new(&mut cursor, 2);
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let fail = |me: usize| {
                let failures = Failures::new(&memory, place, 2, me);
                thread::spawn(move || failures.fail(&Failure::new(me as u32, "h", format!("cause {me}"))))
            };
            let (a, b) = (fail(0), fail(1));
            let failures = Failures::new(&memory, place, 2, 0);
            // Looked for while both may still be failing: what wins is whole, and stays.
            let seen = loop {
                match failures.first() {
                    Some(seen) => break seen,
                    None => thread::yield_now(),
                }
            };
            let (a, b) = (a.join().expect("ends"), b.join().expect("ends"));
            assert!(a != b, "one of them wins");
            assert_eq!(seen.cause, if a { "cause 0" } else { "cause 1" });
            assert_eq!(failures.first(), Some(seen), "it never changes");
        });
    }

    #[test]
    fn loom_two_threads_of_a_member_write_one_record() {
        loom::model(|| {
            let mut cursor = Cursor::default();
            let place = FailuresPlace::new(&mut cursor, 1);
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let failures = Failures::new(&memory, place, 1, 0);
            let other = failures.clone();
            let other = thread::spawn(move || other.fail(&Failure::new(1, "h", "one")));
            let mine = failures.fail(&Failure::new(2, "h", "two"));
            let theirs = other.join().expect("ends");
            assert!(mine != theirs);
            assert_eq!(failures.first().expect("a failure").rank, if mine { 2 } else { 1 });
        });
    }
}
