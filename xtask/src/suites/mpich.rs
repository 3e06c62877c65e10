//! The tests under mpirun, built against MPICH and run by it, without touching the installed MPI: Debian's packages are
//! unpacked into the target directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::harness;

use super::{Context, cargo};
use crate::workspace::target;

/// The library, its headers and launcher, and what they need that Open MPI does not bring along.
const PACKAGES: &[&str] = &["mpich", "libmpich-dev", "libmpich12"];

pub(crate) fn run(context: &Context) -> Result<()> {
    let mpich = Mpich::ensure(context)?;
    cargo::mpi_with(context, |command| {
        command
            .args(["--test", cargo::STALLS])
            .env("MPICC", mpich.compiler())
            .env_remove("MPI_PKG_CONFIG")
            .env("LD_LIBRARY_PATH", mpich.libraries())
            .env("CARGO_TARGET_DIR", target().join("mpich/build"))
            .env(harness::MPIRUN, mpich.launcher());
    })
}

struct Mpich {
    root: PathBuf,
}

impl Mpich {
    fn ensure(context: &Context) -> Result<Self> {
        let mpich = Self { root: target().join("mpich") };
        if !mpich.compiler().exists() {
            mpich.install(context)?;
        }
        Ok(mpich)
    }

    fn install(&self, context: &Context) -> Result<()> {
        let packages = self.root.join("packages");
        fs::create_dir_all(&packages).with_context(|| format!("cannot create {}", packages.display()))?;
        crate::setup::apt_get(&["update"])?;
        let wanted = wanted_packages()?;
        context.run(
            Command::new("apt-get")
                .args(["-o", "APT::Sandbox::User=root", "download"])
                .args(&wanted)
                .current_dir(&packages),
        )?;
        for entry in fs::read_dir(&packages)? {
            let package = entry?.path();
            context.run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(self.files()))?;
        }
        self.write_compiler()
    }

    fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    fn libraries(&self) -> PathBuf {
        self.files().join("usr/lib").join(multiarch())
    }

    fn launcher(&self) -> PathBuf {
        self.files().join("usr/bin/mpiexec.hydra")
    }

    fn compiler(&self) -> PathBuf {
        self.root.join("bin/mpicc")
    }

    /// Debian's own wrapper names paths below /usr. This one answers `-show`, and compiles, with ours.
    fn write_compiler(&self) -> Result<()> {
        let headers = self.files().join("usr/include");
        let candidates = [headers.join(multiarch()).join("mpich"), headers.join("mpich")];
        let include = first_existing(&candidates)?;
        let libraries = self.libraries();
        let flags = format!("-I{} -L{} -lmpich", include.display(), libraries.display());
        let script = format!("#!/bin/sh\n[ \"$1\" = -show ] && echo \"cc {flags}\" && exit\nexec cc \"$@\" {flags}\n");
        let path = self.compiler();
        fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
}

fn multiarch() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

fn first_existing(paths: &[PathBuf]) -> Result<&Path> {
    match paths.iter().find(|path| path.exists()) {
        Some(path) => Ok(path),
        None => bail!("MPICH's packages hold none of {paths:?}"),
    }
}

/// MPICH and those of its dependencies that are not installed.
fn wanted_packages() -> Result<Vec<String>> {
    let mut simulate = Command::new("apt-get");
    simulate.args(["install", "--simulate", "--no-install-recommends"]).args(PACKAGES);
    let output = simulate.output().context("cannot start apt-get: this suite needs Debian's or Ubuntu's packages")?;
    ensure!(output.status.success(), "apt-get install --simulate: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let names: Vec<_> =
        text.lines().filter_map(|line| Some(line.strip_prefix("Inst ")?.split(' ').next()?.to_owned())).collect();
    // Installed already: then nothing would be unpacked, but the private copy is what we test.
    Ok(if names.is_empty() { PACKAGES.iter().map(|&name| name.to_owned()).collect() } else { names })
}
