//! The sources of the kernels, and the hash by which PTX names those that it was made from.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::{nvrtc, wheels};
use crate::workspace::root;

/// Everything that is compiled: name and text of each file, sorted.
#[derive(Debug)]
pub(crate) struct Sources {
    /// `kernels/*.cu`, by their names without the ending.
    pub(crate) units: Vec<(String, String)>,
    /// `emulator/tests/kernels/*.cu`, likewise.
    pub(crate) test_units: Vec<(String, String)>,
    /// `kernels/include/*.cuh`, by the names under which they are included.
    pub(crate) headers: Vec<(String, String)>,
}

impl Sources {
    /// Reads what stands in the repository.
    pub(crate) fn read() -> Result<Self> {
        let strip = |(name, text): (String, String)| (name.trim_end_matches(".cu").to_owned(), text);
        let units = |folder: &str| -> Result<Vec<_>> {
            Ok(files(&root().join(folder), "cu")?.into_iter().map(strip).collect())
        };
        let (units, test_units) = (units("kernels")?, units("emulator/tests/kernels")?);
        ensure!(!units.is_empty(), "there is no kernels/*.cu");
        Ok(Self { units, test_units, headers: files(&root().join("kernels/include"), "cuh")? })
    }

    /// What a unit's PTX depends on, as 64 hexadecimal digits: its text, all headers, the compiler and how it is called.
    pub(crate) fn hash(&self, name: &str, text: &str) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        wheels::NVRTC.requirements.iter().chain(nvrtc::OPTIONS).for_each(|word| add(word));
        add(name);
        add(text);
        for (name, text) in &self.headers {
            add(name);
            add(text);
        }
        hash.finalize().iter().fold(String::new(), |mut digits, byte| {
            write!(digits, "{byte:02x}").expect("a string takes everything");
            digits
        })
    }
}

/// Name and text of the files with an ending, sorted by name.
fn files(directory: &Path, ending: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == ending) {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().context("a file without a name")?.to_string_lossy().into_owned();
            found.push((name, text));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_of_everything_and_of_nothing_else() {
        let text = |text: &str| text.to_owned();
        let headers = vec![(text("a.cuh"), text("a")), (text("b.cuh"), text("b"))];
        let units = vec![(text("x"), text("x"))];
        let sources = Sources { units, test_units: Vec::new(), headers: headers.clone() };
        let hash = sources.hash("x", "x");
        assert_eq!(hash.len(), 64);
        assert_eq!(hash, sources.hash("x", "x"));
        assert_ne!(hash, sources.hash("y", "x"));
        assert_ne!(hash, sources.hash("x", "x "));
        // A line that moves from one header to another.
        let moved = vec![(text("a.cuh"), text("")), (text("b.cuh"), text("ab"))];
        assert_ne!(hash, Sources { headers: moved, ..sources }.hash("x", "x"));
    }
}
