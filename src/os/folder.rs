//! Directories of this user alone, held open, so that nothing below them is reached through somebody else's link.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::memory::Mapping;
use crate::error::{Error, Result};

/// An open directory.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// Whether a directory may be one that somebody else made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It must be this user's, and nobody else's to enter.
    Mine,
    /// The user chose it.
    Chosen,
}

/// What lies in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) name: String,
    pub(crate) modified: SystemTime,
    pub(crate) bytes: u64,
    pub(crate) is_file: bool,
}

impl Folder {
    /// Opens the directory at `path`, which is made if it is not there. Its last part is not followed if it is a link.
    pub(crate) fn open(path: &Path, trust: Trust) -> Result<Self> {
        Self::open_at(CWD, path, path.to_owned(), trust)
    }

    /// Opens the directory `name` in this one, which is made if it is not there.
    pub(crate) fn inner(&self, name: &str) -> Result<Self> {
        Self::open_at(&self.fd, Path::new(name), self.path.join(name), Trust::Mine)
    }

    fn open_at(at: impl AsFd, name: &Path, path: PathBuf, trust: Trust) -> Result<Self> {
        let shown = path.display();
        match mkdirat(&at, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::system(format!("making the directory {shown}"), error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&at, name, flags, Mode::empty()).map_err(|error| {
            let link = if matches!(error, Errno::NOTDIR | Errno::LOOP) { " (a link is not followed)" } else { "" };
            Error::system(format!("opening the directory {shown}{link}"), error)
        })?;
        let stat = fstat(&fd).map_err(|error| Error::system(format!("looking at the directory {shown}"), error))?;
        let user = rustix::process::geteuid().as_raw();
        if trust == Trust::Mine && (stat.st_uid != user || stat.st_mode & 0o077 != 0) {
            let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
            let text = format!(
                "the directory {shown} belongs to user {owner} with mode {mode:o}, and this is user {user}, who wants it for \
                 itself alone (mode 700)"
            );
            return Err(Error::system(text, Errno::PERM));
        }
        Ok(Self { fd, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new file of `len` bytes in this directory, mapped, and locked for as long as the mapping lives.
    pub(crate) fn create(&self, name: &str, len: usize) -> Result<Mapping> {
        let what = format!("reserving {len} bytes in {}", self.path.join(name).display());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| Error::system(what.clone(), error))?;
        if let Err(error) = flock(&fd, FlockOperation::NonBlockingLockShared) {
            // A file system without locks: an old file is then taken for one whose process has ended.
            log::debug!("locking {}: {error}", self.path.join(name).display());
        }
        let mapping = Mapping::file(fd, &what, len);
        if mapping.is_err() {
            // Why it could not be had is what the caller must hear.
            drop(self.remove_file(name));
        }
        mapping
    }

    /// What lies in this directory, in no order. What vanishes meanwhile is left out.
    pub(crate) fn list(&self) -> Result<Vec<Content>> {
        let failed = |error| Error::system(format!("listing {}", self.path.display()), error);
        let mut contents = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
            contents.push(Content {
                name: name.to_owned(),
                modified: UNIX_EPOCH + Duration::from_secs(seconds),
                bytes: u64::try_from(stat.st_size).unwrap_or(0),
                is_file: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            });
        }
        Ok(contents)
    }

    /// Opens the directory `name` in this one, if it is there and this user's alone.
    pub(crate) fn existing(&self, name: &str) -> Option<Self> {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        self.inner(name).ok()
    }

    /// Opens the file `name` for reading, if it is one.
    fn read(&self, name: &str) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&self.fd, OsStr::new(name), flags, Mode::empty()).ok().map(File::from)
    }

    /// Whether a process still has the file `name` mapped ([`Folder::create`]), or nobody can tell.
    pub(crate) fn in_use(&self, name: &str) -> bool {
        let Some(file) = self.read(name) else { return false };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => false,
            Err(error) => error == Errno::WOULDBLOCK,
        }
    }

    /// Removes a file; one that is gone already is fine.
    pub(crate) fn remove_file(&self, name: &str) -> Result<()> {
        self.remove(name, AtFlags::empty())
    }

    /// Removes a directory, if it is empty. Returns whether it is gone.
    pub(crate) fn remove_folder(&self, name: &str) -> Result<bool> {
        match unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(Error::system(format!("removing {}", self.path.join(name).display()), error)),
        }
    }

    fn remove(&self, name: &str, flags: AtFlags) -> Result<()> {
        match unlinkat(&self.fd, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::system(format!("removing {}", self.path.join(name).display()), error)),
        }
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::atomic::Ordering;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn files_and_directories_are_for_this_user_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = Folder::open(&dir.path().join("mine"), Trust::Mine).expect("made");
        let inner = folder.inner("job").expect("made");
        let mapping = inner.create("rank", 5000).expect("made");
        assert_eq!((mode(folder.path()), mode(inner.path())), (0o700, 0o700));
        assert_eq!(mode(&inner.path().join("rank")), 0o600);
        mapping.words()[700].store(7, Ordering::Relaxed);
        let bytes = std::fs::read(inner.path().join("rank")).expect("read");
        assert_eq!((bytes.len(), bytes[5600]), (8192, 7));
        assert!(inner.create("rank", 1).is_err(), "files are made new");
        // Again, as the next job does.
        Folder::open(folder.path(), Trust::Mine).expect("opened").inner("job").expect("opened");
    }

    #[test]
    fn a_link_and_a_directory_for_others_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).expect("made");
        symlink(&real, &link).expect("made");
        let text = Folder::open(&link, Trust::Chosen).expect_err("a link").to_string();
        assert!(text.contains("link"), "{text}");
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o755)).expect("set");
        let text = Folder::open(&real, Trust::Mine).expect_err("others may enter").to_string();
        assert!(text.contains("mode 755"), "{text}");
        let chosen = Folder::open(&real, Trust::Chosen).expect("the user knows");
        symlink("/etc", real.join("job")).expect("made");
        assert!(chosen.inner("job").is_err() && chosen.existing("job").is_none());
        symlink("/etc/passwd", real.join("rank")).expect("made");
        assert!(chosen.create("rank", 100).is_err());
        assert!(!chosen.in_use("rank"), "not opened through the link");
    }

    #[test]
    fn a_file_is_in_use_while_it_is_mapped() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = Folder::open(dir.path(), Trust::Chosen).expect("opened");
        let mapping = folder.create("rank", 1).expect("made");
        assert!(folder.in_use("rank"));
        drop(mapping);
        assert!(!folder.in_use("rank") && !folder.in_use("nothing"));
        assert!(!folder.inner("sub").expect("made").in_use("nothing"));
        let names: Vec<_> = folder.list().expect("listed").into_iter().map(|c| (c.name, c.is_file)).collect();
        assert!(names.contains(&("rank".to_owned(), true)) && names.contains(&("sub".to_owned(), false)), "{names:?}");
    }

    #[test]
    fn what_is_removed_is_gone_and_may_be_gone_already() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = Folder::open(dir.path(), Trust::Chosen).expect("opened");
        drop(folder.inner("job").expect("made").create("rank", 1).expect("made"));
        assert!(!folder.remove_folder("job").expect("it is not empty"));
        for _ in 0..2 {
            folder.existing("job").map_or(Ok(()), |job| job.remove_file("rank")).expect("removed");
            assert!(folder.remove_folder("job").expect("removed"));
        }
        assert!(folder.remove_file("no/such").is_ok());
    }

    #[test]
    fn no_room_is_an_error_that_names_the_file_and_leaves_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = Folder::open(dir.path(), Trust::Chosen).expect("opened");
        let text = folder.create("rank", 1 << 50).expect_err("no disk is so large").to_string();
        assert!(text.contains("rank"), "{text}");
        assert!(folder.list().expect("listed").is_empty());
    }
}
