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

    /// The schedule across hosts when [`Self::pick`] said `TwoLevel` or `OrderedChain` for `bytes` of elements of
    /// `size` bytes.
    pub(crate) fn cross(&self, algorithm: Algorithm, bytes: usize, size: usize) -> Cross {
        if algorithm == Algorithm::OrderedChain {
            return Cross::Chain { segment: (self.thresholds.chain_segment_bytes / size).max(1) };
        }
        // Two hosts exchange halves in two rounds either way, and the ring moves half as much in each.
        if bytes <= self.thresholds.tree_bytes && self.layout.hosts > 2 { Cross::Tree } else { Cross::Ring }
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
