//! Why a member gave up: a text that it writes once, for whoever finds that it has.

use crate::os::sync::{AtomicU32, Ordering};

use super::failure::cut;
use super::memory::{BLOCK, Bytes, Cursor, Line, Lines, Memory};

/// Bytes of a text at most.
const TEXT: usize = 1024;

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct Length {
    /// Zero until the text is there.
    bytes: AtomicU32,
}

// SAFETY: atomics only.
unsafe impl Line for Length {}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ReasonsPlace {
    lengths: usize,
    texts: usize,
}

impl ReasonsPlace {
    pub(crate) fn new(cursor: &mut Cursor, members: usize) -> Self {
        Self { lengths: cursor.lines::<Length>(members), texts: cursor.bytes(members * TEXT) }
    }
}

/// "Giving up": the reasons.
#[derive(Clone, Debug)]
pub(crate) struct Reasons {
    lengths: Lines<Length>,
    texts: Vec<Bytes>,
}

impl Reasons {
    pub(crate) fn new(memory: &Memory, place: ReasonsPlace, members: usize) -> Self {
        const _: () = assert!(TEXT.is_multiple_of(BLOCK));
        Self {
            lengths: memory.lines(place.lengths, members),
            texts: (0..members).map(|member| memory.bytes(place.texts + member * TEXT, TEXT)).collect(),
        }
    }

    /// See [`super::Arena::leave_reason`].
    pub(crate) fn write(&self, me: usize, reason: &str) {
        let reason = cut(reason, TEXT);
        let length = &self.lengths[me].bytes;
        if reason.is_empty() || length.load(Ordering::Relaxed) != 0 {
            return;
        }
        // SAFETY: a member writes its text once, in one thread, and nobody reads it before its length is there.
        unsafe { self.texts[me].write(0, reason.as_bytes()) };
        // Release: whoever sees the length sees the text.
        length.store(reason.len() as u32, Ordering::Release);
    }

    /// See [`super::Arena::reason`].
    pub(crate) fn read(&self, member: usize) -> Option<String> {
        let length = (self.lengths[member].bytes.load(Ordering::Acquire) as usize).min(TEXT);
        if length == 0 {
            return None;
        }
        // SAFETY: the length is there (acquire), so the text is written, and it is not written again.
        Some(unsafe { self.texts[member].read(0, length, |bytes| String::from_utf8_lossy(bytes).into_owned()) })
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_written_once_and_cut_between_characters() {
        let mut cursor = Cursor::default();
        let place = ReasonsPlace::new(&mut cursor, 2);
        let memory = Memory::anonymous(cursor.end()).expect("memory");
        let [mine, theirs] = [(); 2].map(|()| Reasons::new(&memory, place, 2));
        mine.write(1, "");
        assert_eq!(theirs.read(1), None);
        let long = format!("x{}", "ü".repeat(TEXT));
        mine.write(1, &long);
        mine.write(1, "later");
        assert_eq!(theirs.read(1).as_deref(), Some(&long[..TEXT - 1]));
        assert_eq!(theirs.read(0), None);
    }
}

#[cfg(all(test, kolo_loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// "giving up": whoever finds a reason finds all of it.
    #[test]
    fn loom_a_reason_is_whole() {
        loom::model(|| {
            let mut cursor = Cursor::default();
            let place = ReasonsPlace::new(&mut cursor, 2);
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let reasons = Reasons::new(&memory, place, 2);
            let other = reasons.clone();
            let writer = thread::spawn(move || other.write(0, "why"));
            assert!(reasons.read(0).is_none_or(|reason| reason == "why"));
            writer.join().expect("ends");
            assert_eq!(reasons.read(0).as_deref(), Some("why"));
        });
    }
}
