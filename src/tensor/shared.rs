//! Buffers in memory that every rank of the host has mapped.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use super::Element;
use crate::error::{Error, Result};
use crate::os::memory::Mapping;

/// Buffers start at multiples of this: whole cache lines, so that no two ranks write one.
const ALIGN: usize = 64;

/// One rank's part of the memory that the host's ranks reserved for `kolo.alloc`.
#[derive(Debug)]
pub(crate) struct Reserve {
    mapping: Arc<Mapping>,
    /// Bytes of this rank's part.
    len: usize,
    /// Free pieces as (offset in the mapping, bytes), ascending, no two adjacent.
    free: Mutex<Vec<(usize, usize)>>,
}

impl Reserve {
    /// The part of `len` bytes from `start`, which no other rank allocates from.
    pub(crate) fn new(mapping: Arc<Mapping>, start: usize, len: usize) -> Self {
        assert!(start <= mapping.len() && len <= mapping.len() - start && start.is_multiple_of(ALIGN));
        let len = len / ALIGN * ALIGN;
        let free = if len == 0 { Vec::new() } else { vec![(start, len)] };
        Self { mapping, len, free: Mutex::new(free) }
    }

    /// The first piece that fits, as an offset in the mapping.
    fn take(&self, bytes: usize) -> Result<usize> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let rounded = bytes.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        let Some(index) = free.iter().position(|&(_, len)| len >= rounded) else {
            let left: usize = free.iter().map(|&(_, len)| len).sum();
            let largest = free.iter().map(|&(_, len)| len).max().unwrap_or(0);
            return Err(Error::argument(format!(
                "kolo.alloc: {bytes} bytes do not fit the reserve of shared memory: {left} of {} bytes are left, \
                 {largest} in one piece; set KOLO_SHARED_RESERVE higher on every rank, drop buffers that are no \
                 longer used, or use ordinary memory here",
                self.len
            )));
        };
        let (start, len) = free[index];
        if len == rounded {
            free.remove(index);
        } else {
            free[index] = (start + rounded, len - rounded);
        }
        Ok(start)
    }

    fn give_back(&self, start: usize, bytes: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut len = bytes.next_multiple_of(ALIGN);
        let mut index = free.partition_point(|&(other, _)| other < start);
        if free.get(index).is_some_and(|&(next, _)| next == start + len) {
            len += free.remove(index).1;
        }
        if index > 0 && free[index - 1].0 + free[index - 1].1 == start {
            index -= 1;
            free[index].1 += len;
        } else {
            free.insert(index, (start, len));
        }
    }

    /// Bytes that are not allocated.
    #[cfg(test)]
    pub(crate) fn left(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|&(_, len)| len).sum()
    }
}

/// Elements in memory that all ranks of the host have mapped: operations on it copy less.
///
/// It behaves like a boxed slice. While an operation is in flight the operation's handle owns the buffer, so that no
/// slice of it exists while a peer may write there. From `Kolo::alloc`, zeroed; dropping it gives the memory back to
/// the reserve, also after the job has ended.
pub struct SharedBuffer<T: Element> {
    reserve: Arc<Reserve>,
    /// In the host's mapping; 0 and unused when there are no elements.
    offset: usize,
    count: usize,
    elements: PhantomData<T>,
}

// SAFETY: the buffer is the only way to its bytes in this process, like a Box<[T]>, and elements are plain data.
unsafe impl<T: Element> Send for SharedBuffer<T> {}
// SAFETY: a shared buffer only gives shared slices.
unsafe impl<T: Element> Sync for SharedBuffer<T> {}

impl<T: Element> SharedBuffer<T> {
    /// `count` zeroed elements.
    pub(crate) fn new(reserve: &Arc<Reserve>, count: usize) -> Result<Self> {
        let bytes = count.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::argument(format!("kolo.alloc: {count} elements of {} are more than memory can hold", T::DTYPE))
        })?;
        let offset = if bytes == 0 { 0 } else { reserve.take(bytes)? };
        let buffer = Self { reserve: Arc::clone(reserve), offset, count, elements: PhantomData };
        if bytes > 0 {
            // SAFETY: `take` gave these bytes of the mapping to nobody else. Peers touch them only during operations.
            unsafe { buffer.ptr().cast::<u8>().write_bytes(0, bytes) };
        }
        Ok(buffer)
    }

    /// The first element, or a dangling pointer if there is none.
    pub(crate) fn ptr(&self) -> *mut T {
        if self.count == 0 {
            return std::ptr::NonNull::dangling().as_ptr();
        }
        // SAFETY: the offset lies inside the mapping that `reserve` keeps.
        unsafe { self.reserve.mapping.ptr().add(self.offset).cast() }
    }

    #[cfg(test)]
    /// Where the buffer starts in the memory that the host's ranks share: the same bytes in every rank's mapping.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }
}

impl<T: Element> Deref for SharedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `count` elements at an aligned address that nobody writes while this borrow lives: an operation that
        // could needs the buffer itself, or a mutable borrow. They are zero at first, and only elements are written later.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.count) }
    }
}

impl<T: Element> DerefMut for SharedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.count) }
    }
}

impl<T: Element> Drop for SharedBuffer<T> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.reserve.give_back(self.offset, self.count * size_of::<T>());
        }
    }
}

impl<T: Element> fmt::Debug for SharedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reserve(bytes: usize) -> Arc<Reserve> {
        let mapping = Arc::new(Mapping::anonymous(bytes * 2).expect("memory"));
        Arc::new(Reserve::new(mapping, bytes, bytes))
    }

    #[test]
    fn buffers_are_zeroed_aligned_and_apart() {
        let reserve = reserve(4096);
        let mut a = SharedBuffer::<f32>::new(&reserve, 10).expect("room");
        let mut b = SharedBuffer::<u8>::new(&reserve, 1).expect("room");
        assert!(a.iter().all(|x| *x == 0.0));
        a.fill(1.0);
        b[0] = 9;
        assert!(a.iter().all(|x| *x == 1.0) && b[0] == 9);
        assert_eq!((a.as_ptr() as usize % ALIGN, b.as_ptr() as usize % ALIGN), (0, 0));
        assert_eq!(a.offset(), 4096);
        drop(a);
        let again = SharedBuffer::<f32>::new(&reserve, 10).expect("room");
        assert!(again.iter().all(|x| *x == 0.0), "what was there before is gone");
        assert_eq!(SharedBuffer::<f64>::new(&reserve, 0).expect("nothing").len(), 0);
    }

    #[test]
    fn a_full_reserve_says_what_is_left_and_which_knob_helps() {
        let reserve = reserve(4096);
        let held = SharedBuffer::<u8>::new(&reserve, 4000).expect("room");
        let text = SharedBuffer::<u8>::new(&reserve, 65).expect_err("full").to_string();
        assert!(text.contains("64 of 4096 bytes are left") && text.contains("KOLO_SHARED_RESERVE"), "{text}");
        assert!(SharedBuffer::<f64>::new(&reserve, usize::MAX).is_err());
        assert!(SharedBuffer::<u8>::new(&reserve, usize::MAX).is_err());
        drop(held);
        assert_eq!(reserve.left(), 4096);
    }

    proptest! {
        #[test]
        fn memory_is_never_given_twice_and_always_comes_back(steps in prop::collection::vec((0_usize..700, any::<prop::sample::Index>()), 1..80)) {
            let reserve = reserve(8192);
            let mut held: Vec<(SharedBuffer<u8>, u8)> = Vec::new();
            for (number, (bytes, victim)) in steps.into_iter().enumerate() {
                let mark = number as u8;
                match SharedBuffer::<u8>::new(&reserve, bytes) {
                    Ok(mut buffer) => {
                        buffer.fill(mark);
                        held.push((buffer, mark));
                    }
                    Err(_) => drop(held.swap_remove(victim.index(held.len()))),
                }
                for (buffer, mark) in &held {
                    prop_assert!(buffer.iter().all(|byte| byte == mark));
                }
            }
            held.clear();
            prop_assert_eq!(reserve.free.lock().expect("no panic").clone(), vec![(8192, 8192)]);
        }
    }
}
