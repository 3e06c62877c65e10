//! The suites, in the order they run: what fails fast comes first.

use anyhow::Result;

use super::{Context, cargo, emulator, examples, floors, hosts, mpich, package, ptx, readme, unsafety, words};

/// A named part of the tests.
pub(crate) struct Suite {
    /// Its name, for `--only`.
    pub(crate) name: &'static str,
    /// Its budget, in seconds on 2 cores, counting what it compiles in a fresh clone. With `--full`, a default suite has half
    /// as long again: CI's machine may be busy, and nothing is compiled yet.
    pub(crate) seconds: u64,
    /// Whether it runs only with `--full`, or by name.
    pub(crate) long: bool,
    /// What it checks, in a few words.
    pub(crate) what: &'static str,
    /// What it counts.
    pub(crate) counts: &'static str,
    /// Does it.
    pub(crate) run: fn(&Context) -> Result<()>,
}

impl Suite {
    /// Its budget in seconds in a full run, or in a default one.
    pub(crate) const fn budget(&self, full: bool) -> u64 {
        if full && !self.long { self.seconds + self.seconds / 2 } else { self.seconds }
    }
}

const fn suite(
    name: &'static str,
    seconds: u64,
    counts: &'static str,
    what: &'static str,
    run: fn(&Context) -> Result<()>,
) -> Suite {
    Suite { name, seconds, long: false, what, counts, run }
}

const fn long(
    name: &'static str,
    seconds: u64,
    counts: &'static str,
    what: &'static str,
    run: fn(&Context) -> Result<()>,
) -> Suite {
    Suite { long: true, ..suite(name, seconds, counts, what, run) }
}

/// The budgets of the default suites add up to at most 15 minutes, those of a full run to at most 75.
pub(crate) const SUITES: &[Suite] = &[
    suite("fmt", 8, "checks", "formatted by rustfmt", cargo::fmt),
    suite("words", 3, "files", "nothing unfinished, nothing that holds on one machine only", words::run),
    suite("floors", 4, "files", "modules import only from floors below their own", floors::run),
    suite("unsafe", 7, "sites", "unsafe code only where it may stand, each site with its reason", unsafety::run),
    suite("clippy", 130, "feature sets", "no warning from clippy, with each set of features", cargo::clippy),
    suite("docs", 16, "checks", "no warning from rustdoc", cargo::docs),
    suite("build", 354, "builds", "compiles what the next suites run", cargo::build),
    suite("unit", 50, "tests", "unit, property and seeded multi-rank tests", cargo::unit),
    suite("doctests", 10, "tests", "code in the documentation and in README.md", cargo::doctests),
    suite("mpi", 240, "tests", "tests in 1 to 4 ranks under a real mpirun", cargo::mpi),
    suite("examples", 70, "examples", "every example on 2 ranks", examples::run),
    suite("readme", 8, "blocks", "the shell commands of README.md", readme::run),
    long("package", 100, "checks", "the package holds what it needs and builds by itself", package::run),
    long("emulator", 130, "tests", "the CUDA driver on host memory, and every kernel on it", emulator::run),
    long("downstream", 140, "checks", "a crate that uses kolo as a stranger would, on 2 ranks", examples::downstream),
    long("ptx", 140, "kernels", "the committed PTX, and what ptxas says of the kernels on newer GPUs", ptx::run),
    long("loom", 240, "tests", "the shared-memory protocol under every interleaving", cargo::loom),
    long("seeds", 220, "tests", "10,000 seeds of delays and interleavings", cargo::seeds),
    long("hosts", 350, "tests", "jobs across hosts made out of namespaces, cut and slow links", hosts::run),
    long("faults", 300, "tests", "killed and stopped ranks, rounds of faults, a small /dev/shm", cargo::faults),
    long("conformance", 420, "cases", "every collective in every form, against references", cargo::conformance),
    long("fuzz", 100, "cases", "damaged and random bytes, from new seeds, for a minute", cargo::fuzz),
    long("asan", 300, "tests", "the in-process tests under AddressSanitizer", cargo::asan),
    long("soak", 140, "checks", "what 4 ranks hold stays flat over many rounds", cargo::soak),
    long("mpich", 500, "tests", "the mpi suite, built against MPICH", mpich::run),
    long("msrv", 60, "checks", "compiles with the oldest supported Rust", cargo::msrv),
];
