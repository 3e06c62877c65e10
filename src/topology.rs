//! Who sits where: ranks, hosts, and whether a host's ranks fit its processors.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::fields::{put, take, take_array, take_text};
use crate::os::cpu::CpuMask;

/// What one rank knows about where it runs, told to all at init.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// Equal for two ranks only if they can share memory.
    pub(crate) identity: String,
    pub(crate) hostname: String,
    pub(crate) pid: u32,
    /// With the pid, names one process for good.
    pub(crate) start_time: u64,
    /// The processors it may use.
    pub(crate) cpus: CpuMask,
    /// Processors' worth of time that its control group allows.
    pub(crate) quota: Option<f64>,
}

/// A host of the job, or a pretended one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// As messages show it.
    pub(crate) name: String,
    /// Its global ranks, ascending. The first leads.
    pub(crate) ranks: Vec<usize>,
    /// Whether more ranks run here than processors are theirs: then nobody spins.
    pub(crate) oversubscribed: bool,
}

/// The places of all ranks, equal on every rank but for `rank`.
///
/// Hosts are ordered by their lowest rank, and the ranks of a host by rank. `cross_rank` counts the hosts that have a
/// rank with the same `local_rank`, as Horovod and MPI's split by local rank do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Topology {
    rank: usize,
    places: Vec<Place>,
    hosts: Vec<Host>,
    /// (host, local rank) by rank.
    seats: Vec<(usize, usize)>,
}

impl Topology {
    /// Orders the ranks. `pretend` gives the sizes of pretended hosts, or nothing for the real ones.
    ///
    /// # Errors
    /// Pretended hosts that do not hold all ranks, or that put ranks of different real hosts on one.
    pub(crate) fn new(rank: usize, places: Vec<Place>, pretend: &[usize]) -> Result<Self> {
        let groups = if pretend.is_empty() { by_identity(&places) } else { pretended(&places, pretend)? };
        let mut seats = vec![(0, 0); places.len()];
        for (host, ranks) in groups.iter().enumerate() {
            for (local, &rank) in ranks.iter().enumerate() {
                seats[rank] = (host, local);
            }
        }
        let hosts = groups
            .into_iter()
            .enumerate()
            .map(|(index, ranks)| {
                let real = &places[ranks[0]];
                let name =
                    if pretend.is_empty() { real.hostname.clone() } else { format!("{}/{index}", real.hostname) };
                // Pretended hosts share real processors.
                let neighbours = places.iter().filter(|place| place.identity == real.identity);
                Host { name, ranks, oversubscribed: is_oversubscribed(neighbours) }
            })
            .collect();
        Ok(Self { rank, places, hosts, seats })
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn size(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn local_rank(&self) -> usize {
        self.seats[self.rank].1
    }

    pub(crate) fn local_size(&self) -> usize {
        self.host().ranks.len()
    }

    /// How many hosts before this rank's have a rank with the same local rank.
    pub(crate) fn cross_rank(&self) -> usize {
        let (host, local) = self.seats[self.rank];
        self.hosts[..host].iter().filter(|host| host.ranks.len() > local).count()
    }

    /// How many hosts have a rank with the same local rank.
    pub(crate) fn cross_size(&self) -> usize {
        let local = self.local_rank();
        self.hosts.iter().filter(|host| host.ranks.len() > local).count()
    }

    /// Whether every host has equally many ranks.
    pub(crate) fn is_homogeneous(&self) -> bool {
        self.hosts.iter().all(|host| host.ranks.len() == self.hosts[0].ranks.len())
    }

    pub(crate) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of this rank.
    pub(crate) fn host(&self) -> &Host {
        &self.hosts[self.host_index()]
    }

    pub(crate) fn host_index(&self) -> usize {
        self.seats[self.rank].0
    }

    /// The host of a global rank.
    pub(crate) fn host_of(&self, rank: usize) -> usize {
        self.seats[rank].0
    }

    /// The place of a global rank among the ranks of its host.
    pub(crate) fn local_rank_of(&self, rank: usize) -> usize {
        self.seats[rank].1
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.local_rank() == 0
    }

    pub(crate) fn place(&self, rank: usize) -> &Place {
        &self.places[rank]
    }

    /// The name of a rank's host.
    pub(crate) fn host_name(&self, rank: usize) -> &str {
        &self.hosts[self.host_of(rank)].name
    }
}

fn by_identity(places: &[Place]) -> Vec<Vec<usize>> {
    let mut hosts: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (rank, place) in places.iter().enumerate() {
        let host = *known.entry(&place.identity).or_insert_with(|| {
            hosts.push(Vec::new());
            hosts.len() - 1
        });
        hosts[host].push(rank);
    }
    hosts
}

fn pretended(places: &[Place], sizes: &[usize]) -> Result<Vec<Vec<usize>>> {
    let total: usize = sizes.iter().sum();
    if total != places.len() {
        let text = sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        return Err(Error::config(format!(
            "KOLO_HOSTS is '{text}', which makes {total} ranks, but the job has {}; give hosts that hold all of them",
            places.len()
        )));
    }
    let mut next = 0;
    let mut hosts = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let ranks: Vec<usize> = (next..next + size).collect();
        next += size;
        if let Some(&far) = ranks.iter().find(|&&rank| places[rank].identity != places[ranks[0]].identity) {
            return Err(Error::config(format!(
                "KOLO_HOSTS puts ranks {} and {far} on one host, but they run on {} and {}, which share no memory; \
                 pretended hosts can only divide real ones",
                ranks[0], places[ranks[0]].hostname, places[far].hostname
            )));
        }
        hosts.push(ranks);
    }
    Ok(hosts)
}

/// Whether ranks that share memory are more than the processors they may use together: the union of their masks, capped
/// by the tightest quota.
fn is_oversubscribed<'a>(ranks: impl Iterator<Item = &'a Place>) -> bool {
    let (mut count, mut cpus, mut quota) = (0_usize, CpuMask::default(), f64::INFINITY);
    for place in ranks {
        count += 1;
        cpus = cpus.union(&place.cpus);
        quota = quota.min(place.quota.unwrap_or(f64::INFINITY));
    }
    count as f64 > quota.min(cpus.count() as f64)
}

impl Place {
    /// Writes it for the exchange at init.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.identity.as_bytes());
        put(out, self.hostname.as_bytes());
        put(out, &self.cpus.to_bytes());
        put(out, &self.pid.to_le_bytes());
        put(out, &self.start_time.to_le_bytes());
        put(out, &self.quota.unwrap_or(f64::INFINITY).to_le_bytes());
    }

    /// Takes what [`encode`](Self::encode) wrote off `rest`. `None`: not such bytes.
    pub(crate) fn decode(rest: &mut &[u8]) -> Option<Self> {
        let identity = take_text(rest)?;
        let hostname = take_text(rest)?;
        let cpus = CpuMask::from_bytes(take(rest)?)?;
        let pid = u32::from_le_bytes(take_array(rest)?);
        let start_time = u64::from_le_bytes(take_array(rest)?);
        let quota = f64::from_le_bytes(take_array(rest)?);
        Some(Self { identity, hostname, pid, start_time, cpus, quota: quota.is_finite().then_some(quota) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(identity: &str, cpus: &[usize]) -> Place {
        let mut mask = CpuMask::default();
        cpus.iter().for_each(|&cpu| mask.insert(cpu));
        Place {
            identity: identity.to_owned(),
            hostname: format!("host-{identity}"),
            pid: 7,
            start_time: 9,
            cpus: mask,
            quota: None,
        }
    }

    fn seat(topology: &Topology) -> [usize; 6] {
        let t = topology;
        [t.rank(), t.size(), t.local_rank(), t.local_size(), t.cross_rank(), t.cross_size()]
    }

    fn on(identities: &[&str], pretend: &[usize]) -> Vec<Topology> {
        let places: Vec<Place> = identities.iter().map(|id| place(id, &[0, 1])).collect();
        (0..places.len()).map(|rank| Topology::new(rank, places.clone(), pretend).expect("valid")).collect()
    }

    #[test]
    fn ranks_dealt_round_robin_sit_as_in_mpi() {
        let all = on(&["b", "a", "b", "a", "b"], &[]);
        let seats: Vec<_> = all.iter().map(seat).collect();
        assert_eq!(
            seats,
            [[0, 5, 0, 3, 0, 2], [1, 5, 0, 2, 1, 2], [2, 5, 1, 3, 0, 2], [3, 5, 1, 2, 1, 2], [4, 5, 2, 3, 0, 1]]
        );
        assert!(!all[0].is_homogeneous());
        assert_eq!(all[3].host().ranks, [1, 3]);
        assert!(all[1].is_leader() && !all[3].is_leader());
    }

    #[test]
    fn pretended_hosts_divide_the_real_one() {
        let all = on(&["a"; 4], &[3, 1]);
        assert_eq!(all.iter().map(|t| t.host_index()).collect::<Vec<_>>(), [0, 0, 0, 1]);
        assert_eq!(seat(&all[3]), [3, 4, 0, 1, 1, 2]);
        assert_eq!(all[3].host().name, "host-a/1");
        assert!(!all[3].is_homogeneous());
        // Four ranks on two processors, also where each pretended host alone would fit.
        assert!(all[3].host().oversubscribed);
    }

    #[test]
    fn pretended_hosts_must_hold_all_ranks_and_not_join_real_ones() {
        let places = vec![place("a", &[0]), place("b", &[0])];
        let text = Topology::new(0, places.clone(), &[1]).expect_err("one missing").to_string();
        assert!(text.contains("KOLO_HOSTS is '1', which makes 1 ranks, but the job has 2"), "{text}");
        let text = Topology::new(0, places, &[2]).expect_err("two machines").to_string();
        assert!(text.contains("ranks 0 and 1") && text.contains("host-b"), "{text}");
    }

    #[test]
    fn processors_are_the_union_capped_by_the_quota() {
        let fits = [place("a", &[0]), place("a", &[1])];
        assert!(!is_oversubscribed(fits.iter()));
        let same = [place("a", &[0]), place("a", &[0])];
        assert!(is_oversubscribed(same.iter()));
        let mut capped = fits;
        capped[1].quota = Some(1.5);
        assert!(is_oversubscribed(capped.iter()));
    }

    proptest! {
        #[test]
        fn seats_are_a_bijection_and_places_travel(hosts in prop::collection::vec(0_u8..5, 1..17), quota in prop::option::of(0.1_f64..64.0)) {
            let mut places: Vec<Place> = hosts.iter().map(|h| place(&h.to_string(), &[usize::from(*h)])).collect();
            places[0].quota = quota;
            for place in &places {
                let mut bytes = Vec::new();
                place.encode(&mut bytes);
                prop_assert_eq!(Place::decode(&mut &bytes[..]), Some(place.clone()));
                prop_assert_eq!(Place::decode(&mut &bytes[..bytes.len() - 1]), None);
            }
            let mut seen = std::collections::HashSet::new();
            let mut cross = std::collections::HashSet::new();
            for rank in 0..places.len() {
                let t = Topology::new(rank, places.clone(), &[]).expect("valid");
                prop_assert!(seen.insert((t.host_index(), t.local_rank())));
                prop_assert!(cross.insert((t.local_rank(), t.cross_rank())));
                prop_assert!(t.local_rank() < t.local_size() && t.cross_rank() < t.cross_size());
                prop_assert_eq!(t.hosts()[t.host_index()].ranks[t.local_rank()], rank);
                prop_assert!(t.hosts().windows(2).all(|pair| pair[0].ranks[0] < pair[1].ranks[0]));
            }
        }
    }
}
