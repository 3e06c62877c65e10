//! Request rings: frames of bytes from one member to all others, each of whom reads at its own pace.
//!
//! A frame is its length (8 bytes) and its bytes, padded to 8; it may wrap around the ring's end. Room is free once the
//! slowest reader has passed it ("ring room").

use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{Bytes, Cursor, Line, Lines, Memory};

/// Bytes of a member's ring.
pub(crate) const RING: usize = 64 << 10;
/// The largest frame: half a ring, so that one frame never waits for itself.
pub(crate) const FRAME: usize = RING / 2;
const HEAD: usize = 8;

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct HeadLine {
    /// Bytes ever written.
    written: AtomicU64,
}

// SAFETY: atomics only.
unsafe impl Line for HeadLine {}

/// Where the rings of an arena lie. A reader's positions in all rings lie together, in blocks that it alone writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestsPlace {
    members: usize,
    ring: usize,
    heads: usize,
    positions: usize,
    row: usize,
    rings: usize,
}

impl RequestsPlace {
    pub(crate) fn new(cursor: &mut Cursor, members: usize, ring: usize) -> Self {
        assert!(ring.is_multiple_of(HEAD) && ring > 0, "a ring of {ring} bytes");
        let heads = cursor.lines::<HeadLine>(members);
        let positions = cursor.lines::<AtomicU64>(members);
        let row = cursor.end() - positions;
        for _ in 1..members {
            cursor.lines::<AtomicU64>(members);
        }
        Self { members, ring, heads, positions, row, rings: cursor.bytes(members * ring) }
    }

    fn positions(&self, memory: &Memory, reader: usize) -> Lines<AtomicU64> {
        memory.lines(self.positions + reader * self.row, self.members)
    }

    fn head(&self, memory: &Memory, writer: usize) -> Lines<HeadLine> {
        memory.lines(self.heads + writer * size_of::<HeadLine>(), 1)
    }

    fn ring(&self, memory: &Memory, writer: usize) -> Bytes {
        memory.bytes(self.rings + writer * self.ring, self.ring)
    }
}

fn framed(len: usize) -> usize {
    HEAD + len.next_multiple_of(HEAD)
}

/// The writing end of this member's ring. There is one at a time.
#[derive(Debug)]
pub(crate) struct RequestWriter {
    me: usize,
    head: Lines<HeadLine>,
    ring: Bytes,
    /// Every reader's row; this writer's entry in each counts.
    positions: Vec<Lines<AtomicU64>>,
    written: u64,
    /// Bytes that every reader had passed when last looked up.
    passed: u64,
}

impl RequestWriter {
    pub(crate) fn new(memory: &Memory, place: &RequestsPlace, me: usize) -> Self {
        let head = place.head(memory, me);
        let written = head[0].written.load(Ordering::Relaxed);
        Self {
            me,
            head,
            ring: place.ring(memory, me),
            positions: (0..place.members)
                .filter(|reader| *reader != me)
                .map(|reader| place.positions(memory, reader))
                .collect(),
            written,
            passed: 0,
        }
    }

    /// The longest frame that fits.
    pub(crate) fn frame_max(&self) -> usize {
        self.ring.len() / 2
    }

    /// Publishes a copy of `frame` to every other member; false while one of them is too far behind. Ring them
    /// afterwards.
    ///
    /// # Panics
    /// If the frame is longer than half the ring.
    pub(crate) fn try_write(&mut self, frame: &[u8]) -> bool {
        assert!(frame.len() <= self.frame_max(), "a frame of {} bytes", frame.len());
        let len = framed(frame.len());
        if !self.fits(len) {
            self.passed = self
                .positions
                .iter()
                // Acquire: what a reader passed, it has finished reading.
                .map(|row| row[self.me].load(Ordering::Acquire))
                .min()
                .unwrap_or(self.written);
            if !self.fits(len) {
                return false;
            }
        }
        self.put(self.written, &(frame.len() as u64).to_le_bytes());
        self.put(self.written + HEAD as u64, frame);
        self.written += len as u64;
        self.head[0].written.store(self.written, Ordering::Release);
        true
    }

    fn fits(&self, len: usize) -> bool {
        self.written + len as u64 - self.passed <= self.ring.len() as u64
    }

    fn put(&self, position: u64, data: &[u8]) {
        let at = (position % self.ring.len() as u64) as usize;
        let (first, rest) = data.split_at(data.len().min(self.ring.len() - at));
        // SAFETY: every reader has passed what lay here, and none reads beyond the bytes published.
        unsafe {
            self.ring.write(at, first);
            self.ring.write(0, rest);
        }
    }
}

/// One member's reading end of another's ring. There is one at a time.
#[derive(Debug)]
pub(crate) struct RequestReader {
    from: usize,
    head: Lines<HeadLine>,
    ring: Bytes,
    /// This member's own row.
    positions: Lines<AtomicU64>,
    position: u64,
    /// Where a frame that wraps is put together.
    whole: Vec<u8>,
}

impl RequestReader {
    pub(crate) fn new(memory: &Memory, place: &RequestsPlace, from: usize, me: usize) -> Self {
        assert!(from != me, "a member knows its own requests");
        let positions = place.positions(memory, me);
        let position = positions[from].load(Ordering::Relaxed);
        Self {
            from,
            head: place.head(memory, from),
            ring: place.ring(memory, from),
            positions,
            position,
            whole: Vec::new(),
        }
    }

    /// Whether a frame waits: one load.
    #[inline]
    pub(crate) fn ready(&self) -> bool {
        self.head[0].written.load(Ordering::Acquire) != self.position
    }

    /// Lends the next frame to `look`, and then frees its room; false if there is none yet. When `look` panics, the frame
    /// stays.
    ///
    /// # Panics
    /// If the memory holds what no writer writes.
    pub(crate) fn try_read(&mut self, look: impl FnOnce(&[u8])) -> bool {
        let written = self.head[0].written.load(Ordering::Acquire);
        if written == self.position {
            return false;
        }
        let size = self.ring.len();
        let at = (self.position % size as u64) as usize;
        // SAFETY: (all three reads) the bytes up to `written` (acquire) are complete, and their writer reuses none of
        // them before this reader has passed them.
        let len = unsafe {
            self.ring.read(at, HEAD, |head| u64::from_le_bytes(head.try_into().expect("eight bytes")))
        };
        let frame = usize::try_from(len).ok().filter(|len| *len <= size / 2);
        let frame = frame.filter(|len| framed(*len) as u64 <= written - self.position);
        let Some(len) = frame else {
            panic!("the request ring of member {} is corrupt: a frame of {len} bytes", self.from);
        };
        let start = (at + HEAD) % size;
        let first = len.min(size - start);
        if first == len {
            // SAFETY: as above.
            unsafe { self.ring.read(start, len, look) };
        } else {
            self.whole.clear();
            // SAFETY: as above.
            unsafe {
                self.ring.read(start, first, |part| self.whole.extend_from_slice(part));
                self.ring.read(0, len - first, |part| self.whole.extend_from_slice(part));
            }
            look(&self.whole);
        }
        self.position += framed(len) as u64;
        self.positions[self.from].store(self.position, Ordering::Release);
        true
    }
}
