//! The numbers behind a shuffle: the same on every platform, in every version.

/// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
///
/// A counter in steps of an odd constant, each value stirred by an invertible mix: every 64-bit value comes once a
/// period of 2^64. Small, fast, and good enough for a shuffle; not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The sequence of a seed and a stream number. Streams of one seed start at unrelated places of the period.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let base = Self { state: seed }.next();
        let place = base.wrapping_add(stream.wrapping_mul(0xd134_2543_de82_ef95));
        Self { state: Self { state: place }.next() }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..bound`, each equally likely; `bound` must not be 0.
    ///
    /// The high half of a product, with the few values that would favour some results drawn again (Lemire, "Fast random
    /// integer generation in an interval", 2019).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let unfair = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= unfair {
                return (product >> 64) as u64;
            }
        }
    }

    /// Puts `items` in an order of which each is equally likely (Fisher and Yates, from the last place down).
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let chosen = self.below(last as u64 + 1) as usize;
            items.swap(last, chosen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // The reference implementation's first outputs from state 1234567.
        let mut random = SplitMix64 { state: 1_234_567 };
        let first: Vec<u64> = (0..5).map(|_| random.next()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821,
            ]
        );
    }

    #[test]
    fn below_reaches_every_value_about_as_often() {
        let mut random = SplitMix64::new(7, 0);
        let mut counts = [0_u32; 6];
        for _ in 0..60_000 {
            counts[random.below(6) as usize] += 1;
        }
        // Five standard deviations of a binomial with p = 1/6 are 456.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 456), "{counts:?}");
        assert_eq!(random.below(1), 0);
    }

    #[test]
    fn every_order_of_four_comes_about_as_often() {
        let mut random = SplitMix64::new(1, 1);
        let mut counts = std::collections::HashMap::new();
        for _ in 0..24_000 {
            let mut items = [0_u8, 1, 2, 3];
            random.shuffle(&mut items);
            *counts.entry(items).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&count| count.abs_diff(1_000) < 155), "{counts:?}");
    }

    #[test]
    fn streams_of_a_seed_and_seeds_of_a_stream_differ() {
        let first = |seed, stream| SplitMix64::new(seed, stream).next();
        let mut seen = std::collections::HashSet::new();
        for seed in 0..50 {
            for stream in 0..50 {
                assert!(seen.insert(first(seed, stream)), "seed {seed} and stream {stream} repeat another's sequence");
            }
        }
    }
}
