//! What a rank has to say of its cases. Ranks that are processes leave it in a file.

use std::fs;
use std::io;
use std::path::Path;

/// A case that ran on this rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// Every dimension of it, the place included.
    pub(crate) key: String,
    /// How many ranks of the job must run it.
    pub(crate) ranks: usize,
    pub(crate) bits: Vec<Bits>,
}

/// Bits of a result that must be found elsewhere as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bits {
    /// Tells different bits apart.
    pub(crate) digest: u64,
    /// What it is that has these bits wherever it is computed.
    pub(crate) of: String,
    /// Whether only the ranks of this job must have them: another job, or another run, may have others.
    pub(crate) here_only: bool,
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) key: String,
    pub(crate) rank: usize,
    pub(crate) why: String,
}

/// What a rank did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) ran: Vec<Ran>,
    pub(crate) failed: Vec<Failed>,
}

impl Report {
    /// Begins a case: what is checked from now on belongs to it.
    pub(crate) fn begin(&mut self, key: String, ranks: usize) {
        self.ran.push(Ran { key, ranks, bits: Vec::new() });
    }

    /// The key of the case that began last.
    pub(crate) fn key(&self) -> &str {
        self.ran.last().map_or("before the first case", |ran| &ran.key)
    }

    /// How many results of that case have had their bits noted.
    pub(crate) fn results(&self) -> usize {
        self.ran.last().map_or(0, |ran| ran.bits.len())
    }

    /// Notes what came of a check of that case.
    pub(crate) fn check(&mut self, rank: usize, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            self.failed.push(Failed { key: self.key().to_owned(), rank, why });
        }
    }

    /// Notes bits of its result.
    pub(crate) fn bits(&mut self, bits: Bits) {
        self.ran.last_mut().expect("a case has begun").bits.push(bits);
    }

    /// Leaves it in a file, a case, a result or a failure a line.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = String::new();
        for Ran { key, ranks, bits } in &self.ran {
            text += &format!("ran\t{key}\t{ranks}\n");
            for Bits { digest, of, here_only } in bits {
                text += &format!("bits\t{digest}\t{here_only}\t{of}\n");
            }
        }
        for Failed { key, rank, why } in &self.failed {
            text += &format!("failed\t{key}\t{rank}\t{}\n", why.replace(['\n', '\t'], " "));
        }
        fs::write(path, text)
    }

    /// Reads what [`write`](Self::write) left.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut report = Self::default();
        for line in fs::read_to_string(path)?.lines() {
            let read = report.read_line(&line.split('\t').collect::<Vec<_>>());
            let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("{}: {line:?}", path.display()));
            read.ok_or_else(wrong)?;
        }
        Ok(report)
    }

    fn read_line(&mut self, words: &[&str]) -> Option<()> {
        match *words {
            ["ran", key, ranks] => self.begin(key.to_owned(), ranks.parse().ok()?),
            ["bits", digest, here_only, of] => {
                let bits = Bits { digest: digest.parse().ok()?, of: of.to_owned(), here_only: here_only.parse().ok()? };
                self.ran.last_mut()?.bits.push(bits);
            }
            ["failed", key, rank, why] => {
                self.failed.push(Failed { key: key.to_owned(), rank: rank.parse().ok()?, why: why.to_owned() });
            }
            _ => return None,
        }
        Some(())
    }
}
