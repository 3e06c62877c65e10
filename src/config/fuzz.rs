//! Settings as people, files and other programs write them.

use xtask::fuzz::{Random, fuzz};

use super::*;
use crate::os::counting::frugal;

/// Values that knobs take, to be damaged.
fn value(random: &mut Random) -> String {
    let number = random.number().to_string();
    match random.below(8) {
        0 => number,
        1 => format!("{number}{}", random.of(&["MiB", "kB", "GiB", "b", "s", "ms", "us", "min", "h", "µs", "m"])),
        2 => format!("{number}.{}{}", random.number(), random.of(&["MiB", "s"])),
        3 => (*random.of(&["auto", "off", "on", "keep", "true", "0", "1", ""])).to_owned(),
        4 => (*random.of(&AlgorithmName::ALL)).to_owned(),
        5 => (0..1 + random.below(4)).map(|_| random.below(5).to_string()).collect::<Vec<_>>().join(","),
        6 => "9".repeat(random.below(40)),
        _ => random.text(9),
    }
}

#[test]
fn fuzz_values() {
    let valid = |random: &mut Random| value(random).into_bytes();
    fuzz("values", &[], valid, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        // Any text is a directory.
        let mut taken = 0;
        for knob in KNOBS {
            let mut config = Config::default();
            match frugal(bytes, || config.set(knob.name, &text)) {
                Err(wrong) => assert!(!wrong.is_empty(), "{}", knob.name),
                Ok(()) => {
                    taken += 1;
                    let shown = config.text(knob.name).expect("a knob has a text");
                    let mut again = Config::default();
                    again.set(knob.name, &shown).expect("what is shown can be set");
                    assert_eq!(again, config, "{} = {text:?}", knob.name);
                    // Whether it makes sense is another question, which has an answer.
                    if let Err(wrong) = config.check() {
                        assert!(wrong.contains("KOLO_"), "{wrong}");
                    }
                }
            }
        }
        taken > 1
    });
}

#[test]
fn fuzz_files_and_environments() {
    let valid = |random: &mut Random| {
        let mut text = String::new();
        for _ in 0..random.below(6) {
            let name = random.of(KNOBS).name;
            let value = value(random);
            text += &match random.below(4) {
                0 => format!("{} = {value}\n", name.trim_start_matches("KOLO_").to_lowercase()),
                1 => format!("{name}=\"{value}\" # as it was\n"),
                2 => format!("# {name}\n\n"),
                _ => format!("{}={value}\n", random.of(&["HOROVOD_FUSION_THRESHOLD", "KOLO_SLOTZ", "PATH", "KOLO_"])),
            };
        }
        text.into_bytes()
    };
    fuzz("files and environments", &[], valid, |bytes| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut file = Raw::default();
        if let Err(wrong) = file.file("kolo.conf", &text) {
            assert!(wrong.starts_with("kolo.conf, line "), "{wrong}");
        }
        let variables = text.lines().filter_map(|line| line.split_once('='));
        let variables = variables.map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
        // A file that it names is read: none must be named here.
        let variables = variables.filter(|(name, _)| name != FILE).collect();
        let loaded = Config::load_from(file, variables);
        loaded.inspect_err(|wrong| assert!(!wrong.to_string().is_empty())).is_ok()
    });
}
