//! A small convolutional network, forward and backward, in plain Rust.
//!
//! ```text
//! 8x8x1 -> 3x3 conv, 16 -> rectify, pool -> 4x4x16 -> 3x3 conv, 32 -> rectify, pool -> 2x2x32 -> dense, 10 -> softmax
//! ```
//!
//! A batch is cut into a fixed number of parts, which rayon's threads compute side by side; the parts' gradients are added
//! in the order of the parts. So the bits depend on the batch alone, not on the number of threads.

use rayon::prelude::*;

use super::kernels::{
    affine, affine_gradient, affine_input_gradient, patches, patches_gradient, rectify_and_pool,
    rectify_and_pool_gradient, transpose,
};

const PIXELS: usize = 64;
const FIRST: usize = 16;
const SECOND: usize = 32;
/// Values that enter the second convolution for each pixel, and those that enter the dense layer.
const PATCH: usize = 9 * FIRST;
const FEATURES: usize = 4 * SECOND;
const CLASSES: usize = 10;
/// Parts of a batch.
const PARTS: usize = 8;

/// Names and shapes of the parameters: height, width, inputs, outputs of a convolution; inputs, outputs of a dense layer.
pub(crate) const PARAMETERS: [(&str, &[usize]); 6] = [
    ("conv1.weight", &[3, 3, 1, FIRST]),
    ("conv1.bias", &[FIRST]),
    ("conv2.weight", &[3, 3, FIRST, SECOND]),
    ("conv2.bias", &[SECOND]),
    ("dense.weight", &[FEATURES, CLASSES]),
    ("dense.bias", &[CLASSES]),
];

/// Takes the gradients as backward produces them, the last layer's first.
pub(crate) trait GradientSink {
    type Error;

    /// A buffer of the parameter's length, of any content.
    fn buffer(&mut self, parameter: usize) -> Result<Vec<f32>, Self::Error>;

    /// The gradient of a parameter is complete.
    fn ready(&mut self, parameter: usize, gradient: Vec<f32>) -> Result<(), Self::Error>;
}

/// The network: its parameters, and memory for the batch at hand.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) parameters: Vec<Vec<f32>>,
    parts: Vec<Part>,
    conv2_transposed: Vec<f32>,
    dense_transposed: Vec<f32>,
}

/// What one part of a batch computes.
#[derive(Clone, Debug, Default)]
struct Part {
    labels: Vec<u8>,
    patches1: Vec<f32>,
    conv1: Vec<f32>,
    pooled1: Vec<f32>,
    chosen1: Vec<u8>,
    patches2: Vec<f32>,
    conv2: Vec<f32>,
    pooled2: Vec<f32>,
    chosen2: Vec<u8>,
    scores: Vec<f32>,
    gradients: [Vec<f32>; 6],
    /// Sum of the samples' losses, and how many were classified rightly.
    loss: f64,
    right: usize,
}

/// How a batch went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Sum of the samples' cross entropies.
    pub(crate) loss: f64,
    /// Samples whose digit was found.
    pub(crate) right: usize,
}

impl Network {
    /// A network with random weights: the same for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let parameter = |(_, shape): &(&str, &[usize])| {
            let count = shape.iter().product();
            let (inputs, is_bias) = (count / shape[shape.len() - 1], shape.len() == 1);
            // He et al. 2015: uniform with variance 2 / inputs, for rectified layers.
            let bound = if is_bias { 0.0 } else { (6.0 / inputs as f32).sqrt() };
            (0..count).map(|_| bound * random.symmetric()).collect()
        };
        Self {
            parameters: PARAMETERS.iter().map(parameter).collect(),
            parts: vec![Part::default(); PARTS],
            conv2_transposed: vec![0.0; PATCH * SECOND],
            dense_transposed: vec![0.0; FEATURES * CLASSES],
        }
    }

    /// Classifies images without learning from them.
    pub(crate) fn evaluate(&mut self, pixels: &[f32], labels: &[u8]) -> Outcome {
        let parameters = &self.parameters;
        for_parts(&mut self.parts, pixels, labels, |part, pixels| part.forward(parameters, pixels));
        self.outcome()
    }

    /// One pass: hands the gradient of `sample_weight` x the sum of the samples' losses to `sink`, layer by layer.
    ///
    /// An empty batch gives zeros.
    pub(crate) fn train<S: GradientSink>(
        &mut self,
        pixels: &[f32],
        labels: &[u8],
        sample_weight: f32,
        sink: &mut S,
    ) -> Result<Outcome, S::Error> {
        let outcome = self.evaluate(pixels, labels);
        let Self { parameters, parts, conv2_transposed, dense_transposed } = self;

        transpose::<FEATURES, CLASSES>(&parameters[4], dense_transposed);
        parts.par_iter_mut().for_each(|part| part.backward_dense(sample_weight, dense_transposed));
        hand_over(parts, 4, sink)?;
        hand_over(parts, 5, sink)?;

        transpose::<PATCH, SECOND>(&parameters[2], conv2_transposed);
        parts.par_iter_mut().for_each(|part| part.backward_conv2(conv2_transposed));
        hand_over(parts, 2, sink)?;
        hand_over(parts, 3, sink)?;

        parts.par_iter_mut().for_each(Part::backward_conv1);
        hand_over(parts, 0, sink)?;
        hand_over(parts, 1, sink)?;
        Ok(outcome)
    }

    fn outcome(&self) -> Outcome {
        self.parts
            .iter()
            .fold(Outcome::default(), |sum, part| Outcome { loss: sum.loss + part.loss, right: sum.right + part.right })
    }
}

/// Deals a batch to its parts.
fn for_parts(parts: &mut [Part], pixels: &[f32], labels: &[u8], work: impl Fn(&mut Part, &[f32]) + Sync) {
    let samples = labels.len();
    parts.par_iter_mut().enumerate().for_each(|(index, part)| {
        let (start, end) = (index * samples / PARTS, (index + 1) * samples / PARTS);
        part.labels.clear();
        part.labels.extend_from_slice(&labels[start..end]);
        work(part, &pixels[start * PIXELS..end * PIXELS]);
    });
}

/// Adds the parts' gradients of a parameter in their order, and passes the sum on.
fn hand_over<S: GradientSink>(parts: &[Part], parameter: usize, sink: &mut S) -> Result<(), S::Error> {
    let mut gradient = sink.buffer(parameter)?;
    gradient.copy_from_slice(&parts[0].gradients[parameter]);
    for part in &parts[1..] {
        for (sum, value) in gradient.iter_mut().zip(&part.gradients[parameter]) {
            *sum += value;
        }
    }
    sink.ready(parameter, gradient)
}

impl Part {
    fn forward(&mut self, parameters: &[Vec<f32>], pixels: &[f32]) {
        let samples = self.labels.len();
        self.patches1.resize(samples * PIXELS * 9, 0.0);
        self.conv1.resize(samples * PIXELS * FIRST, 0.0);
        self.pooled1.resize(samples * 16 * FIRST, 0.0);
        self.chosen1.resize(samples * 16 * FIRST, 0);
        self.patches2.resize(samples * 16 * PATCH, 0.0);
        self.conv2.resize(samples * 16 * SECOND, 0.0);
        self.pooled2.resize(samples * FEATURES, 0.0);
        self.chosen2.resize(samples * FEATURES, 0);
        self.scores.resize(samples * CLASSES, 0.0);

        for (image, output) in pixels.chunks_exact(PIXELS).zip(self.patches1.chunks_exact_mut(PIXELS * 9)) {
            patches::<8, 1>(image, output);
        }
        affine::<9, FIRST>(&self.patches1, &parameters[0], &parameters[1], &mut self.conv1);
        for sample in 0..samples {
            rectify_and_pool::<8, FIRST>(
                &self.conv1[sample * PIXELS * FIRST..][..PIXELS * FIRST],
                &mut self.pooled1[sample * 16 * FIRST..][..16 * FIRST],
                &mut self.chosen1[sample * 16 * FIRST..][..16 * FIRST],
            );
            patches::<4, FIRST>(
                &self.pooled1[sample * 16 * FIRST..][..16 * FIRST],
                &mut self.patches2[sample * 16 * PATCH..][..16 * PATCH],
            );
        }
        affine::<PATCH, SECOND>(&self.patches2, &parameters[2], &parameters[3], &mut self.conv2);
        for sample in 0..samples {
            rectify_and_pool::<4, SECOND>(
                &self.conv2[sample * 16 * SECOND..][..16 * SECOND],
                &mut self.pooled2[sample * FEATURES..][..FEATURES],
                &mut self.chosen2[sample * FEATURES..][..FEATURES],
            );
        }
        affine::<FEATURES, CLASSES>(&self.pooled2, &parameters[4], &parameters[5], &mut self.scores);
        self.softmax();
    }

    /// Turns scores into probabilities and sums up the losses.
    fn softmax(&mut self) {
        (self.loss, self.right) = (0.0, 0);
        for (scores, label) in self.scores.chunks_exact_mut(CLASSES).zip(&self.labels) {
            let label = usize::from(*label);
            let best = (1..CLASSES).fold(0, |best, class| if scores[class] > scores[best] { class } else { best });
            let highest = scores[best];
            scores.iter_mut().for_each(|score| *score = (*score - highest).exp());
            let sum: f32 = scores.iter().sum();
            scores.iter_mut().for_each(|score| *score /= sum);
            self.loss -= f64::from(scores[label].max(f32::MIN_POSITIVE).ln());
            self.right += usize::from(best == label);
        }
    }

    fn clear_gradients(&mut self, layer: [usize; 2]) {
        for parameter in layer {
            let gradient = &mut self.gradients[parameter];
            gradient.clear();
            gradient.resize(PARAMETERS[parameter].1.iter().product(), 0.0);
        }
    }

    /// From probabilities to the gradient of the dense layer, and of what entered it.
    fn backward_dense(&mut self, sample_weight: f32, transposed: &[f32]) {
        for (scores, label) in self.scores.chunks_exact_mut(CLASSES).zip(&self.labels) {
            scores[usize::from(*label)] -= 1.0;
            scores.iter_mut().for_each(|gradient| *gradient *= sample_weight);
        }
        self.clear_gradients([4, 5]);
        let [.., weight, bias] = &mut self.gradients;
        affine_gradient::<FEATURES, CLASSES>(&self.pooled2, &self.scores, weight, bias);
        affine_input_gradient::<FEATURES, CLASSES>(&self.scores, transposed, &mut self.pooled2);
    }

    /// `pooled2` holds its own gradient now; `conv2` and `pooled1` get theirs.
    fn backward_conv2(&mut self, transposed: &[f32]) {
        self.clear_gradients([2, 3]);
        let samples = self.labels.len();
        for sample in 0..samples {
            rectify_and_pool_gradient::<4, SECOND>(
                &self.pooled2[sample * FEATURES..][..FEATURES],
                &self.chosen2[sample * FEATURES..][..FEATURES],
                &mut self.conv2[sample * 16 * SECOND..][..16 * SECOND],
            );
        }
        let [_, _, weight, bias, ..] = &mut self.gradients;
        affine_gradient::<PATCH, SECOND>(&self.patches2, &self.conv2, weight, bias);
        affine_input_gradient::<PATCH, SECOND>(&self.conv2, transposed, &mut self.patches2);
        for sample in 0..samples {
            patches_gradient::<4, FIRST>(
                &self.patches2[sample * 16 * PATCH..][..16 * PATCH],
                &mut self.pooled1[sample * 16 * FIRST..][..16 * FIRST],
            );
        }
    }

    /// `pooled1` holds its own gradient now; nothing needs the image's.
    fn backward_conv1(&mut self) {
        self.clear_gradients([0, 1]);
        for sample in 0..self.labels.len() {
            rectify_and_pool_gradient::<8, FIRST>(
                &self.pooled1[sample * 16 * FIRST..][..16 * FIRST],
                &self.chosen1[sample * 16 * FIRST..][..16 * FIRST],
                &mut self.conv1[sample * PIXELS * FIRST..][..PIXELS * FIRST],
            );
        }
        let [weight, bias, ..] = &mut self.gradients;
        affine_gradient::<9, FIRST>(&self.patches1, &self.conv1, weight, bias);
    }
}

/// Numbers for the first weights: the high bits of a linear congruential generator (Knuth's MMIX).
struct Random(u64);

impl Random {
    /// A number from -1 to 1.
    fn symmetric(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }
}
