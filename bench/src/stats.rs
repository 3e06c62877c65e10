//! The few statistics that the reports are made of.

/// The median; the mean of the two middle values where the count is even. 0 for no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The smallest value that at least `percent` of the values do not exceed (nearest rank). 0 for no values.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return 0.0;
    }
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The seconds of every timed iteration of one contender, by round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    pub(crate) rounds: Vec<Vec<f64>>,
}

impl Times {
    /// The median of each round.
    pub(crate) fn medians(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| median(round)).collect()
    }

    /// The median over rounds of the rounds' medians.
    pub(crate) fn typical(&self) -> f64 {
        median(&self.medians())
    }

    /// The 99th percentile over the iterations of all rounds.
    pub(crate) fn p99(&self) -> f64 {
        percentile(&self.rounds.concat(), 99.0)
    }

    /// The number of timed samples.
    pub(crate) fn samples(&self) -> usize {
        self.rounds.iter().map(Vec::len).sum()
    }
}

/// How many times faster we are than a peer, round by round: above 1 we are the faster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) minimum: f64,
    pub(crate) maximum: f64,
}

impl Ratio {
    /// Pairs each of our rounds with the peer's round that followed it.
    pub(crate) fn of(ours: &Times, peer: &Times) -> Self {
        let ratios: Vec<f64> = ours.medians().iter().zip(peer.medians()).map(|(ours, peer)| peer / ours).collect();
        Self {
            median: median(&ratios),
            minimum: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            maximum: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// Bytes of the result over time, and that times 2(n-1)/n: what a link of a ring would carry. In GB/s.
pub(crate) fn bandwidths(bytes: u64, seconds: f64, ranks: usize) -> (f64, f64) {
    let algorithm = if seconds > 0.0 { bytes as f64 / seconds / 1e9 } else { 0.0 };
    let ranks = ranks as f64;
    (algorithm, algorithm * 2.0 * (ranks - 1.0) / ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), 3.0);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&values, 99.0), 198.0);
        assert_eq!(percentile(&values, 100.0), 200.0);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
        assert_eq!(percentile(&[], 99.0), 0.0);
    }

    #[test]
    fn a_slow_round_moves_neither_time_nor_ratio() {
        let ours = Times { rounds: vec![vec![1.0, 1.0, 9.0], vec![50.0; 3], vec![1.0; 3]] };
        let peer = Times { rounds: vec![vec![2.0; 3], vec![100.0; 3], vec![4.0; 3]] };
        assert_eq!(ours.typical(), 1.0);
        assert_eq!(ours.p99(), 50.0);
        assert_eq!(ours.samples(), 9);
        assert_eq!(Ratio::of(&ours, &peer), Ratio { median: 2.0, minimum: 2.0, maximum: 4.0 });
    }

    #[test]
    fn bandwidths_follow_nccl_tests() {
        assert_eq!(bandwidths(4_000_000_000, 2.0, 2), (2.0, 2.0));
        assert_eq!(bandwidths(4_000_000_000, 2.0, 4), (2.0, 3.0));
        assert_eq!(bandwidths(4, 1.0, 1).1, 0.0);
        assert_eq!(bandwidths(4, 0.0, 2), (0.0, 0.0));
    }
}
