//! How much data a case has, and of what kind.

use std::fmt;

use super::value::{Number, Random, Value};

/// Bytes of a slot in all jobs: few, so that short tensors fill several.
pub(crate) const SLOT: usize = 4096;
/// Bytes that travel with an announcement.
const INLINE: usize = 48;

/// The data of each rank, as ranks number themselves in their set.
pub(crate) type Rows<T> = Vec<Vec<T>>;

/// How many elements each rank has, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) count: usize,
    /// Whether there are elements among them that arithmetic has rules of its own for.
    pub(crate) special: bool,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, if self.special { " special" } else { "" })
    }
}

/// The counts at which something changes for elements of `size` bytes: none, one, what fits an announcement, a slot, several.
pub(crate) fn counts(size: usize) -> [usize; 10] {
    let (inline, slot) = (INLINE / size, SLOT / size);
    [0, 1, inline - 1, inline, inline + 1, 37, slot - 1, slot, slot + 1, 5 * slot + 7]
}

/// Fewer of them, for what has many cases at each count.
pub(crate) fn few_counts(size: usize) -> [usize; 6] {
    let (inline, slot) = (INLINE / size, SLOT / size);
    [0, 1, inline + 1, 37, slot, 2 * slot + 7]
}

/// All samples of a type that reduces.
pub(crate) fn samples<T: Number>() -> Vec<Sample> {
    let plain = counts(size_of::<T>()).map(|count| Sample { count, special: false });
    plain.into_iter().chain([Sample { count: 53, special: true }]).collect()
}

/// A number that a seed and words determine. Equal on all machines and in all runs of one build.
pub(crate) fn mix(seed: u64, words: &[&dyn fmt::Display]) -> u64 {
    let mut text = String::new();
    for word in words {
        text += &format!("{word}\u{1f}");
    }
    let fnv = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |all: u64, byte| (all ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    Random(seed ^ fnv).next()
}

/// What `ranks` ranks contribute to a reduction. It depends on nothing but the arguments, so that the same sample is reduced in
/// every form, on every layout of hosts and in every run.
pub(crate) fn numbers<T: Number>(seed: u64, ranks: usize, sample: Sample) -> Rows<T> {
    let draw = if sample.special { T::special } else { T::draw };
    rows(seed, &vec![sample.count; ranks], &[&T::DTYPE, &ranks, &sample], draw)
}

/// What ranks with `counts` elements have to send.
pub(crate) fn values<T: Value>(seed: u64, counts: &[usize], what: &dyn fmt::Display) -> Rows<T> {
    rows(seed, counts, &[&T::DTYPE, &counts.len(), what], T::draw)
}

fn rows<T>(seed: u64, counts: &[usize], words: &[&dyn fmt::Display], draw: fn(&mut Random) -> T) -> Rows<T> {
    let seed = mix(seed, words);
    let row = |(rank, &count): (usize, &usize)| {
        let mut random = Random(mix(seed, &[&rank]));
        (0..count).map(|_| draw(&mut random)).collect()
    };
    counts.iter().enumerate().map(row).collect()
}

/// How rows are spread over ranks that may have different numbers of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Everyone has the same.
    Even,
    /// Everyone has another number, and some have none.
    Uneven,
    /// One rank has all.
    One,
    Nothing,
}

impl Spread {
    pub(crate) const ALL: [Self; 4] = [Self::Even, Self::Uneven, Self::One, Self::Nothing];

    /// The rows of each of `ranks` ranks, about `most` of them at most. Other turns give other ranks most.
    pub(crate) fn rows(self, ranks: usize, most: usize, turn: usize) -> Vec<usize> {
        let row = |rank: usize| match self {
            Self::Even => most,
            Self::Uneven => most * ((rank + turn) % 3) / 2,
            Self::One if rank == turn % ranks => most,
            Self::One | Self::Nothing => 0,
        };
        (0..ranks).map(row).collect()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Even => "even",
            Self::Uneven => "uneven",
            Self::One => "all with one",
            Self::Nothing => "nothing",
        })
    }
}
