//! Ready words: one phase bit a cached tensor and member, which flips at each submission.

use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{Cursor, Line, Lines, Memory};

/// Words a member has.
pub(crate) const READY_WORDS: usize = 64;

/// Cached tensors that have a bit.
pub(crate) const READY_BITS: usize = READY_WORDS * 64;

/// One member's bits, in blocks that it alone writes.
#[repr(C, align(128))]
#[derive(Debug)]
struct Row {
    /// Grows with every change, so that a reader scans the words only when there is something new.
    version: AtomicU64,
    words: [AtomicU64; READY_WORDS],
}

impl Default for Row {
    fn default() -> Self {
        Self { version: AtomicU64::default(), words: std::array::from_fn(|_| AtomicU64::default()) }
    }
}

// SAFETY: atomics only.
unsafe impl Line for Row {}

/// The ready words of a set's members on this host.
#[derive(Clone, Debug)]
pub(crate) struct ReadyWords {
    me: usize,
    rows: Lines<Row>,
}

impl ReadyWords {
    pub(crate) fn place(cursor: &mut Cursor, members: usize) -> usize {
        cursor.lines::<Row>(members)
    }

    pub(crate) fn new(memory: &Memory, offset: usize, members: usize, me: usize) -> Self {
        Self { me, rows: memory.lines(offset, members) }
    }

    /// Makes `bits` this member's word. Only one thread of the member may do so at a time. Ring the others afterwards.
    pub(crate) fn set(&self, word: usize, bits: u64) {
        let row = &self.rows[self.me];
        row.words[word].store(bits, Ordering::Release);
        let version = row.version.load(Ordering::Relaxed) + 1;
        row.version.store(version, Ordering::Release);
    }

    /// Grows with every change of the member's words: whoever sees a version sees the words it stands for.
    #[inline]
    pub(crate) fn version(&self, member: usize) -> u64 {
        self.rows[member].version.load(Ordering::Acquire)
    }

    /// A member's word.
    #[inline]
    pub(crate) fn word(&self, member: usize, word: usize) -> u64 {
        self.rows[member].words[word].load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    fn words(members: usize) -> Vec<ReadyWords> {
        let mut cursor = Cursor::default();
        let place = ReadyWords::place(&mut cursor, members);
        let memory = Memory::anonymous(cursor.end()).expect("memory");
        (0..members).map(|me| ReadyWords::new(&memory, place, members, me)).collect()
    }

    #[test]
    fn a_member_writes_its_own_row() {
        let words = words(2);
        words[0].set(0, 5);
        words[1].set(READY_WORDS - 1, u64::MAX);
        assert_eq!((words[1].word(0, 0), words[1].version(0)), (5, 1));
        assert_eq!((words[0].word(1, READY_WORDS - 1), words[0].version(1)), (u64::MAX, 1));
        assert_eq!(words[0].word(1, 0), 0);
        assert_eq!(READY_BITS, READY_WORDS * 64);
        assert_eq!(size_of::<Row>() % 128, 0);
    }

    #[test]
    fn a_version_never_runs_ahead_of_its_words() {
        let members = words(2);
        std::thread::scope(|scope| {
            let (writer, reader) = (&members[0], &members[1]);
            scope.spawn(move || (1..=20_000_u64).for_each(|step| writer.set((step % 3) as usize, step)));
            scope.spawn(move || {
                let mut version = 0;
                while version < 20_000 {
                    let now = reader.version(0);
                    assert!(now >= version);
                    version = now;
                    // The last three steps wrote the three words; they may be newer by now.
                    let newest = (0..3).map(|word| reader.word(0, word)).max();
                    assert!(newest >= Some(version), "{newest:?} of {version}");
                    std::thread::yield_now();
                }
            });
        });
    }
}

#[cfg(all(test, kolo_loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    #[test]
    fn loom_a_version_never_runs_ahead_of_its_words() {
        loom::model(|| {
            let mut cursor = Cursor::default();
            let place = ReadyWords::place(&mut cursor, 2);
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let writer = ReadyWords::new(&memory, place, 2, 0);
            let writing = thread::spawn(move || {
                writer.set(0, 1);
                writer.set(1, 2);
            });
            let reader = ReadyWords::new(&memory, place, 2, 1);
            // A thread of its own, and no yield, after which loom would show it the newest values.
            let reading = thread::spawn(move || match reader.version(0) {
                0 => {}
                1 => assert_eq!(reader.word(0, 0), 1),
                version => assert_eq!((version, reader.word(0, 0), reader.word(0, 1)), (2, 1, 2)),
            });
            writing.join().expect("the writer ends");
            reading.join().expect("the reader ends");
        });
    }
}
