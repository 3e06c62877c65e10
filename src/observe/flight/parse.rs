//! From the bytes of a file to a [`Recording`]. The bytes may be anything.

use std::collections::HashMap;
use std::time::Duration;

use super::layout::{
    HEADER, MAGIC, NAME_BYTES, RECORD, end, entry, file_bytes, head, state, table_words, unpack, what, word,
};
use super::ring::number_and_state;
use super::{End, Operation, Process, Reached, Recording, Set};
use crate::error::{Error, Failure, Result};
use crate::event::Verb;
use crate::tensor::{DType, ReduceOp};

/// The most records of a file that is believed.
pub(super) const MOST_RECORDS: usize = 1 << 20;
/// The fewest.
pub(super) const LEAST_RECORDS: usize = 64;
/// The most ranks that are believed to be in a set.
const MOST_RANKS: usize = 1 << 20;

impl Recording {
    /// Reads the bytes of a file of flight records.
    ///
    /// # Errors
    /// [`Error::Argument`] says what is wrong with them. Damaged records are left out and counted.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        parse(bytes, |_| true)
    }
}

/// Reads the bytes of a file; `steady` says of a record, by its line, whether it can be believed.
pub(super) fn parse(bytes: &[u8], steady: impl Fn(usize) -> bool) -> Result<Recording> {
    let file = File { words: bytes.as_chunks::<8>().0 };
    let records = file.check(bytes.len())?;
    let clocks = [Clock::of(&file), Clock::nanoseconds(&file)];
    let (names, sets, damaged) = file.table(records);
    let mut operations = Vec::new();
    let mut unreadable = damaged;
    let mut largest = 0;
    for line in 0..records {
        let (number, code) = number_and_state(file.word(HEADER + line * RECORD + word::STATE));
        if number == 0 && code == state::EMPTY {
            continue;
        }
        let operation = (steady(line) && number as usize % records == line && number > 0)
            .then(|| file.operation(line, number, code, &clocks, &names))
            .flatten();
        match operation {
            Some(operation) => {
                largest = largest.max(number);
                operations.push(operation);
            }
            None => unreadable += 1,
        }
    }
    operations.sort_by_key(|operation| operation.number);
    let rank = file.word(head::RANK);
    Ok(Recording {
        job: u128::from(file.word(head::JOB[0])) | u128::from(file.word(head::JOB[1])) << 64,
        epoch: file.word(head::EPOCH),
        rank: rank as u32,
        size: (rank >> 32) as u32,
        host: text(&file.bytes(head::HOST_NAME, head::HOST_NAME_BYTES)),
        pid: u32::try_from(file.word(head::PID)).unwrap_or(0),
        end: file.end(),
        process: Process::Elsewhere,
        operations,
        sets,
        wrapped: largest > records as u64,
        lost: file.word(head::LOST),
        unreadable,
        unnamed: file.word(head::UNNAMED),
        start_time: file.word(head::START_TIME),
        host_hash: file.word(head::HOST),
    })
}

/// How many records a header speaks of, if it is one.
pub(super) fn records(bytes: &[u8]) -> Result<usize> {
    let file = File { words: bytes.as_chunks::<8>().0 };
    file.check(bytes.len())
}

/// Text as a terminal may show it, whatever somebody put there.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().flat_map(shown).collect()
}

fn shown(c: char) -> Box<dyn Iterator<Item = char>> {
    if c.is_control() { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) }
}

struct File<'a> {
    words: &'a [[u8; 8]],
}

impl File<'_> {
    /// A word; 0 beyond the end.
    fn word(&self, at: usize) -> u64 {
        self.words.get(at).map_or(0, |word| u64::from_le_bytes(*word))
    }

    /// The bytes behind a word with their count, at most so many.
    fn bytes(&self, at: usize, most: usize) -> Vec<u8> {
        let count = usize::try_from(self.word(at)).unwrap_or(usize::MAX).min(most);
        let words = self.words.get(at + 1..).unwrap_or_default().iter().take(count.div_ceil(8));
        let mut bytes: Vec<u8> = words.flatten().copied().collect();
        bytes.truncate(count);
        bytes
    }

    fn check(&self, bytes: usize) -> Result<usize> {
        let wrong = |text: String| Err(Error::argument(text));
        match self.word(head::MAGIC) {
            MAGIC => {}
            0 if bytes >= 8 => return wrong("the file was never begun: its rank ended while it started".to_owned()),
            other if other << 8 == MAGIC << 8 => {
                return wrong(format!(
                    "the file is of version {}, and this program reads {}",
                    other >> 56,
                    MAGIC >> 56
                ));
            }
            _ => return wrong("this is no file of flight records".to_owned()),
        }
        let records = usize::try_from(self.word(head::RECORDS)).unwrap_or(usize::MAX);
        if !records.is_power_of_two() || !(LEAST_RECORDS..=MOST_RECORDS).contains(&records) {
            return wrong(format!("the file claims to hold {records} records"));
        }
        let due = file_bytes(records);
        if bytes < due || self.word(head::TABLE) != table_words(records) as u64 {
            return wrong(format!("the file has {bytes} bytes, and {records} records take {due}: it was cut off"));
        }
        let (rank, size) = (self.word(head::RANK) as u32, (self.word(head::RANK) >> 32) as u32);
        if rank >= size {
            return wrong(format!("the file claims to be of rank {rank} of {size}"));
        }
        Ok(records)
    }

    fn end(&self) -> End {
        let word = self.word(head::END);
        match word & u64::from(u32::MAX) {
            end::LEFT => End::Left,
            end::FAILED => {
                let bytes = self.bytes(head::FAILURE, head::FAILURE_BYTES);
                let (host, cause) = bytes.split_at(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
                let cause = cause.get(1..).unwrap_or_default();
                End::Found(Failure::new((word >> 32) as u32, text(host), text(cause)))
            }
            _ => End::Open,
        }
    }

    /// Names by hash, sets, and how many entries could not be read.
    fn table(&self, records: usize) -> (HashMap<u64, String>, Vec<Set>, u64) {
        let start = HEADER + records * RECORD;
        let all = table_words(records);
        let used = usize::try_from(self.word(head::TABLE_USED)).unwrap_or(usize::MAX);
        let (mut names, mut sets) = (HashMap::new(), Vec::new());
        let mut damaged = u64::from(used > all);
        let used = used.min(all);
        let mut at = 0;
        while at < used {
            let (first, key) = (self.word(start + at), self.word(start + at + 1));
            let (code, len) = (first & 0xff, (first >> 32) as usize);
            let words = entry::HEAD + len.div_ceil(8);
            if words > used - at || !matches!(code, entry::NAME | entry::SET) {
                // What follows cannot be found either.
                damaged += 1;
                break;
            }
            let bytes: Vec<u8> =
                self.words[start + at + entry::HEAD..start + at + words].iter().flatten().copied().collect();
            let bytes = &bytes[..len];
            if code == entry::NAME {
                if len <= NAME_BYTES {
                    names.insert(key, text(bytes));
                }
            } else {
                match ranks(bytes) {
                    Some(ranks) => sets.push(Set { id: key as u32, named: key & entry::NAMED != 0, ranks }),
                    None => damaged += 1,
                }
            }
            at += words;
        }
        (names, sets, damaged)
    }

    fn operation(
        &self,
        line: usize,
        number: u64,
        code: u64,
        clocks: &[Clock; 2],
        names: &HashMap<u64, String>,
    ) -> Option<Operation> {
        let word = |at: usize| self.word(HEADER + line * RECORD + at);
        let stage = match code {
            state::SUBMITTED => Reached::Submitted,
            state::AGREED => Reached::Agreed,
            state::STARTED => Reached::Running,
            state::DONE => Reached::Done,
            state::FAILED => Reached::Failed,
            state::CANCELLED => Reached::Cancelled,
            _ => return None,
        };
        let asked = word(word::WHAT);
        let clock = &clocks[usize::from(asked & what::NANOS != 0)];
        let (spans, ended_set) = (word(word::AGREED_STARTED), word(word::ENDED_SET));
        let span = |packed: u64| unpack(packed as u32).map(|ticks| clock.span(ticks));
        let hash = word(word::NAME);
        Some(Operation {
            number,
            set: (ended_set >> 32) as u32,
            kind: Verb::from_code(asked as u8)?.name(),
            name: names.get(&hash).filter(|_| hash != 0).cloned(),
            hash,
            dtype: DType::from_code((asked >> 8) as u8),
            op: ReduceOp::from_code((asked >> 16) as u8),
            bytes: word(word::BYTES),
            peer: ((asked >> 32) as u32).checked_sub(1),
            place: word(word::PLACE).checked_sub(1),
            stage,
            submitted: clock.moment(word(word::SUBMITTED)),
            agreed: span(spans),
            started: span(spans >> 32),
            ended: span(ended_set),
        })
    }
}

/// The ranks that ranges stand for, if they are ranges of a believable number.
fn ranks(bytes: &[u8]) -> Option<Vec<u32>> {
    let (pairs, rest) = bytes.as_chunks::<8>();
    let mut ranks = Vec::new();
    for pair in pairs {
        let [first, count] = [&pair[..4], &pair[4..]].map(|half| half.try_into().map(u32::from_le_bytes).unwrap_or(0));
        if count as usize > MOST_RANKS - ranks.len() {
            return None;
        }
        ranks.extend(first..first.checked_add(count)?);
    }
    rest.is_empty().then_some(ranks)
}

/// What ticks are in time.
struct Clock {
    ticks: u64,
    real: u64,
    /// Nanoseconds of a tick.
    rate: f64,
}

impl Clock {
    fn of(file: &File<'_>) -> Self {
        let word = |at| file.word(at);
        let (ticks, monotonic) = (word(head::FIRST_ANCHOR), word(head::FIRST_ANCHOR + 1));
        let rate = match word(head::ANCHOR) {
            which @ 1..=2 => {
                let at = head::ANCHORS[which as usize - 1];
                word(at + 1).saturating_sub(monotonic) as f64 / word(at).saturating_sub(ticks) as f64
            }
            _ => 1.0,
        };
        // No clock of a processor is slower than 1 MHz.
        let rate = if rate > 0.0 && rate < 1000.0 { rate } else { 1.0 };
        Self { ticks, real: word(head::FIRST_ANCHOR + 2), rate }
    }

    /// Of times in nanoseconds of the monotonic clock.
    fn nanoseconds(file: &File<'_>) -> Self {
        Self { ticks: file.word(head::FIRST_ANCHOR + 1), real: file.word(head::FIRST_ANCHOR + 2), rate: 1.0 }
    }

    fn span(&self, ticks: u64) -> Duration {
        Duration::from_nanos((ticks as f64 * self.rate) as u64)
    }

    /// A moment since 1970.
    fn moment(&self, ticks: u64) -> Duration {
        let real = Duration::from_nanos(self.real);
        if ticks >= self.ticks {
            real.saturating_add(self.span(ticks - self.ticks))
        } else {
            real.saturating_sub(self.span(self.ticks - ticks))
        }
    }
}
