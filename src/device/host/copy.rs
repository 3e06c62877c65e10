//! Plain copies of host memory: the library's `memcpy`, except where that is known to be slow.
//!
//! On AMD's Zen 3 and Zen 4, `rep movsb` slows down several times over when source and destination begin at nearly the
//! same offset within a page, which is what large allocations and slots do. Older C libraries take it for everything
//! between 2 KiB and the size of a cache. A loop of vector loads and stores has no such case. `docs/performance.md` has
//! the figures.
//!
//! [`copy_streaming`] stores past the caches: for what another core reads that shares none with this one.

/// Bytes below which nobody's `memcpy` uses `rep movsb`.
#[cfg(target_arch = "x86_64")]
const SHORT: usize = 1024;

/// Copies `len` bytes.
///
/// # Safety
/// For the whole call, `src` is readable and `dst` writable for `len` bytes, nobody else writes `src` or touches `dst`, and
/// the two do not overlap.
#[inline]
pub(crate) unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { copy_either::<false>(src, dst, len) }
}

/// Whether [`copy_streaming`] does what it says on this processor. Elsewhere it is not known to pay.
pub(crate) fn can_stream() -> bool {
    #[cfg(target_arch = "x86_64")]
    return by_vectors();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Copies `len` bytes past the caches, where [`can_stream`] and there are enough of them. They are visible to whoever
/// sees what this thread releases afterwards.
///
/// # Safety
/// As [`copy`].
pub(crate) unsafe fn copy_streaming(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { copy_either::<true>(src, dst, len) }
}

/// # Safety
/// As [`copy`].
#[inline]
unsafe fn copy_either<const STREAMING: bool>(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= SHORT && by_vectors() {
        // SAFETY: the caller's promise, `SHORT` is more than one step, and the processor has AVX.
        return unsafe { vectors::<STREAMING>(src, dst, len) };
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(src, dst, len) }
}

/// Whether this processor is one whose `rep movsb` is to be kept away from, and has what the loop needs.
#[cfg(target_arch = "x86_64")]
fn by_vectors() -> bool {
    use std::sync::OnceLock;

    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| is_x86_feature_detected!("avx") && vendor() == *b"AuthenticAMD")
}

/// The twelve characters that a processor calls its maker by.
#[cfg(target_arch = "x86_64")]
fn vendor() -> [u8; 12] {
    // SAFETY: every x86-64 processor has the instruction, and this leaf.
    #[allow(unused_unsafe, reason = "newer compilers know that it is safe")]
    let leaf = unsafe { std::arch::x86_64::__cpuid(0) };
    let mut name = [0; 12];
    for (to, from) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    name
}

/// Four vectors a step, stores aligned to a vector and past the caches if they are `STREAMING`; head and tail overlap
/// the steps.
///
/// # Safety
/// As [`copy`], with `len >= 128`, on a processor with AVX.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn vectors<const STREAMING: bool>(src: *const u8, dst: *mut u8, len: usize) {
    use std::arch::x86_64::{
        __m256i, _mm_sfence, _mm256_loadu_si256, _mm256_store_si256, _mm256_storeu_si256, _mm256_stream_si256,
    };

    const VECTOR: usize = 32;
    const STEP: usize = 4 * VECTOR;
    // SAFETY: every load and store below lies within the `len` bytes: the head and the steps begin at `at` with
    // `at + STEP <= len`, and the tail is the last STEP bytes, of which there are enough. Stores of steps are aligned,
    // because `dst + at` is.
    unsafe {
        let load = |at: usize| _mm256_loadu_si256(src.add(at).cast::<__m256i>());
        _mm256_storeu_si256(dst.cast(), load(0));
        let mut at = VECTOR - dst.addr() % VECTOR;
        while at + STEP <= len {
            let step = [load(at), load(at + VECTOR), load(at + 2 * VECTOR), load(at + 3 * VECTOR)];
            for (index, vector) in step.into_iter().enumerate() {
                let to = dst.add(at + index * VECTOR).cast();
                if STREAMING { _mm256_stream_si256(to, vector) } else { _mm256_store_si256(to, vector) }
            }
            at += STEP;
        }
        if STREAMING {
            // Such stores keep no order with later ones: a peer must not see the announcement before them.
            _mm_sfence();
        }
        for index in 0..4 {
            let at = len - STEP + index * VECTOR;
            _mm256_storeu_si256(dst.add(at).cast(), load(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_and_no_other() {
        type Copy = unsafe fn(*const u8, *mut u8, usize);
        let mut copies: Vec<(Copy, usize)> = vec![(copy, 0), (copy_streaming, 0)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx") {
            copies.extend([(vectors::<false> as Copy, 128), (vectors::<true>, 128)]);
        }
        let source: Vec<u8> = (0..6000_usize).map(|at| (at * 31 % 251) as u8).collect();
        for (copy, least) in copies {
            for len in (0..300).chain([1000, 1023, 1024, 1025, 4096, 5000]).filter(|len| *len >= least) {
                for (from, to) in [(0, 0), (1, 0), (0, 1), (31, 33), (64, 63), (17, 17)] {
                    let mut target = vec![255; len + 200];
                    // SAFETY: both hold `len` bytes from there on.
                    unsafe { copy(source[from..].as_ptr(), target[to..].as_mut_ptr(), len) };
                    assert_eq!(target[to..to + len], source[from..from + len], "{len} from {from} to {to}");
                    let untouched = target[..to].iter().chain(&target[to + len..]).all(|byte| *byte == 255);
                    assert!(untouched, "{len} from {from} to {to}");
                }
            }
        }
    }
}
