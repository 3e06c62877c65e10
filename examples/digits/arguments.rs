//! What stands behind `03_digits`.

use super::progress::Display;

pub(crate) const HELP: &str = "\
Trains a convolutional network on handwritten digits with all ranks.

Usage: mpirun -np N 03_digits [OPTIONS]

  --epochs N       passes over the training images [default: 30]
  --batch N        images a rank and step [default: 64 shared by the ranks]
  --lr X           learning rate at the start; it falls along a cosine [default: 0.05]
  --seed N         of the split, the first weights and the order of the images [default: 1]
  --threads N      threads of each rank [default: its share of the cores]
  --check          compare the weights with those of one process, bit for bit [default]
  --no-check       do not
  --progress WHAT  bar, lines or none [default: a bar on a terminal, else lines]
  --quiet          nothing but the result: --progress none
  --help           this text

Below 96 % of the test images the program fails, unless --epochs asks for fewer than 30.";

/// Fewer may not reach the accuracy that a full training must show.
pub(crate) const FULL_TRAINING: usize = 30;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Arguments {
    pub(crate) epochs: usize,
    pub(crate) batch: Option<usize>,
    pub(crate) learning_rate: f64,
    pub(crate) seed: u64,
    pub(crate) threads: Option<usize>,
    pub(crate) check: bool,
    pub(crate) display: Display,
    pub(crate) help: bool,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            epochs: FULL_TRAINING,
            batch: None,
            learning_rate: 0.05,
            seed: 1,
            threads: None,
            check: true,
            display: Display::Auto,
            help: false,
        }
    }
}

impl Arguments {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            let (flag, attached) = match word.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let switch = match flag.as_str() {
                "--check" => Some(&mut arguments.check),
                "--help" | "-h" => Some(&mut arguments.help),
                _ => None,
            };
            if let Some(switch) = switch {
                *switch = true;
                continue;
            }
            match flag.as_str() {
                "--no-check" => arguments.check = false,
                "--quiet" | "-q" => arguments.display = Display::None,
                "--epochs" | "--batch" | "--lr" | "--seed" | "--threads" | "--progress" => {
                    let value = attached.or_else(|| words.next());
                    let value = value.ok_or_else(|| format!("{flag} takes a value; see --help"))?;
                    arguments.set(&flag, &value)?;
                }
                _ => return Err(format!("unknown argument {flag:?}; see --help")),
            }
        }
        Ok(arguments)
    }

    fn set(&mut self, flag: &str, value: &str) -> Result<(), String> {
        match flag {
            "--epochs" => self.epochs = positive(flag, value)?,
            "--batch" => self.batch = Some(positive(flag, value)?),
            "--threads" => self.threads = Some(positive(flag, value)?),
            "--seed" => self.seed = value.parse().map_err(|error| format!("{flag} {value:?}: {error}"))?,
            "--lr" => {
                let rate = value.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
                self.learning_rate = rate.ok_or_else(|| format!("{flag} takes a number above 0, not {value:?}"))?;
            }
            _ => self.display = Display::parse(value)?,
        }
        Ok(())
    }
}

fn positive(flag: &str, value: &str) -> Result<usize, String> {
    let number = value.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| format!("{flag} takes a whole number from 1 on, not {value:?}"))
}
