//! NVIDIA's compilers out of Python wheels: fetched by pip, unpacked into the target directory, installed nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use xtask::process::{self, Echo};

use crate::workspace::{target, typed};

/// Some wheels that belong together.
#[derive(Debug)]
pub(crate) struct Wheels {
    /// The directory below `target/wheels/` in which they lie unpacked.
    directory: &'static str,
    /// Name and exact version of each.
    pub(crate) requirements: &'static [&'static str],
}

/// The run-time compiler of CUDA 12.1: of those that write PTX 8.1, the last.
pub(crate) const NVRTC: Wheels = Wheels { directory: "nvrtc", requirements: &["nvidia-cuda-nvrtc-cu12==12.1.105"] };

/// The compiler driver of CUDA 13.0 and its parts.
pub(crate) const NVCC: Wheels = Wheels {
    directory: "nvcc",
    requirements: &[
        "nvidia-cuda-nvcc==13.0.88",
        "nvidia-nvvm==13.0.88",
        "nvidia-cuda-crt==13.0.88",
        "nvidia-cuda-runtime==13.0.96",
        "nvidia-cuda-cccl==13.0.85",
    ],
};

impl Wheels {
    /// The directory with the unpacked files; fetches them within `limit` if they are not there.
    ///
    /// # Errors
    /// When the download fails, with what pip said.
    pub(crate) fn ensure(&self, limit: Duration) -> Result<PathBuf> {
        let base = target().join("wheels").join(self.directory);
        // Under the versions, so that others are fetched when these change.
        let files = base.join(self.versions());
        if files.exists() {
            return Ok(files);
        }
        // What was interrupted begins again.
        let begun = base.join("begun");
        if begun.exists() {
            fs::remove_dir_all(&begun).with_context(|| format!("cannot remove {}", begun.display()))?;
        }
        let packages = begun.join("packages");
        fs::create_dir_all(&packages).with_context(|| format!("cannot create {}", packages.display()))?;
        let mut download = python();
        download.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]);
        download.args(["--only-binary", ":all:", "--dest"]).arg(&packages).args(self.requirements);
        run(&mut download, limit).context("cannot fetch NVIDIA's compiler")?;
        let unpacked = begun.join("files");
        for entry in fs::read_dir(&packages)? {
            // A wheel is a zip archive, and whoever has pip has Python's reader of them.
            run(python().args(["-m", "zipfile", "--extract"]).arg(entry?.path()).arg(&unpacked), limit)?;
        }
        make_executable(&unpacked)?;
        fs::rename(&unpacked, &files).with_context(|| format!("cannot create {}", files.display()))?;
        fs::remove_dir_all(&begun)?;
        Ok(files)
    }

    fn versions(&self) -> String {
        let versions: Vec<&str> =
            self.requirements.iter().filter_map(|requirement| Some(requirement.split_once("==")?.1)).collect();
        versions.join("-")
    }
}

/// The Python that has pip.
pub(crate) fn python() -> Command {
    Command::new("python3")
}

fn run(command: &mut Command, limit: Duration) -> Result<()> {
    let typed = typed(command);
    println!("$ {typed}");
    let finished = process::run(command, limit, Echo::Live).with_context(|| format!("cannot run {typed}"))?;
    ensure!(finished.success(), "{} from: {typed}", finished.ending());
    Ok(())
}

/// Python's unpacking forgets which files are programs: those in a `bin`.
fn make_executable(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            make_executable(&path)?;
        } else if directory.ends_with("bin") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}
