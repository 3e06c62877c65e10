//! The emulator: its own tests and lints, since it is not built with the other packages, and the folder in which programs
//! find it.

use std::fs;

use anyhow::{Result, ensure};

use super::Context;
use crate::emulator;
use crate::workspace::cargo;

pub(crate) fn run(context: &Context) -> Result<()> {
    let package = ["--quiet", "--package", emulator::PACKAGE];
    context.run(cargo(&["test", "--no-fail-fast"]).args(package))?;
    context.need_tests()?;
    context.run(cargo(&["clippy", "--all-targets"]).args(package).args(["--", "--deny", "warnings"]))?;
    context.run(
        cargo(&["doc", "--no-deps", "--document-private-items"]).args(package).env("RUSTDOCFLAGS", "--deny warnings"),
    )?;
    let folder = emulator::install()?;
    let names = ["libcuda.so", "libkolo_kernels.so"];
    let missing: Vec<_> = names.iter().filter(|name| fs::metadata(folder.join(name)).is_err()).collect();
    ensure!(missing.is_empty(), "{} lacks {missing:?}", folder.display());
    context.count(3);
    Ok(())
}
