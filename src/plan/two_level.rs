//! Two-level: the members of a host reduce in slots, and equal-numbered owners of different hosts exchange slices.
//!
//! Source: multi-leader designs such as Bayatpour et al., "Scalable reduction collectives with data partitioning-based
//! multi-leader design", SC 2017.
//!
//! **Allreduce** of a chunk: on every host the members pack, and owner i of w reduces slice i of the host's slots
//! (two-shot with `owners` = w). Then owner i of all hosts run a schedule of the link plane over slice i: ring, tree or
//! ordered chain ([`Cross`]). The result goes into the owner's output and slot, and the members unpack. w is the
//! least number of ranks that any host has, so that every slice has an owner on every host; members beyond w reduce
//! nothing. With h hosts and m bytes: the host's traffic of two-shot, plus the schedule's over m/w bytes an owner; all w
//! owners use the network at once.
//!
//! **Broadcast**: a tree from the root to one representative a host (the root itself on its own, elsewhere the first
//! member), then from the representative's slot on each host. **Allgather** and **reduce-scatter** across hosts are
//! rings over set ranks ([`super::ring`]): they move the least bytes a rank can, and when hosts hold contiguous ranks only
//! one rank a host sends to another host.

use std::sync::Arc;

use super::chain::Chain;
use super::direct::{HostOp, HostPlan};
use super::ring::Ring;
use super::round::LinkPlan;
use super::tree::Tree;

/// The schedule that equal-numbered owners of different hosts run over a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cross {
    /// Least bytes.
    Ring,
    /// Fewest steps.
    Tree,
    /// Rank order: the owner extends the partial of the host before by its members.
    Chain {
        /// Elements a segment of the pipeline.
        segment: usize,
    },
}

/// Who is where, as one rank sees it.
#[derive(Clone, Debug)]
pub(crate) struct TwoLevel {
    /// The set ranks of each host, ascending; hosts in the order of their first rank.
    hosts: Arc<[Box<[usize]>]>,
    host: usize,
    member: usize,
    owners: usize,
}

/// How a broadcast crosses hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    /// The member of this host that has, or receives, the elements and packs them into its slot.
    pub(crate) representative: usize,
    /// For the representative only: its part in the tree over hosts, over the operation's elements. Positions are
    /// hosts; [`TwoLevel::representative`] gives their set ranks.
    pub(crate) link: Option<LinkPlan>,
}

impl TwoLevel {
    /// `hosts` lists the set ranks of each host; `me` is a set rank.
    ///
    /// The lists are put in order: ranks ascending on a host, hosts by their first rank.
    ///
    /// # Panics
    /// If the lists are not a partition of `0..n` into at least one host, none empty, or `me` is not among them.
    pub(crate) fn new(hosts: impl IntoIterator<Item = Vec<usize>>, me: usize) -> Self {
        let mut hosts: Vec<Box<[usize]>> = hosts
            .into_iter()
            .map(|mut ranks| {
                ranks.sort_unstable();
                ranks.into_boxed_slice()
            })
            .collect();
        hosts.sort_unstable();
        let mut all: Vec<usize> = hosts.iter().flat_map(|ranks| ranks.iter().copied()).collect();
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..all.len()), "hosts {hosts:?} are no partition of the set's ranks");
        let owners = hosts.iter().map(|ranks| ranks.len()).min().unwrap_or(0);
        assert!(owners > 0, "a host without ranks in {hosts:?}");
        let place = hosts
            .iter()
            .enumerate()
            .find_map(|(host, ranks)| ranks.iter().position(|&rank| rank == me).map(|member| (host, member)));
        let (host, member) = place.unwrap_or_else(|| panic!("rank {me} is on no host of {hosts:?}"));
        Self { hosts: hosts.into(), host, member, owners }
    }

    /// How many members of each host own a slice.
    pub(crate) fn owners(&self) -> usize {
        self.owners
    }

    /// This rank's host and its index among the host's members.
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.host, self.member)
    }

    /// The set ranks of each host.
    pub(crate) fn hosts(&self) -> &[Box<[usize]>] {
        &self.hosts
    }

    /// Whether each host holds contiguous ranks: then the ordered chain sums in rank order.
    pub(crate) fn contiguous(&self) -> bool {
        let ranks = self.hosts.iter().flat_map(|ranks| ranks.iter().copied());
        ranks.enumerate().all(|(index, rank)| index == rank)
    }

    /// What this rank does in its host's slots: two-shot with [`Self::owners`] owners.
    ///
    /// The engine puts the schedule of [`Self::cross`] between a chunk's reduction and its sharing.
    pub(crate) fn host_plan(&self, count: usize, chunk: usize, align: usize) -> HostPlan {
        let op = HostOp::TwoShot { owners: self.owners };
        HostPlan::new(op, self.hosts[self.host].len(), self.member, count, chunk, align)
    }

    /// This rank's schedule over its slice of `len` elements (of the chunk's `ReducePart`), or `None` if it owns no
    /// slices. Positions are hosts; [`Self::peer`] gives their set ranks. Spans count from the start of the slice.
    pub(crate) fn cross(&self, cross: Cross, len: usize, align: usize) -> Option<LinkPlan> {
        if self.member >= self.owners {
            return None;
        }
        let (hosts, host) = (self.hosts.len(), self.host);
        Some(match cross {
            Cross::Ring => Ring::allreduce(hosts, host, len, align).into(),
            Cross::Tree => Tree::allreduce(hosts, host, len).into(),
            Cross::Chain { segment } => Chain::allreduce(hosts, host, len, segment).into(),
        })
    }

    /// The set rank that owns the same slice as this rank on `host`.
    ///
    /// # Panics
    /// If this rank owns no slices.
    pub(crate) fn peer(&self, host: usize) -> usize {
        self.hosts[host][self.member]
    }

    /// How a broadcast of `count` elements from set rank `root` reaches this rank's host.
    ///
    /// On the host it goes on as [`HostOp::Broadcast`] from the representative, whose input is what it received.
    pub(crate) fn broadcast(&self, root: usize, count: usize) -> Relay {
        let (root_host, _) = self.find(root);
        let representative = self.representative_member(root, self.host);
        let link = (representative == self.member)
            .then(|| Tree::broadcast(self.hosts.len(), self.host, root_host, count).into());
        Relay { representative, link }
    }

    /// The set rank that represents `host` in a broadcast from set rank `root`.
    pub(crate) fn representative(&self, root: usize, host: usize) -> usize {
        self.hosts[host][self.representative_member(root, host)]
    }

    fn representative_member(&self, root: usize, host: usize) -> usize {
        match self.find(root) {
            (root_host, member) if root_host == host => member,
            _ => 0,
        }
    }

    fn find(&self, rank: usize) -> (usize, usize) {
        let place = self
            .hosts
            .iter()
            .enumerate()
            .find_map(|(host, ranks)| ranks.binary_search(&rank).ok().map(|member| (host, member)));
        place.unwrap_or_else(|| panic!("rank {rank} is on no host of {:?}", self.hosts))
    }
}
