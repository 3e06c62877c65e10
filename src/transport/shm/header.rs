//! The first block of every shared area: what it is, and of which job.

use crate::error::{Error, Result};
use crate::os::sync::{AtomicU64, Ordering};

use super::memory::{Cursor, Line, Lines, Memory};

/// "kolo" and the version of everything that lies in shared memory. Change the version with any layout or meaning.
const MAGIC: u64 = u64::from_be_bytes(*b"kolo\0\0\0\x01");

/// What an area belongs to. The one who made the memory writes it; everyone else checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) job: u128,
    pub(crate) epoch: u64,
    /// The set of an arena; zero for the control area.
    pub(crate) set: u64,
}

#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct HeaderLine {
    /// Zero until the rest is written.
    magic: AtomicU64,
    /// A digest of the parameters of the layout.
    shape: AtomicU64,
    job: [AtomicU64; 2],
    epoch: AtomicU64,
    set: AtomicU64,
}

// SAFETY: atomics only.
unsafe impl Line for HeaderLine {}

#[derive(Clone, Debug)]
pub(crate) struct Header {
    line: Lines<HeaderLine>,
    shape: u64,
}

impl Header {
    pub(crate) fn place(cursor: &mut Cursor) -> usize {
        cursor.lines::<HeaderLine>(1)
    }

    pub(crate) fn new(memory: &Memory, offset: usize, shape: u64) -> Self {
        Self { line: memory.lines(offset, 1), shape }
    }

    /// Called once, by whoever made the memory, before the others learn of it.
    pub(crate) fn stamp(&self, stamp: &Stamp) {
        let line = &self.line[0];
        line.shape.store(self.shape, Ordering::Relaxed);
        line.job[0].store(stamp.job as u64, Ordering::Relaxed);
        line.job[1].store((stamp.job >> 64) as u64, Ordering::Relaxed);
        line.epoch.store(stamp.epoch, Ordering::Relaxed);
        line.set.store(stamp.set, Ordering::Relaxed);
        line.magic.store(MAGIC, Ordering::Release);
    }

    /// Checks that this is the area that the caller means, and that it was really shared with its maker.
    pub(crate) fn verify(&self, stamp: &Stamp) -> Result<()> {
        let line = &self.line[0];
        let magic = line.magic.load(Ordering::Acquire);
        if magic == 0 {
            return Err(unfit(
                "the memory that this rank mapped is not the memory that its host shares \
                (it is empty); are the ranks in containers that do not share memory?",
            ));
        }
        if magic != MAGIC {
            return Err(unfit(format!(
                "the shared memory holds layout {magic:#x}, and this build expects {MAGIC:#x}; all ranks must \
                 run the same build"
            )));
        }
        let shape = line.shape.load(Ordering::Relaxed);
        if shape != self.shape {
            return Err(unfit(
                "the ranks disagree about the layout of their shared memory; all ranks must run the same build \
                 with the same settings",
            ));
        }
        let found = Stamp {
            job: u128::from(line.job[0].load(Ordering::Relaxed))
                | u128::from(line.job[1].load(Ordering::Relaxed)) << 64,
            epoch: line.epoch.load(Ordering::Relaxed),
            set: line.set.load(Ordering::Relaxed),
        };
        if found != *stamp {
            return Err(unfit(format!(
                "the shared memory belongs to job {:x}, epoch {}, set {}, and this rank to job {:x}, epoch {}, \
                 set {}",
                found.job, found.epoch, found.set, stamp.job, stamp.epoch, stamp.set
            )));
        }
        Ok(())
    }
}

fn unfit(text: impl Into<String>) -> Error {
    Error::system(text, std::io::Error::from(std::io::ErrorKind::InvalidData))
}

/// A digest of small numbers: equal layouts have equal digests, and others differ but for bad luck.
pub(crate) fn digest(numbers: &[usize]) -> u64 {
    // FNV-1a over the bytes.
    numbers
        .iter()
        .flat_map(|number| (*number as u64).to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { job: 7 << 64 | 9, epoch: 1, set: 2 };

    fn header(memory: &Memory, shape: u64) -> Header {
        Header::new(memory, 0, shape)
    }

    #[test]
    fn a_stamp_is_found_again_and_anything_else_is_told() {
        let memory = Memory::anonymous(4096).expect("memory");
        let empty = header(&memory, 5).verify(&STAMP).expect_err("nothing was stamped");
        assert!(empty.to_string().contains("containers"), "{empty}");
        header(&memory, 5).stamp(&STAMP);
        header(&memory, 5).verify(&STAMP).expect("the same");
        let shape = header(&memory, 6).verify(&STAMP).expect_err("another shape");
        assert!(shape.to_string().contains("same settings"), "{shape}");
        for other in [
            Stamp { job: 7 << 64 | 8, ..STAMP },
            Stamp { job: 9, ..STAMP },
            Stamp { epoch: 2, ..STAMP },
            Stamp { set: 3, ..STAMP },
        ] {
            let error = header(&memory, 5).verify(&other).expect_err("another stamp");
            assert!(error.to_string().contains("belongs to job"), "{error}");
        }
    }

    #[test]
    fn another_layout_version_is_told() {
        let memory = Memory::anonymous(4096).expect("memory");
        header(&memory, 5).line[0].magic.store(MAGIC + 1, Ordering::Release);
        let error = header(&memory, 5).verify(&STAMP).expect_err("another version");
        assert!(error.to_string().contains("same build"), "{error}");
    }

    #[test]
    fn digests_differ() {
        assert_ne!(digest(&[1, 2]), digest(&[2, 1]));
        assert_ne!(digest(&[0]), digest(&[0, 0]));
    }
}
