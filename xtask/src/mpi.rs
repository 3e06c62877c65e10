//! The MPI launcher: which one is installed, and how it must be called so that a job starts on any machine: as root, in a
//! container, with more ranks than cores, with a small `/dev/shm`.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

/// Variables in which launchers tell a process its rank.
pub(crate) const RANK_VARIABLES: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PMI_ID"];

/// Variables in which launchers tell a process how many ranks there are.
const SIZE_VARIABLES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// Below this, Open MPI's own shared memory may not fit into `/dev/shm` and goes to a file instead.
const SMALL_SHM_BYTES: u64 = 256 << 20;

/// The families of launchers. They differ in how they count cores, bind ranks and mind root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Open MPI with its own runtime, up to 4.x.
    OpenMpi4,
    /// Open MPI 5 and later, which starts ranks by PRRTE.
    OpenMpi5,
    /// MPICH and its relatives that use Hydra.
    Mpich,
    /// Intel MPI: Hydra too, with knobs of its own.
    Intel,
}

impl Flavour {
    /// Reads what `mpirun --version` prints.
    pub fn parse(version: &str) -> Option<Self> {
        if version.contains("Intel(R) MPI") {
            return Some(Self::Intel);
        }
        if version.contains("HYDRA") || version.contains("MPICH") {
            return Some(Self::Mpich);
        }
        if version.contains("PRRTE") {
            return Some(Self::OpenMpi5);
        }
        let (_, number) = version.split_once("(Open MPI)").or_else(|| version.split_once("(OpenRTE)"))?;
        let major: u32 = number.trim_start().split('.').next()?.parse().ok()?;
        Some(if major >= 5 { Self::OpenMpi5 } else { Self::OpenMpi4 })
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenMpi4 => "Open MPI (up to 4.x)",
            Self::OpenMpi5 => "Open MPI (5 or later)",
            Self::Mpich => "MPICH",
            Self::Intel => "Intel MPI",
        })
    }
}

/// What of this machine shapes a launcher's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores this process may use: affinity and cgroup quota counted in.
    pub cores: usize,
    /// Free bytes in `/dev/shm`; 0 if there is none.
    pub shm_bytes: u64,
    /// Whether we are in a container, where one process may be kept from reading another's memory.
    pub container: bool,
}

impl Machine {
    /// Looks at the machine we run on.
    pub fn here() -> Self {
        let shm_bytes = rustix::fs::statvfs("/dev/shm").map_or(0, |shm| shm.f_bavail.saturating_mul(shm.f_frsize));
        let marks = ["/.dockerenv", "/run/.containerenv"];
        Self {
            cores: thread::available_parallelism().map_or(1, usize::from),
            shm_bytes,
            container: marks.iter().any(|mark| Path::new(mark).exists())
                || std::env::var_os("container").is_some()
                || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
        }
    }
}

/// An installed launcher.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
    flavour: Flavour,
    machine: Machine,
}

impl Launcher {
    /// The launcher at `program`: a path, or a name to be looked up in `PATH`.
    ///
    /// # Errors
    /// When it cannot be started, or is none that we know how to call.
    pub fn at(program: impl Into<PathBuf>) -> Result<Self> {
        let program = program.into();
        let shown = program.display();
        let output = match Command::new(&program).arg("--version").output() {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("there is no {shown}: install an MPI (`cargo xtask test` and `cargo xtask demo` do it)")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot start {shown}")),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let flavour = Flavour::parse(&text).with_context(|| {
            format!(
                "{shown} --version says {:?}, which is neither Open MPI, MPICH nor Intel MPI: put the mpirun of one of these first in PATH",
                text.lines().next().unwrap_or_default()
            )
        })?;
        Ok(Self { program, flavour, machine: Machine::here() })
    }

    /// The launcher that belongs to the MPI we compile against: the `mpirun` beside `$MPICC`, else the one in `PATH`.
    ///
    /// # Errors
    /// As [`Launcher::at`].
    pub fn find() -> Result<Self> {
        let beside = std::env::var_os("MPICC").and_then(|mpicc| Some(Path::new(&mpicc).parent()?.join("mpirun")));
        Self::at(beside.filter(|path| path.exists()).unwrap_or_else(|| "mpirun".into()))
    }

    /// The family it belongs to.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// `mpirun -np ranks`, with whatever this launcher needs on this machine. The program and its arguments follow.
    pub fn command(&self, ranks: usize) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments(self.flavour, self.machine, ranks)).envs(environment(self.flavour).iter().copied());
        command
    }
}

fn arguments(flavour: Flavour, machine: Machine, ranks: usize) -> Vec<OsString> {
    let mut arguments = vec!["-np".to_owned(), ranks.to_string()];
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
    let crowded = ranks > machine.cores;
    let small_shm = machine.shm_bytes < SMALL_SHM_BYTES;
    match flavour {
        Flavour::OpenMpi4 => {
            // A rank is bound to one core by default: its worker threads would all share it.
            add(&["--oversubscribe", "--bind-to", "none"]);
            if crowded {
                add(&["--mca", "mpi_yield_when_idle", "1"]);
            }
            if small_shm {
                add(&["--mca", "btl_vader_backing_directory", "/tmp"]);
            }
            if machine.container {
                // Reading a peer's memory needs a right that containers take away; each try prints an error.
                add(&["--mca", "btl_vader_single_copy_mechanism", "none"]);
            }
            // Built with InfiniBand, started without: not worth a warning here.
            add(&["--mca", "btl_base_warn_component_unused", "0"]);
        }
        Flavour::OpenMpi5 => {
            add(&["--bind-to", "none"]);
            if crowded {
                add(&["--mca", "mpi_yield_when_idle", "1"]);
            }
            if small_shm {
                add(&["--mca", "btl_sm_backing_directory", "/tmp"]);
            }
        }
        Flavour::Mpich => add(&["-bind-to", "none"]),
        Flavour::Intel => {}
    }
    arguments.into_iter().map(OsString::from).collect()
}

fn environment(flavour: Flavour) -> &'static [(&'static str, &'static str)] {
    match flavour {
        // Without both, Open MPI refuses to start as root, which in a container everybody is.
        Flavour::OpenMpi4 => &[("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")],
        Flavour::OpenMpi5 => &[
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("PRTE_ALLOW_RUN_AS_ROOT", "1"),
            ("PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
        ],
        Flavour::Mpich => &[],
        Flavour::Intel => &[("I_MPI_PIN", "0")],
    }
}

/// The rank a launcher gave this process; `None` if no launcher started it.
pub fn rank() -> Option<usize> {
    first_number(&RANK_VARIABLES)
}

/// The number of ranks a launcher said there are; `None` if no launcher started this process.
pub fn size() -> Option<usize> {
    first_number(&SIZE_VARIABLES)
}

fn first_number(variables: &[&str]) -> Option<usize> {
    variables.iter().find_map(|variable| std::env::var(variable).ok()?.parse().ok())
}

/// Whether Hydra, the launcher of MPICH, ended the job itself: when a rank dies by a signal it kills the others at once, so
/// that none of them may live to say who it was. What is left is Hydra's own message, which names the process, the host and
/// the signal.
pub fn silenced_by_hydra(output: &str) -> bool {
    output.contains("BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES")
        && output.contains("YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: Machine = Machine { cores: 8, shm_bytes: 8 << 30, container: false };

    fn line(flavour: Flavour, machine: Machine, ranks: usize) -> String {
        let words = arguments(flavour, machine, ranks);
        words.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn launchers_are_told_apart_by_their_version() {
        let cases = [
            ("mpirun (Open MPI) 4.1.4\n\nReport bugs to ..", Flavour::OpenMpi4),
            ("mpirun (Open MPI) 3.1.6", Flavour::OpenMpi4),
            ("mpirun (Open MPI) 5.0.7", Flavour::OpenMpi5),
            ("mpirun (Open MPI) 10.0.0rc1", Flavour::OpenMpi5),
            ("mpiexec (OpenRTE) 4.0.3", Flavour::OpenMpi4),
            ("prterun (PRRTE) 3.0.2", Flavour::OpenMpi5),
            ("HYDRA build details:\n    Version:    4.0.2", Flavour::Mpich),
            ("Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 20231005", Flavour::Intel),
        ];
        for (version, flavour) in cases {
            assert_eq!(Flavour::parse(version), Some(flavour), "{version}");
        }
        assert_eq!(Flavour::parse("mpirun (Some MPI) 1.0"), None);
        assert_eq!(Flavour::parse(""), None);
    }

    #[test]
    fn ranks_are_never_bound_and_may_exceed_the_cores() {
        assert_eq!(
            line(Flavour::OpenMpi4, ROOMY, 2),
            "-np 2 --oversubscribe --bind-to none --mca btl_base_warn_component_unused 0"
        );
        assert_eq!(line(Flavour::OpenMpi5, ROOMY, 2), "-np 2 --bind-to none");
        assert_eq!(line(Flavour::Mpich, ROOMY, 16), "-np 16 -bind-to none");
        assert_eq!(line(Flavour::Intel, ROOMY, 3), "-np 3");
    }

    #[test]
    fn a_crowded_open_mpi_yields() {
        for flavour in [Flavour::OpenMpi4, Flavour::OpenMpi5] {
            assert!(line(flavour, ROOMY, 9).contains("mpi_yield_when_idle 1"));
            assert!(!line(flavour, ROOMY, 8).contains("mpi_yield_when_idle"));
        }
    }

    #[test]
    fn a_small_shm_moves_the_backing_files() {
        let small = Machine { shm_bytes: 64 << 20, ..ROOMY };
        assert!(line(Flavour::OpenMpi4, small, 2).contains("btl_vader_backing_directory /tmp"));
        assert!(line(Flavour::OpenMpi5, small, 2).contains("btl_sm_backing_directory /tmp"));
    }

    #[test]
    fn a_container_copies_through_shared_memory() {
        let container = Machine { container: true, ..ROOMY };
        assert!(line(Flavour::OpenMpi4, container, 2).contains("btl_vader_single_copy_mechanism none"));
    }

    #[test]
    fn a_missing_launcher_is_an_error_that_says_what_to_do() {
        let error = Launcher::at("/nonexistent/mpirun").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/mpirun") && error.contains("install an MPI"), "{error}");
    }
}
