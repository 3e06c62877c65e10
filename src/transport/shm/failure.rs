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
        self.first[0]
            .record
            .compare_exchange(0, self.me as u32 + 1, Ordering::Release, Ordering::Relaxed)
            .is_ok()
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
            unsafe {
                text.read(at, (len as usize).min(most), |bytes| String::from_utf8_lossy(bytes).into_owned())
            }
        };
        let host = read(0, record.host_len.load(Ordering::Relaxed), HOST);
        let cause = read(HOST, record.cause_len.load(Ordering::Relaxed), CAUSE);
        Some(Failure::new(record.rank.load(Ordering::Relaxed), host, cause))
    }
}

/// At most `most` bytes of `text`, cut between characters.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
