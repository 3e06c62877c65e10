//! Training with N ranks has the bits of one process that adds the N micro-batches in rank order, after every step.

#[macro_use]
mod common;
#[path = "../examples/digits/kernels.rs"]
mod kernels;
#[path = "../examples/digits/network.rs"]
mod network;
#[path = "../examples/digits/reference.rs"]
mod reference;

use kolo::data::ShardedSampler;
use kolo::optim::{DistributedOptimizer, ParameterSpec, Sgd, SgdOptions, broadcast_parameters};
use kolo::{Kolo, Result};
use network::{GradientSink, Network, PARAMETERS};
use reference::Reference;

const PIXELS: usize = 64;
const SAMPLES: usize = 37;
const BATCH: usize = 3;

/// Images of noise and labels: nothing to learn, but gradients of every magnitude.
struct Noise {
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

impl Noise {
    fn new(samples: usize) -> Self {
        let wave = |index: usize| (index as f32 * 0.37).sin() * (index as f32 * 0.011).cos();
        Self {
            pixels: (0..samples * PIXELS).map(wave).collect(),
            labels: (0..samples).map(|index| (index * 7 % 10) as u8).collect(),
        }
    }

    fn gather(&self, indices: &[usize]) -> (Vec<f32>, Vec<u8>) {
        let pixels = indices.iter().flat_map(|index| &self.pixels[index * PIXELS..][..PIXELS]).copied().collect();
        (pixels, indices.iter().map(|&index| self.labels[index]).collect())
    }
}

struct Reduced<'a>(&'a mut DistributedOptimizer<Sgd<f32>>);

impl GradientSink for Reduced<'_> {
    type Error = kolo::Error;

    fn buffer(&mut self, parameter: usize) -> Result<Vec<f32>> {
        self.0.gradient_buffer(parameter)
    }

    fn ready(&mut self, parameter: usize, gradient: Vec<f32>) -> Result<()> {
        self.0.gradient_ready(parameter, gradient)
    }
}

fn sgd() -> Result<Sgd<f32>> {
    Sgd::new(SgdOptions {
        learning_rate: 0.05,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 1e-3,
        ..SgdOptions::default()
    })
}

fn bits(network: &Network) -> Vec<Vec<u32>> {
    network.parameters.iter().map(|values| values.iter().map(|value| value.to_bits()).collect()).collect()
}

/// Trains with all ranks, and in each rank also alone; compares after every step. The last batches are uneven.
fn equals_one_process(kolo: &Kolo) -> Result<()> {
    let (rank, size) = (kolo.rank(), kolo.size());
    let noise = Noise::new(SAMPLES);
    let mut network = Network::new(5 + rank as u64);
    let named = PARAMETERS.iter().map(|(name, _)| name).zip(&mut network.parameters);
    broadcast_parameters(kolo, named, 0)?;
    let specs = PARAMETERS.map(|(name, shape)| ParameterSpec::new(name, shape));
    let mut optimizer = DistributedOptimizer::new(kolo, sgd()?, specs)?;
    let mut alone = Reference::new(Network::new(5), sgd()?);
    assert_eq!(bits(&network), bits(&alone.network), "broadcast_parameters gives all ranks the weights of rank 0");

    for epoch in 0..2 {
        let batches = |rank| {
            let mut sampler = ShardedSampler::new(SAMPLES, rank, size)?.with_seed(9);
            sampler.set_epoch(epoch);
            sampler.batches(BATCH)
        };
        let mut of_ranks = (0..size).map(batches).collect::<Result<Vec<_>>>()?;
        for step in 0..of_ranks[0].len() {
            for (of, batches) in of_ranks.iter_mut().enumerate() {
                let batch = batches.next().expect("as many batches on every rank");
                let (pixels, labels) = noise.gather(batch.indices());
                let weight = batch.sample_weight() as f32;
                alone.add(of, (&pixels, &labels, weight));
                if of == rank {
                    network.train(&pixels, &labels, weight, &mut Reduced(&mut optimizer))?;
                }
            }
            let rate = 0.1 / (1 + epoch as usize + step) as f64;
            alone.set_learning_rate(rate);
            alone.step(size)?;
            optimizer.set_learning_rate(rate);
            optimizer.step(&mut network.parameters)?;
            assert_eq!(bits(&network), bits(&alone.network), "rank {rank} of {size}, epoch {epoch}, step {step}");
        }
    }
    Ok(())
}

#[test]
fn threads_equal_one_process_after_every_step() {
    for size in 1..=4 {
        let ranks = kolo::threads(size, equals_one_process).expect("ranks");
        ranks.into_iter().for_each(|rank| rank.expect("a training without errors"));
    }
}

mpi_test!(mpi_ranks_equal_one_process_after_every_step, np = [2, 3, 4], |kolo| {
    equals_one_process(kolo)?;
});

// Several hosts keep the order of ranks only where they are asked to.
mpi_test!(
    hosts_equal_one_process_when_deterministic,
    np = [2, 3],
    hosts = ["2,2", "3,1"],
    env = [("KOLO_DETERMINISTIC", "1")],
    |kolo| {
        equals_one_process(kolo)?;
    }
);

/// Keeps gradients, and the order in which they came.
#[derive(Default)]
struct Kept {
    gradients: Vec<Vec<f32>>,
    order: Vec<usize>,
}

impl GradientSink for Kept {
    type Error = std::convert::Infallible;

    fn buffer(&mut self, parameter: usize) -> std::result::Result<Vec<f32>, Self::Error> {
        self.gradients.resize(PARAMETERS.len(), Vec::new());
        Ok(vec![f32::NAN; PARAMETERS[parameter].1.iter().product()])
    }

    fn ready(&mut self, parameter: usize, gradient: Vec<f32>) -> std::result::Result<(), Self::Error> {
        self.gradients[parameter] = gradient;
        self.order.push(parameter);
        Ok(())
    }
}

fn gradients(network: &mut Network, noise: &Noise, sample_weight: f32) -> Kept {
    let mut kept = Kept::default();
    let Ok(_) = network.train(&noise.pixels, &noise.labels, sample_weight, &mut kept);
    kept
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let noise = Noise::new(12);
    let mut network = Network::new(3);
    let kept = gradients(&mut network, &noise, 1.0);
    for (parameter, (name, _)) in PARAMETERS.iter().enumerate() {
        // Along the gradient the loss grows by its length.
        let gradient = &kept.gradients[parameter];
        let length = gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let loss_at = |distance: f64| {
            let mut moved = network.clone();
            for (value, slope) in moved.parameters[parameter].iter_mut().zip(gradient) {
                *value += (distance * f64::from(*slope) / length) as f32;
            }
            moved.evaluate(&noise.pixels, &noise.labels).loss
        };
        let slope = (loss_at(2e-3) - loss_at(-2e-3)) / 4e-3;
        assert!((slope / length - 1.0).abs() < 0.02, "{name}: {slope} by differences, {length} by backward");
    }
}

#[test]
fn each_value_of_a_gradient_is_that_of_finite_differences() {
    let noise = Noise::new(2);
    let mut network = Network::new(3);
    let kept = gradients(&mut network, &noise, 1.0);
    for (parameter, (name, _)) in PARAMETERS.iter().enumerate() {
        let gradient = &kept.gradients[parameter];
        let scale = gradient.iter().fold(0.0_f64, |scale, value| scale.max(f64::from(value.abs())));
        for index in (0..gradient.len()).step_by(gradient.len().div_ceil(16)) {
            let loss_at = |distance: f32| {
                let mut moved = network.clone();
                moved.parameters[parameter][index] += distance;
                moved.evaluate(&noise.pixels, &noise.labels).loss
            };
            let slope = (loss_at(5e-4) - loss_at(-5e-4)) / 1e-3;
            let backward = f64::from(gradient[index]);
            let error = (slope - backward).abs();
            assert!(error < 0.02 * scale, "{name}[{index}]: {slope} by differences, {backward} by backward");
        }
    }
}

#[test]
fn the_last_layer_comes_first_and_weights_scale() {
    let noise = Noise::new(5);
    let mut network = Network::new(3);
    let (once, half) = (gradients(&mut network, &noise, 1.0), gradients(&mut network, &noise, 0.5));
    assert_eq!(once.order, [4, 5, 2, 3, 0, 1]);
    for (once, half) in once.gradients.iter().flatten().zip(half.gradients.iter().flatten()) {
        assert_eq!(once * 0.5, *half, "halving is exact");
    }
}

#[test]
fn an_empty_batch_gives_zeros() {
    let kept = gradients(&mut Network::new(3), &Noise::new(0), 1.0);
    assert!(kept.gradients.iter().flatten().all(|value| *value == 0.0));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| gradients(&mut Network::new(3), &Noise::new(21), 0.1).gradients)
    };
    let bits = |gradients: Vec<Vec<f32>>| gradients.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(with_threads(1)), bits(with_threads(3)));
}
