//! The same training in one process: the micro-batches of all ranks one after another, added in rank order.

use kolo::optim::{Optimizer, Sgd};

use super::network::{GradientSink, Network, PARAMETERS};

/// A network that one process trains on the micro-batches of N ranks.
pub(crate) struct Reference {
    pub(crate) network: Network,
    optimizer: Sgd<f32>,
    sums: Vec<Vec<f32>>,
}

/// Images, labels, and the weight of a sample.
pub(crate) type MicroBatch<'a> = (&'a [f32], &'a [u8], f32);

impl Reference {
    pub(crate) fn new(network: Network, optimizer: Sgd<f32>) -> Self {
        let sums = network.parameters.iter().map(|parameter| vec![0.0; parameter.len()]).collect();
        Self { network, optimizer, sums }
    }

    pub(crate) fn set_learning_rate(&mut self, rate: f64) {
        self.optimizer.set_learning_rate(rate);
    }

    /// Adds the gradient of a rank's micro-batch: those of rank 0 first, then of rank 1, and so on.
    pub(crate) fn add(&mut self, rank: usize, (pixels, labels, sample_weight): MicroBatch<'_>) {
        let mut sink = Sum { sums: &mut self.sums, first: rank == 0 };
        let Ok(_) = self.network.train(pixels, labels, sample_weight, &mut sink);
    }

    /// Divides the sum by the number of ranks, once, and updates.
    pub(crate) fn step(&mut self, ranks: usize) -> kolo::Result<()> {
        for (index, (sum, (name, _))) in self.sums.iter_mut().zip(PARAMETERS).enumerate() {
            sum.iter_mut().for_each(|value| *value /= ranks as f32);
            self.optimizer.update(index, name, &mut self.network.parameters[index], sum)?;
        }
        Ok(())
    }
}

/// The first gradient is the sum; later ones are added to it.
struct Sum<'a> {
    sums: &'a mut [Vec<f32>],
    first: bool,
}

impl GradientSink for Sum<'_> {
    type Error = std::convert::Infallible;

    fn buffer(&mut self, parameter: usize) -> Result<Vec<f32>, Self::Error> {
        Ok(vec![0.0; self.sums[parameter].len()])
    }

    fn ready(&mut self, parameter: usize, gradient: Vec<f32>) -> Result<(), Self::Error> {
        if self.first {
            self.sums[parameter] = gradient;
        } else {
            for (sum, value) in self.sums[parameter].iter_mut().zip(gradient) {
                *sum += value;
            }
        }
        Ok(())
    }
}
