//! Request rings: frames of bytes from one member to all others, each of whom reads at its own pace.
//!
//! A frame is its length (8 bytes) and its bytes, padded to 8; it may wrap around the ring's end. Room is free once the
//! slowest reader has passed it ("ring room").

use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{Bytes, Cursor, Line, Lines, Memory};

/// Bytes of a member's ring.
pub(crate) const RING: usize = 64 << 10;
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

    #[cfg(test)]
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
        let len = unsafe { self.ring.read(at, HEAD, |head| u64::from_le_bytes(head.try_into().expect("eight bytes"))) };
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

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    fn rings(members: usize, ring: usize) -> (Memory, RequestsPlace) {
        let mut cursor = Cursor::default();
        let place = RequestsPlace::new(&mut cursor, members, ring);
        (Memory::anonymous(cursor.end()).expect("memory"), place)
    }

    #[test]
    fn frames_wrap_and_a_full_ring_says_so() {
        let (memory, place) = rings(3, 64);
        let mut writer = RequestWriter::new(&memory, &place, 1);
        let mut readers = [0, 2].map(|me| RequestReader::new(&memory, &place, 1, me));
        assert!(!readers[0].ready() && !readers[0].try_read(|_| panic!("nothing was written")));
        for round in 0..40_u8 {
            // 8 + 24 and 8 + 16 bytes: the second frame of some round lies across the end at every place it can.
            let frames = [vec![round; 17 + usize::from(round % 8)], vec![round; usize::from(round) % 17]];
            for frame in &frames {
                assert!(writer.try_write(frame), "round {round}");
            }
            assert!(!writer.try_write(&[0; 20]), "the ring is nearly full");
            for reader in &mut readers {
                for frame in &frames {
                    assert!(reader.ready());
                    assert!(reader.try_read(|bytes| assert_eq!(bytes, frame)));
                }
                assert!(!reader.ready());
            }
            // New handles go on where the old ones stopped.
            writer = RequestWriter::new(&memory, &place, 1);
            readers = [0, 2].map(|me| RequestReader::new(&memory, &place, 1, me));
        }
    }

    #[test]
    fn the_slowest_reader_counts() {
        let (memory, place) = rings(3, 64);
        let mut writer = RequestWriter::new(&memory, &place, 0);
        let mut readers = [1, 2].map(|me| RequestReader::new(&memory, &place, 0, me));
        assert!(writer.try_write(&[1; 24]) && writer.try_write(&[2; 24]));
        assert!(!writer.try_write(&[3]));
        assert!(readers[0].try_read(|_| ()) && readers[0].try_read(|_| ()));
        assert!(!writer.try_write(&[3]));
        assert!(readers[1].try_read(|bytes| assert_eq!(bytes, [1; 24])));
        assert!(writer.try_write(&[3]));
    }

    #[test]
    fn the_largest_frame_fits_wherever_an_idle_ring_stands() {
        let (memory, place) = rings(2, 64);
        let mut writer = RequestWriter::new(&memory, &place, 0);
        let mut reader = RequestReader::new(&memory, &place, 0, 1);
        assert_eq!(writer.frame_max(), 32);
        for step in 0..50_usize {
            for len in [writer.frame_max(), step % 9] {
                let frame: Vec<_> = (0..len).map(|byte| (byte + step) as u8).collect();
                assert!(writer.try_write(&frame));
                assert!(reader.try_read(|bytes| assert_eq!(bytes, frame)));
            }
        }
        let too_long = std::panic::AssertUnwindSafe(|| writer.try_write(&[0; 33]));
        assert!(std::panic::catch_unwind(too_long).is_err());
    }

    #[test]
    fn a_member_alone_is_never_held_back() {
        let (memory, place) = rings(1, 64);
        let mut writer = RequestWriter::new(&memory, &place, 0);
        assert!((0..20).all(|_| writer.try_write(&[1; 30])));
    }

    #[test]
    #[should_panic(expected = "corrupt")]
    fn a_frame_that_cannot_be_panics() {
        let (memory, place) = rings(2, 64);
        assert!(RequestWriter::new(&memory, &place, 0).try_write(&[1]));
        // SAFETY: one thread.
        unsafe { place.ring(&memory, 0).write(0, &u64::MAX.to_le_bytes()) };
        RequestReader::new(&memory, &place, 0, 1).try_read(|_| ());
    }

    /// Every member writes numbered frames, and reads those of all others, at once.
    #[test]
    fn all_members_at_once() {
        const MEMBERS: usize = 3;
        const FRAMES: usize = 3000;
        let (memory, place) = rings(MEMBERS, 512);
        let expected = |from: usize, frame: usize| {
            let len = (frame * 7919 + from * 31) % 257;
            vec![(frame + from * 3) as u8; len]
        };
        std::thread::scope(|scope| {
            for me in 0..MEMBERS {
                let memory = &memory;
                scope.spawn(move || {
                    let mut writer = RequestWriter::new(memory, &place, me);
                    let mut readers: Vec<_> = (0..MEMBERS)
                        .filter(|from| *from != me)
                        .map(|from| (from, 0, RequestReader::new(memory, &place, from, me)))
                        .collect();
                    let mut written = 0;
                    while written < FRAMES || readers.iter().any(|reader| reader.1 < FRAMES) {
                        let mut moved = written < FRAMES && writer.try_write(&expected(me, written));
                        written += usize::from(moved);
                        for (from, read, reader) in &mut readers {
                            let wanted = expected(*from, *read);
                            if reader.try_read(|bytes| assert_eq!(bytes, wanted)) {
                                *read += 1;
                                moved = true;
                            }
                        }
                        if !moved {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
    }
}

#[cfg(all(test, kolo_loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// "ring room": three frames through a ring of two.
    #[test]
    fn loom_frames_arrive_whole() {
        loom::model(|| {
            let mut cursor = Cursor::default();
            let place = RequestsPlace::new(&mut cursor, 2, 32);
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let mut writer = RequestWriter::new(&memory, &place, 0);
            let writing = thread::spawn(move || {
                for frame in 0..3 {
                    while !writer.try_write(&[frame; 8]) {
                        thread::yield_now();
                    }
                }
            });
            let mut reader = RequestReader::new(&memory, &place, 0, 1);
            for frame in 0..3 {
                while !reader.try_read(|bytes| assert_eq!(bytes, [frame; 8])) {
                    thread::yield_now();
                }
            }
            writing.join().expect("the writer ends");
        });
    }

    /// Two readers, each at its own pace; the ring holds one frame. Nobody waits: every call may come to nothing.
    #[test]
    fn loom_two_readers_hold_the_writer_back() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let mut cursor = Cursor::default();
            let place = RequestsPlace::new(&mut cursor, 3, 16);
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let mut writer = RequestWriter::new(&memory, &place, 0);
            assert!(writer.try_write(&[0]));
            let reading = [1, 2].map(|me| {
                let mut reader = RequestReader::new(&memory, &place, 0, me);
                thread::spawn(move || {
                    assert!(reader.try_read(|bytes| assert_eq!(bytes, [0])));
                    reader.try_read(|bytes| assert_eq!(bytes, [1]));
                })
            });
            writer.try_write(&[1]);
            for thread in reading {
                thread.join().expect("the reader ends");
            }
        });
    }
}
