//! What a rank says before data moves.

use crate::fields::{put, take, take_text};

/// How every notice begins. It changes with the form of what follows.
const MAGIC: [u8; 8] = *b"kolo ob1";
/// Letters of a refusal that travel.
const LONGEST: usize = 500;

const READY: u8 = 1;
const REFUSED: u8 = 2;

/// What a rank calls, and whether it can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// The call in words, equal on all ranks that call the same.
    pub(crate) call: String,
    /// What the others need to know to go on, or why this rank cannot.
    pub(crate) said: Result<Vec<u8>, String>,
}

impl Notice {
    /// The magic, a checksum of the rest, whether the rank is ready, and two fields: the call, and what it says.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        match &self.said {
            Ok(body) => {
                rest.push(READY);
                put(&mut rest, self.call.as_bytes());
                put(&mut rest, body);
            }
            Err(reason) => {
                rest.push(REFUSED);
                put(&mut rest, self.call.as_bytes());
                put(&mut rest, reason.chars().take(LONGEST).collect::<String>().as_bytes());
            }
        }
        [&MAGIC[..], &crc32fast::hash(&rest).to_le_bytes(), &rest].concat()
    }

    /// # Errors
    /// Why the bytes are no notice.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        const FOREIGN: &str = "what came is nothing of the kind; every rank must call the same, with the same kolo";
        const DAMAGED: &str = "it was damaged on the way: its checksum is wrong";
        let Some((MAGIC, rest)) = bytes.split_first_chunk().map(|(magic, rest)| (*magic, rest)) else {
            return Err(FOREIGN);
        };
        let (sum, rest) = rest.split_first_chunk::<4>().ok_or(DAMAGED)?;
        if u32::from_le_bytes(*sum) != crc32fast::hash(rest) {
            return Err(DAMAGED);
        }
        let (state, mut rest) = rest.split_first().ok_or(FOREIGN)?;
        let call = take_text(&mut rest).ok_or(FOREIGN)?;
        let said = match *state {
            READY => Ok(take(&mut rest).ok_or(FOREIGN)?.to_vec()),
            REFUSED => Err(take_text(&mut rest).ok_or(FOREIGN)?),
            _ => return Err(FOREIGN),
        };
        if rest.is_empty() { Ok(Self { call, said }) } else { Err(FOREIGN) }
    }

    /// The rank's view, as a mismatch shows it.
    pub(crate) fn view(&self) -> String {
        match &self.said {
            Ok(_) => self.call.clone(),
            Err(reason) => format!("refused there: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_come_back() {
        for said in [Ok(Vec::new()), Ok(vec![0, 1, 2]), Err("no".to_owned())] {
            let notice = Notice { call: "allgather_object of ä".to_owned(), said };
            assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
        }
        let long = Notice { call: "x".to_owned(), said: Err("ä".repeat(2 * LONGEST)) };
        assert_eq!(Notice::decode(&long.encode()).map(|notice| notice.said), Ok(Err("ä".repeat(LONGEST))));
    }

    #[test]
    fn no_flipped_bit_passes() {
        let notice = Notice { call: "call".to_owned(), said: Ok(vec![7; 9]) };
        let right = notice.encode();
        for bit in 0..right.len() * 8 {
            let mut wrong = right.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let reason = Notice::decode(&wrong).expect_err("damaged");
            assert_eq!(reason.contains("checksum"), bit >= 8 * MAGIC.len(), "{bit}: {reason}");
        }
        assert!(Notice::decode(&[]).is_err() && Notice::decode(&MAGIC).is_err());
    }

    #[test]
    fn a_refusal_is_shown_with_its_reason() {
        let call = "broadcast_object of u8".to_owned();
        assert_eq!(Notice { call: call.clone(), said: Ok(vec![]) }.view(), call);
        assert_eq!(Notice { call, said: Err("too large".to_owned()) }.view(), "refused there: too large");
    }
}
