//! What a rank that gives up tells those that count on it: whose doing it was, and why.

use crate::error::Error;
use crate::transport::shm::cut;

/// The message of a rank that goes no further: nothing. All others hold something. [`LastWords`] follow it.
pub(super) const GOODBYE: &[u8] = &[];

/// What a rank says after its goodbye. Passed on unchanged by whoever gives up because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LastWords {
    /// The global rank whose doing it was.
    pub(super) rank: u32,
    /// Its error; empty if it is not known.
    pub(super) reason: String,
    /// Whether waits in earlier operations end, too: the ranks do not agree on what those are, so nobody can count on a
    /// part of them that it takes for done.
    pub(super) earlier: bool,
}

impl LastWords {
    /// At most `limit` bytes: the end of a long reason is lost.
    pub(super) fn encode(&self, limit: usize) -> Vec<u8> {
        let mut bytes = self.rank.to_le_bytes().to_vec();
        bytes.push(u8::from(self.earlier));
        let room = limit.saturating_sub(bytes.len());
        bytes.extend_from_slice(cut(&self.reason, room).as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let (rank, rest) =
            bytes.split_first_chunk().map_or((0, bytes), |(rank, rest)| (u32::from_le_bytes(*rank), rest));
        let (earlier, reason) = rest.split_first().map_or((false, rest), |(earlier, reason)| (*earlier != 0, reason));
        Self { rank, reason: String::from_utf8_lossy(reason).into_owned(), earlier }
    }

    /// The error of whoever hears it.
    pub(super) fn error(&self) -> Error {
        let Self { rank, reason, .. } = self;
        let why = if reason.is_empty() { "; see its error for why".to_owned() } else { format!(": {reason}") };
        Error::Poisoned(format!("rank {rank} gave up an operation that this rank counts on{why}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_survive_the_way_and_are_cut_where_they_must() {
        let words = LastWords { rank: 7, reason: "größer".to_owned(), earlier: false };
        assert_eq!(LastWords::decode(&words.encode(100)), words);
        let earlier = LastWords { earlier: true, ..words.clone() };
        assert_eq!(LastWords::decode(&earlier.encode(100)), earlier);
        assert_eq!(LastWords::decode(&words.encode(8)).reason, "gr");
        assert_eq!(LastWords::decode(&words.encode(9)).reason, "grö");
        assert_eq!(LastWords::decode(&words.encode(0)).rank, 7);
        assert!(words.error().to_string().ends_with("counts on: größer"));
        let silent = LastWords { reason: String::new(), ..words };
        assert!(silent.error().to_string().contains("rank 7 gave up an operation"), "{}", silent.error());
    }
}
