//! Processors: which ones this process may use, how much of them, and how large their caches are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A set of processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuMask {
    /// Without trailing zeros, so that equal sets are equal values.
    words: Vec<u64>,
}

impl CpuMask {
    fn from_words(mut words: Vec<u64>) -> Self {
        while words.last() == Some(&0) {
            words.pop();
        }
        Self { words }
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, cpu: usize) -> bool {
        self.words.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    #[cfg(test)]
    pub(crate) fn insert(&mut self, cpu: usize) {
        if self.words.len() <= cpu / 64 {
            self.words.resize(cpu / 64 + 1, 0);
        }
        self.words[cpu / 64] |= 1 << (cpu % 64);
    }

    /// The processors of either.
    pub(crate) fn union(&self, other: &Self) -> Self {
        let (mut long, short) = if self.words.len() >= other.words.len() {
            (self.words.clone(), &other.words)
        } else {
            (other.words.clone(), &self.words)
        };
        for (word, bits) in long.iter_mut().zip(short) {
            *word |= bits;
        }
        Self { words: long }
    }

    pub(crate) fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// For the exchange at init; [`CpuMask::from_bytes`] reads it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// `None` if the bytes are no mask.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        rest.is_empty().then(|| Self::from_words(words.iter().map(|word| u64::from_le_bytes(*word)).collect()))
    }
}

/// The processors that the calling thread may run on.
pub(crate) fn affinity() -> Result<CpuMask> {
    let mut words = vec![0_u64; 16];
    loop {
        let bytes = size_of_val(words.as_slice());
        // SAFETY: `words` is writable for `bytes` bytes. The raw call tells how many it wrote, and takes masks beyond
        // the 1024 processors of a cpu_set_t.
        let written = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, bytes, words.as_mut_ptr()) };
        if written > 0 {
            return Ok(CpuMask::from_words(words));
        }
        let error = std::io::Error::last_os_error();
        // The kernel knows more processors than there was room for.
        if error.raw_os_error() == Some(libc::EINVAL) && words.len() < 1 << 14 {
            words = vec![0; words.len() * 2];
            continue;
        }
        return Err(Error::system("asking which processors this process may use", error));
    }
}

/// How many processors' worth of time the control groups of this process allow, if they limit it.
pub(crate) fn quota() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    quota_of(&groups, &mounts, &|path| fs::read_to_string(path).ok())
}

/// The smallest quota of the process's groups and of all groups above them, in either version of the hierarchy.
fn quota_of(groups: &str, mounts: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
    let mut smallest: Option<f64> = None;
    for line in groups.lines() {
        // hierarchy:controllers:path; version 2 names no controllers.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|controller| controller == "cpu") {
            continue;
        }
        let Some((mount, mut group)) = mounted_group(mounts, unified, path) else {
            continue;
        };
        loop {
            let here = if unified { quota_v2(&group, read) } else { quota_v1(&group, read) };
            smallest = match (smallest, here) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            if group == mount || !group.pop() {
                break;
            }
        }
    }
    smallest
}

/// Where the hierarchy is mounted, and the directory of the group below it.
fn mounted_group(mounts: &str, unified: bool, path: &str) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        // id parent device root mount-point options [tags] - type source super-options
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let (root, point) = (left.nth(3)?, left.next()?);
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let wanted = if unified {
            kind == "cgroup2"
        } else {
            kind == "cgroup" && options.split(',').any(|option| option == "cpu")
        };
        if !wanted {
            return None;
        }
        let mount = PathBuf::from(point);
        // In a container the mount may show only a part of the hierarchy, whose root is then the group itself.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let group = mount.join(below);
        Some((mount, group))
    })
}

fn quota_v2(group: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
    let text = read(&group.join("cpu.max"))?;
    let mut fields = text.split_ascii_whitespace();
    cores(fields.next()?, fields.next()?)
}

fn quota_v1(group: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
    let quota = read(&group.join("cpu.cfs_quota_us"))?;
    let period = read(&group.join("cpu.cfs_period_us"))?;
    cores(quota.trim(), period.trim())
}

/// `None` for "max", for -1 and for what is no number: no limit.
fn cores(quota: &str, period: &str) -> Option<f64> {
    let quota: u64 = quota.parse().ok()?;
    let period: u64 = period.parse().ok()?;
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn masks_unite_count_and_travel() {
        let mut a = CpuMask::default();
        let mut b = CpuMask::default();
        a.insert(0);
        a.insert(70);
        b.insert(1);
        b.insert(70);
        let both = a.union(&b);
        assert_eq!(both, b.union(&a));
        assert_eq!(both.count(), 3);
        assert!(both.contains(70) && both.contains(0) && !both.contains(2) && !both.contains(9999));
        assert_eq!(CpuMask::from_bytes(&both.to_bytes()), Some(both));
        assert_eq!(CpuMask::from_bytes(&[0; 16]), Some(CpuMask::default()));
        assert_eq!(CpuMask::from_bytes(&[0; 7]), None);
    }

    #[test]
    fn this_thread_may_run_somewhere() {
        assert!(affinity().expect("a mask").count() > 0);
    }

    fn quota_with(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<f64> {
        let files: HashMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        quota_of(groups, mounts, &|path| files.get(path).map(|text| (*text).to_owned()))
    }

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let files = [
            ("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/cpu.max", "400000 100000\n"),
        ];
        assert_eq!(quota_with("0::/a/b\n", V2, &files), Some(1.5));
        assert_eq!(quota_with("0::/other\n", V2, &files), Some(4.0));
        assert_eq!(quota_with("0::/a/b\n", V2, &files[..1]), None);
    }

    #[test]
    fn version_1_and_mixed_hierarchies_are_read() {
        let files = [
            ("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        let groups = "4:memory:/job\n3:cpu,cpuacct:/job\n0::/job\n";
        assert_eq!(quota_with(groups, &format!("{V1}{V2}"), &files), Some(0.5));
    }

    #[test]
    fn a_container_that_sees_only_its_own_group_is_read() {
        let mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup ro\n";
        let files = [("/sys/fs/cgroup/cpu.max", "200000 100000")];
        assert_eq!(quota_with("0::/docker/abc\n", mounts, &files), Some(2.0));
        assert_eq!(quota_with("0::/\n", mounts, &files), Some(2.0));
        assert_eq!(quota_with("nonsense\n", mounts, &files), None);
        assert_eq!(quota_with("0::/\n", "", &files), None);
        assert!(quota().is_none_or(|cores| cores > 0.0));
    }
}
