//! What the ranks of a test saw, and when: notes in files, which outlive a rank that is killed and a launcher that is cut
//! off from it. Times are those of the machine's monotonic clock, so that notes of several processes can be compared.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

use crate::{mpi, process};

/// The variable that tells the ranks where to put their notes.
const DIRECTORY: &str = "TEST_RECORD";

/// One note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Who wrote it.
    pub rank: usize,
    /// When, on the monotonic clock.
    pub at: Duration,
    /// What kind of thing it is about.
    pub word: String,
    /// The rest.
    pub text: String,
}

/// The notes of a job, as the test reads them.
#[derive(Clone, Debug)]
pub struct Record {
    directory: PathBuf,
}

/// The time on the machine's monotonic clock.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).expect("less than a second"))
}

/// In a rank: notes `word`, which holds no space, and `text`, from which line ends go.
///
/// # Panics
/// When the test has not set a place up, or nothing can be written there.
pub fn note(rank: usize, word: &str, text: &str) {
    let path = PathBuf::from(std::env::var_os(DIRECTORY).expect("the test keeps a record")).join(rank.to_string());
    let line = format!("{} {word} {}\n", now().as_nanos(), text.replace('\n', " "));
    // One write, so that a rank which is killed leaves whole lines.
    let written =
        OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| file.write_all(line.as_bytes()));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

impl Record {
    /// Notes that are to stand in `directory`, which is empty.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The setting that the ranks of a job need.
    pub fn setting(&self) -> (&'static str, &Path) {
        (DIRECTORY, &self.directory)
    }

    /// The processes that are ranks of a job with this record, by rank. Those that have ended do not count, whether or not
    /// their parents know.
    pub fn ranks(&self) -> Vec<(usize, Pid)> {
        let mine = [DIRECTORY.as_bytes(), b"=", self.directory.as_os_str().as_bytes()].concat();
        process::living(|environment| {
            let rank =
                |name: &str| environment.iter().find_map(|word| word.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
            environment
                .contains(&mine.as_slice())
                .then(|| mpi::RANK_VARIABLES.into_iter().find_map(rank))?
                .and_then(|text| str::from_utf8(text).ok()?.parse().ok())
        })
    }

    /// All notes so far, in the order of their times.
    ///
    /// # Errors
    /// When the files cannot be read, or hold something else.
    pub fn read(&self) -> io::Result<Vec<Note>> {
        let mut notes = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let strange = || io::Error::other(format!("{} is no record of a rank", path.display()));
            let rank = path.file_name().and_then(|name| name.to_str()?.parse().ok()).ok_or_else(strange)?;
            for line in fs::read_to_string(&path)?.lines() {
                notes.push(Note::parse(rank, line).ok_or_else(strange)?);
            }
        }
        notes.sort_by_key(|note| note.at);
        Ok(notes)
    }
}

impl Note {
    fn parse(rank: usize, line: &str) -> Option<Self> {
        let (at, rest) = line.split_once(' ')?;
        let (word, text) = rest.split_once(' ')?;
        let at = Duration::from_nanos(at.parse().ok()?);
        Some(Self { rank, at, word: word.to_owned(), text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_were_written() {
        let note = Note { rank: 3, at: Duration::from_nanos(17), word: "error".into(), text: "rank 1 is  gone".into() };
        assert_eq!(Note::parse(3, "17 error rank 1 is  gone"), Some(note));
        assert_eq!(Note::parse(3, "17 ready ").map(|note| note.text), Some(String::new()));
        assert_eq!(Note::parse(3, "now error text"), None);
        assert_eq!(Note::parse(3, "17"), None);
        assert!(now() <= now());
    }
}
