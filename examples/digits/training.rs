//! Training with all ranks, and what it came to.

use std::f64::consts::PI;
use std::time::{Duration, Instant};

use kolo::data::{Batch, ShardedSampler};
use kolo::optim::{DistributedOptimizer, ParameterSpec, Sgd, SgdOptions, average_metric, broadcast_parameters};
use kolo::{Kolo, ReduceOp};

use super::arguments::Arguments;
use super::dataset::Dataset;
use super::network::{GradientSink, Network, Outcome, PARAMETERS};
use super::progress::{Epoch, Progress};
use super::reference::Reference;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What a training came to; the same on every rank, but for `weights`.
pub(crate) struct Trained {
    pub(crate) network: Network,
    pub(crate) steps: usize,
    pub(crate) samples: usize,
    pub(crate) time: Duration,
    /// Mean over ranks of the time spent on communication.
    pub(crate) hand_over: Duration,
    pub(crate) wait: Duration,
}

/// Passes each gradient on to the other ranks while backward computes the next.
struct Reduced<'a>(&'a mut DistributedOptimizer<Sgd<f32>>);

impl GradientSink for Reduced<'_> {
    type Error = kolo::Error;

    fn buffer(&mut self, parameter: usize) -> kolo::Result<Vec<f32>> {
        self.0.gradient_buffer(parameter)
    }

    fn ready(&mut self, parameter: usize, gradient: Vec<f32>) -> kolo::Result<()> {
        self.0.gradient_ready(parameter, gradient)
    }
}

/// Images and labels of a batch, in memory that is used again.
#[derive(Default)]
struct Loaded {
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

impl Loaded {
    fn load(&mut self, data: &Dataset, batch: &Batch) {
        data.gather(batch.indices(), &mut self.pixels, &mut self.labels);
    }
}

pub(crate) fn specs() -> impl Iterator<Item = ParameterSpec> {
    PARAMETERS.into_iter().map(|(name, shape)| ParameterSpec::new(name, shape))
}

pub(crate) fn sgd(learning_rate: f64) -> kolo::Result<Sgd<f32>> {
    Sgd::new(SgdOptions { learning_rate, momentum: 0.9, nesterov: true, weight_decay: 2e-3, ..SgdOptions::default() })
}

/// Images a rank takes in a step.
pub(crate) fn batch_size(arguments: &Arguments, ranks: usize) -> usize {
    arguments.batch.unwrap_or((64 / ranks).max(1))
}

/// The learning rate of a step: half a cosine, from the full rate down to a hundredth.
fn learning_rate(arguments: &Arguments, step: usize, steps: usize) -> f64 {
    let fall = 0.5 + 0.5 * (PI * step as f64 / steps as f64).cos();
    arguments.learning_rate * (0.01 + 0.99 * fall)
}

pub(crate) fn train(kolo: &Kolo, arguments: &Arguments, data: &Dataset) -> Result<Trained> {
    let batch_size = batch_size(arguments, kolo.size());
    let mut sampler = ShardedSampler::for_rank(kolo, data.len()).with_seed(arguments.seed);
    let steps = arguments.epochs * sampler.steps(batch_size)?;

    // Every rank starts from rank 0's weights, whatever its own are.
    let mut network = Network::new(arguments.seed + kolo.rank() as u64);
    let named = PARAMETERS.iter().map(|(name, _)| name).zip(&mut network.parameters);
    broadcast_parameters(kolo, named, 0)?;
    let mut optimizer = DistributedOptimizer::new(kolo, sgd(arguments.learning_rate)?, specs())?;

    let progress = Progress::new(arguments.display, kolo.rank() == 0, arguments.epochs, steps / arguments.epochs);
    let mut loaded = Loaded::default();
    let (mut step, mut samples) = (0, 0);
    kolo.barrier()?;
    let began = Instant::now();
    for epoch in 0..arguments.epochs {
        let epoch_began = Instant::now();
        sampler.set_epoch(epoch as u64);
        let mut sum = Outcome::default();
        let mut seen = 0;
        for batch in sampler.batches(batch_size)? {
            loaded.load(data, &batch);
            optimizer.set_learning_rate(learning_rate(arguments, step, steps));
            let sample_weight = batch.sample_weight() as f32;
            let outcome = network.train(&loaded.pixels, &loaded.labels, sample_weight, &mut Reduced(&mut optimizer))?;
            optimizer.step(&mut network.parameters)?;

            sum = Outcome { loss: sum.loss + outcome.loss, right: sum.right + outcome.right };
            seen += batch.len();
            samples += batch.total();
            step += 1;
            progress.step(epoch + 1, sum.loss / seen.max(1) as f64, samples);
        }
        let mean = |total: f64| total / seen.max(1) as f64;
        progress.epoch(&Epoch {
            number: epoch + 1,
            loss: average_metric(kolo, "loss", mean(sum.loss), seen as f64)?,
            accuracy: average_metric(kolo, "accuracy", mean(sum.right as f64), seen as f64)?,
            samples_per_second: data.len() as f64 / epoch_began.elapsed().as_secs_f64(),
        });
    }
    let time = began.elapsed();
    progress.finish();

    let communication = optimizer.communication_time();
    let mean = |name, time: Duration| average_metric(kolo, name, time.as_secs_f64(), 1.0);
    Ok(Trained {
        network,
        steps,
        samples,
        time,
        hand_over: Duration::from_secs_f64(mean("hand-over", communication.hand_over)?),
        wait: Duration::from_secs_f64(mean("wait", communication.wait)?),
    })
}

/// The share of images whose digit the network finds; each rank looks at its part of them.
pub(crate) fn accuracy(kolo: &Kolo, network: &mut Network, data: &Dataset) -> Result<f64> {
    let sampler = ShardedSampler::for_rank(kolo, data.len()).with_shuffle(false);
    let mut loaded = Loaded::default();
    let (mut right, mut seen) = (0, 0);
    for batch in sampler.batches(64)? {
        loaded.load(data, &batch);
        right += network.evaluate(&loaded.pixels, &loaded.labels).right;
        seen += batch.len();
    }
    Ok(average_metric(kolo, "test accuracy", right as f64 / seen.max(1) as f64, seen as f64)?)
}

/// Whether every rank's weights have the same bits.
pub(crate) fn ranks_agree(kolo: &Kolo, network: &Network) -> Result<bool> {
    let (mut lowest, mut highest) = ([digest(network)], [digest(network)]);
    kolo.allreduce("lowest digest", &mut lowest, ReduceOp::Min)?;
    kolo.allreduce("highest digest", &mut highest, ReduceOp::Max)?;
    Ok(lowest == highest)
}

/// 64 bits of the weights' bits (FNV-1a).
pub(crate) fn digest(network: &Network) -> u64 {
    let bytes = network.parameters.iter().flatten().flat_map(|value| value.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The weights that one process gets, which computes the micro-batches of `ranks` ranks one after another.
pub(crate) fn train_alone(ranks: usize, arguments: &Arguments, data: &Dataset) -> Result<Network> {
    let batch_size = batch_size(arguments, ranks);
    let mut samplers = Vec::with_capacity(ranks);
    for rank in 0..ranks {
        samplers.push(ShardedSampler::new(data.len(), rank, ranks)?.with_seed(arguments.seed));
    }
    let steps = arguments.epochs * samplers[0].steps(batch_size)?;
    let mut reference = Reference::new(Network::new(arguments.seed), sgd(arguments.learning_rate)?);
    let mut loaded = Loaded::default();
    let mut step = 0;
    for epoch in 0..arguments.epochs {
        samplers.iter_mut().for_each(|sampler| sampler.set_epoch(epoch as u64));
        let mut of_ranks =
            samplers.iter().map(|sampler| sampler.batches(batch_size)).collect::<kolo::Result<Vec<_>>>()?;
        for _ in 0..of_ranks[0].len() {
            reference.set_learning_rate(learning_rate(arguments, step, steps));
            for (rank, batches) in of_ranks.iter_mut().enumerate() {
                let batch = batches.next().ok_or("every rank has the same number of batches")?;
                loaded.load(data, &batch);
                reference.add(rank, (&loaded.pixels, &loaded.labels, batch.sample_weight() as f32));
            }
            reference.step(ranks)?;
            step += 1;
        }
    }
    Ok(reference.network)
}
