//! What building, starting and testing kolo needs besides Rust and a C compiler: an MPI, libclang, by which the bindings to
//! MPI are generated, and g++, which compiles the kernels' sources for the host. Where apt-get rules, what is missing is installed; elsewhere the packages are named.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use xtask::mpi::{Flavour, Launcher};
use xtask::network::PROGRAMS;

use crate::ptx::wheels::python;

/// Makes sure that kolo can be built and started, and returns the launcher.
///
/// # Errors
/// When something is missing and cannot be installed; the message says what to type.
pub(crate) fn ensure() -> Result<Launcher> {
    let missing = Missing::here();
    if missing.any() {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        match System::parse(&release) {
            System::Apt => apt_install(&missing)?,
            other => bail!("{}", other.advice(&missing)),
        }
        let still = Missing::here();
        ensure!(!still.any(), "{} still missing after the installation: is it in PATH?", still.names());
    }
    let launcher = Launcher::find()?;
    same_mpi(&launcher)?;
    Ok(launcher)
}

/// Installs what hosts out of namespaces are made with, where it is missing and apt-get rules. Elsewhere the attempt to
/// make them says what is missing.
///
/// # Errors
/// When the installation fails.
pub(crate) fn ensure_network_programs() -> Result<()> {
    let missing = PROGRAMS.iter().filter(|(program, _)| !answers(program, "-V")).map(|(_, package)| *package);
    let packages: BTreeSet<&str> = missing.collect();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if packages.is_empty() || System::parse(&release) != System::Apt || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let packages: Vec<&str> = packages.into_iter().collect();
    println!("installing {}", packages.join(" "));
    apt_get(&["update"])?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat())
}

/// Installs Python's pip, which fetches NVIDIA's compilers, where it is missing and apt-get rules.
///
/// # Errors
/// When it is missing elsewhere, or the installation fails.
pub(crate) fn ensure_pip() -> Result<()> {
    let there = || python().args(["-m", "pip", "--version"]).output().is_ok_and(|output| output.status.success());
    if there() {
        return Ok(());
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    ensure!(System::parse(&release) == System::Apt, "python3 with pip is missing: it fetches NVIDIA's compilers");
    apt_get(&["update"])?;
    apt_get(&["install", "--yes", "--no-install-recommends", "python3", "python3-pip"])?;
    ensure!(there(), "python3 with pip is still missing after the installation: is another python3 first in PATH?");
    Ok(())
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    mpi: bool,
    libclang: bool,
    /// The compiler of C++.
    cxx: bool,
}

impl Missing {
    fn here() -> Self {
        let mpicc = std::env::var_os("MPICC").unwrap_or_else(|| "mpicc".into());
        Self {
            mpi: !(answers(&mpicc, "-show") && answers("mpirun", "--version")),
            libclang: libclang().is_none(),
            cxx: !answers("g++", "--version"),
        }
    }

    fn any(self) -> bool {
        self.mpi || self.libclang || self.cxx
    }

    /// What is missing, of three words for the three: those of one system's packages, or their own.
    fn of(self, [mpi, libclang, cxx]: [&'static str; 3]) -> Vec<&'static str> {
        let wanted = [(self.mpi, mpi), (self.libclang, libclang), (self.cxx, cxx)];
        wanted.into_iter().filter_map(|(missing, name)| missing.then_some(name)).collect()
    }

    fn names(self) -> String {
        let names = self.of(["an MPI (mpicc and mpirun)", "libclang", "g++"]);
        format!("{} {}", names.join(" and "), if names.len() == 1 { "is" } else { "are" })
    }
}

fn answers(program: impl AsRef<std::ffi::OsStr>, argument: &str) -> bool {
    let mut run = Command::new(program);
    run.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    run.status().is_ok_and(|status| status.success())
}

/// The libclang that bindgen will load, looked for where it looks.
fn libclang() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LIBCLANG_PATH") {
        return libclang_in(Path::new(&path));
    }
    let asked = Command::new("llvm-config").arg("--libdir").stderr(Stdio::null()).output().ok();
    let asked = asked.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let llvm = entries(Path::new("/usr/lib")).filter(|path| path.to_string_lossy().contains("llvm"));
    let fixed = ["/usr/lib64", "/usr/lib", "/usr/local/lib", "/usr/local/lib64", "/lib64", "/lib"].map(PathBuf::from);
    let multiarch = entries(Path::new("/usr/lib")).filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    let directories = asked.into_iter().chain(llvm.map(|path| path.join("lib"))).chain(multiarch).chain(fixed);
    directories.into_iter().find_map(|directory| libclang_in(&directory))
}

fn libclang_in(directory: &Path) -> Option<PathBuf> {
    entries(directory).find(|path| path.file_name().is_some_and(|name| is_libclang(&name.to_string_lossy())))
}

/// libclang.so, libclang.so.1, libclang-14.so.1; not libclang-cpp.so.14, which is another library.
fn is_libclang(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("libclang") else { return false };
    rest.starts_with(".so")
        || rest
            .strip_prefix('-')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()) && rest.contains(".so"))
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Apt,
    Fedora,
    Arch,
    Suse,
    Alpine,
    Unknown,
}

impl System {
    /// Reads /etc/os-release: its own name first, then what it says it is like.
    fn parse(release: &str) -> Self {
        let value = |key: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_lowercase()
        };
        let names = format!("{} {}", value("ID"), value("ID_LIKE"));
        names
            .split_whitespace()
            .find_map(|name| match name {
                "debian" | "ubuntu" => Some(Self::Apt),
                "fedora" | "rhel" | "centos" => Some(Self::Fedora),
                "arch" => Some(Self::Arch),
                "suse" | "opensuse" | "opensuse-leap" | "opensuse-tumbleweed" | "sles" => Some(Self::Suse),
                "alpine" => Some(Self::Alpine),
                _ => None,
            })
            .unwrap_or(Self::Unknown)
    }

    fn advice(self, missing: &Missing) -> String {
        let packages = |names| missing.of(names).join(" ");
        let (install, path) = match self {
            Self::Apt => (format!("apt-get install {}", apt_packages(missing).join(" ")), None),
            Self::Fedora => {
                let names = packages(["openmpi openmpi-devel", "clang clang-devel", "gcc-c++"]);
                (format!("sudo dnf install {names}"), Some("/usr/lib64/openmpi/bin"))
            }
            Self::Arch => (format!("sudo pacman -S --needed {}", packages(["openmpi", "clang", "gcc"])), None),
            Self::Suse => {
                let names = packages(["openmpi4 openmpi4-devel", "clang clang-devel", "gcc-c++"]);
                (format!("sudo zypper install {names}"), Some("/usr/lib64/mpi/gcc/openmpi4/bin"))
            }
            Self::Alpine => {
                (format!("sudo apk add {}", packages(["openmpi openmpi-dev", "clang clang-dev", "g++"])), None)
            }
            Self::Unknown => {
                let names = missing.of(["Open MPI or MPICH with its headers (mpicc and mpirun)", "libclang", "g++"]);
                return format!(
                    "{} missing, and this system is unknown to us: install {}",
                    missing.names(),
                    names.join(", ")
                );
            }
        };
        let path = path.filter(|_| missing.mpi).map(|path| format!("\n    export PATH={path}:$PATH"));
        format!("{} missing. Install it and try again:\n    {install}{}", missing.names(), path.unwrap_or_default())
    }
}

fn apt_packages(missing: &Missing) -> Vec<&'static str> {
    let names = missing.of(["openmpi-bin libopenmpi-dev", "libclang-dev clang", "g++"]);
    names.into_iter().flat_map(str::split_whitespace).collect()
}

fn apt_install(missing: &Missing) -> Result<()> {
    let packages = apt_packages(missing);
    println!("{} missing: installing {}", missing.names(), packages.join(" "));
    apt_get(&["update"])?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat())
}

/// Runs apt-get, as root or by sudo.
pub(crate) fn apt_get(words: &[&str]) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    // Another apt may be at work, as on a machine that has just been started.
    let apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300"];
    let typed = format!("apt-get {}", words.join(" "));
    ensure!(root || answers("sudo", "--version"), "not root, and there is no sudo. As root, run: {typed}");
    let mut command = Command::new(if root { "env" } else { "sudo" });
    command.args(if root { &[][..] } else { &["env"] }).arg("DEBIAN_FRONTEND=noninteractive").args(apt).args(words);
    let status = command.status().with_context(|| format!("cannot start {typed}"))?;
    ensure!(status.success(), "{typed} failed ({status}): what it printed above says why");
    Ok(())
}

/// Refuses a compiler and a launcher of different MPIs: their jobs are N separate jobs of one rank.
fn same_mpi(launcher: &Launcher) -> Result<()> {
    let mpicc = std::env::var_os("MPICC").unwrap_or_else(|| "mpicc".into());
    let output = Command::new(&mpicc).arg("-show").output().context("cannot start mpicc -show")?;
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let open = matches!(launcher.flavour(), Flavour::OpenMpi4 | Flavour::OpenMpi5);
    let wrong = if open { text.contains("mpich") } else { text.contains("openmpi") };
    ensure!(
        !wrong,
        "mpirun belongs to {}, {} to another MPI: put the directory of one MPI first in PATH, or set MPICC",
        launcher.flavour(),
        mpicc.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Missing = Missing { mpi: true, libclang: true, cxx: true };

    #[test]
    fn systems_are_known_by_their_family() {
        let cases = [
            ("ID=debian\n", System::Apt),
            ("ID=ubuntu\nID_LIKE=debian\n", System::Apt),
            ("NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", System::Apt),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", System::Fedora),
            ("ID=fedora\n", System::Fedora),
            ("ID=manjaro\nID_LIKE=arch\n", System::Arch),
            ("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n", System::Suse),
            ("ID=alpine\n", System::Alpine),
            ("ID=nixos\n", System::Unknown),
            ("", System::Unknown),
        ];
        for (release, system) in cases {
            assert_eq!(System::parse(release), system, "{release}");
        }
    }

    #[test]
    fn advice_names_only_what_is_missing() {
        let only_clang = Missing { mpi: false, libclang: true, cxx: false };
        assert_eq!(apt_packages(&only_clang), ["libclang-dev", "clang"]);
        assert_eq!(only_clang.names(), "libclang is");
        assert_eq!(apt_packages(&Missing { mpi: false, libclang: false, cxx: true }), ["g++"]);
        assert_eq!(ALL.names(), "an MPI (mpicc and mpirun) and libclang and g++ are");
        let text = System::Fedora.advice(&ALL);
        assert!(text.contains("sudo dnf install openmpi openmpi-devel clang clang-devel gcc-c++"), "{text}");
        assert!(text.contains("export PATH=/usr/lib64/openmpi/bin:$PATH"), "{text}");
        let text = System::Suse.advice(&only_clang);
        assert!(text.contains("zypper install clang clang-devel") && !text.contains("PATH"), "{text}");
        assert!(System::Unknown.advice(&ALL).contains("Open MPI or MPICH"));
    }

    #[test]
    fn libclang_is_not_its_cpp_sister() {
        for name in ["libclang.so", "libclang.so.1", "libclang-14.so", "libclang-14.so.14.0.6"] {
            assert!(is_libclang(name), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclang-14.a", "libclang.a", "libclangAST.a", "clang"] {
            assert!(!is_libclang(name), "{name}");
        }
    }
}
