//! What users read about knobs, from the table.

use std::fmt::Write as _;

use super::table::{KNOBS, Knob};

/// Every knob, for programs that show them.
///
/// ```
/// for knob in kolo::knobs() {
///     println!("{} (default {}): {}", knob.name, (knob.default)(), knob.doc.trim());
/// }
/// ```
#[must_use]
pub fn knobs() -> &'static [Knob] {
    KNOBS
}

/// The knobs as the tail of a `--help` text.
///
/// ```
/// assert!(kolo::knobs_help().contains("KOLO_DEADLINE"));
/// ```
#[must_use]
pub fn knobs_help() -> String {
    let mut text = String::from("Environment:\n");
    for knob in KNOBS {
        let default = (knob.default)();
        let default = if default.is_empty() { "empty".to_owned() } else { default };
        let _ = writeln!(text, "  {} [default: {default}] ({})", knob.name, knob.form);
        for line in wrapped(knob.doc, 100) {
            let _ = writeln!(text, "      {line}");
        }
    }
    text
}

/// The words of a doc comment, in lines of at most `width` letters.
fn wrapped(doc: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in doc.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page `docs/knobs.md`.
    fn page() -> String {
        let mut text = String::from(HEAD);
        for knob in KNOBS {
            let default = (knob.default)();
            let default = if default.is_empty() { "empty".to_owned() } else { format!("`{default}`") };
            let agree = if knob.agree { "every rank the same" } else { "each rank its own" };
            let _ = write!(text, "\n## {}\n", knob.name);
            for line in wrapped(knob.doc, 116) {
                let _ = writeln!(text, "{line}");
            }
            let _ = writeln!(text, "- Value: {}. Default: {default}. Scope: {agree}.", knob.form);
            for alias in knob.aliases {
                let unit =
                    if alias.unit.is_empty() { String::new() } else { format!(", a bare number in {}", alias.unit) };
                let ignored = alias.ignored.map_or_else(String::new, |v| format!("; {v} leaves the default"));
                let _ = writeln!(text, "- Also read: `{}`{unit}{ignored}.", alias.name);
            }
        }
        text
    }

    const HEAD: &str = "\
# Knobs

Written by the table in `src/config/table.rs`; a test fails when this page is stale, and
`KOLO_BLESS=1 cargo test --lib knobs_page` writes it anew.

A knob is set, strongest first, by the program (`kolo::Builder`), by the environment, or in the file that `KOLO_CONFIG`
names: lines `name = value`, where `KOLO_` may be left out and `#` starts a comment. An unknown `KOLO_*` name in the
environment is a warning with the nearest name that exists. Knobs that shape what the ranks do together must be the same
on every rank; if one differs, `init` fails everywhere with its name, both values and both ranks.
";

    #[test]
    fn knobs_page_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/knobs.md");
        if std::env::var_os("KOLO_BLESS").is_some() {
            std::fs::write(path, page()).expect("write docs/knobs.md");
        }
        let written = std::fs::read_to_string(path).expect("docs/knobs.md");
        assert!(written == page(), "docs/knobs.md is stale; run: KOLO_BLESS=1 cargo test --lib knobs_page");
    }

    #[test]
    fn help_names_every_knob_once_at_the_start_of_a_line() {
        let help = knobs_help();
        for knob in KNOBS {
            assert_eq!(help.lines().filter(|line| line.starts_with(&format!("  {} ", knob.name))).count(), 1);
            assert!(!knob.doc.trim().is_empty() && knob.name.starts_with("KOLO_"));
        }
    }
}
