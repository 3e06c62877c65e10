//! Bytes in and out: varints and bounded strings. Reading never panics and never allocates more than it was given.

/// Appends to a byte vector.
pub(super) trait Put {
    fn u8(&mut self, value: u8);
    fn varint(&mut self, value: u64);
    fn f64(&mut self, value: f64);
    fn str(&mut self, value: &str);
}

impl Put for Vec<u8> {
    fn u8(&mut self, value: u8) {
        self.push(value);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn f64(&mut self, value: f64) {
        self.extend_from_slice(&value.to_bits().to_le_bytes());
    }

    fn str(&mut self, value: &str) {
        self.varint(value.len() as u64);
        self.extend_from_slice(value.as_bytes());
    }
}

/// Reads what [`Put`] wrote. Every method returns `None` at the end of the bytes or on a value out of bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Take<'a> {
    bytes: &'a [u8],
}

impl<'a> Take<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return None;
            }
            value |= part << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A varint below or equal to `most`.
    pub(super) fn bounded(&mut self, most: u64) -> Option<u64> {
        self.varint().filter(|value| *value <= most)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.varint()?.try_into().ok()
    }

    pub(super) fn f64(&mut self) -> Option<f64> {
        Some(f64::from_bits(u64::from_le_bytes(self.slice(8)?.try_into().ok()?)))
    }

    pub(super) fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(head)
    }

    /// A string of at most `most` bytes.
    pub(super) fn str(&mut self, most: usize) -> Option<&'a str> {
        let len = self.bounded(most as u64)? as usize;
        std::str::from_utf8(self.slice(len)?).ok()
    }
}

/// The longest prefix of `text` of at most `most` bytes that ends between characters.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_length() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut bytes = Vec::new();
                bytes.varint(value);
                assert_eq!(bytes.len(), (64 - (value | 1).leading_zeros() as usize).div_ceil(7), "{value}");
                let mut take = Take::new(&bytes);
                assert_eq!(take.varint(), Some(value));
                assert!(take.is_empty());
            }
        }
        assert_eq!(Take::new(&[0xff; 9]).varint(), None);
        assert_eq!(Take::new(&[0xff; 10]).varint(), None, "more than 64 bits");
    }

    #[test]
    fn strings_are_bounded_and_cut_between_characters() {
        let mut bytes = Vec::new();
        bytes.str("kolo");
        assert_eq!(Take::new(&bytes).str(4), Some("kolo"));
        assert_eq!(Take::new(&bytes).str(3), None);
        assert_eq!(Take::new(&bytes[..3]).str(4), None);
        assert_eq!(Take::new(&[2, 0xc3, 0x28]).str(9), None, "not UTF-8");
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
    }
}
