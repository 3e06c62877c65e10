//! What lies where in a file, and how a record packs what it holds. README.md has the tables.

use std::time::Duration;

/// The first word of a file, stored last. It holds the version.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"KOLOFLT\x01");

/// Words of the header.
pub(super) const HEADER: usize = 512;
/// Words of a record: one cache line.
pub(super) const RECORD: usize = 8;

/// Places of words in the header.
pub(super) mod head {
    pub(crate) const MAGIC: usize = 0;
    /// Records, a power of two.
    pub(crate) const RECORDS: usize = 1;
    /// Words of the table, and those that are in use.
    pub(crate) const TABLE: usize = 2;
    pub(crate) const TABLE_USED: usize = 3;
    pub(crate) const JOB: [usize; 2] = [4, 5];
    pub(crate) const EPOCH: usize = 6;
    /// Rank (low half), ranks.
    pub(crate) const RANK: usize = 7;
    pub(crate) const PID: usize = 8;
    pub(crate) const START_TIME: usize = 9;
    /// What tells this host from others whose process ids mean something else.
    pub(crate) const HOST: usize = 10;
    /// How the rank ended: [`super::End`] (low half); the failed rank (high half).
    pub(crate) const END: usize = 11;
    /// Operations without a record, and names without an entry.
    pub(crate) const LOST: usize = 12;
    pub(crate) const UNNAMED: usize = 13;
    /// The first anchor: ticks, monotonic and real nanoseconds.
    pub(crate) const FIRST_ANCHOR: usize = 16;
    /// Which of the two later anchors counts, plus 1; 0 while there is none.
    pub(crate) const ANCHOR: usize = 19;
    /// Later anchors: ticks, monotonic nanoseconds.
    pub(crate) const ANCHORS: [usize; 2] = [20, 22];
    /// Bytes of the host's name, and the name.
    pub(crate) const HOST_NAME: usize = 32;
    pub(crate) const HOST_NAME_BYTES: usize = 128;
    /// Bytes of the failure's host and cause, and the two of them, with a zero between.
    pub(crate) const FAILURE: usize = 64;
    pub(crate) const FAILURE_BYTES: usize = 1024;
}

/// Places of words in a record.
pub(super) mod word {
    pub(crate) const STATE: usize = 0;
    pub(crate) const NAME: usize = 1;
    pub(crate) const BYTES: usize = 2;
    pub(crate) const PLACE: usize = 3;
    pub(crate) const SUBMITTED: usize = 4;
    /// Spans to the agreement (low half) and to the start.
    pub(crate) const AGREED_STARTED: usize = 5;
    /// Span to the end (low half); the set.
    pub(crate) const ENDED_SET: usize = 6;
    /// Verb, type, operation, a byte each; [`super::what`]; the peer plus 1 in the high half.
    pub(crate) const WHAT: usize = 7;
}

/// Flags in the word of what an operation does.
pub(super) mod what {
    /// The times of the record are nanoseconds of the monotonic clock, and not ticks.
    pub(crate) const NANOS: u64 = 1 << 24;
}

/// Codes of the states of a record. Those up to `STARTED`, but for `EMPTY`, belong to whoever claimed it.
pub(super) mod state {
    pub(crate) const EMPTY: u64 = 0;
    pub(crate) const CLAIMED: u64 = 1;
    pub(crate) const SUBMITTED: u64 = 2;
    pub(crate) const AGREED: u64 = 3;
    pub(crate) const STARTED: u64 = 4;
    pub(crate) const DONE: u64 = 5;
    pub(crate) const FAILED: u64 = 6;
    pub(crate) const CANCELLED: u64 = 7;
}

/// Codes of how a rank ended.
pub(super) mod end {
    pub(crate) const LEFT: u64 = 1;
    /// This rank found the job's first failure.
    pub(crate) const FAILED: u64 = 2;
}

/// Codes of the entries of a table: a word with the code (low byte) and the bytes (high half), one with the name's hash or
/// the set (its number; bit 32 for named operations), then the bytes: a name, or the ranges of a set's ranks (first, how
/// many; 32 bits each).
pub(super) mod entry {
    pub(crate) const NAME: u64 = 1;
    pub(crate) const SET: u64 = 2;
    pub(crate) const NAMED: u64 = 1 << 32;
    /// Words before the bytes.
    pub(crate) const HEAD: usize = 2;
}

/// Bytes of a name that are kept.
pub(super) const NAME_BYTES: usize = 512;

/// Words of the table that goes with so many records.
pub(super) const fn table_words(records: usize) -> usize {
    let words = records * 4;
    if words < 8192 { 8192 } else { words }
}

/// Bytes of a file.
pub(super) const fn file_bytes(records: usize) -> usize {
    8 * (HEADER + RECORD * records + table_words(records))
}

const MANTISSA: u32 = 27;

/// A span of ticks in 32 bits, rounded down to 27 bits that count; 0 stays for "not yet", and a span of 0 becomes 1.
pub(super) const fn pack(span: u64) -> u32 {
    let bits = u64::BITS - span.leading_zeros();
    let shift = bits.saturating_sub(MANTISSA);
    if shift > 31 {
        return u32::MAX;
    }
    let packed = shift << MANTISSA | (span >> shift) as u32;
    if packed == 0 { 1 } else { packed }
}

/// The span that was packed; `None` for "not yet".
pub(super) const fn unpack(packed: u32) -> Option<u64> {
    if packed == 0 { None } else { Some(((packed & ((1 << MANTISSA) - 1)) as u64) << (packed >> MANTISSA)) }
}

/// The hash by which files know a name. Never 0. Two words at a time, the last two may overlap those before.
#[inline]
pub(super) fn hash(name: &str) -> u64 {
    const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
    const SECOND: u64 = 0xd1b5_4a32_d192_ed03;
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let bytes = name.as_bytes();
    let mut hash = FIRST ^ bytes.len() as u64;
    let (chunks, _) = bytes.as_chunks::<8>();
    let (pairs, _) = chunks.as_chunks::<2>();
    for [one, other] in pairs {
        hash = fold(hash ^ u64::from_le_bytes(*one), SECOND ^ u64::from_le_bytes(*other));
    }
    let (one, other) = match (bytes.last_chunk::<16>(), bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(last), ..) => {
            (last.first_chunk::<8>().map_or(0, |one| u64::from_le_bytes(*one)), bytes.last_chunk::<8>())
        }
        (None, Some(first), last) => (u64::from_le_bytes(*first), last),
        _ => (bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)), None),
    };
    let other = other.map_or(0, |other| u64::from_le_bytes(*other));
    fold(hash ^ one, SECOND ^ other).max(1)
}

/// Nanoseconds in a word.
#[inline]
pub(super) const fn nanos(time: Duration) -> u64 {
    // 584 years fit.
    time.as_secs().wrapping_mul(1_000_000_000).wrapping_add(time.subsec_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_keep_their_first_27_bits(span in 1_u64..1 << 57, short in 1_u64..1 << 27) {
            let back = unpack(pack(span)).expect("set");
            prop_assert!(back <= span && span - back <= span >> 26);
            prop_assert_eq!(unpack(pack(short)), Some(short));
        }

        #[test]
        fn spans_keep_their_order(one in any::<u64>(), other in any::<u64>()) {
            prop_assert!(pack(one.min(other)) <= pack(one.max(other)));
        }
    }

    #[test]
    fn nothing_yet_is_no_span() {
        assert_eq!((unpack(0), unpack(pack(0)), pack(u64::MAX)), (None, Some(1), u32::MAX));
        assert!(unpack(u32::MAX).is_some());
    }

    #[test]
    fn hashes_tell_names_apart() {
        let names: std::collections::HashSet<u64> =
            (0..20_000).map(|number| hash(&format!("layer{}.conv{number}.weight", number % 7))).collect();
        assert_eq!(names.len(), 20_000);
        assert_ne!(hash("a"), hash("a\0"));
        assert_ne!(hash(""), 0);
    }
}
