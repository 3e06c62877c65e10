//! What travels in front of every piece between hosts, and the check on arrival.

use super::Stamp;

/// Bytes of a header. A multiple of 32, so that a payload behind it stays aligned for vector copies.
pub(crate) const HEADER: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"kolo");

/// One piece's place in the world: what it belongs to, who sent it to whom, and its number among those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) stamp: Stamp,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) seq: u64,
}

impl Header {
    /// Writes the header to the first [`HEADER`] bytes of `out`.
    pub(crate) fn write(&self, out: &mut [u8]) {
        let Stamp { job, epoch, set, channel } = self.stamp;
        out[..HEADER].fill(0);
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&u32::from(channel).to_le_bytes());
        out[8..16].copy_from_slice(&epoch.to_le_bytes());
        out[16..32].copy_from_slice(&job.to_le_bytes());
        out[32..36].copy_from_slice(&set.to_le_bytes());
        out[36..40].copy_from_slice(&self.from.to_le_bytes());
        out[40..44].copy_from_slice(&self.to.to_le_bytes());
        out[48..56].copy_from_slice(&self.seq.to_le_bytes());
    }

    /// The payload of `piece`, if its header is this one. Otherwise what differs, in words.
    pub(crate) fn check<'a>(&self, piece: &'a [u8]) -> Result<&'a [u8], String> {
        let Some((header, payload)) = piece.split_at_checked(HEADER) else {
            return Err(format!("a message of {} bytes, shorter than a header", piece.len()));
        };
        let mut expected = [0; HEADER];
        self.write(&mut expected);
        if header == expected {
            return Ok(payload);
        }
        let fields = [
            ("magic", 0..4),
            ("channel", 4..8),
            ("epoch", 8..16),
            ("job", 16..32),
            ("set", 32..36),
            ("sender", 36..40),
            ("receiver", 40..44),
            ("padding", 44..48),
            ("sequence number", 48..56),
            ("padding", 56..64),
        ];
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u128, |number, &byte| number << 8 | u128::from(byte));
        for (name, range) in fields {
            let (got, want) = (number(&header[range.clone()]), number(&expected[range]));
            if got != want {
                return Err(if matches!(name, "magic" | "job") {
                    format!("{name} {got:#x}, expected {want:#x}")
                } else {
                    format!("{name} {got}, expected {want}")
                });
            }
        }
        // The fields above cover every byte.
        Err("a header that differs".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(seq: u64) -> Header {
        Header { stamp: Stamp { job: 1 << 100, epoch: 3, set: 4, channel: 5 }, from: 6, to: 7, seq }
    }

    fn piece(header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xff; HEADER];
        header.write(&mut bytes);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_right_header_gives_the_payload() {
        assert_eq!(header(9).check(&piece(&header(9), b"payload")), Ok(&b"payload"[..]));
        assert_eq!(header(9).check(&piece(&header(9), b"")), Ok(&b""[..]));
    }

    #[test]
    fn a_wrong_header_is_named_with_both_values() {
        let cases = [
            (Header { seq: 8, ..header(9) }, "sequence number 8, expected 9"),
            (Header { from: 2, ..header(9) }, "sender 2, expected 6"),
            (Header { to: 2, ..header(9) }, "receiver 2, expected 7"),
            (Header { stamp: Stamp { epoch: 2, ..header(9).stamp }, ..header(9) }, "epoch 2, expected 3"),
            (Header { stamp: Stamp { set: 2, ..header(9).stamp }, ..header(9) }, "set 2, expected 4"),
            (Header { stamp: Stamp { channel: 2, ..header(9).stamp }, ..header(9) }, "channel 2, expected 5"),
            (
                Header { stamp: Stamp { job: 2, ..header(9).stamp }, ..header(9) },
                "job 0x2, expected 0x10000000000000000000000000",
            ),
        ];
        for (wrong, text) in cases {
            assert_eq!(header(9).check(&piece(&wrong, b"x")), Err(text.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn no_other_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..200), flip in 0..HEADER * 8) {
            prop_assert!(header(1).check(&bytes).is_err());
            let mut right = piece(&header(1), &bytes);
            right[flip / 8] ^= 1 << (flip % 8);
            prop_assert!(header(1).check(&right).is_err());
        }
    }
}
