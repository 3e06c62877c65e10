//! Where the files of a job lie, and who removes them. README.md, "Directories".

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::os::folder::{Folder, Trust};
use crate::os::memory::Mapping;

/// Old jobs that are kept below the default place, and their bytes; the newest is always kept.
const KEEP_JOBS: usize = 16;
const KEEP_BYTES: u64 = 256 << 20;

const JOB: &str = "job-";
const RANK: &str = "rank-";
/// The ending of a file of flight records.
pub(super) const ENDING: &str = ".flight";

/// The directory of a job.
#[derive(Debug)]
pub(super) struct Store {
    base: Folder,
    job: Folder,
    name: String,
    /// Whether nobody but kolo puts anything into the base.
    own_base: bool,
}

impl Store {
    /// Opens, and makes, the directory of job `id` in `chosen`, or in the default place.
    pub(super) fn open(chosen: Option<&Path>, id: u128) -> Result<Self> {
        let base = match chosen {
            Some(path) => Folder::open(path, Trust::Chosen)?,
            None => Folder::open(&default_base(), Trust::Mine)?,
        };
        let name = format!("{JOB}{:016x}", id as u64);
        let job = base.inner(&name)?;
        Ok(Self { base, job, name, own_base: chosen.is_none() })
    }

    pub(super) fn path(&self) -> &Path {
        self.job.path()
    }

    /// A new file for `rank`.
    pub(super) fn create(&self, rank: usize, bytes: usize) -> Result<Mapping> {
        self.job.create(&file_name(rank), bytes)
    }

    /// Removes the files of `ranks`, and the directory once it is empty.
    pub(super) fn remove(&self, ranks: &[usize]) -> Result<()> {
        for &rank in ranks {
            self.job.remove_file(&file_name(rank))?;
        }
        self.base.remove_folder(&self.name).map(drop)
    }

    /// Removes what old jobs left in the default place, but for the newest.
    pub(super) fn clean(&self) -> Result<()> {
        if !self.own_base {
            return Ok(());
        }
        let jobs = self.base.list()?.into_iter().filter(|content| !content.is_file && is_job(&content.name));
        let mut jobs: Vec<_> = jobs.filter(|content| content.name != self.name).collect();
        jobs.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| b.name.cmp(&a.name)));
        let mut bytes = 0;
        for (age, old) in jobs.iter().enumerate() {
            let Some(folder) = self.base.existing(&old.name) else { continue };
            let files = folder.list()?;
            bytes += files.iter().map(|file| file.bytes).sum::<u64>();
            let keep = age == 0 || (age < KEEP_JOBS && bytes <= KEEP_BYTES);
            let foreign = files.iter().any(|file| !file.is_file || !is_file(&file.name));
            if keep || foreign || files.iter().any(|file| folder.in_use(&file.name)) {
                continue;
            }
            for file in &files {
                folder.remove_file(&file.name)?;
            }
            self.base.remove_folder(&old.name)?;
        }
        Ok(())
    }
}

fn default_base() -> PathBuf {
    std::env::temp_dir().join(format!("kolo-flight-{}", rustix::process::geteuid().as_raw()))
}

fn file_name(rank: usize) -> String {
    format!("{RANK}{rank:05}{ENDING}")
}

fn is_job(name: &str) -> bool {
    name.strip_prefix(JOB).is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a file has the name of one rank's records.
pub(super) fn is_file(name: &str) -> bool {
    let number = name.strip_prefix(RANK).and_then(|rest| rest.strip_suffix(ENDING));
    number.is_some_and(|number| number.len() >= 5 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    /// A store that takes `path` for the default place.
    fn store(path: &Path, id: u128) -> Store {
        Store { own_base: true, ..Store::open(Some(path), id).expect("opened") }
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).expect("listed");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_job_has_a_directory_and_a_rank_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(Some(dir.path()), 0x1234).expect("opened");
        let mappings = [store.create(0, 1).expect("made"), store.create(12, 1).expect("made")];
        assert_eq!(names(dir.path()), ["job-0000000000001234"]);
        assert_eq!(names(store.path()), ["rank-00000.flight", "rank-00012.flight"]);
        store.remove(&[0, 1]).expect("what is there is removed");
        assert_eq!(names(store.path()), ["rank-00012.flight"]);
        store.remove(&[12]).expect("removed");
        store.remove(&[12]).expect("twice is fine");
        assert!(names(dir.path()).is_empty());
        drop(mappings);
    }

    #[test]
    fn old_jobs_go_but_for_the_newest_and_those_that_live_or_are_not_ours() {
        let dir = tempfile::tempdir().expect("a directory");
        let live = store(dir.path(), 1);
        let mapping = live.create(0, 1).expect("made");
        for id in 2..30_u128 {
            let old = store(dir.path(), id);
            drop(old.create(0, 1).expect("made"));
            if id == 3 {
                std::fs::write(old.path().join("notes.txt"), "mine").expect("written");
            }
        }
        std::fs::create_dir(dir.path().join("job-of-mine")).expect("made");
        // All are of the same second: the higher number counts as the newer.
        store(dir.path(), 99).clean().expect("cleaned");
        let left = names(dir.path());
        assert!(left.contains(&"job-0000000000000001".to_owned()), "its process lives: {left:?}");
        assert!(left.contains(&"job-0000000000000003".to_owned()), "it has another's file: {left:?}");
        assert!(left.contains(&"job-000000000000001d".to_owned()), "the newest: {left:?}");
        assert!(!left.contains(&"job-0000000000000002".to_owned()), "the oldest: {left:?}");
        assert_eq!(left.len(), KEEP_JOBS + 2 + 2, "two are spared, one is new, one is no job: {left:?}");
        drop(mapping);
    }

    #[test]
    fn a_place_that_the_user_chose_is_not_cleaned() {
        let dir = tempfile::tempdir().expect("a directory");
        for id in 0..30 {
            drop(Store::open(Some(dir.path()), id).expect("opened").create(0, 1).expect("made"));
        }
        Store::open(Some(dir.path()), 99).expect("opened").clean().expect("nothing to do");
        assert_eq!(names(dir.path()).len(), 31);
    }

    #[test]
    fn only_our_names_are_ours() {
        assert!(is_file("rank-00000.flight") && is_file("rank-123456.flight"));
        assert!(!is_file("rank-0.flight") && !is_file("rank-0000x.flight") && !is_file("rank-00000.txt"));
        assert!(is_job("job-0123456789abcdef") && !is_job("job-1") && !is_job("job-0123456789abcdeg"));
    }
}
