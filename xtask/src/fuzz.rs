//! Inputs that are made to break parsers: valid ones that were damaged, and random bytes. Every input comes from a seed.
//!
//! A test calls [`fuzz`] with a maker of valid inputs and a check that panics if something is wrong. By default it runs
//! [`CASES`] cases, the same in every run; with `KOLO_TEST_FUZZ_SECONDS` it runs for so long, from a seed that is new in every
//! run. A case that fails prints its seed, and `KOLO_SEED` runs that one again. A seed that found a failure stands in the
//! test from then on: it runs first.

use std::cell::Cell;
use std::env;
use std::fmt::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use crate::random::Random;

/// Cases of a test by default.
pub const CASES: u64 = 2000;

/// How long each test runs, in seconds.
pub const SECONDS: &str = "KOLO_TEST_FUZZ_SECONDS";

/// Bytes of random inputs, and of what is inserted.
const SHORT: usize = 64;
/// One in so many inputs at least must be read.
const SHARE: usize = 100;
/// Bytes of an input that a failure shows.
const SHOWN: usize = 400;

/// Runs `check` on inputs: what `valid` makes, damaged more or less, and random bytes. `known` are seeds that found
/// failures once; they run first. A check says whether the input was read, and not refused.
///
/// # Panics
/// If a check does; the message before names the seed. If almost every input was refused, for nothing behind the first
/// bytes was tried then.
pub fn fuzz(name: &str, known: &[u64], valid: impl Fn(&mut Random) -> Vec<u8>, check: impl Fn(&[u8]) -> bool) {
    let read = Cell::new(0_usize);
    let case = |seed: u64| {
        let mut random = Random::new(seed);
        let input = input(&mut random, &valid);
        match panic::catch_unwind(AssertUnwindSafe(|| check(&input))) {
            Ok(was_read) => read.set(read.get() + usize::from(was_read)),
            Err(payload) => {
                eprintln!(
                    "fuzz {name}: seed {seed} fails on {} bytes: {}\nrun it again with KOLO_SEED={seed}; once it is repaired, \
                 keep the seed in the test",
                    input.len(),
                    shown(&input)
                );
                panic::resume_unwind(payload);
            }
        }
    };
    if let Some(seed) = number("KOLO_SEED") {
        return case(seed);
    }
    known.iter().copied().for_each(case);
    let mut cases = known.len();
    match number(SECONDS) {
        None => {
            (0..CASES).for_each(case);
            cases += CASES as usize;
        }
        Some(seconds) => {
            let end = Instant::now() + Duration::from_secs(seconds);
            let begin = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
            let mut seeds = Random::new(begin);
            while Instant::now() < end {
                // The clock is looked at now and then.
                (0..100).for_each(|_| case(seeds.any()));
                cases += 100;
            }
        }
    }
    let read = read.get();
    println!("fuzz {name}: {cases} cases, {read} read");
    assert!(read * SHARE >= cases, "only {read} of {cases} inputs were read: the valid ones are not");
}

/// A setting of the environment.
///
/// # Panics
/// If it is no number: a test must not do something else quietly.
fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is '{text}'; write a whole number")))
}

fn input(random: &mut Random, valid: &impl Fn(&mut Random) -> Vec<u8>) -> Vec<u8> {
    match random.below(16) {
        0 => random.bytes(SHORT),
        // Small numbers reach deeper into parsers.
        1 => random.bytes(SHORT).into_iter().map(|byte| byte % 8).collect(),
        // As it is: what is valid must be read.
        2 => valid(random),
        3 => {
            let (mut one, other) = (valid(random), valid(random));
            one.truncate(random.below(one.len() + 1));
            one.extend_from_slice(&other[random.below(other.len() + 1)..]);
            one
        }
        _ => {
            let mut bytes = valid(random);
            for _ in 0..=random.below(4) {
                damage(random, &mut bytes);
            }
            bytes
        }
    }
}

fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    const ODD: &[u64] = &[0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 62, u64::MAX];
    let at = random.below(bytes.len() + 1);
    let len = random.below((bytes.len() - at).min(16) + 1);
    match random.below(7) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..at + len)),
        2 => {
            let more = random.bytes(SHORT);
            drop(bytes.splice(at..at, more));
        }
        3 => {
            let again = bytes[at..at + len].to_vec();
            drop(bytes.splice(at..at, again));
        }
        4 => {
            let odd = random.of(ODD).to_le_bytes();
            let width = *random.of(&[1, 2, 4, 8]);
            bytes[at..].iter_mut().zip(&odd[..width]).for_each(|(byte, new)| *byte = *new);
        }
        5 => bytes[at..at + len].iter_mut().for_each(|byte| *byte = random.any() as u8),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in &bytes[..bytes.len().min(SHOWN)] {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    if bytes.len() > SHOWN { text + ".." } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// What a run of a few seeds makes.
    fn inputs(seeds: std::ops::Range<u64>) -> Vec<Vec<u8>> {
        seeds
            .map(|seed| input(&mut Random::new(seed), &|random| format!("valid {}", random.below(9)).into_bytes()))
            .collect()
    }

    #[test]
    fn a_seed_means_the_same_input_every_time() {
        assert_eq!(inputs(0..300), inputs(0..300));
        let all: std::collections::HashSet<_> = inputs(0..1000).into_iter().collect();
        assert!(all.len() > 700, "{}", all.len());
    }

    #[test]
    fn inputs_are_valid_damaged_and_random() {
        let valid = |bytes: &[u8]| bytes.starts_with(b"valid ") && bytes.len() == 7;
        let inputs = inputs(0..1000);
        let whole = inputs.iter().filter(|bytes| valid(bytes)).count();
        let near = inputs.iter().filter(|bytes| !valid(bytes) && bytes.starts_with(b"va")).count();
        assert!(whole > 30 && near > 300, "{whole} {near}");
        assert!(inputs.iter().any(Vec::is_empty));
    }

    #[test]
    fn a_failure_names_its_seed_and_known_seeds_run_first() {
        let seen = RefCell::new(Vec::new());
        let known = 77;
        let first = input(&mut Random::new(known), &|_| b"x".to_vec());
        fuzz(
            "known",
            &[known],
            |_| b"x".to_vec(),
            |bytes| {
                seen.borrow_mut().push(bytes.to_vec());
                true
            },
        );
        assert_eq!(seen.borrow().len() as u64, if env::var_os("KOLO_SEED").is_some() { 1 } else { 1 + CASES }.max(1));
        assert!(env::var_os("KOLO_SEED").is_some() || seen.borrow()[0] == first);
        let failed = panic::catch_unwind(|| {
            fuzz(
                "fails",
                &[],
                |_| b"x".to_vec(),
                |bytes| {
                    assert_ne!(bytes, b"x");
                    true
                },
            )
        });
        assert!(failed.is_err());
        let refused = panic::catch_unwind(|| fuzz("refuses", &[], |_| b"x".to_vec(), |_| false));
        assert!(refused.is_err() || env::var_os("KOLO_SEED").is_some());
    }

    #[test]
    fn numbers_are_small_and_large() {
        let mut random = Random::new(1);
        let numbers: Vec<u64> = (0..1000).map(|_| random.number()).collect();
        assert!(numbers.contains(&0) && numbers.iter().any(|n| *n > u64::MAX / 2));
        assert!(random.text(10).chars().count() == 10);
    }
}
