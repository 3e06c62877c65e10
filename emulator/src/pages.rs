//! Memory between guard pages, filled with a pattern that is no plausible number.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// What fresh memory holds: whoever reads it before writing sees something odd.
pub(crate) const POISON: u8 = 0xA5;

/// How many bytes at the front of fresh memory are filled; to fill gigabytes would take longer than any test.
const POISONED: usize = 4 << 20;

/// Where memory begins: what the driver promises.
const ALIGNMENT: usize = 256;

/// Bytes of a page.
pub(crate) fn page() -> usize {
    // SAFETY: sysconf takes a number and returns one.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// A mapping of a memory file, with a page at both ends that nobody may touch.
pub(crate) struct Pages {
    /// The first guard page.
    start: usize,
    /// Bytes between the guard pages.
    inside: usize,
    /// Where the caller's bytes begin, counted from the end of the first guard page.
    offset: usize,
    bytes: usize,
    file: OwnedFd,
}

impl Pages {
    /// Fresh memory of `bytes` bytes. It ends as close to the second guard page as its alignment allows.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let inside = bytes.checked_next_multiple_of(page()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the name is a text that ends with a zero.
        let file = unsafe { libc::memfd_create(c"kolo-emulator".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: memfd_create has just made it, and nobody else knows it.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        File::from(file.try_clone()?).set_len(inside as u64)?;
        let offset = (inside - bytes) / ALIGNMENT * ALIGNMENT;
        let pages = Self::map(file, inside, offset, bytes)?;
        let filled = inside.min(POISONED);
        // SAFETY: `inside` writable bytes follow the guard page, and nobody knows of them yet.
        unsafe {
            let first = pages.first_byte();
            first.write_bytes(POISON, filled);
            first.add(inside - page().min(inside)).write_bytes(POISON, page().min(inside));
        }
        Ok(pages)
    }

    /// The memory of another process, by its file.
    pub(crate) fn of(file: OwnedFd, inside: usize, offset: usize, bytes: usize) -> io::Result<Self> {
        if offset.checked_add(bytes).is_none_or(|end| end > inside) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::map(file, inside, offset, bytes)
    }

    fn map(file: OwnedFd, inside: usize, offset: usize, bytes: usize) -> io::Result<Self> {
        let whole = inside.checked_add(2 * page()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel chooses a place that is free.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), whole, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pages = Self { start: start as usize, inside, offset, bytes, file };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: what is replaced lies inside the range that was mapped above, which nobody else knows.
        let mapped = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            libc::mmap(pages.first_byte().cast(), inside, access, flags, pages.file.as_raw_fd(), 0)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(pages)
    }

    fn first_byte(&self) -> *mut u8 {
        (self.start + page()) as *mut u8
    }

    /// Where the caller's bytes begin.
    pub(crate) fn base(&self) -> usize {
        self.start + page() + self.offset
    }

    pub(crate) fn inside(&self) -> usize {
        self.inside
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How many bytes before and behind the caller's have been written, up to the guard pages.
    pub(crate) fn strays(&self) -> (usize, usize) {
        let end = self.offset + self.bytes;
        let changed = |from: usize, to: usize| {
            // SAFETY: `from..to` lies between the guard pages. A device that still writes there has been drained before.
            (from..to).filter(|&at| unsafe { self.first_byte().add(at).read_volatile() } != POISON).count()
        };
        (changed(0, self.offset), changed(end, self.inside))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, and whoever drops this has no use for it any more.
        let result = unsafe { libc::munmap(self.start as *mut libc::c_void, self.inside + 2 * page()) };
        assert_eq!(result, 0, "munmap: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_poisoned_and_ends_at_its_guard() {
        for bytes in [1, 255, 256, 1000, page(), page() + 1, 3 * page() - 256] {
            let pages = Pages::new(bytes).unwrap();
            let end = pages.base() + bytes;
            let guard = pages.start + page() + pages.inside;
            assert_eq!(pages.base() % ALIGNMENT, 0);
            assert!(end <= guard && guard - end < ALIGNMENT, "{bytes}");
            // SAFETY: these are the bytes that `Pages` has just mapped.
            assert!((0..bytes).all(|at| unsafe { *(pages.base() as *const u8).add(at) } == POISON));
            assert_eq!(pages.strays(), (0, 0));
        }
    }

    #[test]
    fn strays_are_counted() {
        let pages = Pages::new(1000).unwrap();
        // SAFETY: 1000 bytes leave 24 behind and 3072 before them, inside the mapping.
        unsafe {
            (pages.base() as *mut u8).sub(1).write(0);
            (pages.base() as *mut u8).add(1000).write(1);
            (pages.base() as *mut u8).add(1003).write(1);
        }
        assert_eq!(pages.strays(), (1, 2));
    }

    #[test]
    fn a_file_mapped_twice_is_one_memory() {
        let one = Pages::new(5000).unwrap();
        let file = one.file().try_clone_to_owned().unwrap();
        let two = Pages::of(file, one.inside(), one.offset(), 5000).unwrap();
        // SAFETY: both mappings hold 5000 bytes.
        unsafe {
            (one.base() as *mut u8).add(4999).write(7);
            assert_eq!((two.base() as *const u8).add(4999).read(), 7);
        }
        let file = one.file().try_clone_to_owned().unwrap();
        assert!(Pages::of(file, one.inside(), one.offset(), one.inside() + 1).is_err());
    }
}
