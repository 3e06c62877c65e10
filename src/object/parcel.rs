//! An object on its way: what is known of it, and the bytes that have come.

use serde::de::DeserializeOwned;

use super::codec::decode;
use crate::config::Bytes;

/// Bytes of an object that travel with its label: small objects need no more.
const HEAD: usize = 1 << 10;

/// What a rank says of its object, with the first bytes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    len: u64,
    sum: u32,
    head: Vec<u8>,
}

impl Label {
    pub(crate) fn new(object: &[u8]) -> Self {
        let head = object[..object.len().min(HEAD)].to_vec();
        Self { len: object.len() as u64, sum: crc32fast::hash(object), head }
    }

    /// The bytes of the object that do not travel with its label.
    #[cfg(test)]
    fn rest(object: &[u8]) -> &[u8] {
        &object[Self::rest_at(object)..]
    }

    /// Where they begin.
    pub(crate) fn rest_at(object: &[u8]) -> usize {
        object.len().min(HEAD)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        [&self.len.to_le_bytes()[..], &self.sum.to_le_bytes(), &self.head].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk()?;
        let (sum, head) = rest.split_first_chunk()?;
        let label = Self { len: u64::from_le_bytes(*len), sum: u32::from_le_bytes(*sum), head: head.to_vec() };
        (label.len.min(HEAD as u64) == label.head.len() as u64).then_some(label)
    }
}

/// An object that is being received.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// As many as have come; there is room for all.
    bytes: Vec<u8>,
    len: usize,
    sum: u32,
}

impl Parcel {
    /// Makes room for the object that a label tells of.
    ///
    /// # Errors
    /// What is wrong: with the label, or with this rank's memory.
    pub(crate) fn open(label: &[u8], most: Bytes) -> Result<Self, String> {
        let label = Label::decode(label).ok_or("its label makes no sense; every rank must run the same kolo")?;
        let len = usize::try_from(label.len).ok().filter(|&len| len <= most.0);
        let len = len.ok_or_else(|| format!("it is said to have {} bytes, where {most} are allowed", label.len))?;
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(len).is_err() {
            return Err(format!("there is no memory here for its {len} bytes; pass less at a time"));
        }
        bytes.extend_from_slice(&label.head);
        Ok(Self { bytes, len, sum: label.sum })
    }

    /// How many bytes have yet to come.
    pub(crate) fn missing(&self) -> usize {
        self.len - self.bytes.len()
    }

    /// Takes the next bytes, if that is what comes next: a chunk, or all that is missing if that is less.
    #[must_use]
    pub(crate) fn add(&mut self, bytes: &[u8], chunk: usize) -> bool {
        let fits = bytes.len() == self.missing().min(chunk);
        if fits {
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    /// Gives all bytes away, with room for those that are missing at their end, until [`put_back`](Self::put_back).
    pub(crate) fn lend(&mut self) -> Vec<u8> {
        self.bytes.resize(self.len, 0);
        std::mem::take(&mut self.bytes)
    }

    /// Takes the bytes back, none of which is missing any more.
    pub(crate) fn put_back(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// The object, once all of it has come.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn unpack<T: DeserializeOwned>(self) -> Result<T, String> {
        if self.missing() > 0 {
            return Err(format!("{} of its {} bytes have not come", self.missing(), self.len));
        }
        if crc32fast::hash(&self.bytes) != self.sum {
            return Err(format!("it was damaged on the way: the checksum of its {} bytes is wrong", self.len));
        }
        decode(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MUCH: Bytes = Bytes::mib(1);

    fn object(len: usize) -> Vec<u8> {
        // The first two bytes are its length as serde writes it.
        let text: String = (0..len).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        super::super::encode(&text, MUCH).expect("small")
    }

    #[test]
    fn objects_arrive_in_one_piece_however_they_are_cut() {
        for len in [0, 1, 1000, HEAD - 2, HEAD - 1, HEAD, 5000] {
            let bytes = object(len);
            for chunk in [1, 7, 512, 100_000] {
                let mut parcel = Parcel::open(&Label::new(&bytes).encode(), MUCH).expect("a label");
                for part in Label::rest(&bytes).chunks(chunk) {
                    assert!(parcel.add(part, chunk));
                }
                assert_eq!(parcel.missing(), 0);
                assert_eq!(parcel.unpack::<String>().map(|text| text.len()), Ok(len));
            }
            let mut parcel = Parcel::open(&Label::new(&bytes).encode(), MUCH).expect("a label");
            let (missing, mut room) = (parcel.missing(), parcel.lend());
            assert_eq!(room.len() - missing, Label::rest_at(&bytes));
            room[Label::rest_at(&bytes)..].copy_from_slice(&bytes[Label::rest_at(&bytes)..]);
            parcel.put_back(room);
            assert_eq!(parcel.unpack::<String>().map(|text| text.len()), Ok(len));
        }
    }

    #[test]
    fn parts_of_another_length_do_not_fit() {
        let bytes = object(3000);
        let mut parcel = Parcel::open(&Label::new(&bytes).encode(), MUCH).expect("a label");
        let rest = Label::rest(&bytes);
        assert!(!parcel.add(&rest[..99], 100) && !parcel.add(&rest[..101], 100) && !parcel.add(&[], 100));
        assert!(parcel.add(&rest[..100], 100));
        assert_eq!(parcel.missing(), rest.len() - 100);
    }

    #[test]
    fn damage_anywhere_is_found() {
        let bytes = object(2000);
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            let label = Label { head: wrong[..HEAD].to_vec(), ..Label::new(&bytes) };
            let mut parcel = Parcel::open(&label.encode(), MUCH).expect("a label");
            assert!(parcel.add(Label::rest(&wrong), usize::MAX));
            let text = parcel.unpack::<String>().expect_err("damaged");
            assert!(text.contains("checksum"), "{text}");
        }
        let parcel = Parcel::open(&Label::new(&bytes).encode(), MUCH).expect("a label");
        assert!(parcel.unpack::<String>().expect_err("half of it").contains("have not come"));
    }

    #[test]
    fn a_label_cannot_ask_for_more_than_is_allowed() {
        let bytes = object(2000);
        let label = Label { len: u64::MAX, ..Label::new(&bytes) };
        let text = Parcel::open(&label.encode(), MUCH).expect_err("too much");
        assert!(text.contains("18446744073709551615 bytes, where 1MiB"), "{text}");
        let short = Label { head: vec![], ..Label::new(&bytes) };
        assert!(Parcel::open(&short.encode(), MUCH).expect_err("no head").contains("makes no sense"));
        assert!(Parcel::open(&[1; 11], MUCH).is_err());
    }
}
