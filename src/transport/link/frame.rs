//! What is said on a link, byte by byte: a length of two bytes, a kind of one, and the payload.
//!
//! Every frame has one right form. Anything else is an error, for the peer is no kolo of this version, and the
//! connection ends.

use std::time::Duration;

use crate::error::Failure;
use crate::transport::shm::NAME;

/// Bytes of length and kind.
const HEAD: usize = 3;
/// The longest texts of an abort, in bytes; what is longer is cut.
const CAUSE: usize = 1024;
const HOST: usize = 255;
/// Rank, length of the host's name, name, cause.
const ABORT: usize = 4 + 1 + HOST + CAUSE;

/// A message between leaders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Something happened: wake up and look.
    Doorbell,
    /// Are you there?
    Ask,
    /// I am.
    Answer,
    /// The job failed.
    Abort(Failure),
    /// I leave in good order. The last frame.
    Bye,
    /// Be patient for so long from now. Carries milliseconds.
    Pause(Duration),
    /// These global ranks of the sender's host left in good order. At most [`RANKS`].
    Departed(Vec<u32>),
    /// Somebody waits: let the ranks that lead sets look at them, and tell what the ranks of the host do.
    Summons,
    /// What a rank of the sender's host does.
    Report(Report),
}

/// What a leader tells of a rank of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The global rank.
    pub(crate) rank: u32,
    /// What its process does, in a code that only the ends of the link know.
    pub(crate) process: u8,
    /// How many named operations it has submitted, and how many of them have ended.
    pub(crate) submitted: u64,
    pub(crate) ended: u64,
    /// The last one: its number, its age in milliseconds, its name of at most [`NAME`] bytes.
    pub(crate) sequence: u64,
    pub(crate) age: Duration,
    pub(crate) name: String,
}

const DOORBELL: u8 = 1;
const ASK: u8 = 2;
const ANSWER: u8 = 3;
const FAILURE: u8 = 4;
const BYE: u8 = 5;
const PAUSE: u8 = 6;
const DEPARTED: u8 = 7;
const SUMMONS: u8 = 8;
const REPORT: u8 = 9;

/// The most ranks that one frame names.
pub(super) const RANKS: usize = 256;

impl Frame {
    /// Appends the frame to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; 2]);
        match self {
            Self::Doorbell => out.push(DOORBELL),
            Self::Ask => out.push(ASK),
            Self::Answer => out.push(ANSWER),
            Self::Bye => out.push(BYE),
            Self::Summons => out.push(SUMMONS),
            Self::Report(report) => {
                out.push(REPORT);
                out.extend(report.rank.to_le_bytes());
                out.push(report.process);
                let age = u64::try_from(report.age.as_millis()).unwrap_or(u64::MAX);
                for number in [report.submitted, report.ended, report.sequence, age] {
                    out.extend(number.to_le_bytes());
                }
                out.extend(cut(&report.name, NAME).as_bytes());
            }
            Self::Departed(ranks) => {
                out.push(DEPARTED);
                ranks.iter().for_each(|rank| out.extend(rank.to_le_bytes()));
            }
            Self::Pause(duration) => {
                out.push(PAUSE);
                out.extend(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).to_le_bytes());
            }
            Self::Abort(failure) => {
                let host = cut(&failure.host, HOST);
                out.push(FAILURE);
                out.extend(failure.rank.to_le_bytes());
                // At most 255, by the cut.
                out.push(host.len() as u8);
                out.extend(host.as_bytes());
                out.extend(cut(&failure.cause, CAUSE).as_bytes());
            }
        }
        let length = (out.len() - start - HEAD) as u16;
        out[start..start + 2].copy_from_slice(&length.to_le_bytes());
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, &'static str> {
        let bare = |frame| if payload.is_empty() { Ok(frame) } else { Err("a payload where there is none") };
        match kind {
            DOORBELL => bare(Self::Doorbell),
            ASK => bare(Self::Ask),
            ANSWER => bare(Self::Answer),
            BYE => bare(Self::Bye),
            SUMMONS => bare(Self::Summons),
            DEPARTED => match payload.as_chunks::<4>() {
                (ranks @ [_, ..], []) if ranks.len() <= RANKS => {
                    Ok(Self::Departed(ranks.iter().map(|rank| u32::from_le_bytes(*rank)).collect()))
                }
                _ => Err("a departure of nobody, or of part of a rank"),
            },
            PAUSE => {
                let millis = payload.try_into().map_err(|_| "a pause of no length")?;
                Ok(Self::Pause(Duration::from_millis(u64::from_le_bytes(millis))))
            }
            REPORT => report(payload).map(Self::Report),
            FAILURE => abort(payload).map(Self::Abort),
            _ => Err("a frame of an unknown kind"),
        }
    }
}

fn report(payload: &[u8]) -> Result<Report, &'static str> {
    const SHORT: &str = "a report that is cut off";
    let (&rank, rest) = payload.split_first_chunk().ok_or(SHORT)?;
    let (&process, mut rest) = rest.split_first().ok_or(SHORT)?;
    let mut number = || {
        let (number, after) = rest.split_first_chunk().ok_or(SHORT)?;
        rest = after;
        Ok::<_, &str>(u64::from_le_bytes(*number))
    };
    let (submitted, ended, sequence, age) = (number()?, number()?, number()?, Duration::from_millis(number()?));
    if rest.len() > NAME {
        return Err("a report with an endless name");
    }
    let name = str::from_utf8(rest).map_err(|_| "a report that is no text")?.to_owned();
    Ok(Report { rank: u32::from_le_bytes(rank), process, submitted, ended, sequence, age, name })
}

fn abort(payload: &[u8]) -> Result<Failure, &'static str> {
    const SHORT: &str = "a failure that is cut off";
    let (rank, rest) = payload.split_first_chunk().ok_or(SHORT)?;
    let (&length, rest) = rest.split_first().ok_or(SHORT)?;
    let (host, cause) = rest.split_at_checked(usize::from(length)).ok_or(SHORT)?;
    if cause.len() > CAUSE {
        return Err("a failure with an endless cause");
    }
    let text = |bytes| str::from_utf8(bytes).map_err(|_| "a failure that is no text");
    Ok(Failure::new(u32::from_le_bytes(*rank), text(host)?, text(cause)?))
}

/// The longest start of `text` that has at most `limit` bytes and ends between two characters.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// Cuts a stream of bytes into frames. Holds less than one frame.
#[derive(Debug, Default)]
pub(super) struct Parser {
    rest: Vec<u8>,
}

impl Parser {
    /// Takes in what has arrived and appends the frames that it completes.
    ///
    /// After an error the parser must not be used again; frames before it are in `frames`.
    pub(super) fn feed(&mut self, bytes: &[u8], frames: &mut Vec<Frame>) -> Result<(), &'static str> {
        self.rest.extend(bytes);
        let mut done = 0;
        while let Some((head, after)) = self.rest[done..].split_first_chunk::<HEAD>() {
            let length = usize::from(u16::from_le_bytes([head[0], head[1]]));
            if length > ABORT {
                return Err("a frame of impossible length");
            }
            let Some(payload) = after.get(..length) else { break };
            frames.push(Frame::decode(head[2], payload)?);
            done += HEAD + length;
        }
        self.rest.drain(..done);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        bytes
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            Just(Frame::Doorbell),
            Just(Frame::Ask),
            Just(Frame::Answer),
            Just(Frame::Bye),
            Just(Frame::Summons),
            (any::<u32>(), any::<u8>(), any::<[u64; 4]>(), ".{0,18}").prop_map(|(rank, process, numbers, name)| {
                let [submitted, ended, sequence, age] = numbers;
                let age = Duration::from_millis(age);
                Frame::Report(Report { rank, process, submitted, ended, sequence, age, name })
            }),
            prop::collection::vec(any::<u32>(), 1..=RANKS).prop_map(Frame::Departed),
            any::<u64>().prop_map(|millis| Frame::Pause(Duration::from_millis(millis))),
            (any::<u32>(), ".{0,60}", ".{0,250}")
                .prop_map(|(rank, host, cause)| Frame::Abort(Failure::new(rank, host, cause))),
        ]
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = Frame::Abort(Failure::new(3, "ü".repeat(200), "é".repeat(2000)));
        let mut frames = Vec::new();
        Parser::default().feed(&encode(&[long]), &mut frames).expect("right bytes");
        assert_eq!(frames, [Frame::Abort(Failure::new(3, "ü".repeat(127), "é".repeat(512)))]);
    }

    #[test]
    fn each_wrong_form_is_refused() {
        for bytes in [
            &[0, 0, 0][..],
            &[0, 0, 10],
            &[2, 0, REPORT, 1, 0],
            &[0, 0, DEPARTED],
            &[3, 0, DEPARTED, 1, 0, 0],
            &[1, 0, SUMMONS, 0],
            &[0, 0, PAUSE],
            &[1, 0, DOORBELL, 0],
            &[1, 0, FAILURE, 0],
            &[6, 0, FAILURE, 0, 0, 0, 0, 2, b'x'],
            &[6, 0, FAILURE, 0, 0, 0, 0, 0, 0xff],
            &[0xff, 0xff, FAILURE],
        ] {
            assert!(Parser::default().feed(bytes, &mut Vec::new()).is_err(), "{bytes:?}");
        }
        let mut endless = ((5 + CAUSE + 1) as u16).to_le_bytes().to_vec();
        endless.push(FAILURE);
        endless.extend(vec![0; 5 + CAUSE + 1]);
        assert!(Parser::default().feed(&endless, &mut Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(frames in prop::collection::vec(any_frame(), 0..8), step in 1_usize..40) {
            let (mut parser, mut got) = (Parser::default(), Vec::new());
            for part in encode(&frames).chunks(step) {
                parser.feed(part, &mut got).expect("right bytes");
            }
            prop_assert_eq!(got, frames);
            prop_assert!(parser.rest.is_empty());
        }

        #[test]
        fn hostile_bytes_neither_panic_nor_pile_up(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..8),
            small in any::<bool>(),
        ) {
            let (mut parser, mut got) = (Parser::default(), Vec::new());
            for mut part in parts {
                if small {
                    // Small numbers reach deeper into the parser.
                    part.iter_mut().for_each(|byte| *byte %= 7);
                }
                if parser.feed(&part, &mut got).is_err() {
                    break;
                }
                prop_assert!(parser.rest.len() < HEAD + ABORT);
            }
        }
    }
}
