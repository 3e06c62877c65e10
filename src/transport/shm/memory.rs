//! Mapped memory, carved into lines of atomics and ranges of bytes.
//!
//! This file is all that knows where a line lies. Under loom the same calls hand out loom's values, made once for each
//! place and found again by it, and byte ranges that tell loom of every access; the protocols above do not differ.

use crate::error::Result;
use crate::os::memory::Mapping;

#[cfg(kolo_loom)]
pub(crate) use modelled::{Bytes, Lines, Memory};
#[cfg(not(kolo_loom))]
pub(crate) use real::{Bytes, Lines, Memory};

/// A block that one member writes and others poll: two cache lines, because processors fetch lines in pairs.
pub(crate) const BLOCK: usize = 128;

/// Slots start on a page of their own. (Loom watches every byte, and is given fewer.)
pub(crate) const PAGE: usize = if cfg!(kolo_loom) { 128 } else { 4096 };

/// A fixed arrangement of atomics that may lie in shared memory.
///
/// # Safety
/// Every byte pattern, zeros above all, is a valid value; all fields are atomics; nothing runs on drop. (Under loom the
/// values are made by `Default` instead.)
pub(crate) unsafe trait Line: Default + Send + Sync + 'static {}

// SAFETY: an atomic integer takes any bytes and has no drop.
unsafe impl Line for crate::os::sync::AtomicU32 {}
// SAFETY: as above.
unsafe impl Line for crate::os::sync::AtomicU64 {}

/// Hands out consecutive places of a layout, from which its size and the places of its parts are taken alike.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    at: usize,
}

impl Cursor {
    /// `len` bytes aligned to `align`, a power of two.
    pub(crate) fn take(&mut self, len: usize, align: usize) -> usize {
        let start = self.at.next_multiple_of(align);
        self.at = start.checked_add(len).expect("a layout fits the address space");
        start
    }

    /// `count` lines of `T`, which share no block with what comes before or after.
    pub(crate) fn lines<T: Line>(&mut self, count: usize) -> usize {
        let start = self.take(size_of::<T>() * count, BLOCK);
        self.at = self.at.next_multiple_of(BLOCK);
        start
    }

    /// `len` bytes in blocks of their own.
    pub(crate) fn bytes(&mut self, len: usize) -> usize {
        let start = self.take(len, BLOCK);
        self.at = self.at.next_multiple_of(BLOCK);
        start
    }

    pub(crate) fn end(&self) -> usize {
        self.at
    }
}

#[cfg(not(kolo_loom))]
mod real {
    use std::ops::Deref;
    use std::ptr::NonNull;
    use std::slice;
    use std::sync::Arc;

    use super::{BLOCK, Line, Mapping};

    /// A part of a mapping, which it keeps mapped. Zero at first.
    #[derive(Clone, Debug)]
    pub(crate) struct Memory {
        mapping: Arc<Mapping>,
        offset: usize,
        len: usize,
    }

    impl Memory {
        /// New memory of this process alone.
        #[cfg(test)]
        pub(crate) fn anonymous(len: usize) -> super::Result<Self> {
            Ok(Self::new(Arc::new(Mapping::anonymous(len)?)))
        }

        /// All of a mapping.
        pub(crate) fn new(mapping: Arc<Mapping>) -> Self {
            let len = mapping.len();
            Self { mapping, offset: 0, len }
        }

        /// The part from byte `offset`, which must be a multiple of 128.
        pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
            self.check(offset, len, BLOCK);
            Self { mapping: Arc::clone(&self.mapping), offset: self.offset + offset, len }
        }

        pub(crate) fn len(&self) -> usize {
            self.len
        }

        /// Enters a part into this process's page table; see [`Mapping::populate`].
        pub(crate) fn populate(&self, offset: usize, len: usize) -> super::Result<()> {
            self.check(offset, len, 1);
            self.mapping.populate(self.offset + offset, len)
        }

        fn check(&self, offset: usize, len: usize, align: usize) {
            assert!(
                offset <= self.len && len <= self.len - offset && (self.offset + offset).is_multiple_of(align),
                "{offset}+{len} (aligned to {align}) of {} bytes of shared memory",
                self.len
            );
        }

        fn at(&self, offset: usize) -> NonNull<u8> {
            // SAFETY: the callers checked that the offset lies inside the mapping, which starts above address zero.
            unsafe { NonNull::new_unchecked(self.mapping.ptr().add(self.offset + offset)) }
        }

        /// The `count` lines at `offset`.
        pub(crate) fn lines<T: Line>(&self, offset: usize, count: usize) -> Lines<T> {
            let len = size_of::<T>().checked_mul(count).expect("a count of lines");
            self.check(offset, len, align_of::<T>());
            Lines { first: self.at(offset).cast(), count, _keep: Arc::clone(&self.mapping) }
        }

        /// The bytes at `offset`.
        pub(crate) fn bytes(&self, offset: usize, len: usize) -> Bytes {
            self.check(offset, len, 1);
            Bytes { first: self.at(offset), len, _keep: Arc::clone(&self.mapping) }
        }
    }

    /// Lines of atomics in shared memory.
    #[derive(Debug)]
    pub(crate) struct Lines<T> {
        first: NonNull<T>,
        count: usize,
        _keep: Arc<Mapping>,
    }

    impl<T> Clone for Lines<T> {
        fn clone(&self) -> Self {
            Self { first: self.first, count: self.count, _keep: Arc::clone(&self._keep) }
        }
    }

    // SAFETY: a Lines is a shared reference to values that are Sync (Line demands it), with its memory kept alive.
    unsafe impl<T: Line> Send for Lines<T> {}
    // SAFETY: as above.
    unsafe impl<T: Line> Sync for Lines<T> {}

    impl<T: Line> Deref for Lines<T> {
        type Target = [T];

        #[inline]
        fn deref(&self) -> &[T] {
            // SAFETY: the range was checked, is aligned and mapped while `_keep` lives; a Line is valid for any bytes
            // and made of atomics, so that a shared reference allows what other processes write.
            unsafe { slice::from_raw_parts(self.first.as_ptr(), self.count) }
        }
    }

    /// Bytes in shared memory that a protocol gives to one writer or to readers at a time.
    #[derive(Clone, Debug)]
    pub(crate) struct Bytes {
        first: NonNull<u8>,
        len: usize,
        _keep: Arc<Mapping>,
    }

    // SAFETY: a Bytes is an address range, kept mapped; the protocols say who may touch it when.
    unsafe impl Send for Bytes {}
    // SAFETY: as above.
    unsafe impl Sync for Bytes {}

    impl Bytes {
        pub(crate) fn len(&self) -> usize {
            self.len
        }

        pub(crate) fn ptr(&self) -> *mut u8 {
            self.first.as_ptr()
        }

        /// Copies `data` to byte `at`.
        ///
        /// # Safety
        /// Nobody else reads or writes these bytes meanwhile.
        #[inline]
        pub(crate) unsafe fn write(&self, at: usize, data: &[u8]) {
            assert!(at <= self.len && data.len() <= self.len - at, "{at}+{} of {}", data.len(), self.len);
            // SAFETY: the range lies inside (checked); `data` is a Rust slice, which cannot lie in a range that only
            // the caller may touch; the caller keeps everyone else away.
            unsafe { self.ptr().add(at).copy_from_nonoverlapping(data.as_ptr(), data.len()) }
        }

        /// Lends the `len` bytes at `at` to `look`.
        ///
        /// # Safety
        /// Nobody writes these bytes meanwhile.
        #[inline]
        pub(crate) unsafe fn read<R>(&self, at: usize, len: usize, look: impl FnOnce(&[u8]) -> R) -> R {
            assert!(at <= self.len && len <= self.len - at, "{at}+{len} of {}", self.len);
            // SAFETY: the range lies inside (checked) and nobody writes it until `look` returns.
            look(unsafe { slice::from_raw_parts(self.ptr().add(at), len) })
        }
    }
}

/// Memory for loom: lines are loom's values, bytes lie in the real mapping with loom watching who touches them.
#[cfg(kolo_loom)]
mod modelled {
    use std::any::Any;
    use std::collections::BTreeMap;
    use std::ops::Deref;
    use std::slice;
    use std::sync::{Arc, Mutex, PoisonError};

    use loom::cell::UnsafeCell;

    use super::{BLOCK, Line, Mapping};

    /// Accesses are told apart in pieces of this many bytes.
    const GRAIN: usize = 8;

    type Made = BTreeMap<(usize, bool), Arc<dyn Any + Send + Sync>>;

    #[derive(Clone, Debug)]
    pub(crate) struct Memory {
        mapping: Arc<Mapping>,
        /// What was handed out, by offset in the mapping, so that every member of the model meets on it.
        made: Arc<Mutex<Made>>,
        offset: usize,
        len: usize,
    }

    impl Memory {
        pub(crate) fn anonymous(len: usize) -> super::Result<Self> {
            Ok(Self::new(Arc::new(Mapping::anonymous(len)?)))
        }

        pub(crate) fn new(mapping: Arc<Mapping>) -> Self {
            let len = mapping.len();
            Self { mapping, made: Arc::default(), offset: 0, len }
        }

        pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
            self.check(offset, len, BLOCK);
            Self { offset: self.offset + offset, len, ..self.clone() }
        }

        pub(crate) fn len(&self) -> usize {
            self.len
        }

        pub(crate) fn mapping(&self) -> &Arc<Mapping> {
            &self.mapping
        }

        pub(crate) fn populate(&self, offset: usize, len: usize) -> super::Result<()> {
            self.check(offset, len, 1);
            Ok(())
        }

        fn check(&self, offset: usize, len: usize, align: usize) {
            assert!(
                offset <= self.len && len <= self.len - offset && (self.offset + offset).is_multiple_of(align),
                "{offset}+{len} (aligned to {align}) of {} bytes of shared memory",
                self.len
            );
        }

        fn find<T: Send + Sync + 'static>(
            &self,
            offset: usize,
            bytes: bool,
            make: impl FnOnce() -> Vec<T>,
        ) -> Arc<Vec<T>> {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            let found = made.entry((self.offset + offset, bytes)).or_insert_with(|| Arc::new(make()));
            Arc::clone(found).downcast().expect("one type for a place")
        }

        pub(crate) fn lines<T: Line>(&self, offset: usize, count: usize) -> Lines<T> {
            // Loom's atomics are larger than the real ones: the layout is checked where they are real.
            self.check(offset, 0, 1);
            let lines = self.find(offset, false, || (0..count).map(|_| T::default()).collect());
            assert_eq!(lines.len(), count, "one count for a place");
            Lines { lines }
        }

        pub(crate) fn bytes(&self, offset: usize, len: usize) -> Bytes {
            self.check(offset, len, 1);
            let grains =
                self.find(offset, true, || (0..len.div_ceil(GRAIN)).map(|_| Grain(UnsafeCell::new(()))).collect());
            assert_eq!(grains.len(), len.div_ceil(GRAIN), "one length for a place");
            Bytes { memory: self.part_unaligned(offset, len), grains }
        }

        fn part_unaligned(&self, offset: usize, len: usize) -> Self {
            Self { offset: self.offset + offset, len, ..self.clone() }
        }
    }

    #[derive(Debug)]
    pub(crate) struct Lines<T> {
        lines: Arc<Vec<T>>,
    }

    impl<T> Clone for Lines<T> {
        fn clone(&self) -> Self {
            Self { lines: Arc::clone(&self.lines) }
        }
    }

    impl<T: Line> Deref for Lines<T> {
        type Target = [T];

        fn deref(&self) -> &[T] {
            &self.lines
        }
    }

    #[derive(Debug)]
    struct Grain(UnsafeCell<()>);

    // SAFETY: the cell holds nothing; loom itself reports accesses that are not ordered.
    unsafe impl Sync for Grain {}

    #[derive(Clone, Debug)]
    pub(crate) struct Bytes {
        memory: Memory,
        grains: Arc<Vec<Grain>>,
    }

    impl Bytes {
        pub(crate) fn len(&self) -> usize {
            self.memory.len
        }

        pub(crate) fn ptr(&self) -> *mut u8 {
            self.memory.mapping.ptr().wrapping_add(self.memory.offset)
        }

        fn touched(&self, at: usize, len: usize) -> &[Grain] {
            assert!(at <= self.len() && len <= self.len() - at, "{at}+{len} of {}", self.len());
            if len == 0 { &[] } else { &self.grains[at / GRAIN..(at + len).div_ceil(GRAIN)] }
        }

        /// # Safety
        /// Nobody else reads or writes these bytes meanwhile: loom checks it.
        pub(crate) unsafe fn write(&self, at: usize, data: &[u8]) {
            for grain in self.touched(at, data.len()) {
                grain.0.with_mut(|_| ());
            }
            // SAFETY: inside the mapping; loom runs one thread at a time.
            unsafe { self.ptr().add(at).copy_from_nonoverlapping(data.as_ptr(), data.len()) }
        }

        /// # Safety
        /// Nobody writes these bytes meanwhile: loom checks it.
        pub(crate) unsafe fn read<R>(&self, at: usize, len: usize, look: impl FnOnce(&[u8]) -> R) -> R {
            for grain in self.touched(at, len) {
                grain.0.with(|_| ());
            }
            // SAFETY: inside the mapping; loom runs one thread at a time, and switches at the atomics only.
            look(unsafe { slice::from_raw_parts(self.ptr().add(at), len) })
        }
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;
    use crate::os::sync::{AtomicU64, Ordering};

    #[test]
    fn places_do_not_overlap_and_lines_have_blocks_of_their_own() {
        let mut cursor = Cursor::default();
        let a = cursor.lines::<AtomicU64>(3);
        let b = cursor.lines::<AtomicU64>(17);
        let c = cursor.bytes(1);
        let d = cursor.take(10, PAGE);
        assert_eq!((a, b, c, d, cursor.end()), (0, 128, 384, 4096, 4106));
    }

    #[test]
    fn parts_and_lines_meet_in_the_same_memory() {
        let memory = Memory::anonymous(2 * PAGE).expect("memory");
        let part = memory.part(PAGE, 256);
        let here = part.lines::<AtomicU64>(128, 2);
        let there = memory.lines::<AtomicU64>(PAGE + 128, 2).clone();
        here[1].store(5, Ordering::Relaxed);
        assert_eq!(there[1].load(Ordering::Relaxed), 5);
        let bytes = memory.bytes(PAGE + 136, 8);
        // SAFETY: one thread.
        assert_eq!(unsafe { bytes.read(0, 8, |bytes| bytes.to_vec()) }, 5_u64.to_ne_bytes());
        // SAFETY: one thread.
        unsafe { bytes.write(7, &[1]) };
        assert_eq!(here[1].load(Ordering::Relaxed), u64::from_ne_bytes([5, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!((part.len(), bytes.len(), memory.len()), (256, 8, 2 * PAGE));
        part.populate(0, 256).expect("populated");
    }

    #[test]
    fn what_lies_outside_panics() {
        let memory = Memory::anonymous(PAGE).expect("memory");
        let outside: [&dyn Fn(); 6] = [
            &|| drop(memory.part(0, PAGE + 1)),
            &|| drop(memory.part(64, 64)),
            &|| drop(memory.lines::<AtomicU64>(PAGE - 8, 2)),
            &|| drop(memory.lines::<AtomicU64>(4, 1)),
            &|| drop(memory.bytes(PAGE, 1)),
            // SAFETY: it panics before it writes.
            &|| unsafe { memory.bytes(0, 8).write(1, &[0; 8]) },
        ];
        for (number, call) in outside.iter().enumerate() {
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err(), "call {number}");
        }
    }
}
