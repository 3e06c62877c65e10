//! From directories to recordings: files are copied twice, because their ranks may be writing.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::layout::{HEADER, RECORD, file_bytes, hash};
use super::parse::{self, MOST_RECORDS};
use super::store::ENDING;
use super::{Process, Recording};
use crate::error::{Error, Result};
use crate::os::host;
use crate::os::process::{self, Identity, State};

/// How often a record that changes is copied again.
const AGAIN: usize = 4;

/// What was found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Recordings {
    /// By job and rank.
    pub recordings: Vec<Recording>,
    /// Files that cannot be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Reads the flight records of one job: each path is a file of a rank, a job's directory, or a directory of such, of which
/// the newest is taken. Several paths are for a job whose hosts keep their files apart.
///
/// # Errors
/// [`Error::System`] or [`Error::Argument`] if a path cannot be read or holds no flight records. A single file that cannot
/// be read stands in [`Recordings::unreadable`].
pub fn read<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Recordings> {
    let mut found = Recordings::default();
    let here = hash(&host::identity());
    for path in paths {
        let path = path.as_ref();
        let files = files_of(path)?;
        if files.is_empty() {
            return Err(Error::argument(format!(
                "{} holds no flight records (files that end in {ENDING}); pass the directory of a job",
                path.display()
            )));
        }
        for file in files {
            match read_file(&file) {
                Ok(mut recording) => {
                    recording.process = process_of(&recording, here);
                    found.recordings.push(recording);
                }
                Err(error) => found.unreadable.push((file, error.to_string())),
            }
        }
    }
    found.recordings.sort_by_key(|recording| (recording.job, recording.epoch, recording.rank));
    Ok(found)
}

/// The files of the job that a path stands for.
fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::system(format!("reading {}", path.display()), error);
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let files = files_in(path)?;
    if !files.is_empty() {
        return Ok(files);
    }
    // The directory of all jobs: the newest that has files.
    let mut jobs = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(meta) = entry.metadata()
            && meta.is_dir()
            && let Ok(modified) = meta.modified()
        {
            jobs.push((modified, entry.path()));
        }
    }
    jobs.sort();
    for (_, job) in jobs.into_iter().rev() {
        let files = files_in(&job)?;
        if !files.is_empty() {
            return Ok(files);
        }
    }
    Ok(Vec::new())
}

fn files_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::system(format!("reading {}", directory.display()), error);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.to_string_lossy().ends_with(ENDING) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<Recording> {
    let mut copies = Copies::open(path)?;
    let first = copies.take()?;
    let records = parse::records(&first)?;
    let mut bytes = first;
    let mut steady = vec![false; records];
    for _ in 0..AGAIN {
        let next = copies.take()?;
        let line = |bytes: &[u8], line: usize| {
            bytes.get((HEADER + line * RECORD) * 8..)?.get(..RECORD * 8).map(<[u8]>::to_vec)
        };
        for (index, steady) in steady.iter_mut().enumerate() {
            *steady = line(&bytes, index) == line(&next, index);
        }
        bytes = next;
        if steady.iter().all(|steady| *steady) {
            break;
        }
    }
    parse::parse(&bytes, |line| steady.get(line).copied().unwrap_or(false))
}

/// Copies of a file.
struct Copies {
    file: File,
    path: PathBuf,
}

impl Copies {
    fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::system(format!("opening {}", path.display()), error);
        // Not through a link, and without waiting for the other end of what is no file.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(Error::argument(format!("{} is no file", path.display())));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    fn take(&mut self) -> Result<Vec<u8>> {
        let failed = |error| Error::system(format!("reading {}", self.path.display()), error);
        std::io::Seek::rewind(&mut self.file).map_err(failed)?;
        let mut bytes = Vec::new();
        (&self.file).take(file_bytes(MOST_RECORDS) as u64).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

/// What the rank's process does now, if it is one of this host.
fn process_of(recording: &Recording, here: u64) -> Process {
    if recording.host_hash != here {
        return Process::Elsewhere;
    }
    let identity = Identity { pid: recording.pid, start_time: recording.start_time };
    if !identity.is_alive() {
        return Process::Ended;
    }
    match process::state(recording.pid) {
        State::Stopped => Process::Stopped,
        State::Running | State::Sleeping => Process::Alive,
        State::Zombie | State::Gone => Process::Ended,
    }
}
