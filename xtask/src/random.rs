//! Random numbers for tests: seeded, so that a failure can be run again.

/// SplitMix64: small, and the same everywhere, so that a seed means the same input everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.any() % bound as u64) as usize
    }

    /// A number from `least` to `most`.
    ///
    /// # Panics
    /// If there is none.
    pub fn between(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most - least + 1)
    }

    /// True `of` times in `all`.
    pub fn chance(&mut self, of: u64, all: u64) -> bool {
        self.any() % all < of
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// A number of any size: small ones as often as large ones.
    pub fn number(&mut self) -> u64 {
        let bits = self.below(65) as u32;
        self.any().checked_shr(64 - bits).unwrap_or(0)
    }

    /// One of some.
    ///
    /// # Panics
    /// If there is none.
    pub fn of<'a, T>(&mut self, some: &'a [T]) -> &'a T {
        &some[self.below(some.len())]
    }

    /// Random bytes, fewer than `most`.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.any() as u8).collect()
    }

    /// A text of up to `most` characters, most of them of names.
    pub fn text(&mut self, most: usize) -> String {
        const OFTEN: &[char] = &['a', 'b', 'w', '.', '/', '0', '1', '9', '_', '-', ' ', '=', ':', ',', '"', '#'];
        let mut one = |_| match self.below(8) {
            0 => char::from_u32(self.any() as u32 % 0x11_0000).unwrap_or('\u{fffd}'),
            _ => OFTEN[self.below(OFTEN.len())],
        };
        (0..most).map(&mut one).collect::<String>().chars().take(most).collect()
    }
}
