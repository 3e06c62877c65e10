//! What a program may set before it joins a job.

use std::error::Error as StdError;
use std::process::ExitCode;
use std::time::Duration;

use super::boot::{self, Kind};
use super::{Kolo, guard, threads};
use crate::config::{Bytes, Hosts, OrOff, Raw, Value};
use crate::error::{Error, Result};
use crate::plan::Algorithm;

/// Settings for a job. What is set here is stronger than the environment and the file that `KOLO_CONFIG` names.
///
/// ```
/// use std::time::Duration;
///
/// let sizes = kolo::Builder::new()
///     .hosts([2, 2])
///     .deadline(Duration::from_secs(30))
///     .threads(4, |kolo| (kolo.local_size(), kolo.cross_size()))?;
/// assert_eq!(sizes, [(2, 2); 4]);
/// # Ok::<(), kolo::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Builder {
    raw: Raw,
    /// The first setting that does not exist; told when the job starts.
    unknown: Option<String>,
    #[cfg(feature = "mpi")]
    communicator: Option<RawCommunicator>,
}

/// The communicator of the application.
#[cfg(feature = "mpi")]
#[derive(Clone, Copy, Debug)]
pub(super) struct RawCommunicator(pub(super) crate::transport::mpi::RawComm);

impl Builder {
    /// Nothing set: what the environment says.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets any knob by its name, as the environment would. `docs/knobs.md` lists them.
    ///
    /// ```
    /// let wrong = kolo::Builder::new().knob("KOLO_SLOT_BYTE", "1MiB").init().unwrap_err();
    /// assert_eq!(wrong.to_string(), "KOLO_SLOT_BYTE is no knob; did you mean KOLO_SLOT_BYTES?");
    /// ```
    #[must_use]
    pub fn knob(mut self, name: &str, value: impl Into<String>) -> Self {
        if let Err(wrong) = self.raw.builder(name, value.into()) {
            self.unknown.get_or_insert(wrong);
        }
        self
    }

    /// Pretends that the ranks run on several hosts of these sizes (`KOLO_HOSTS`).
    #[must_use]
    pub fn hosts(self, sizes: impl IntoIterator<Item = usize>) -> Self {
        self.knob("KOLO_HOSTS", Hosts(sizes.into_iter().collect()).show())
    }

    /// How long any wait lasts before it is an error (`KOLO_DEADLINE`).
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        self.knob("KOLO_DEADLINE", deadline.show())
    }

    /// How long a wait lasts before a warning names who is missing, or never (`KOLO_STALL_WARNING`).
    #[must_use]
    pub fn stall_warning(self, after: Option<Duration>) -> Self {
        self.knob("KOLO_STALL_WARNING", OrOff(after).show())
    }

    /// The algorithm of all allreduces (`KOLO_ALGORITHM`).
    #[must_use]
    pub fn algorithm(self, algorithm: Algorithm) -> Self {
        self.knob("KOLO_ALGORITHM", algorithm.name())
    }

    /// Whether sums are in rank order across hosts as well (`KOLO_DETERMINISTIC`).
    #[must_use]
    pub fn deterministic(self, deterministic: bool) -> Self {
        self.knob("KOLO_DETERMINISTIC", deterministic.show())
    }

    /// Bytes of shared memory for `Kolo::alloc`, per rank (`KOLO_SHARED_RESERVE`).
    #[must_use]
    pub fn shared_reserve(self, bytes: usize) -> Self {
        self.knob("KOLO_SHARED_RESERVE", Bytes(bytes).show())
    }

    /// Bytes of one slot of shared memory (`KOLO_SLOT_BYTES`).
    #[must_use]
    pub fn slot_bytes(self, bytes: usize) -> Self {
        self.knob("KOLO_SLOT_BYTES", Bytes(bytes).show())
    }

    /// Bytes up to which tensors are reduced as one (`KOLO_FUSION_BYTES`).
    #[must_use]
    pub fn fusion_bytes(self, bytes: usize) -> Self {
        self.knob("KOLO_FUSION_BYTES", Bytes(bytes).show())
    }

    /// How many named tensors the ranks remember (`KOLO_CACHE_CAPACITY`).
    #[must_use]
    pub fn cache_capacity(self, names: usize) -> Self {
        self.knob("KOLO_CACHE_CAPACITY", names.show())
    }

    /// Runs over a communicator of the application, which has initialised MPI itself at `MPI_THREAD_SERIALIZED` or
    /// above. The ranks of the job are those of the communicator. kolo duplicates it and never finalises MPI.
    ///
    /// # Safety
    /// `communicator` is a live intracommunicator handle of the MPI library that this program is linked with, and MPI
    /// is not finalised before the last `Kolo` is dropped. At `MPI_THREAD_SERIALIZED`, the application makes no MPI
    /// call of its own from another thread while a `Kolo` lives.
    #[cfg(feature = "mpi")]
    #[allow(unsafe_code, reason = "a raw handle of another library")]
    #[must_use]
    pub unsafe fn mpi_communicator(mut self, communicator: mpi::ffi::MPI_Comm) -> Self {
        self.communicator = Some(RawCommunicator(communicator));
        self
    }

    /// Joins the job; see [`init`](crate::init).
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// As [`init`](crate::init).
    pub fn init(self) -> Result<Kolo> {
        self.boot().map_err(|refusal| refusal.error)
    }

    pub(super) fn boot(self) -> Result<Kolo, boot::Refusal> {
        #[cfg(feature = "mpi")]
        let kind = Kind::Launched { adopt: self.communicator.map(|communicator| communicator.0) };
        #[cfg(not(feature = "mpi"))]
        let kind = Kind::Launched {};
        boot::boot(self.settings(), kind)
    }

    /// What the program set, if all of it exists.
    pub(super) fn settings(self) -> Result<Raw> {
        match self.unknown {
            Some(wrong) => Err(Error::config(wrong)),
            None => Ok(self.raw),
        }
    }

    /// Joins the job, runs the program and reports how it ended; see [`run`](crate::run).
    ///
    /// # Collective
    /// Every rank.
    pub fn run<F, E>(self, program: F) -> ExitCode
    where
        F: FnOnce(&Kolo) -> Result<(), E>,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        guard::run(self, program)
    }

    /// Runs `n` ranks as threads of this process; see [`threads`](crate::threads).
    ///
    /// # Errors
    /// As [`threads`](crate::threads).
    pub fn threads<R, F>(self, n: usize, program: F) -> Result<Vec<R>>
    where
        R: Send,
        F: Fn(&Kolo) -> R + Sync,
    {
        threads::threads(self, n, program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AlgorithmName;

    #[test]
    fn the_knob_and_the_plans_know_the_same_algorithms() {
        assert_eq!(AlgorithmName::ALL.to_vec(), Algorithm::ALL.map(Algorithm::name).to_vec());
        for algorithm in Algorithm::ALL {
            let name = AlgorithmName::parse(algorithm.name()).expect("a name");
            assert!(name.may_be_ordered() == algorithm.is_ordered() || algorithm == Algorithm::Auto, "{algorithm}");
        }
    }
}
