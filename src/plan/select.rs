//! Which algorithm an allreduce uses: a table agreed at init, or the user's word.
//!
//! Everything that shapes the choice is equal on all ranks: layout, thresholds, the knob and the operation's bytes.

use super::algorithm::Algorithm;
use super::two_level::Cross;
use crate::error::{Error, Result};

/// Where a set's ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Hosts with at least one rank of the set.
    pub(crate) hosts: usize,
    /// Ranks of the set.
    pub(crate) ranks: usize,
    /// Whether each host holds contiguous ranks of the set.
    pub(crate) contiguous: bool,
}

/// The sizes at which the choice changes. Plain data, so that ranks can compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// One-shot up to so many bytes for 2, 3, and 4 or more members: reducing everything n-fold costs more than a
    /// second synchronisation from there on.
    pub(crate) one_shot_bytes: [usize; 3],
    /// Across hosts a tree up to so many bytes: latency counts, not bandwidth.
    pub(crate) tree_bytes: usize,
    /// Bytes a segment of the ordered chain.
    pub(crate) chain_segment_bytes: usize,
}

impl Thresholds {
    /// What the reference machine showed, rounded to powers of two.
    pub(crate) const DEFAULT: Self =
        Self { one_shot_bytes: [16 << 10, 8 << 10, 4 << 10], tree_bytes: 8 << 10, chain_segment_bytes: 64 << 10 };
}

impl Default for Thresholds {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The table of one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    layout: Layout,
    thresholds: Thresholds,
    deterministic: bool,
    wanted: Algorithm,
}

impl Table {
    /// A table for `layout`. `deterministic` says that the user demands sums in rank order; `wanted` is the knob.
    ///
    /// # Errors
    /// [`Error::Config`] if the wanted algorithm cannot serve, saying why and what can.
    pub(crate) fn new(layout: Layout, thresholds: Thresholds, deterministic: bool, wanted: Algorithm) -> Result<Self> {
        let table = Self { layout, thresholds, deterministic, wanted };
        match table.refusal(wanted) {
            None => Ok(table),
            Some(reason) => Err(Error::config(reason)),
        }
    }

    /// The same table with another algorithm wanted.
    ///
    /// # Errors
    /// [`Error::Argument`] if it cannot serve, saying why and what can.
    pub(crate) fn with(self, wanted: Algorithm) -> Result<Self> {
        match self.refusal(wanted) {
            None => Ok(Self { wanted, ..self }),
            Some(reason) => Err(Error::argument(reason)),
        }
    }

    /// The algorithm for an allreduce of `bytes`: never `Auto`, and one that can run here.
    ///
    /// On one host `TwoLevel` and `OrderedChain` fall to `TwoShot`, which is what is left of them there (the ordered
    /// chain gives the same bits).
    pub(crate) fn pick(&self, bytes: usize) -> Algorithm {
        let Layout { hosts, ranks, .. } = self.layout;
        match (self.wanted, hosts) {
            (Algorithm::Auto, 0 | 1) => {
                let small = self.thresholds.one_shot_bytes[ranks.clamp(2, 4) - 2];
                // Alone there is nobody to wait for, and one-shot is a copy.
                if ranks <= 1 || bytes <= small { Algorithm::OneShot } else { Algorithm::TwoShot }
            }
            (Algorithm::Auto, _) if self.deterministic => Algorithm::OrderedChain,
            // One rank a host: there are no slots to share, messages go straight from and to the tensors.
            (Algorithm::Auto, _) if hosts == ranks => match self.cross(Algorithm::TwoLevel, bytes, 1) {
                Cross::Tree => Algorithm::BinomialTree,
                _ => Algorithm::Ring,
            },
            (Algorithm::Auto, _) => Algorithm::TwoLevel,
            (Algorithm::TwoLevel | Algorithm::OrderedChain, 0 | 1) => Algorithm::TwoShot,
            (wanted, _) => wanted,
        }
    }

    /// The schedule across hosts when [`Self::pick`] said `TwoLevel` or `OrderedChain` for a tensor of `bytes`, whose
    /// elements have `size` bytes. One choice holds for the whole operation, however many chunks it has.
    pub(crate) fn cross(&self, algorithm: Algorithm, bytes: usize, size: usize) -> Cross {
        if algorithm == Algorithm::OrderedChain {
            return Cross::Chain { segment: (self.thresholds.chain_segment_bytes / size).max(1) };
        }
        // Two hosts exchange halves in two rounds either way, and the ring moves half as much in each.
        if bytes <= self.thresholds.tree_bytes && self.layout.hosts > 2 { Cross::Tree } else { Cross::Ring }
    }

    /// The segment of the ordered chain, in elements of `size` bytes, if that is what reduces `bytes`.
    pub(crate) fn ordered_segment(&self, bytes: usize, size: usize) -> Option<usize> {
        match self.cross(self.pick(bytes), bytes, size) {
            Cross::Chain { segment } => Some(segment),
            _ => None,
        }
    }

    /// Why `wanted` cannot serve, if so.
    fn refusal(&self, wanted: Algorithm) -> Option<String> {
        let Layout { hosts, contiguous, .. } = self.layout;
        match wanted {
            Algorithm::OneShot | Algorithm::TwoShot if hosts > 1 => Some(format!(
                "algorithm {wanted} works in the shared memory of one host, and this set spans {hosts} hosts; use auto, \
                 two-level, ring, tree or ordered-chain"
            )),
            Algorithm::Ring | Algorithm::BinomialTree | Algorithm::TwoLevel if self.deterministic => {
                // Two-level on one host is two-shot, which keeps the order.
                if wanted == Algorithm::TwoLevel && hosts <= 1 {
                    return None;
                }
                let ordered = if hosts > 1 { "ordered-chain" } else { "one-shot or two-shot" };
                Some(format!(
                    "algorithm {wanted} does not sum in rank order, and deterministic sums are asked for; use auto or \
                     {ordered}, or do not ask for deterministic"
                ))
            }
            Algorithm::Auto if self.deterministic && hosts > 1 && !contiguous => Some(
                "deterministic sums across hosts need contiguous ranks on each host, and here they are interleaved; \
                 start the ranks host by host (mpirun --map-by slot), or do not ask for deterministic"
                    .to_owned(),
            ),
            Algorithm::OrderedChain if hosts > 1 && !contiguous => Some(
                "algorithm ordered-chain sums in rank order only if each host holds contiguous ranks, and here they are \
                 interleaved; start the ranks host by host (mpirun --map-by slot), or use another algorithm"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(hosts: usize, ranks: usize) -> Layout {
        Layout { hosts, ranks, contiguous: true }
    }

    fn table(layout: Layout, deterministic: bool, wanted: Algorithm) -> Result<Table> {
        Table::new(layout, Thresholds::DEFAULT, deterministic, wanted)
    }

    fn auto(hosts: usize, ranks: usize) -> Table {
        table(layout(hosts, ranks), false, Algorithm::Auto).unwrap()
    }

    #[test]
    fn one_host_is_one_shot_when_small() {
        for (ranks, limit) in [(2, 16 << 10), (3, 8 << 10), (4, 4 << 10), (17, 4 << 10)] {
            for deterministic in [false, true] {
                let table = table(layout(1, ranks), deterministic, Algorithm::Auto).unwrap();
                assert_eq!(table.pick(0), Algorithm::OneShot);
                assert_eq!(table.pick(limit), Algorithm::OneShot);
                assert_eq!(table.pick(limit + 1), Algorithm::TwoShot);
                assert_eq!(table.pick(1 << 40), Algorithm::TwoShot);
            }
        }
        assert_eq!(auto(1, 1).pick(1 << 30), Algorithm::OneShot);
    }

    #[test]
    fn several_hosts() {
        assert_eq!(auto(2, 4).pick(100), Algorithm::TwoLevel);
        assert_eq!(auto(2, 4).cross(Algorithm::TwoLevel, 100, 4), Cross::Ring);
        assert_eq!(auto(3, 6).cross(Algorithm::TwoLevel, 8 << 10, 4), Cross::Tree);
        assert_eq!(auto(3, 6).cross(Algorithm::TwoLevel, (8 << 10) + 1, 4), Cross::Ring);
        assert_eq!(auto(4, 4).pick(100), Algorithm::BinomialTree, "one rank a host");
        assert_eq!(auto(4, 4).pick(1 << 20), Algorithm::Ring, "one rank a host");
        let ordered = table(layout(2, 4), true, Algorithm::Auto).unwrap();
        assert_eq!(ordered.pick(100), Algorithm::OrderedChain);
        assert_eq!(ordered.cross(Algorithm::OrderedChain, 100, 4), Cross::Chain { segment: 16 << 10 });
    }

    #[test]
    fn the_users_word_counts_where_it_can_serve() {
        for wanted in Algorithm::ALL.into_iter().skip(1) {
            for hosts in [1, 2] {
                let Ok(table) = table(layout(hosts, 4), false, wanted) else {
                    assert!(hosts == 2 && matches!(wanted, Algorithm::OneShot | Algorithm::TwoShot));
                    continue;
                };
                let expected = match wanted {
                    Algorithm::TwoLevel | Algorithm::OrderedChain if hosts == 1 => Algorithm::TwoShot,
                    other => other,
                };
                assert_eq!((table.pick(0), table.pick(1 << 30)), (expected, expected));
            }
        }
    }

    /// Whatever is picked under `deterministic` keeps the order, on every layout; or it is refused.
    #[test]
    fn deterministic_never_gets_an_unordered_algorithm() {
        for wanted in Algorithm::ALL {
            for (hosts, ranks) in [(1, 1), (1, 2), (1, 8), (2, 2), (2, 8), (4, 4), (4, 9)] {
                for contiguous in [true, false] {
                    let layout = Layout { hosts, ranks, contiguous };
                    match table(layout, true, wanted) {
                        Ok(table) => assert!([0, 1 << 12, 1 << 30].into_iter().all(|b| table.pick(b).is_ordered())),
                        Err(error) => {
                            let text = error.to_string();
                            assert!(matches!(error, Error::Config(_)) && text.contains("use") | text.contains("start"));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn refusals_say_why_and_what_to_do() {
        let ring = table(layout(1, 4), true, Algorithm::Ring).unwrap_err();
        assert!(matches!(ring, Error::Config(_)));
        assert!(ring.to_string().contains("ring does not sum in rank order"), "{ring}");
        let two_shot = auto(2, 4).with(Algorithm::TwoShot).unwrap_err();
        assert!(matches!(two_shot, Error::Argument(_)));
        assert!(two_shot.to_string().contains("2 hosts"), "{two_shot}");
        let scattered = Layout { hosts: 2, ranks: 4, contiguous: false };
        for (deterministic, wanted) in [(true, Algorithm::Auto), (false, Algorithm::OrderedChain)] {
            let text = table(scattered, deterministic, wanted).unwrap_err().to_string();
            assert!(text.contains("contiguous") && text.contains("--map-by"), "{text}");
        }
    }
}
