//! Stamps of messages and of memory, made to break their readers.

use xtask::fuzz::{Random, fuzz};

use super::Stamp;
use super::stamp::{HEADER, Header};
use crate::os::counting::frugal;

#[test]
fn fuzz_stamps() {
    let stamp = Stamp { job: 1 << 100, epoch: 3, set: 4, channel: 5 };
    let header = Header { stamp, from: 6, to: 7, seq: 8 };
    let mut right = [0; HEADER];
    header.write(&mut right);
    let valid = |random: &mut Random| [&right[..], &random.bytes(20)].concat();
    fuzz("stamps", &[], valid, |bytes| match frugal(bytes, || header.check(bytes)) {
        Ok(payload) => {
            assert_eq!([&right[..], payload].concat(), bytes, "no other header passes");
            true
        }
        Err(why) => {
            assert!(!bytes.starts_with(&right) && !why.is_empty());
            false
        }
    });
}
