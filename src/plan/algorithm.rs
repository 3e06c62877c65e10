//! The names of the schedules.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// How an allreduce is done. `Auto` picks by hosts, ranks and bytes; the others insist.
///
/// `docs/algorithms.md` has the steps, the bytes and the promises of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The table agreed at init decides for each operation.
    #[default]
    Auto,
    /// One host: every rank reads every rank's slot and reduces all of it. One synchronisation, for small tensors.
    OneShot,
    /// One host: every rank reduces its slice over all slots and shares it. Two synchronisations.
    TwoShot,
    /// Messages: reduce-scatter, then allgather around a ring. Least bytes; sums are not in rank order.
    Ring,
    /// Messages: reduce to one rank and broadcast, along a binomial tree. Fewest steps; sums are not in rank order.
    BinomialTree,
    /// Several hosts: reduce each slice on the host, exchange slices across hosts, share on the host.
    TwoLevel,
    /// Several hosts: each adds its ranks, in rank order, to the partial sum of the host before. The bits of one process.
    OrderedChain,
}

impl Algorithm {
    /// Every algorithm, `Auto` first.
    pub const ALL: [Self; 7] =
        [Self::Auto, Self::OneShot, Self::TwoShot, Self::Ring, Self::BinomialTree, Self::TwoLevel, Self::OrderedChain];

    /// The name that knobs and reports use: `auto`, `one-shot`, `two-shot`, `ring`, `tree`, `two-level`,
    /// `ordered-chain`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::OneShot => "one-shot",
            Self::TwoShot => "two-shot",
            Self::Ring => "ring",
            Self::BinomialTree => "tree",
            Self::TwoLevel => "two-level",
            Self::OrderedChain => "ordered-chain",
        }
    }

    /// Whether the result is the sum in rank order, with the same bits on every rank and every run.
    #[must_use]
    pub const fn is_ordered(self) -> bool {
        matches!(self, Self::OneShot | Self::TwoShot | Self::OrderedChain)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    /// Reads a name; case does not matter, and `_` stands for `-`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wanted = text.trim().to_ascii_lowercase().replace('_', "-");
        if wanted == "binomial-tree" {
            return Ok(Self::BinomialTree);
        }
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == wanted).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::config(format!("'{text}' is not an algorithm; use one of: {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Algorithm;

    #[test]
    fn names_round_trip() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.to_string().parse::<Algorithm>().unwrap(), algorithm);
            assert_eq!(algorithm.name().to_uppercase().replace('-', "_").parse::<Algorithm>().unwrap(), algorithm);
        }
        assert_eq!("binomial_tree".parse::<Algorithm>().unwrap(), Algorithm::BinomialTree);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let text = "rings".parse::<Algorithm>().unwrap_err().to_string();
        assert!(text.contains("'rings'") && text.contains("ordered-chain"), "{text}");
    }
}
