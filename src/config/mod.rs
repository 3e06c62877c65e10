//! Knobs in two stages: text from the program, the environment and a file; then one validated [`Config`].

mod docs;
#[cfg(all(test, not(kolo_loom)))]
mod fuzz;
mod raw;
mod table;
mod value;

use std::collections::BTreeMap;

use crate::error::{Error, Result};

pub use docs::{knobs, knobs_help};
pub(crate) use raw::Raw;
pub(crate) use table::Config;
pub use table::{Alias, Knob};
use table::{FILE, KNOBS};
#[cfg(test)]
pub(crate) use value::{AlgorithmName, Auto};
pub(crate) use value::{Bytes, Flight, Hosts, OrOff, Value};

/// A validated configuration, and what the user should hear about how it came to be.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) warnings: Vec<String>,
}

impl Config {
    /// The configuration of this process: what the program set, then the environment, then the file.
    pub(crate) fn load(program: Raw) -> Result<Loaded> {
        let variables =
            std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok())));
        Self::load_from(program, variables.collect())
    }

    fn load_from(mut raw: Raw, variables: BTreeMap<String, Option<String>>) -> Result<Loaded> {
        if let Some(path) = variables.get(FILE).cloned().flatten().filter(|path| !path.is_empty()) {
            let content = std::fs::read_to_string(&path)
                .map_err(|e| Error::config(format!("{FILE} names {path}, which cannot be read: {e}")))?;
            raw.file(&path, &content).map_err(Error::config)?;
        }
        raw.environment(variables.into_iter()).map_err(Error::config)?;
        let warnings = raw.take_warnings();
        Self::validate(&raw).map(|config| Loaded { config, warnings })
    }

    fn validate(raw: &Raw) -> Result<Self> {
        let mut config = Self::default();
        for (name, source, text) in raw.settings() {
            config.set(name, text).map_err(|wrong| Error::config(format!("{name} is '{text}' ({source}): {wrong}")))?;
        }
        config.check().map_err(Error::config)?;
        Ok(config)
    }

    /// Bounds, and settings that contradict each other.
    fn check(&self) -> std::result::Result<(), String> {
        let within = |name: &str, bytes: Bytes, least: Bytes, most: Bytes| {
            if bytes < least || bytes > most {
                return Err(format!("{name} is {bytes}; it must lie between {least} and {most}"));
            }
            Ok(())
        };
        if self.deadline.is_zero() {
            return Err("KOLO_DEADLINE is 0; a wait needs time, write for example 300s".to_owned());
        }
        within("KOLO_SLOT_BYTES", self.slot_bytes, Bytes::kib(4), Bytes::mib(64))?;
        if !self.slot_bytes.0.is_multiple_of(4096) {
            return Err(format!("KOLO_SLOT_BYTES is {}; it must be a multiple of 4KiB", self.slot_bytes));
        }
        if !(2..=64).contains(&self.slots) {
            return Err(format!("KOLO_SLOTS is {}; it must lie between 2 and 64", self.slots));
        }
        if self.cache_capacity > 1 << 20 {
            return Err(format!("KOLO_CACHE_CAPACITY is {}; it must not exceed {}", self.cache_capacity, 1 << 20));
        }
        let records = self.flight_records;
        if !records.is_power_of_two() || !(64..=1 << 20).contains(&records) {
            let near = records.clamp(64, 1 << 20).next_power_of_two();
            return Err(format!(
                "KOLO_FLIGHT_RECORDS is {records}; it must be a power of two from 64 to 1048576, as {near}"
            ));
        }
        if self.deterministic && !self.algorithm.may_be_ordered() {
            return Err(format!(
                "KOLO_DETERMINISTIC asks for sums in rank order and KOLO_ALGORITHM for '{}', which does not promise \
                 them; drop one of the two, or choose ordered-chain",
                self.algorithm.0
            ));
        }
        Ok(())
    }

    /// The knobs that every rank must set alike, as text, in the order of the table.
    pub(crate) fn agreement(&self) -> Vec<String> {
        KNOBS.iter().filter(|knob| knob.agree).map(|knob| self.text(knob.name).unwrap_or_default()).collect()
    }

    /// Checks that every rank, in rank order, has the same [`agreement`](Self::agreement).
    ///
    /// # Errors
    /// The first knob that differs, with both values and both ranks.
    pub(crate) fn check_agreement(ranks: &[Vec<String>]) -> Result<()> {
        let agreed: Vec<&Knob> = KNOBS.iter().filter(|knob| knob.agree).collect();
        let Some(first) = ranks.first() else { return Ok(()) };
        for (rank, texts) in ranks.iter().enumerate() {
            if texts.len() != agreed.len() || first.len() != agreed.len() {
                return Err(Error::config(format!(
                    "rank {rank} knows {} knobs and rank 0 knows {}: the ranks run different versions of kolo; start \
                     the same program everywhere",
                    texts.len(),
                    first.len()
                )));
            }
            if let Some(index) = (0..agreed.len()).find(|&index| texts[index] != first[index]) {
                let (name, ours, theirs) = (agreed[index].name, &first[index], &texts[index]);
                return Err(Error::config(format!(
                    "{name} is '{ours}' on rank 0 and '{theirs}' on rank {rank}; set it alike everywhere (with Open \
                     MPI: mpirun -x {name}={ours})"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn load(program: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Loaded> {
        let mut raw = Raw::default();
        for (name, text) in program {
            raw.builder(name, (*text).to_owned()).map_err(Error::config)?;
        }
        let variables = environment.iter().map(|(name, text)| ((*name).to_owned(), Some((*text).to_owned())));
        Config::load_from(raw, variables.collect())
    }

    fn wrong(environment: &[(&str, &str)]) -> String {
        load(&[], environment).expect_err("wrong").to_string()
    }

    #[test]
    fn nothing_set_is_the_default() {
        let loaded = load(&[], &[("PATH", "/bin"), ("KOLO_REQUIRE_GPU", "1")]).expect("defaults");
        assert_eq!(loaded.config, Config::default());
        assert!(loaded.warnings.is_empty());
        Config::default().check().expect("the defaults are valid");
    }

    #[test]
    fn program_beats_environment_beats_alias_beats_file() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("kolo.conf");
        std::fs::write(&path, "# knobs\nslots = 5\nKOLO_FUSION_BYTES = \"1MiB\"\ncache_capacity=7 # few\nspin = 1us")
            .expect("write");
        let path = path.to_str().expect("path");
        let environment = [
            ("KOLO_CONFIG", path),
            ("KOLO_CACHE_CAPACITY", "8"),
            ("HOROVOD_CACHE_CAPACITY", "9"),
            ("HOROVOD_FUSION_THRESHOLD", "2097152"),
            ("KOLO_SPIN", "2us"),
        ];
        let config = load(&[("KOLO_SPIN", "3us")], &environment).expect("valid").config;
        assert_eq!(config.slots, 5);
        assert_eq!(config.fusion_bytes, Bytes::mib(2));
        assert_eq!(config.cache_capacity, 8);
        assert_eq!(config.spin, Auto(Some(Duration::from_micros(3))));
    }

    #[test]
    fn names_of_horovod_count_seconds_and_zero_means_default() {
        let config =
            load(&[], &[("HOROVOD_STALL_CHECK_TIME_SECONDS", "30"), ("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "0")])
                .expect("valid")
                .config;
        assert_eq!(config.stall_warning, OrOff(Some(Duration::from_secs(30))));
        assert_eq!(config.deadline, Config::default().deadline);
    }

    #[test]
    fn mistakes_name_the_knob_the_value_and_the_way_out() {
        let text = wrong(&[("KOLO_DEADLINE", "300")]);
        assert_eq!(
            text,
            "KOLO_DEADLINE is '300' (set in the environment): a duration needs a unit; did you mean 300s?"
        );
        assert!(wrong(&[("KOLO_SLOT_BYTES", "5000")]).contains("multiple of 4KiB"));
        assert!(wrong(&[("KOLO_SLOT_BYTES", "1GiB")]).contains("between 4KiB and 64MiB"));
        assert!(wrong(&[("KOLO_FLIGHT_RECORDS", "1000")]).contains("as 1024"));
        assert!(wrong(&[("KOLO_FLIGHT_RECORDS", "0")]).contains("as 64"));
        assert!(wrong(&[("KOLO_SLOTS", "1")]).contains("between 2 and 64"));
        assert!(wrong(&[("KOLO_DETERMINISTIC", "1"), ("KOLO_ALGORITHM", "ring")]).contains("ordered-chain"));
        assert!(wrong(&[("HOROVOD_CACHE_CAPACITY", "many")]).contains("HOROVOD_CACHE_CAPACITY"));
        assert!(wrong(&[("KOLO_CONFIG", "/nowhere/kolo.conf")]).contains("/nowhere/kolo.conf"));
        assert!(load(&[("KOLO_SLOT", "1")], &[]).expect_err("unknown").to_string().contains("KOLO_SLOTS"));
    }

    #[test]
    fn unknown_names_in_the_environment_only_warn() {
        let loaded = load(&[], &[("KOLO_DEADLIN", "1s")]).expect("a warning");
        assert_eq!(loaded.warnings, ["KOLO_DEADLIN is no knob; did you mean KOLO_DEADLINE?"]);
    }

    #[test]
    fn ranks_that_differ_are_told_who_and_how() {
        let same = Config::default().agreement();
        Config::check_agreement(&[same.clone(), same.clone()]).expect("alike");
        let other = Config { slot_bytes: Bytes::mib(1), ..Config::default() }.agreement();
        let text = Config::check_agreement(&[same.clone(), same.clone(), other]).expect_err("differs").to_string();
        assert!(text.starts_with("KOLO_SLOT_BYTES is '256KiB' on rank 0 and '1MiB' on rank 2;"), "{text}");
        // What is local may differ.
        let local = Config { spin: Auto(Some(Duration::ZERO)), ..Config::default() }.agreement();
        Config::check_agreement(&[same.clone(), local]).expect("a local knob");
        assert!(Config::check_agreement(&[same, vec![]]).expect_err("versions").to_string().contains("versions"));
    }

    #[test]
    fn every_default_is_what_its_text_says() {
        for knob in KNOBS {
            let mut config = Config::default();
            config.set(knob.name, &(knob.default)()).expect(knob.name);
            assert_eq!(config, Config::default(), "{}", knob.name);
        }
    }
}
