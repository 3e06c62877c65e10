//! How the text of a knob becomes a value, and back.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A type that a knob can have. `parse(&show(v)) == v` holds for every value.
pub(crate) trait Value: Sized {
    /// What may be written, for help and docs.
    const FORM: &'static str;

    /// Reads the text; an error says what is wrong with it and what could stand there, without naming the knob.
    fn parse(text: &str) -> Result<Self, String>;

    /// The text that `parse` turns into this value.
    fn show(&self) -> String;
}

/// A number of bytes: `64MiB`, `1.5GB`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) usize);

impl Bytes {
    pub(crate) const fn kib(n: usize) -> Self {
        Self(n << 10)
    }

    pub(crate) const fn mib(n: usize) -> Self {
        Self(n << 20)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

/// Units of bytes, largest first, as `show` picks them. Decimal ones follow: they are only read.
const BYTE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

impl Value for Bytes {
    const FORM: &'static str = "bytes, as in 64MiB";

    fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let scale = if unit.is_empty() {
            1
        } else {
            BYTE_UNITS
                .into_iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, scale)| scale)
                .ok_or_else(|| format!("'{unit}' is no unit of bytes; write B, kB, MB, GB, KiB, MiB or GiB"))?
        };
        let bytes = scaled(number, scale).ok_or_else(|| "write a number of bytes, as in 64MiB".to_owned())?;
        usize::try_from(bytes).map(Self).map_err(|_| "too large for this machine".to_owned())
    }

    fn show(&self) -> String {
        let bytes = self.0 as u64;
        match BYTE_UNITS[..3].iter().find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale)) {
            Some((unit, scale)) => format!("{}{unit}", bytes / scale),
            None => bytes.to_string(),
        }
    }
}

/// Units of time in nanoseconds, largest first.
const TIME_UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl Value for Duration {
    const FORM: &'static str = "a duration, as in 300s or 5ms";

    fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let scale = match unit {
            "" if number == "0" => 1,
            "" => return Err(format!("a duration needs a unit; did you mean {number}s?")),
            "m" => return Err("'m' may be minutes or milliseconds; write min or ms".to_owned()),
            "µs" => 1_000,
            _ => TIME_UNITS
                .into_iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, scale)| scale)
                .ok_or_else(|| format!("'{unit}' is no unit of time; write h, min, s, ms, us or ns"))?,
        };
        scaled(number, scale).map(Self::from_nanos).ok_or_else(|| "write a duration, as in 300s or 5ms".to_owned())
    }

    fn show(&self) -> String {
        let nanos = u64::try_from(self.as_nanos()).unwrap_or(u64::MAX);
        match TIME_UNITS.iter().find(|(_, scale)| nanos >= *scale && nanos.is_multiple_of(*scale)) {
            Some((unit, scale)) => format!("{}{unit}", nanos / scale),
            None => "0".to_owned(),
        }
    }
}

macro_rules! integer {
    ($($t:ty),*) => {$(
        impl Value for $t {
            const FORM: &'static str = "a whole number";

            fn parse(text: &str) -> Result<Self, String> {
                text.replace('_', "").parse().map_err(|_| "write a whole number, zero or more".to_owned())
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

integer!(usize, u64);

impl Value for bool {
    const FORM: &'static str = "1 or 0 (also true, yes, on; false, no, off)";

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err("write 1 or 0".to_owned()),
        }
    }

    fn show(&self) -> String {
        usize::from(*self).to_string()
    }
}

/// Sizes of pretend hosts, by host: `2,2`. Empty: the real hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hosts(pub(crate) Vec<usize>);

impl Value for Hosts {
    const FORM: &'static str = "ranks of each pretend host, as in 2,2; empty for the real hosts";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let sizes: Option<Vec<usize>> =
            text.split(',').map(|part| part.trim().parse().ok().filter(|&ranks| ranks > 0)).collect();
        sizes.map(Self).ok_or_else(|| "write the number of ranks of each host, one or more, as in 2,2".to_owned())
    }

    fn show(&self) -> String {
        self.0.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

/// A directory; empty text leaves the choice to kolo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Folder(pub(crate) Option<PathBuf>);

impl Value for Folder {
    const FORM: &'static str = "a directory; empty for the default";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self((!text.is_empty()).then(|| text.into())))
    }

    fn show(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |path| path.display().to_string())
    }
}

/// Whether a rank records what it does, and what becomes of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flight {
    On,
    Keep,
    Off,
}

impl Value for Flight {
    const FORM: &'static str = "on, keep or off";

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "on" | "1" => Ok(Self::On),
            "keep" => Ok(Self::Keep),
            "off" | "0" => Ok(Self::Off),
            _ => Err("write on, keep or off".to_owned()),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::On => "on",
            Self::Keep => "keep",
            Self::Off => "off",
        }
        .to_owned()
    }
}

/// The name of an allreduce algorithm. The names are those of `plan::Algorithm`, a floor above; a test compares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AlgorithmName(pub(crate) &'static str);

impl AlgorithmName {
    pub(crate) const ALL: [&'static str; 7] =
        ["auto", "one-shot", "two-shot", "ring", "tree", "two-level", "ordered-chain"];

    /// Whether the algorithm adds in rank order, or is free to pick one that does.
    pub(crate) fn may_be_ordered(self) -> bool {
        matches!(self.0, "auto" | "one-shot" | "two-shot" | "ordered-chain")
    }
}

impl Value for AlgorithmName {
    const FORM: &'static str = "auto, one-shot, two-shot, ring, tree, two-level or ordered-chain";

    fn parse(text: &str) -> Result<Self, String> {
        let wanted = text.to_ascii_lowercase().replace('_', "-");
        let name = Self::ALL.into_iter().find(|name| *name == wanted);
        name.map(Self).ok_or_else(|| format!("write one of {}", Self::FORM))
    }

    fn show(&self) -> String {
        self.0.to_owned()
    }
}

/// A value, or the word `auto`: kolo decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Auto<T>(pub(crate) Option<T>);

/// A value, or the word `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrOff<T>(pub(crate) Option<T>);

macro_rules! optional {
    ($($wrapper:ident, $word:literal, $t:ty, $form:literal);* $(;)?) => {$(
        impl Value for $wrapper<$t> {
            const FORM: &'static str = $form;

            fn parse(text: &str) -> Result<Self, String> {
                if text.eq_ignore_ascii_case($word) {
                    return Ok(Self(None));
                }
                <$t>::parse(text).map(|value| Self(Some(value))).map_err(|wrong| format!("{wrong}, or {}", $word))
            }

            fn show(&self) -> String {
                self.0.as_ref().map_or_else(|| $word.to_owned(), Value::show)
            }
        }
    )*};
}

optional! {
    Auto, "auto", Duration, "auto, or a duration, as in 50us";
    Auto, "auto", usize, "auto, or a whole number";
    OrOff, "off", Duration, "off, or a duration, as in 60s";
    OrOff, "off", u64, "off, or a whole number";
}

/// The number at the front, and what follows it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    (text[..end].trim(), text[end..].trim())
}

/// `number * scale`, exactly: a fraction must come out as a whole number of the smallest unit.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    if whole.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if fraction.is_empty() {
        return if number.contains('.') { None } else { Some(whole) };
    }
    let parts = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale);
    let unit = 10_u128.pow(fraction.len() as u32);
    if parts % unit != 0 {
        return None;
    }
    whole.checked_add(u64::try_from(parts / unit).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_take_units() {
        let cases =
            [("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("1.5kB", 1500), ("2 gib", 2 << 30), ("1_000", 1000)];
        for (text, bytes) in cases {
            assert_eq!(Bytes::parse(text), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "MiB", "64MB/s", "-1", "1.0001KiB", "99999999999999999999", "99999999999GiB", "1.", "."] {
            assert!(Bytes::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_units() {
        let cases = [("300s", 300_000), ("5ms", 5), ("1.5 s", 1500), ("2min", 120_000), ("1h", 3_600_000), ("0", 0)];
        for (text, millis) in cases {
            assert_eq!(Duration::parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(Duration::parse("300").expect_err("no unit"), "a duration needs a unit; did you mean 300s?");
        assert!(Duration::parse("5m").expect_err("ambiguous").contains("min or ms"));
        assert!(Duration::parse("soon").is_err());
    }

    #[test]
    fn words_of_flags_hosts_and_options() {
        assert_eq!(bool::parse("ON"), Ok(true));
        assert!(bool::parse("2").is_err());
        assert_eq!(Hosts::parse("2, 3"), Ok(Hosts(vec![2, 3])));
        assert_eq!(Hosts::parse(""), Ok(Hosts(vec![])));
        assert!(Hosts::parse("2,0").is_err());
        assert_eq!(Folder::parse(""), Ok(Folder(None)));
        assert_eq!(Folder::parse("/tmp/x").map(|folder| folder.show()), Ok("/tmp/x".to_owned()));
        assert_eq!(Flight::parse("Keep"), Ok(Flight::Keep));
        assert!(Flight::parse("maybe").is_err());
        assert_eq!(OrOff::<Duration>::parse("off"), Ok(OrOff(None)));
        assert_eq!(Auto::<usize>::parse("7"), Ok(Auto(Some(7))));
        assert_eq!(Auto::<usize>::parse("x").expect_err("x"), "write a whole number, zero or more, or auto");
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(bytes in any::<u32>(), nanos in any::<u64>(), hosts in prop::collection::vec(1_usize..99, 0..9)) {
            prop_assert_eq!(Bytes::parse(&Bytes(bytes as usize).show()), Ok(Bytes(bytes as usize)));
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(Duration::parse(&time.show()), Ok(time));
            let hosts = Hosts(hosts);
            prop_assert_eq!(Hosts::parse(&hosts.show()), Ok(hosts));
        }
    }
}
