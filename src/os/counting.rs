//! For tests: how much memory a piece of work takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has taken and not given back since `peak` began, and the most of them at a time.
    static TAKEN: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, which counts for each thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: isize) {
    // A thread that is being taken down has no such storage any more, and nobody asks for its count.
    let _ = TAKEN.try_with(|taken| {
        let (now, most) = taken.get();
        let now = now.saturating_add(bytes);
        taken.set((now, most.max(now)));
    });
}

// SAFETY: every call is handed on to the system's allocator as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    /// # Safety
    /// As [`GlobalAlloc::alloc`].
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`, which is that of the system's.
        unsafe { System.alloc(layout) }
    }

    /// # Safety
    /// As [`GlobalAlloc::dealloc`].
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as above; the memory came from the system's allocator.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Does the work; returns the most bytes that it held at a time, beyond what it found.
pub(crate) fn peak<R>(work: impl FnOnce() -> R) -> (R, usize) {
    TAKEN.with(|taken| taken.set((0, 0)));
    let result = work();
    let (_, most) = TAKEN.with(Cell::get);
    (result, most.max(0).unsigned_abs())
}

/// Reads `bytes` with `parse`, which must not take more memory than bytes of that number can ask for.
///
/// # Panics
/// If it does.
pub(crate) fn frugal<R>(bytes: &[u8], parse: impl FnOnce() -> R) -> R {
    let (result, most) = peak(parse);
    let allowed = (64 << 10) + 64 * bytes.len();
    assert!(most <= allowed, "{} bytes made it take {most} bytes of memory; {allowed} would do", bytes.len());
    result
}

#[test]
fn what_is_taken_is_counted_at_its_peak() {
    let (sum, most) = peak(|| {
        let first = vec![1_u8; 10_000];
        drop(first);
        let second = vec![1_u8; 3_000];
        second.len()
    });
    assert_eq!(sum, 3_000);
    assert!((10_000..20_000).contains(&most), "{most}");
    let zeroed = peak(|| vec![0_u64; 5000]).1;
    assert!(zeroed >= 40_000, "{zeroed}");
}
