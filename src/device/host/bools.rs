//! Bools that a peer has written: bytes, until each has been looked at.

/// Bytes that are looked at together.
const GROUP: usize = 64;

/// Copies the lowest bit of each of `count` bytes. Returns whether no other bit was set.
///
/// Every byte that is written is a bool, whatever is read, and though the memory changed meanwhile.
///
/// # Safety
/// `src` is readable and `dst` writable for `count` bytes, nobody else touches `dst`, and the two do not overlap.
pub(super) unsafe fn copy(src: *const u8, dst: *mut u8, count: usize) -> bool {
    let mut seen = 0;
    for at in (0..count).step_by(GROUP) {
        let len = GROUP.min(count - at);
        let mut group = [0_u8; GROUP];
        // SAFETY: the caller's promise: `at + len <= count`. The group is ours.
        unsafe {
            std::ptr::copy_nonoverlapping(src.add(at), group.as_mut_ptr(), len);
            for byte in &mut group {
                seen |= *byte;
                *byte &= 1;
            }
            std::ptr::copy_nonoverlapping(group.as_ptr(), dst.add(at), len);
        }
    }
    seen <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bools_are_copied_and_everything_else_is_seen() {
        for len in [0, 1, 63, 64, 65, 200] {
            for offset in [0, 1, 7] {
                let source: Vec<u8> = (0..len + offset).map(|at| (at * 7 % 3 % 2) as u8).collect();
                let mut target = vec![9; len + 2];
                // SAFETY: both hold `len` bytes from where they begin.
                assert!(unsafe { copy(source[offset..].as_ptr(), target[1..].as_mut_ptr(), len) });
                assert_eq!(target[1..=len], source[offset..]);
                assert_eq!((target[0], target[len + 1]), (9, 9), "nothing else is written");
                for wrong in 0..len {
                    for byte in [2, 3, 0x80, 0xff] {
                        let mut source = source.clone();
                        source[offset + wrong] = byte;
                        // SAFETY: as above.
                        assert!(!unsafe { copy(source[offset..].as_ptr(), target[1..].as_mut_ptr(), len) });
                        assert!(target[1..=len].iter().all(|byte| *byte <= 1), "only bools arrive");
                    }
                }
            }
        }
    }
}
