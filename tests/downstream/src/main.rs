//! A linear model with a matrix type that kolo has never seen, trained by all ranks.
//!
//! Depends on kolo's public interface alone, from outside its workspace.

mod matrix;

use std::process::ExitCode;

use kolo::Kolo;
use kolo::data::ShardedSampler;
use kolo::optim::{DistributedOptimizer, ParameterSpec, Sgd, SgdOptions, average_metric, broadcast_parameters};
use matrix::Matrix;

const INPUTS: usize = 3;
const OUTPUTS: usize = 2;
const SAMPLES: usize = 101;

/// What the model must find: outputs are inputs times this, plus the last row.
const TRUTH: [[f32; OUTPUTS]; INPUTS + 1] = [[1.0, -2.0], [0.5, 0.25], [-1.5, 3.0], [0.75, -0.5]];

fn main() -> ExitCode {
    kolo::run(|kolo| {
        let loss = train(kolo)?;
        if kolo.rank() == 0 {
            println!("{} rank(s): mean squared error {loss:.1e}", kolo.size());
        }
        if loss < 1e-6 { Ok(()) } else { Err(kolo::Error::Argument(format!("the loss stays at {loss}").into())) }
    })
}

/// Trains until the loss is small, and gives the last epoch's mean over all samples.
fn train(kolo: &Kolo) -> kolo::Result<f64> {
    let specs = [ParameterSpec::new("weight", [INPUTS, OUTPUTS]), ParameterSpec::new("bias", [OUTPUTS])];
    // Ranks start apart; rank 0's parameters are the ones that count.
    let start = kolo.rank() as f32;
    let mut parameters = vec![Matrix::filled(INPUTS, OUTPUTS, start), Matrix::filled(1, OUTPUTS, start)];
    let names = specs.iter().map(ParameterSpec::name);
    broadcast_parameters(kolo, names.zip(&mut parameters), 0)?;

    let sgd = Sgd::new(SgdOptions { learning_rate: 0.2, momentum: 0.9, ..SgdOptions::default() })?;
    let mut optimizer: DistributedOptimizer<_, Matrix> = DistributedOptimizer::new(kolo, sgd, specs)?;
    let mut sampler = ShardedSampler::for_rank(kolo, SAMPLES);
    let mut loss = 0.0;
    for epoch in 0..80 {
        sampler.set_epoch(epoch);
        let (mut sum, mut seen) = (0.0, 0);
        for batch in sampler.batches(8)? {
            let mut weight = Matrix::filled(INPUTS, OUTPUTS, 0.0);
            let mut bias = Matrix::filled(1, OUTPUTS, 0.0);
            for &index in batch.indices() {
                sum += add_gradients(index, &parameters, batch.sample_weight() as f32, &mut weight, &mut bias);
            }
            seen += batch.len();
            optimizer.gradient_ready("bias", bias.flattened())?;
            optimizer.gradient_ready("weight", weight)?;
            optimizer.step(&mut parameters)?;
        }
        loss = average_metric(kolo, "loss", sum / seen.max(1) as f64, seen as f64)?;
    }
    Ok(loss)
}

/// Adds the gradients of one sample's squared error, and gives the error.
fn add_gradients(index: usize, parameters: &[Matrix], scale: f32, weight: &mut Matrix, bias: &mut Matrix) -> f64 {
    let input: [f32; INPUTS] = std::array::from_fn(|input| ((index * (input + 2)) as f32 * 0.61).sin());
    let mut loss = 0.0;
    for output in 0..OUTPUTS {
        let times = |row: &dyn Fn(usize) -> f32| (0..INPUTS).map(|k| input[k] * row(k)).sum::<f32>();
        let predicted = times(&|k| parameters[0].at(k, output)) + parameters[1].at(0, output);
        let wanted = times(&|k| TRUTH[k][output]) + TRUTH[INPUTS][output];
        let error = predicted - wanted;
        loss += f64::from(error * error);
        for (k, value) in input.iter().enumerate() {
            *weight.at_mut(k, output) += scale * error * value;
        }
        *bias.at_mut(0, output) += scale * error;
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rank_and_three_ranks_find_the_truth() {
        for size in [1, 3] {
            for loss in kolo::threads(size, train).expect("ranks") {
                let loss = loss.expect("a training without errors");
                assert!(loss < 1e-6, "{size} ranks: {loss}");
            }
        }
    }
}
