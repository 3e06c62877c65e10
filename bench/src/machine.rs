//! Where the job runs: ranks, machines, cores. It decides whether a peer can be measured fairly, and heads every report.

use crate::control::Control;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// One rank's whereabouts.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Place {
    /// The boot of the kernel: equal for containers and network namespaces of one machine, whose cores are shared.
    machine: String,
    host: String,
    /// The CPUs the rank may use, as the kernel lists them: `0-3,8`.
    cpus: String,
    /// Whole cores that the control group's quota admits.
    quota: Option<usize>,
}

/// Bytes of a place on the wire.
const PLACE_BYTES: usize = 4096;

/// The machines of the job.
#[derive(Clone, Debug)]
pub(crate) struct Machines {
    places: Vec<Place>,
}

impl Machines {
    /// Learns where all ranks are.
    ///
    /// # Collective
    ///
    /// Every rank calls it at the same point.
    ///
    /// # Errors
    ///
    /// When `/proc` does not tell, or the ranks cannot communicate.
    pub(crate) fn survey(control: &mut Control, host: &str) -> Result<Self> {
        let status = read("/proc/self/status")?;
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        let place = Place {
            machine: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            host: host.to_owned(),
            cpus: cpus.trim().to_owned(),
            quota: quota(),
        };
        let mut bytes = serde_json::to_vec(&place)?;
        anyhow::ensure!(bytes.len() <= PLACE_BYTES, "the list of CPUs is too long: {cpus}");
        bytes.resize(PLACE_BYTES, b' ');
        let places = control
            .gather(&bytes)?
            .iter()
            .map(|bytes| serde_json::from_slice(bytes).context("a rank sent no readable place"))
            .collect::<Result<_>>()?;
        Ok(Self { places })
    }

    /// The number of hosts, by name.
    pub(crate) fn hosts(&self) -> usize {
        self.places.iter().map(|place| &place.host).collect::<BTreeSet<_>>().len()
    }

    /// The cores that the ranks of all machines may use together.
    pub(crate) fn cores(&self) -> usize {
        self.by_machine().iter().map(|(_, cores)| cores).sum()
    }

    /// The ranks and cores of the first machine that has more ranks than cores.
    pub(crate) fn oversubscribed(&self) -> Option<(usize, usize)> {
        self.by_machine().into_iter().find(|(ranks, cores)| ranks > cores)
    }

    /// (ranks, cores) of each machine.
    fn by_machine(&self) -> Vec<(usize, usize)> {
        let mut machines: BTreeMap<&str, (usize, BTreeSet<usize>, Option<usize>)> = BTreeMap::new();
        for place in &self.places {
            let entry = machines.entry(&place.machine).or_default();
            entry.0 += 1;
            entry.1.extend(parse_cpus(&place.cpus));
            entry.2 = [entry.2, place.quota].into_iter().flatten().min();
        }
        machines
            .into_values()
            .map(|(ranks, cpus, quota)| (ranks, cpus.len().min(quota.unwrap_or(usize::MAX)).max(1)))
            .collect()
    }

    /// The report's head: what anyone needs who compares two reports.
    pub(crate) fn header(&self, mpi: &str) -> String {
        let mut cpus: Vec<(String, Vec<usize>)> = Vec::new();
        for (rank, place) in self.places.iter().enumerate() {
            let at = format!("{} CPUs {}", place.host, place.cpus);
            match cpus.iter_mut().find(|(known, _)| *known == at) {
                Some((_, ranks)) => ranks.push(rank),
                None => cpus.push((at, vec![rank])),
            }
        }
        let affinity: Vec<String> = cpus
            .into_iter()
            .map(|(at, ranks)| {
                let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
                format!("{at}: rank{} {}", if ranks.len() == 1 { "" } else { "s" }, ranks.join(","))
            })
            .collect();
        let shared = match self.oversubscribed() {
            Some((ranks, cores)) => format!(" (oversubscribed: {ranks} ranks on {cores} cores)"),
            None => String::new(),
        };
        format!(
            "# kolo {} | {mpi}\n# {} ranks, {} host{}, {} cores{shared} | {} | load {}\n# affinity: {}",
            env!("CARGO_PKG_VERSION"),
            self.places.len(),
            self.hosts(),
            if self.hosts() == 1 { "" } else { "s" },
            self.cores(),
            cpu_model(),
            fs::read_to_string("/proc/loadavg").map_or_else(|_| "unknown".into(), |load| first_words(&load, 3)),
            affinity.join("; "),
        )
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn first_words(text: &str, words: usize) -> String {
    text.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// `0-3,8` as numbers.
fn parse_cpus(list: &str) -> BTreeSet<usize> {
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?)
        })
        .flatten()
        .collect()
}

/// Cores that the control groups of this process admit, rounded up: the tightest on the way to the root.
fn quota() -> Option<usize> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim();
    let mut group = std::path::PathBuf::from("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let mut least: Option<usize> = None;
    loop {
        if let Ok(text) = fs::read_to_string(group.join("cpu.max")) {
            least = [least, parse_quota(&text)].into_iter().flatten().min();
        }
        if group.as_os_str() == "/sys/fs/cgroup" || !group.pop() {
            break;
        }
    }
    // The older hierarchy has the two numbers in files of their own.
    let old = |name| fs::read_to_string(format!("/sys/fs/cgroup/cpu/{name}")).ok();
    if let (Some(quota), Some(period)) = (old("cpu.cfs_quota_us"), old("cpu.cfs_period_us")) {
        least = [least, parse_quota(&format!("{} {}", quota.trim(), period.trim()))].into_iter().flatten().min();
    }
    least
}

/// `200000 100000` is two cores; `max 100000` and `-1 100000` are no limit.
fn parse_quota(text: &str) -> Option<usize> {
    let mut words = text.split_whitespace();
    let (quota, period) = (words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?);
    (quota > 0 && period > 0).then(|| quota.div_euclid(period) as usize + usize::from(quota % period != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(machine: &str, host: &str, cpus: &str, quota: Option<usize>) -> Place {
        Place { machine: machine.into(), host: host.into(), cpus: cpus.into(), quota }
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_cpus("0-3,8").into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 8]);
        assert_eq!(parse_cpus("1").len(), 1);
        assert!(parse_cpus("").is_empty());
    }

    #[test]
    fn quotas() {
        assert_eq!(parse_quota("200000 100000\n"), Some(2));
        assert_eq!(parse_quota("150000 100000"), Some(2));
        assert_eq!(parse_quota("max 100000"), None);
        assert_eq!(parse_quota("-1 100000"), None);
        assert_eq!(parse_quota(""), None);
    }

    #[test]
    fn bound_ranks_share_the_union_of_their_cores() {
        let machines = Machines { places: vec![place("m", "a", "0", None), place("m", "a", "1", None)] };
        assert_eq!((machines.hosts(), machines.cores(), machines.oversubscribed()), (1, 2, None));
    }

    #[test]
    fn too_many_ranks_are_seen_by_machine_even_under_several_host_names() {
        let machines = Machines {
            places: vec![
                place("m", "a", "0-1", None),
                place("m", "a", "0-1", None),
                place("m", "b", "0-1", None),
                place("n", "c", "0-1", None),
            ],
        };
        assert_eq!(machines.oversubscribed(), Some((3, 2)));
        assert_eq!((machines.hosts(), machines.cores()), (3, 4));
        let header = machines.header("Open MPI");
        assert!(header.contains("oversubscribed: 3 ranks on 2 cores"), "{header}");
        assert!(header.contains("a CPUs 0-1: ranks 0,1"), "{header}");
        assert!(header.lines().all(|line| line.starts_with('#')), "{header}");
    }

    #[test]
    fn a_quota_counts_as_cores() {
        let machines = Machines { places: vec![place("m", "a", "0-7", Some(1)), place("m", "a", "0-7", Some(1))] };
        assert_eq!(machines.oversubscribed(), Some((2, 1)));
    }
}
