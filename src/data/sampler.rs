//! Shards of a data set: every sample once an epoch, on one rank.

use std::ops::Range;
use std::sync::Arc;

use super::random::SplitMix64;
use crate::{Error, Kolo, Result};

/// Deals the samples of a data set to the ranks: each sample to one rank, once an epoch, in an order that depends on
/// nothing but the seed and the epoch.
///
/// An epoch is one order of all indices, cut into *global batches* of ranks times batch size, one a step; a step's
/// global batch is cut into the ranks' batches, in rank order. So the samples of a step are the same for 2 ranks with
/// batches of 32 and for one rank with batches of 64.
///
/// The last global batch may be short. Its samples are dealt evenly, the first ranks getting one more where they do not
/// divide, so every rank makes the same number of steps, some with a smaller or an empty last batch. Nothing is repeated
/// to fill it up and nothing is left out; [`Batch::weight`] makes up for the different sizes.
///
/// The order comes from SplitMix64 and a Fisher-Yates shuffle, and stays the same in every version of kolo.
#[derive(Clone, Debug)]
pub struct ShardedSampler {
    len: usize,
    rank: usize,
    size: usize,
    seed: u64,
    epoch: u64,
    shuffle: bool,
}

impl ShardedSampler {
    /// The shard of `rank` among `size` ranks of a data set of `len` samples: shuffled, seed 0, epoch 0.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such rank.
    pub fn new(len: usize, rank: usize, size: usize) -> Result<Self> {
        if rank >= size {
            return Err(Error::argument(format!("a sampler for rank {rank} of {size}: ranks go from 0 to size - 1")));
        }
        Ok(Self { len, rank, size, seed: 0, epoch: 0, shuffle: true })
    }

    /// This rank's shard of a data set of `len` samples. Every rank must have the same data set and seed.
    #[must_use]
    pub fn for_rank(kolo: &Kolo, len: usize) -> Self {
        Self { len, rank: kolo.rank(), size: kolo.size(), seed: 0, epoch: 0, shuffle: true }
    }

    /// Sets the seed of the orders. Every rank must set the same.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Whether each epoch has an order of its own; without, samples come in the order of their indices.
    #[must_use]
    pub fn with_shuffle(self, shuffle: bool) -> Self {
        Self { shuffle, ..self }
    }

    /// Chooses the epoch whose order the next [`batches`](Self::batches) follow. Every rank must set the same.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// The epoch in force.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Steps of an epoch with batches of up to `batch_size` samples a rank: the same number on every rank.
    ///
    /// # Errors
    /// [`Error::Argument`] for a batch size of 0.
    pub fn steps(&self, batch_size: usize) -> Result<usize> {
        Ok(self.len.div_ceil(self.global_batch(batch_size)?))
    }

    /// This rank's batches of the epoch, of up to `batch_size` samples each.
    ///
    /// # Errors
    /// [`Error::Argument`] for a batch size of 0.
    pub fn batches(&self, batch_size: usize) -> Result<Batches> {
        let global_batch = self.global_batch(batch_size)?;
        Ok(Batches {
            order: self.order().into(),
            rank: self.rank,
            size: self.size,
            batch_size,
            global_batch,
            steps: 0..self.len.div_ceil(global_batch),
        })
    }

    fn global_batch(&self, batch_size: usize) -> Result<usize> {
        if batch_size == 0 {
            return Err(Error::argument("a batch size of 0; take at least 1 sample a rank and step"));
        }
        Ok(batch_size.saturating_mul(self.size))
    }

    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len).collect();
        if self.shuffle {
            SplitMix64::new(self.seed, self.epoch).shuffle(&mut order);
        }
        order
    }
}

/// The batches of one rank and epoch, in order; made by [`ShardedSampler::batches`].
#[derive(Clone, Debug)]
pub struct Batches {
    order: Arc<[usize]>,
    rank: usize,
    size: usize,
    batch_size: usize,
    global_batch: usize,
    steps: Range<usize>,
}

impl Batches {
    fn batch(&self, step: usize) -> Batch {
        let start = step * self.global_batch;
        let total = self.global_batch.min(self.order.len() - start);
        let samples = if total == self.global_batch {
            start + self.rank * self.batch_size..start + (self.rank + 1) * self.batch_size
        } else {
            let (share, extra) = (total / self.size, total % self.size);
            let begin = start + self.rank * share + self.rank.min(extra);
            begin..begin + share + usize::from(self.rank < extra)
        };
        Batch { order: Arc::clone(&self.order), samples, total, size: self.size }
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let step = self.steps.next()?;
        Some(self.batch(step))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.steps.size_hint()
    }
}

impl ExactSizeIterator for Batches {}

/// One rank's part of a step's global batch. It may be empty: the rank then takes part in the step with zeros.
#[derive(Clone, Debug)]
pub struct Batch {
    order: Arc<[usize]>,
    samples: Range<usize>,
    total: usize,
    size: usize,
}

impl Batch {
    /// Indices of this rank's samples.
    #[must_use]
    pub fn indices(&self) -> &[usize] {
        &self.order[self.samples.clone()]
    }

    /// Number of this rank's samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether this rank has no sample in this step.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Number of samples of all ranks in this step; at least 1.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// This rank's share of the samples of the step, 0 to 1; the ranks' shares add up to 1.
    ///
    /// Factor of this rank's mean gradient before a **Sum** over ranks, so that the result is the mean over all samples.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.len() as f64 / self.total as f64
    }

    /// Factor of this rank's mean gradient before an **Average** over ranks, so that the result is the mean over all
    /// samples of the step: ranks x samples here / samples of the step. Exactly 1 unless the global batch is short.
    #[must_use]
    pub fn weight(&self) -> f64 {
        (self.len() * self.size) as f64 / self.total as f64
    }

    /// Factor of each sample's gradient, summed over this rank's samples, before an **Average** over ranks: ranks /
    /// samples of the step. The same as dividing by [`len`](Self::len) and multiplying by [`weight`](Self::weight), but
    /// defined for an empty batch too, and the same number on every rank.
    #[must_use]
    pub fn sample_weight(&self) -> f64 {
        self.size as f64 / self.total as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(len: usize, rank: usize, size: usize) -> ShardedSampler {
        ShardedSampler::new(len, rank, size).expect("a rank below size")
    }

    /// Every rank's batches of one epoch: `[rank][step]`.
    fn deal(len: usize, size: usize, batch_size: usize, seed: u64, epoch: u64) -> Vec<Vec<Batch>> {
        let rank = |rank| {
            let mut sampler = sampler(len, rank, size).with_seed(seed);
            sampler.set_epoch(epoch);
            let batches: Vec<Batch> = sampler.batches(batch_size).expect("a batch size above 0").collect();
            assert_eq!(batches.len(), sampler.steps(batch_size).expect("a batch size above 0"));
            batches
        };
        (0..size).map(rank).collect()
    }

    /// The samples of a step in rank order.
    fn global(ranks: &[Vec<Batch>], step: usize) -> Vec<usize> {
        ranks.iter().flat_map(|batches| batches[step].indices().to_vec()).collect()
    }

    proptest! {
        #[test]
        fn every_sample_comes_once_and_steps_agree(
            len in 0_usize..400, size in 1_usize..9, batch_size in 1_usize..70, seed: u64, epoch: u64,
        ) {
            let ranks = deal(len, size, batch_size, seed, epoch);
            let steps = ranks[0].len();
            prop_assert_eq!(steps, len.div_ceil(size * batch_size));
            let mut seen = vec![0; len];
            for batches in &ranks {
                prop_assert_eq!(batches.len(), steps);
                batches.iter().flat_map(Batch::indices).for_each(|&index| seen[index] += 1);
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
        }

        #[test]
        fn sizes_differ_by_one_at_most_and_only_in_the_last_step(
            len in 1_usize..400, size in 1_usize..9, batch_size in 1_usize..70,
        ) {
            let ranks = deal(len, size, batch_size, 0, 0);
            let steps = ranks[0].len();
            for step in 0..steps {
                let sizes: Vec<usize> = ranks.iter().map(|batches| batches[step].len()).collect();
                let (least, most) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
                prop_assert!(most - least <= 1 && most <= batch_size);
                prop_assert!(step + 1 == steps || least == batch_size);
                prop_assert_eq!(sizes.iter().sum::<usize>(), ranks[0][step].total());
            }
        }

        #[test]
        fn weighted_gradients_are_those_of_the_global_batch(
            len in 1_usize..200, size in 1_usize..9, batch_size in 1_usize..40, seed: u64,
        ) {
            let ranks = deal(len, size, batch_size, seed, 3);
            let gradient = |index: &usize| (*index as f64 * 0.7).sin();
            for step in 0..ranks[0].len() {
                let samples = global(&ranks, step);
                let expected = samples.iter().map(gradient).sum::<f64>() / samples.len() as f64;
                let (mut average, mut sum, mut by_sample, mut shares) = (0.0, 0.0, 0.0, 0.0);
                for batch in ranks.iter().map(|batches| &batches[step]) {
                    let here: f64 = batch.indices().iter().map(gradient).sum();
                    let mean = if batch.is_empty() { 0.0 } else { here / batch.len() as f64 };
                    average += mean * batch.weight() / size as f64;
                    sum += mean * batch.share();
                    by_sample += here * batch.sample_weight() / size as f64;
                    shares += batch.share();
                    prop_assert!(batch.total() != size * batch_size || batch.weight() == 1.0);
                }
                for value in [average, sum, by_sample] {
                    prop_assert!((value - expected).abs() < 1e-12, "{} instead of {}", value, expected);
                }
                prop_assert!((shares - 1.0).abs() < 1e-12);
            }
        }

        #[test]
        fn a_step_holds_the_same_samples_for_any_number_of_ranks(
            len in 0_usize..300, size in 1_usize..9, batch_size in 1_usize..20, seed: u64,
        ) {
            let many = deal(len, size, batch_size, seed, 1);
            let one = deal(len, 1, size * batch_size, seed, 1);
            for (step, batch) in one[0].iter().enumerate() {
                prop_assert_eq!(global(&many, step), batch.indices());
            }
        }
    }

    #[test]
    fn seed_and_epoch_make_the_order() {
        let order = |seed, epoch| deal(100, 1, 100, seed, epoch)[0][0].indices().to_vec();
        assert_eq!(order(1, 1), order(1, 1));
        assert_ne!(order(1, 1), order(1, 2));
        assert_ne!(order(1, 1), order(2, 1));
        assert_ne!(order(1, 2), order(2, 1));
    }

    #[test]
    fn the_order_is_part_of_the_interface() {
        // Changing it would change every training that names a seed.
        let mut sampler = sampler(10, 0, 1).with_seed(42);
        sampler.set_epoch(1);
        let batch = sampler.batches(10).expect("a batch size above 0").next().expect("a batch");
        assert_eq!(batch.indices(), [4, 7, 5, 3, 6, 1, 0, 2, 8, 9]);
    }

    #[test]
    fn without_shuffling_the_ranks_read_on_in_order() {
        let indices = |rank| {
            let batches = sampler(11, rank, 2).with_shuffle(false).batches(3).expect("a batch size above 0");
            batches.map(|batch| batch.indices().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(indices(0), [vec![0, 1, 2], vec![6, 7, 8]]);
        assert_eq!(indices(1), [vec![3, 4, 5], vec![9, 10]]);
    }

    #[test]
    fn a_tail_shorter_than_the_ranks_leaves_some_empty_handed() {
        let ranks = deal(5, 4, 1, 0, 0);
        let last: Vec<usize> = ranks.iter().map(|batches| batches[1].len()).collect();
        assert_eq!(last, [1, 0, 0, 0]);
        assert_eq!((ranks[0][1].weight(), ranks[1][1].weight()), (4.0, 0.0));
        assert!(ranks[3][1].is_empty());
    }

    #[test]
    fn an_empty_data_set_has_no_steps() {
        assert_eq!(deal(0, 3, 8, 0, 0), [vec![], vec![], vec![]] as [Vec<Batch>; 3]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let error = ShardedSampler::new(10, 3, 3).expect_err("no such rank").to_string();
        assert!(error.contains("rank 3 of 3"), "{error}");
        let error = sampler(10, 0, 1).batches(0).expect_err("no batch size").to_string();
        assert!(error.contains("batch size of 0"), "{error}");
    }

    impl PartialEq for Batch {
        fn eq(&self, other: &Self) -> bool {
            self.indices() == other.indices() && self.total == other.total && self.size == other.size
        }
    }
}
