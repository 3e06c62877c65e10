//! `cargo xtask ptx`: the committed PTX, made from `kernels/*.cu`.
//!
//! Whoever runs kolo has the driver alone, and it may be an old one. So the PTX is of the oldest architecture that the
//! kernels need, and of a version that drivers from CUDA 12.1 on load: what NVRTC 12.1 writes. No toolkit is installed;
//! the library comes out of a Python wheel, into the target directory.

mod nvrtc;
#[cfg(test)]
mod plain;
mod sources;
pub(crate) mod wheels;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup;
use crate::workspace::root;
use nvrtc::Nvrtc;
pub(crate) use sources::Sources;

/// What the PTX must say of itself: drivers of CUDA 12.1 and later load it, for Volta and later.
const VERSION: &str = ".version 8.1";
const TARGET: &str = ".target sm_70";

/// How long a download may take when the task is called by hand.
const DOWNLOAD: Duration = Duration::from_secs(600);

pub(crate) fn task(words: &[String]) -> Result<ExitCode> {
    match words {
        [] => write()?,
        [option] if option == "--check" => check_by_hand()?,
        other => bail!("unknown options {other:?}; `cargo xtask help` shows them"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the PTX of a unit stands.
fn prebuilt(name: &str) -> PathBuf {
    root().join("kernels/prebuilt").join(name).with_extension("ptx")
}

/// Where the PTX of a unit of the emulator's tests stands.
fn beside_tests(name: &str) -> PathBuf {
    root().join("emulator/tests/kernels").join(name).with_extension("ptx")
}

/// PTX, and where it stands.
struct Compiled {
    path: PathBuf,
    ptx: String,
}

/// A path as one would type it in the root of the repository.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn write() -> Result<()> {
    setup::ensure_pip()?;
    let sources = Sources::read()?;
    let compiled = compile(&sources, DOWNLOAD)?;
    for stale in leftovers(&sources)? {
        fs::remove_file(&stale).with_context(|| format!("cannot remove {}", stale.display()))?;
    }
    for Compiled { path, ptx } in &compiled {
        fs::create_dir_all(path.parent().unwrap_or(root()))?;
        fs::write(path, ptx).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}: {} kernels, {} bytes", shown(path), entries(ptx).len(), ptx.len());
    }
    check_committed(&sources).map(drop)
}

fn check_by_hand() -> Result<()> {
    let sources = Sources::read()?;
    let kernels = check_committed(&sources)?;
    println!("{kernels} kernels, their sources and their PTX agree");
    // Without the network the sources' hash has to do: it says the same as long as nobody edits PTX by hand.
    match setup::ensure_pip().and_then(|()| wheels::NVRTC.ensure(DOWNLOAD)) {
        Ok(_) => check_recompiled(&sources, DOWNLOAD),
        Err(why) => {
            println!("not compiled again: {why:#}");
            Ok(())
        }
    }
}

/// Compares the committed PTX with what its sources become now. Returns the number of kernels.
pub(crate) fn check(limit: Duration) -> Result<u64> {
    setup::ensure_pip()?;
    let sources = Sources::read()?;
    let kernels = check_committed(&sources)?;
    check_recompiled(&sources, limit)?;
    Ok(kernels)
}

/// What can be said without a compiler: of every unit there is PTX, of those sources, in the right version.
fn check_committed(sources: &Sources) -> Result<u64> {
    let stale = leftovers(sources)?;
    ensure!(stale.is_empty(), "PTX without a source: {stale:?}; run `cargo xtask ptx`");
    let mut kernels = 0;
    let units = sources.units.iter().map(|unit| (prebuilt(&unit.0), unit));
    for (path, (name, source)) in units.chain(sources.test_units.iter().map(|unit| (beside_tests(&unit.0), unit))) {
        let ptx = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: run `cargo xtask ptx`", path.display()))?;
        check_ptx(&ptx, &sources.hash(name, source)).with_context(|| shown(&path))?;
        kernels += entries(&ptx).len() as u64;
    }
    ensure!(kernels > 0, "there is no kernel in kernels/");
    Ok(kernels)
}

fn check_ptx(ptx: &str, hash: &str) -> Result<()> {
    ensure!(ptx.contains(hash), "made from other sources than those in kernels/: run `cargo xtask ptx`");
    for directive in [VERSION, TARGET] {
        let word = directive.split(' ').next().unwrap_or_default();
        let found: Vec<&str> = ptx.lines().filter(|line| line.starts_with(word)).collect();
        ensure!(found == [directive], "{found:?} where {directive:?} belongs: old drivers refuse anything newer");
    }
    // NVRTC names what begins with `extern "C"` as it stands.
    let odd: Vec<&str> = entries(ptx).into_iter().filter(|name| !name.starts_with("kolo_")).collect();
    ensure!(odd.is_empty(), "kernels whose names do not begin with kolo_: {odd:?}");
    ensure!(!ptx.contains(".local"), "local memory: an array is indexed by what is known at run time only");
    Ok(())
}

fn check_recompiled(sources: &Sources, limit: Duration) -> Result<()> {
    for Compiled { path, ptx } in compile(sources, limit)? {
        let committed = fs::read_to_string(&path)?;
        ensure!(committed == ptx, "{} is not what its source compiles to: run `cargo xtask ptx`", shown(&path));
        println!("{} is what its source compiles to", shown(&path));
    }
    Ok(())
}

/// The PTX of every unit, as it is committed.
fn compile(sources: &Sources, limit: Duration) -> Result<Vec<Compiled>> {
    let files = wheels::NVRTC.ensure(limit)?;
    let nvrtc = Nvrtc::load(&files.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))?;
    let one = |folder: &str, path: PathBuf, (name, source): &(String, String)| {
        let ptx = nvrtc.compile(&format!("{name}.cu"), source, &sources.headers)?;
        let hash = sources.hash(name, source);
        let head = format!("// Made by `cargo xtask ptx` from {folder}/{name}.cu: do not edit.\n// Sources: {hash}\n");
        Ok(Compiled { path, ptx: head + &ptx })
    };
    let units = sources.units.iter().map(|unit| one("kernels", prebuilt(&unit.0), unit));
    let tests = sources.test_units.iter().map(|unit| one("emulator/tests/kernels", beside_tests(&unit.0), unit));
    units.chain(tests).collect()
}

/// PTX that no unit stands for.
fn leftovers(sources: &Sources) -> Result<Vec<PathBuf>> {
    let directory = root().join("kernels/prebuilt");
    let mut found = Vec::new();
    if directory.exists() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let known = |(name, _): &(String, String)| prebuilt(name) == path;
            if !sources.units.iter().any(known) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The names of the kernels in PTX.
fn entries(ptx: &str) -> Vec<&str> {
    ptx.lines()
        .filter_map(|line| line.strip_prefix(".visible .entry "))
        .map(|line| line.trim_end_matches('('))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "// Sources: abc\n.version 8.1\n.target sm_70\n.address_size 64\n.visible .entry kolo_x(\n{\n";

    #[test]
    fn the_committed_ptx_is_that_of_the_sources() {
        check_committed(&Sources::read().unwrap()).unwrap();
    }

    #[test]
    fn stale_new_and_misnamed_ptx_is_found() {
        check_ptx(GOOD, "abc").unwrap();
        assert_eq!(entries(GOOD), ["kolo_x"]);
        let why = |text: String, hash: &str| check_ptx(&text, hash).unwrap_err().to_string();
        assert!(why(GOOD.into(), "abd").contains("cargo xtask ptx"));
        assert!(why(GOOD.replace("8.1", "8.7"), "abc").contains("version 8.7"));
        assert!(why(GOOD.replace("sm_70", "sm_75"), "abc").contains("old drivers"));
        assert!(why(GOOD.replace("kolo_x", "_Z1xv"), "abc").contains("_Z1xv"));
        assert!(why(GOOD.to_owned() + ".local .align 8 .b8 __local_depot0[64];", "abc").contains("local memory"));
    }
}
