//! Message sizes: numbers with units, and sweeps `minimum:maximum:factor`.

use std::str::FromStr;

/// A sweep of sizes in bytes, each `factor` times the one before, up to and with `maximum`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sweep {
    pub(crate) minimum: u64,
    pub(crate) maximum: u64,
    pub(crate) factor: u64,
}

impl Sweep {
    /// The sizes, ascending.
    pub(crate) fn sizes(&self) -> Vec<u64> {
        std::iter::successors(Some(self.minimum), |size| size.checked_mul(self.factor))
            .take_while(|size| *size <= self.maximum)
            .collect()
    }
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (minimum, maximum, factor) = match parts[..] {
            [one] => (parse_bytes(one)?, parse_bytes(one)?, 2),
            [minimum, maximum] => (parse_bytes(minimum)?, parse_bytes(maximum)?, 2),
            [minimum, maximum, factor] => (
                parse_bytes(minimum)?,
                parse_bytes(maximum)?,
                factor.trim().parse::<u64>().map_err(|_| format!("the factor '{factor}' is not a whole number"))?,
            ),
            _ => {
                return Err(format!(
                    "'{text}' has {} parts; write minimum:maximum:factor, as in 4:256MiB:4",
                    parts.len()
                ));
            }
        };
        if minimum == 0 {
            return Err("the smallest size is 0 bytes; start at the size of one element or more".into());
        }
        if maximum < minimum {
            return Err(format!("the maximum ({maximum} bytes) is below the minimum ({minimum} bytes)"));
        }
        if factor < 2 {
            return Err(format!("the factor is {factor}; it must be 2 or more"));
        }
        Ok(Self { minimum, maximum, factor })
    }
}

/// Parses `4`, `64KiB`, `1.5MiB`, `2GB`. K, M and G alone are binary, as in nccl-tests.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].trim().to_ascii_lowercase());
    let scale: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => {
            return Err(format!("'{unit}' is no unit of size; use B, KiB, MiB, GiB, or KB, MB, GB"));
        }
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(|| format!("'{text}' is more bytes than 64 bits can count"));
    }
    let value: f64 =
        number.parse().map_err(|_| format!("'{text}' is no size; write a number and a unit, as in 64KiB"))?;
    let bytes = value * scale as f64;
    if !bytes.is_finite() || bytes < 0.0 || bytes.fract() != 0.0 || bytes >= 2f64.powi(53) {
        return Err(format!("'{text}' is not a whole number of bytes"));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, bytes) in [
            ("4", 4),
            ("4B", 4),
            ("64KiB", 65536),
            ("64k", 65536),
            ("1.5 MiB", 3 << 19),
            ("256MiB", 256 << 20),
            ("1GiB", 1 << 30),
            ("2gb", 2_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "4 parsecs", "-4", "0.3B", "1e99", "18446744073709551615KiB", "nan"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sweeps() {
        let sweep: Sweep = "4:256MiB:4".parse().unwrap();
        let sizes = sweep.sizes();
        assert_eq!(sizes.len(), 14);
        assert_eq!((sizes[0], sizes[1], *sizes.last().unwrap()), (4, 16, 256 << 20));
        assert_eq!("64KiB".parse::<Sweep>().unwrap().sizes(), [65536]);
        assert_eq!("1:10".parse::<Sweep>().unwrap().sizes(), [1, 2, 4, 8]);
        assert_eq!("3:3:7".parse::<Sweep>().unwrap().sizes(), [3]);
    }

    #[test]
    fn a_sweep_at_the_end_of_the_numbers_stops() {
        let sweep = Sweep { minimum: 1 << 62, maximum: u64::MAX, factor: 3 };
        assert_eq!(sweep.sizes(), [1 << 62, 3 << 62]);
    }

    #[test]
    fn bad_sweeps_say_why() {
        for (text, word) in [
            ("0:4", "0 bytes"),
            ("8:4", "below the minimum"),
            ("4:8:1", "factor is 1"),
            ("4:8:x", "whole number"),
            ("1:2:3:4", "4 parts"),
            ("a:b", "no unit"),
        ] {
            let error = text.parse::<Sweep>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
