//! The digits: 1,797 images of 8 x 8 pixels, a fifth of them held out for the test.

use std::io::Read;

use flate2::read::GzDecoder;
use kolo::data::ShardedSampler;

/// See data/README.md for where they come from. Inside the program, so that it runs from any directory.
static COMPRESSED: &[u8] = include_bytes!("../../data/digits.csv.gz");

/// Pixels of an image.
pub(crate) const PIXELS: usize = 64;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Images and their digits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dataset {
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

impl Dataset {
    /// The images for training and those for the test: the same split for the same seed.
    pub(crate) fn load(seed: u64) -> Result<(Self, Self), Error> {
        let mut text = String::new();
        GzDecoder::new(COMPRESSED).read_to_string(&mut text)?;
        let all = Self::parse(&text)?;

        // One batch of all samples of one rank: the whole order.
        let order = ShardedSampler::new(all.len(), 0, 1)?.with_seed(seed).batches(all.len())?;
        let order: Vec<usize> = order.flat_map(|batch| batch.indices().to_vec()).collect();
        let (test, training) = order.split_at(all.len() / 5);
        Ok((all.take(training), all.take(test)))
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let mut data = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let mut values = line.split(',').map(str::parse::<u8>);
            for _ in 0..PIXELS {
                let ink = values.next().ok_or_else(|| format!("line {number}: fewer than {PIXELS} pixels"))??;
                data.pixels.push(f32::from(ink) / 16.0);
            }
            data.labels.push(values.next().ok_or_else(|| format!("line {number}: no digit"))??);
        }
        Ok(data)
    }

    fn take(&self, indices: &[usize]) -> Self {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        self.gather(indices, &mut pixels, &mut labels);
        Self { pixels, labels }
    }

    /// Copies the images and labels of `indices` into buffers that are used again for every batch.
    pub(crate) fn gather(&self, indices: &[usize], pixels: &mut Vec<f32>, labels: &mut Vec<u8>) {
        pixels.clear();
        labels.clear();
        for &index in indices {
            pixels.extend_from_slice(&self.pixels[index * PIXELS..][..PIXELS]);
            labels.push(self.labels[index]);
        }
    }

    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }
}
