//! What was written where: the stage before validation.

use std::collections::BTreeMap;
use std::fmt;

use super::table::{Alias, FILE, KNOBS, Knob, is_other_name};

/// Where a setting was found. The order is the priority, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// Line of the file that `KOLO_CONFIG` names.
    File { path: String, line: usize },
    /// An environment variable of another program with the same meaning.
    Alias(&'static str),
    /// An environment variable.
    Environment,
    /// The program itself.
    Builder,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{path}, line {line}"),
            Self::Alias(name) => write!(f, "set as {name} in the environment"),
            Self::Environment => f.write_str("set in the environment"),
            Self::Builder => f.write_str("set by the program"),
        }
    }
}

/// Settings as text, the strongest of each knob, and what was odd about the rest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raw {
    settings: BTreeMap<&'static str, (Source, String)>,
    warnings: Vec<String>,
}

impl Raw {
    /// Adds a setting that the program made.
    pub(crate) fn builder(&mut self, name: &str, text: String) -> Result<(), String> {
        let knob = find(name).ok_or_else(|| unknown(name))?;
        self.put(knob, Source::Builder, text);
        Ok(())
    }

    /// Adds the variables of an environment, each with its value if that is Unicode.
    pub(crate) fn environment(
        &mut self,
        variables: impl Iterator<Item = (String, Option<String>)>,
    ) -> Result<(), String> {
        for (name, text) in variables {
            if let Some((knob, alias)) = find_alias(&name) {
                let text = text.ok_or_else(|| format!("{name} is not Unicode"))?;
                self.alias(knob, alias, text.trim());
            } else if name.starts_with("KOLO_") && !is_other_name(&name) {
                match find(&name) {
                    Some(knob) => {
                        let text = text.ok_or_else(|| format!("{name} is not Unicode"))?;
                        self.put(knob, Source::Environment, text.trim().to_owned());
                    }
                    None => self.warnings.push(unknown(&name)),
                }
            }
        }
        Ok(())
    }

    fn alias(&mut self, knob: &'static Knob, alias: &'static Alias, text: &str) {
        if alias.ignored == Some(text) || text.is_empty() {
            return;
        }
        let bare = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let unit = if bare { alias.unit } else { "" };
        self.put(knob, Source::Alias(alias.name), format!("{text}{unit}"));
    }

    /// Adds the lines of a file: `name = value`, with or without `KOLO_`, in any case; `#` starts a comment.
    pub(crate) fn file(&mut self, path: &str, content: &str) -> Result<(), String> {
        for (index, line) in content.lines().enumerate() {
            let line_number = index + 1;
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (name, text) = line
                .split_once('=')
                .ok_or_else(|| format!("{path}, line {line_number}: '{line}' is not of the form name = value"))?;
            let name = name.trim().to_ascii_uppercase();
            let name = if name.starts_with("KOLO_") { name } else { format!("KOLO_{name}") };
            let knob = find(&name).ok_or_else(|| format!("{path}, line {line_number}: {}", unknown(&name)))?;
            let source = Source::File { path: path.to_owned(), line: line_number };
            self.put(knob, source, text.trim().trim_matches('"').to_owned());
        }
        Ok(())
    }

    /// A later setting from the same place replaces an earlier one.
    fn put(&mut self, knob: &'static Knob, source: Source, text: String) {
        let strongest = self.settings.get(knob.name).is_none_or(|(held, _)| source >= *held);
        if strongest {
            self.settings.insert(knob.name, (source, text));
        }
    }

    pub(super) fn settings(&self) -> impl Iterator<Item = (&'static str, &Source, &str)> {
        self.settings.iter().map(|(name, (source, text))| (*name, source, text.as_str()))
    }

    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

fn find(name: &str) -> Option<&'static Knob> {
    KNOBS.iter().find(|knob| knob.name == name)
}

fn find_alias(name: &str) -> Option<(&'static Knob, &'static Alias)> {
    KNOBS.iter().find_map(|knob| Some((knob, knob.aliases.iter().find(|alias| alias.name == name)?)))
}

/// What to say about a name that is none, with the nearest that is one.
fn unknown(name: &str) -> String {
    let names = KNOBS.iter().map(|knob| knob.name).chain([FILE]);
    let nearest = names.map(|known| (distance(name, known), known)).min();
    match nearest {
        Some((steps, known)) if steps <= name.len() / 3 => format!("{name} is no knob; did you mean {known}?"),
        _ => format!("{name} is no knob; docs/knobs.md lists them"),
    }
}

/// The number of letters to insert, remove or replace to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn unknown_names_point_to_the_nearest() {
        assert_eq!(unknown("KOLO_SLOT_BYTE"), "KOLO_SLOT_BYTE is no knob; did you mean KOLO_SLOT_BYTES?");
        assert_eq!(unknown("KOLO_FUSION_BYTE"), "KOLO_FUSION_BYTE is no knob; did you mean KOLO_FUSION_BYTES?");
        assert!(unknown("KOLO_ENTIRELY_DIFFERENT").contains("docs/knobs.md"));
    }
}
