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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    #[cfg(test)]
    pub(crate) fn owners(&self) -> usize {
        self.owners
    }

    /// This rank's host and its index among the host's members.
    #[cfg(test)]
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.host, self.member)
    }

    /// The set ranks of each host.
    #[cfg(test)]
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

    /// The same for a reduction that only the set rank `root` gets.
    pub(crate) fn reduce_plan(&self, root: usize, count: usize, chunk: usize, align: usize) -> HostPlan {
        let ranks = &self.hosts[self.host];
        let root = ranks.iter().position(|&rank| rank == root);
        let op = HostOp::Reduce { owners: self.owners, root };
        HostPlan::new(op, ranks.len(), self.member, count, chunk, align)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::check::{
        Element, Memory, Random, assert_complete, assert_ordered, contributions, run_host, run_links,
    };
    use crate::plan::{ChunkSteps, Span};
    use proptest::prelude::*;

    fn contiguous(sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut next = 0;
        let host = |&size: &usize| {
            next += size;
            (next - size..next).collect()
        };
        sizes.iter().map(host).collect()
    }

    /// Deals `sizes.iter().sum()` ranks out in turn.
    fn interleaved(sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut hosts = vec![Vec::new(); sizes.len()];
        let mut rank = 0;
        for turn in 0..sizes.iter().copied().max().unwrap_or(0) {
            for (host, &size) in hosts.iter_mut().zip(sizes) {
                if turn < size {
                    host.push(rank);
                    rank += 1;
                }
            }
        }
        hosts
    }

    /// One allreduce as the engine composes it: pack; owners reduce over slots, exchange, and share; unpack.
    fn allreduce(hosts: &[Vec<usize>], count: usize, chunk: usize, align: usize, cross: Cross, seed: u64) {
        let ranks: usize = hosts.iter().map(Vec::len).sum();
        let levels: Vec<TwoLevel> = (0..ranks).map(|me| TwoLevel::new(hosts.to_vec(), me)).collect();
        let plans: Vec<HostPlan> = levels.iter().map(|level| level.host_plan(count, chunk, align)).collect();
        let mut random = Random::new(seed);
        let mut outputs: Vec<Memory> = vec![vec![None; count]; ranks];
        let mut steps = vec![ChunkSteps::default(); ranks];
        for index in 0..plans[0].chunks() {
            for (plan, steps) in plans.iter().zip(&mut steps) {
                plan.steps(index, steps);
            }
            let base = plans[0].span(index).start;
            // Slots, before and after the owners share.
            let mut shared: Vec<Memory> = vec![vec![None; chunk]; ranks];
            for owner in 0..levels[0].owners() {
                let owners: Vec<usize> = levels[0].hosts().iter().map(|ranks| ranks[owner]).collect();
                let slot = steps[owners[0]].reduce.map_or(Span::default(), |part| part.slot);
                let links: Vec<LinkPlan> = owners
                    .iter()
                    .map(|&rank| {
                        assert_eq!(steps[rank].reduce.map_or(Span::default(), |part| part.slot), slot);
                        levels[rank].cross(cross, slot.len, align).expect("owners own slices")
                    })
                    .collect();
                for (host, &rank) in owners.iter().enumerate() {
                    assert!(owners.iter().all(|&other| levels[other].peer(host) == rank));
                }
                let own = |host: usize, at: usize| {
                    let ranks = levels[0].hosts()[host].to_vec();
                    Some(Element { index: at, ranks, done: false })
                };
                let (work, _) = run_links(&links, slot.len, own, &mut random);
                for (host, &rank) in owners.iter().enumerate() {
                    for (at, element) in work[host].iter().enumerate() {
                        let mut element = element.clone().expect("written");
                        let to = base + slot.start + at;
                        element.index = to;
                        shared[rank][slot.start + at] = Some(element.clone());
                        outputs[rank][to] = Some(element);
                    }
                }
            }
            for (rank, steps) in steps.iter().enumerate() {
                let (host, _) = levels[rank].place();
                for unpack in &steps.unpack {
                    let from = levels[rank].hosts()[host][unpack.from];
                    for at in 0..unpack.slot.len {
                        let to = &mut outputs[rank][unpack.output + at];
                        assert!(to.is_none(), "written twice");
                        *to = shared[from][unpack.slot.start + at].clone();
                    }
                }
            }
        }
        let ordered = matches!(cross, Cross::Chain { .. }) && levels[0].contiguous();
        for output in &outputs {
            for (index, element) in output.iter().enumerate() {
                let element = element.as_ref().expect("an output element was not written");
                if ordered {
                    assert_ordered(element, index, ranks);
                } else {
                    assert_complete(element, index, ranks);
                }
                assert_eq!(Some(element), outputs[0][index].as_ref(), "the same order on every rank");
            }
        }
    }

    const SHAPES: [&[usize]; 12] = [
        &[1],
        &[4],
        &[1, 1],
        &[2, 2],
        &[1, 3],
        &[3, 1],
        &[2, 3, 4],
        &[1, 1, 1],
        &[4, 4, 4, 4],
        &[5, 2],
        &[1, 2, 1, 3, 1],
        &[8, 9],
    ];

    #[test]
    fn every_shape_and_schedule() {
        for sizes in SHAPES {
            for count in [0, 1, 7, 19, 20, 21, 53] {
                for cross in [Cross::Ring, Cross::Tree, Cross::Chain { segment: 3 }] {
                    allreduce(&contiguous(sizes), count, 20, 2, cross, count as u64);
                    allreduce(&interleaved(sizes), count, 20, 2, cross, count as u64);
                }
            }
        }
    }

    /// A broadcast over hosts and then slots reaches everyone, from every root.
    #[test]
    fn broadcast_from_every_root() {
        let count = 23;
        for sizes in SHAPES {
            for hosts in [contiguous(sizes), interleaved(sizes)] {
                let ranks: usize = sizes.iter().sum();
                let levels: Vec<TwoLevel> = (0..ranks).map(|me| TwoLevel::new(hosts.clone(), me)).collect();
                for root in 0..ranks {
                    let mut random = Random::new(root as u64);
                    let relays: Vec<Relay> = levels.iter().map(|level| level.broadcast(root, count)).collect();
                    let speakers: Vec<usize> =
                        (0..sizes.len()).map(|host| levels[0].representative(root, host)).collect();
                    assert!(speakers.contains(&root));
                    assert_eq!(relays.iter().filter(|relay| relay.link.is_some()).count(), sizes.len());
                    let links: Vec<LinkPlan> =
                        speakers.iter().map(|&rank| relays[rank].link.clone().expect("speaks")).collect();
                    let own = |host: usize, at| (speakers[host] == root).then(|| Element::of(root, at));
                    let (work, _) = run_links(&links, count, own, &mut random);
                    for (host, members) in levels[0].hosts().iter().enumerate() {
                        let speaker = relays[members[0]].representative;
                        assert_eq!(members[speaker], speakers[host]);
                        let op = HostOp::Broadcast { root: speaker };
                        let n = members.len();
                        let plans: Vec<HostPlan> = (0..n).map(|me| HostPlan::new(op, n, me, count, 10, 1)).collect();
                        let mut inputs: Vec<Memory> = members.iter().map(|&rank| contributions(rank, count)).collect();
                        inputs[speaker].clone_from(&work[host]);
                        let mut outputs: Vec<Memory> = vec![vec![None; count]; n];
                        run_host(&plans, 2, 10, &inputs, &mut outputs, &mut random);
                        outputs[speaker].clone_from(&work[host]);
                        let wanted: Memory = (0..count).map(|at| Some(Element::of(root, at))).collect();
                        assert!(outputs.iter().all(|output| *output == wanted));
                    }
                }
            }
        }
    }

    #[test]
    fn layout_is_put_in_order() {
        let level = TwoLevel::new([vec![3, 1], vec![2, 0, 4]], 4);
        assert_eq!(level.hosts(), [Box::from([0, 2, 4]), Box::from([1, 3])]);
        assert_eq!((level.place(), level.owners(), level.contiguous()), ((0, 2), 2, false));
        assert!(level.cross(Cross::Ring, 10, 1).is_none(), "the third member of a host owns nothing here");
        assert!(TwoLevel::new([vec![2, 3], vec![0, 1]], 0).contiguous());
    }

    #[test]
    #[should_panic(expected = "no partition")]
    fn a_rank_on_two_hosts_is_refused() {
        let _ = TwoLevel::new([vec![0, 1], vec![1, 2]], 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_shape(
            sizes in proptest::collection::vec(1usize..5, 1..6), count in 0usize..80, chunk in 1usize..40,
            align in 1usize..9, segment in 1usize..9, seed: u64,
        ) {
            for cross in [Cross::Ring, Cross::Tree, Cross::Chain { segment }] {
                allreduce(&contiguous(&sizes), count, chunk, align, cross, seed);
                allreduce(&interleaved(&sizes), count, chunk, align, cross, seed);
            }
        }
    }
}
