//! The ranks of a set, and which of them share this rank's host.

/// Who takes part in a set, seen from one of its ranks.
///
/// A *set rank* is an index in the set; a *member* is an index among the set's ranks on this host, in set order.
#[derive(Clone, Debug)]
pub(crate) struct Team {
    ranks: Vec<u32>,
    me: usize,
    hosts: Vec<Vec<usize>>,
    host: usize,
    member: usize,
}

impl Team {
    /// The team of `ranks` (global ranks in set order), where `host_of` names the host of a global rank.
    ///
    /// # Panics
    /// If `global_rank` is not among `ranks`; callers check membership first.
    pub(crate) fn new(ranks: Vec<u32>, global_rank: u32, host_of: impl Fn(u32) -> usize) -> Self {
        let me = ranks.iter().position(|&rank| rank == global_rank).expect("a rank builds teams it belongs to");
        let mut names: Vec<usize> = Vec::new();
        let mut hosts: Vec<Vec<usize>> = Vec::new();
        for (set_rank, &rank) in ranks.iter().enumerate() {
            let name = host_of(rank);
            match names.iter().position(|&known| known == name) {
                Some(host) => hosts[host].push(set_rank),
                None => {
                    names.push(name);
                    hosts.push(vec![set_rank]);
                }
            }
        }
        let host = hosts.iter().position(|members| members.contains(&me)).expect("every rank has a host");
        let member = hosts[host].iter().position(|&set_rank| set_rank == me).expect("found on this host");
        Self { ranks, me, hosts, host, member }
    }

    /// Ranks in the set.
    pub(crate) fn size(&self) -> usize {
        self.ranks.len()
    }

    /// This rank's index in the set.
    pub(crate) fn rank(&self) -> usize {
        self.me
    }

    /// The global rank of a set rank.
    pub(crate) fn global(&self, set_rank: usize) -> u32 {
        self.ranks[set_rank]
    }

    /// Global ranks in set order.
    pub(crate) fn globals(&self) -> &[u32] {
        &self.ranks
    }

    /// Set ranks by host; hosts in the order of their lowest set rank.
    pub(crate) fn hosts(&self) -> &[Vec<usize>] {
        &self.hosts
    }

    /// The index of this rank's host.
    pub(crate) fn host(&self) -> usize {
        self.host
    }

    /// The set ranks on this rank's host.
    pub(crate) fn members(&self) -> &[usize] {
        &self.hosts[self.host]
    }

    /// This rank's index among [`members`](Self::members).
    pub(crate) fn member(&self) -> usize {
        self.member
    }

    /// Whether the whole set shares one host.
    pub(crate) fn is_local(&self) -> bool {
        self.hosts.len() == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_the_ranks_of_the_same_host_in_set_order() {
        let host_of = |rank: u32| usize::from(rank >= 3);
        let team = Team::new(vec![4, 1, 3, 0], 3, host_of);
        assert_eq!(team.size(), 4);
        assert_eq!(team.rank(), 2);
        assert_eq!(team.hosts(), &[vec![0, 2], vec![1, 3]]);
        assert_eq!((team.host(), team.member()), (0, 1));
        assert_eq!(team.members(), &[0, 2]);
        assert_eq!(team.global(1), 1);
        assert!(!team.is_local());
    }
}
