//! Starting and ending: what a program writes to become a rank.

mod apart;
mod boot;
mod builder;
mod door;
mod exchange;
#[cfg(all(test, not(kolo_loom)))]
mod fuzz;
mod guard;
mod home;
mod kolo;
mod operations;
mod sets;
mod threads;

pub use builder::Builder;
pub use kolo::Kolo;

use std::error::Error as StdError;
use std::process::ExitCode;

use crate::error::Result;

/// Joins the job that the launcher started, or makes a job of one rank where none did.
///
/// Started as `mpirun -np 4 ./train`, the four processes are the four ranks. Started as `./train`, no MPI is touched.
/// Prefer [`run`], which also reports how the program ended.
///
/// ```
/// let kolo = kolo::init()?;
/// assert_eq!((kolo.rank(), kolo.size()), (0, 1));
/// # Ok::<(), kolo::Error>(())
/// ```
///
/// # Collective
/// Every rank.
///
/// # Errors
/// Settings that cannot be used or that differ between ranks, memory that is not there, an MPI that does not fit. If
/// one rank cannot start, every rank gets an error.
pub fn init() -> Result<Kolo> {
    Builder::new().init()
}

/// Joins the job, runs the program, and reports how it ended: for `main`.
///
/// If `program` returns an error or panics, that is the job's failure: the other ranks get it from whatever they wait
/// for, it is printed once, and the whole job ends with a code that is not zero.
///
/// ```
/// fn main() -> std::process::ExitCode {
///     kolo::run(|kolo| {
///         println!("rank {} of {}", kolo.rank(), kolo.size());
///         Ok::<(), kolo::Error>(())
///     })
/// }
/// ```
///
/// # Collective
/// Every rank.
pub fn run<F, E>(program: F) -> ExitCode
where
    F: FnOnce(&Kolo) -> Result<(), E>,
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    Builder::new().run(program)
}

/// Runs `n` ranks as threads of this process and returns what each returned, by rank.
///
/// They speak through the very protocol that processes use. For tests, and to try things out.
///
/// ```
/// let ranks = kolo::threads(4, |kolo| kolo.rank())?;
/// assert_eq!(ranks, [0, 1, 2, 3]);
/// # Ok::<(), kolo::Error>(())
/// ```
///
/// # Errors
/// The failure of the first rank that panicked, with its words; the others get the same from whatever they wait for.
pub fn threads<R, F>(n: usize, program: F) -> Result<Vec<R>>
where
    R: Send,
    F: Fn(&Kolo) -> R + Sync,
{
    Builder::new().threads(n, program)
}
