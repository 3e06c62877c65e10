//! The gradients of real models, derived from their architectures, in the order in which backward produces them.

use clap::ValueEnum;

/// A list of gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// ResNet-50 for 1000 classes: 161 tensors, 25,557,032 values.
    #[value(name = "resnet50")]
    Resnet50,
    /// GPT-2 small with tied embeddings: 148 tensors, 124,439,808 values.
    #[value(name = "gpt2")]
    Gpt2,
    /// BERT-large with its two pre-training heads: 398 tensors, 336,226,108 values.
    #[value(name = "bert-large")]
    BertLarge,
    /// 161 tensors of 1 KiB: nothing but overhead.
    #[value(name = "small161")]
    Small161,
}

impl Preset {
    /// The name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Resnet50 => "resnet50",
            Self::Gpt2 => "gpt2",
            Self::BertLarge => "bert-large",
            Self::Small161 => "small161",
        }
    }

    /// The number of values of each tensor for elements of `element_size` bytes, last layer first.
    pub(crate) fn counts(self, element_size: usize) -> Vec<usize> {
        let mut forward = match self {
            Self::Resnet50 => resnet50(),
            Self::Gpt2 => gpt2(),
            Self::BertLarge => bert_large(),
            Self::Small161 => vec![1024 / element_size; 161],
        };
        forward.reverse();
        forward
    }
}

fn resnet50() -> Vec<usize> {
    let mut counts = Vec::new();
    // A convolution without bias, then the two vectors of its batch normalisation.
    let mut convolution = |inputs: usize, outputs: usize, kernel: usize| {
        counts.extend([inputs * outputs * kernel * kernel, outputs, outputs]);
    };
    convolution(3, 64, 7);
    let mut inputs = 64;
    for (blocks, width) in [(3, 64), (4, 128), (6, 256), (3, 512)] {
        for block in 0..blocks {
            convolution(inputs, width, 1);
            convolution(width, width, 3);
            convolution(width, 4 * width, 1);
            if block == 0 {
                convolution(inputs, 4 * width, 1);
            }
            inputs = 4 * width;
        }
    }
    counts.extend(dense(inputs, 1000));
    counts
}

fn gpt2() -> Vec<usize> {
    let width = 768;
    let mut counts = vec![50257 * width, 1024 * width];
    for _ in 0..12 {
        counts.extend([width, width]);
        counts.extend(dense(width, 3 * width));
        counts.extend(dense(width, width));
        counts.extend([width, width]);
        counts.extend(dense(width, 4 * width));
        counts.extend(dense(4 * width, width));
    }
    counts.extend([width, width]);
    counts
}

fn bert_large() -> Vec<usize> {
    let (width, vocabulary) = (1024, 30522);
    let mut counts = vec![vocabulary * width, 512 * width, 2 * width, width, width];
    for _ in 0..24 {
        // Query, key, value and output, each a square matrix with its bias.
        for _ in 0..4 {
            counts.extend(dense(width, width));
        }
        counts.extend([width, width]);
        counts.extend(dense(width, 4 * width));
        counts.extend(dense(4 * width, width));
        counts.extend([width, width]);
    }
    counts.extend(dense(width, width));
    // The masked-language head: its decoder shares the embedding's weight and adds a bias.
    counts.push(vocabulary);
    counts.extend(dense(width, width));
    counts.extend([width, width]);
    // Next sentence, yes or no.
    counts.extend(dense(width, 2));
    counts
}

fn dense(inputs: usize, outputs: usize) -> [usize; 2] {
    [inputs * outputs, outputs]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_totals_are_those_of_the_models() {
        for (preset, tensors, values) in [
            (Preset::Resnet50, 161, 25_557_032),
            (Preset::Gpt2, 148, 124_439_808),
            (Preset::BertLarge, 398, 336_226_108),
            (Preset::Small161, 161, 161 * 256),
        ] {
            let counts = preset.counts(4);
            assert_eq!(counts.len(), tensors, "{preset:?}");
            assert_eq!(counts.iter().sum::<usize>(), values, "{preset:?}");
        }
    }

    #[test]
    fn the_last_layer_comes_first() {
        assert_eq!(Preset::Resnet50.counts(4)[..2], [1000, 2048 * 1000]);
        assert_eq!(Preset::Resnet50.counts(4)[160], 3 * 64 * 49);
        assert_eq!(*Preset::Gpt2.counts(4).last().unwrap(), 50257 * 768);
    }

    #[test]
    fn small_tensors_stay_a_kibibyte() {
        for size in [1, 2, 4, 8] {
            assert!(Preset::Small161.counts(size).iter().all(|count| count * size == 1024));
        }
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for preset in Preset::value_variants() {
            assert_eq!(preset.to_possible_value().unwrap().get_name(), preset.name());
        }
    }
}
