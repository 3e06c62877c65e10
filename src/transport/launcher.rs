//! Which launcher started this process, as its environment tells.
//!
//! Nobody starts MPI in a process that no launcher started: a plain `./train` is a job of one rank. Slurm's own
//! variables say nothing here, because a shell inside an allocation has them too.

use std::fmt;

/// A launcher's mark in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launcher {
    /// Who left it.
    pub(crate) kind: LauncherKind,
    /// How many ranks the launcher says it started, where it says so.
    pub(crate) size: Option<usize>,
    /// Which of them this process is, where it says so.
    pub(crate) rank: Option<usize>,
}

/// A family of launchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LauncherKind {
    /// Open MPI's `mpirun`: `OMPI_COMM_WORLD_SIZE`.
    OpenMpi,
    /// MPICH's, Intel's and Cray's launchers, and `srun --mpi=pmi2`: `PMI_SIZE`.
    Pmi,
    /// A PMIx server, such as `prterun` or `srun --mpi=pmix`: `PMIX_RANK`. It does not tell the size.
    Pmix,
}

impl fmt::Display for LauncherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenMpi => "Open MPI's launcher (OMPI_COMM_WORLD_SIZE)",
            Self::Pmi => "a PMI launcher such as MPICH's or Intel's mpiexec (PMI_SIZE)",
            Self::Pmix => "a PMIx launcher (PMIX_RANK)",
        })
    }
}

/// The launcher that started this process; `None` when none did.
pub(crate) fn launched() -> Option<Launcher> {
    detect(|name| std::env::var(name).ok())
}

fn detect(environment: impl Fn(&str) -> Option<String>) -> Option<Launcher> {
    let number = |name: &str| environment(name)?.trim().parse().ok();
    let marks = [
        (LauncherKind::OpenMpi, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        (LauncherKind::Pmi, "PMI_SIZE", "PMI_RANK"),
    ];
    for (kind, size, rank) in marks {
        if let Some(size) = number(size) {
            return Some(Launcher { kind, size: Some(size), rank: number(rank) });
        }
    }
    let pmix = ["PMIX_RANK", "PMIX_NAMESPACE"].iter().any(|name| environment(name).is_some());
    pmix.then(|| Launcher { kind: LauncherKind::Pmix, size: None, rank: number("PMIX_RANK") })
}

impl Launcher {
    /// Why a program without MPI cannot be what this launcher started.
    #[cfg(not(feature = "mpi"))]
    pub(crate) fn contradicts_no_mpi(&self) -> Option<String> {
        let alone = self.size == Some(1);
        (!alone).then(|| {
            format!(
                "{} started this process, but kolo was built without its feature `mpi`, and every process would train \
                 on its own; build it with the feature",
                self.kind
            )
        })
    }

    #[cfg(any(test, feature = "mpi"))]
    /// Why a world of `size` ranks cannot be the job that this launcher started.
    pub(crate) fn contradicts(&self, size: usize, library: &str) -> Option<String> {
        let started = match (self.size, self.rank) {
            (Some(started), _) if started > 1 => format!("{started} ranks"),
            (None, Some(rank)) if rank > 0 => format!("this process as rank {rank}"),
            _ => return None,
        };
        (size == 1).then(|| {
            format!(
                "{} started {started}, but MPI_Comm_size says 1: this program was built against another MPI than the \
                 one that launched it. It is linked with {library}. Start it with that library's own mpirun, or build \
                 it against the launcher's MPI: MPICC=<its mpicc>, then `cargo clean -p mpi-sys` and build again",
                self.kind
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Option<Launcher> {
        detect(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn each_family_is_recognised_and_slurm_alone_is_not() {
        let open = with(&[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3"), ("PMIX_RANK", "3")]);
        assert_eq!(open, Some(Launcher { kind: LauncherKind::OpenMpi, size: Some(4), rank: Some(3) }));
        let hydra = with(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]);
        assert_eq!(hydra, Some(Launcher { kind: LauncherKind::Pmi, size: Some(2), rank: Some(0) }));
        let pmix = with(&[("PMIX_NAMESPACE", "job.1"), ("PMIX_RANK", "1")]);
        assert_eq!(pmix, Some(Launcher { kind: LauncherKind::Pmix, size: None, rank: Some(1) }));
        assert_eq!(with(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(with(&[("OMPI_COMM_WORLD_SIZE", "many")]), None);
    }

    #[test]
    fn a_world_of_one_below_a_launcher_of_many_is_contradicted() {
        let open = Launcher { kind: LauncherKind::OpenMpi, size: Some(4), rank: Some(0) };
        let text = open.contradicts(1, "Other MPI 1.2").expect("a contradiction");
        for part in ["OMPI_COMM_WORLD_SIZE", "4 ranks", "built against another MPI", "Other MPI 1.2", "MPICC"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert_eq!(open.contradicts(4, ""), None);
        assert_eq!(Launcher { size: Some(1), ..open.clone() }.contradicts(1, ""), None);
        let pmix = Launcher { kind: LauncherKind::Pmix, size: None, rank: Some(0) };
        assert_eq!(pmix.contradicts(1, ""), None, "rank 0 alone cannot know");
        assert!(Launcher { rank: Some(2), ..pmix }.contradicts(1, "").is_some());
    }
}
