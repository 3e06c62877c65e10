//! The peer: MPI_Allreduce of the MPI that this job runs under.
//!
//! All calls come from the main thread while kolo is idle, on a duplicate of MPI_COMM_WORLD, so that neither's messages
//! meet the other's.
#![allow(unsafe_code, reason = "MPI's C interface: rsmpi's safe one has no reduction in place")]

use anyhow::{Context, Result, bail, ensure};
use kolo::{DType, Element, ReduceOp};
use mpi::ffi;
use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    fn kolo_bench_in_place() -> *mut c_void;
    fn kolo_bench_yields() -> c_int;
}

/// A communicator of our own on the MPI that kolo initialised.
#[derive(Debug)]
pub(crate) struct Mpi {
    comm: ffi::MPI_Comm,
}

impl Mpi {
    /// Duplicates MPI_COMM_WORLD.
    ///
    /// # Collective
    ///
    /// Every rank calls it at the same point.
    ///
    /// # Errors
    ///
    /// When no MPI is running in this process, or MPI refuses.
    pub(crate) fn attach() -> Result<Self> {
        ensure!(
            is_initialised()?,
            "MPI is not running in this process, so there is no peer to measure: \
             start the benchmark with mpirun, or leave out --against"
        );
        // SAFETY: MPI is initialised; the handle is written before it is read.
        unsafe {
            let mut comm = ffi::RSMPI_COMM_NULL;
            check(ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &raw mut comm), "MPI_Comm_dup")?;
            check(ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN), "MPI_Comm_set_errhandler")?;
            Ok(Self { comm })
        }
    }

    /// Gives the communicator back.
    ///
    /// # Collective
    ///
    /// Every rank calls it at the same point. It is no `Drop`, because a rank that fails must not wait for the others.
    ///
    /// # Errors
    ///
    /// When MPI refuses.
    pub(crate) fn free(mut self) -> Result<()> {
        // SAFETY: the communicator is ours and nothing is in flight on it.
        check(unsafe { ffi::MPI_Comm_free(&raw mut self.comm) }, "MPI_Comm_free")
    }

    /// Reduces `data` of all ranks into `data`.
    ///
    /// # Errors
    ///
    /// When MPI has no such type or operation, or refuses.
    pub(crate) fn allreduce_in_place<T: Element>(&self, data: &mut [T], op: ReduceOp) -> Result<()> {
        let (count, datatype, op) = (count(data.len())?, datatype(T::DTYPE)?, operation(op)?);
        // SAFETY: `data` is exclusively ours for `count` elements of `datatype` until the blocking call returns.
        let code = unsafe {
            ffi::MPI_Allreduce(kolo_bench_in_place(), data.as_mut_ptr().cast(), count, datatype, op, self.comm)
        };
        check(code, "MPI_Allreduce")
    }

    /// Reduces `input` of all ranks into `output`.
    ///
    /// # Errors
    ///
    /// When the lengths differ, MPI has no such type or operation, or refuses.
    pub(crate) fn allreduce<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        ensure!(input.len() == output.len(), "{} values cannot go into {}", input.len(), output.len());
        let (count, datatype, op) = (count(input.len())?, datatype(T::DTYPE)?, operation(op)?);
        // SAFETY: both slices hold `count` elements of `datatype`, do not overlap (one is exclusive), and live until the
        // blocking call returns.
        let code = unsafe {
            ffi::MPI_Allreduce(input.as_ptr().cast(), output.as_mut_ptr().cast(), count, datatype, op, self.comm)
        };
        check(code, "MPI_Allreduce")
    }
}

/// Refuses to measure an MPI at its worst: with more ranks than cores it must give up the core while it waits, or each
/// call takes scheduler ticks.
///
/// # Errors
///
/// What to pass to mpirun.
pub(crate) fn check_waiting(ranks: usize, cores: usize) -> Result<()> {
    let library = library_version();
    // SAFETY: the shim only asks MPI's tools interface, which may be used at any time.
    let says = unsafe { kolo_bench_yields() };
    let environment = std::env::var("OMPI_MCA_mpi_yield_when_idle").ok();
    match judge_waiting(&library, says, environment.as_deref()) {
        Ok(()) => Ok(()),
        Err(advice) => bail!(
            "{ranks} ranks share {cores} core{}: {advice}; or leave out --against to measure kolo alone",
            if cores == 1 { "" } else { "s" }
        ),
    }
}

fn judge_waiting(library: &str, cvar: c_int, environment: Option<&str>) -> Result<(), &'static str> {
    if !library.contains("Open MPI") {
        return Err(
            "this MPI spins while it waits and has no setting to yield, so it would be measured at its worst; \
                    start no more ranks than cores, or use Open MPI",
        );
    }
    let asked = environment.is_some_and(|value| {
        matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on" | "enabled")
    });
    if cvar == 1 || (cvar < 0 && asked) {
        return Ok(());
    }
    Err("Open MPI would spin while it waits and be measured at its worst; start it with \
         mpirun --mca mpi_yield_when_idle 1")
}

/// MPI's own words on its version, without line breaks.
pub(crate) fn library_version() -> String {
    // SAFETY: this call is allowed before initialisation; the buffer has the length that MPI states as the largest.
    unsafe {
        let mut text = vec![0u8; ffi::RSMPI_MAX_LIBRARY_VERSION_STRING as usize + 1];
        let mut length: c_int = 0;
        let code = ffi::MPI_Get_library_version(text.as_mut_ptr().cast::<c_char>(), &raw mut length);
        if code != 0 {
            return format!("unknown MPI (MPI_Get_library_version returned {code})");
        }
        text.truncate(length as usize);
        let text = String::from_utf8_lossy(&text).replace('\0', "");
        text.lines().next().unwrap_or_default().trim().to_owned()
    }
}

fn is_initialised() -> Result<bool> {
    let mut flag: c_int = 0;
    // SAFETY: this call is allowed at any time.
    let code = unsafe { ffi::MPI_Initialized(&raw mut flag) };
    check(code, "MPI_Initialized")?;
    Ok(flag != 0)
}

fn count(len: usize) -> Result<c_int> {
    c_int::try_from(len).ok().with_context(|| {
        format!("{len} elements are more than one MPI_Allreduce counts ({}); use smaller --bytes", c_int::MAX)
    })
}

fn datatype(dtype: DType) -> Result<ffi::MPI_Datatype> {
    // SAFETY: constants that the shim of rsmpi initialises statically.
    unsafe {
        Ok(match dtype {
            DType::F32 => ffi::RSMPI_FLOAT,
            DType::F64 => ffi::RSMPI_DOUBLE,
            DType::I32 => ffi::RSMPI_INT32_T,
            DType::I64 => ffi::RSMPI_INT64_T,
            DType::U8 => ffi::RSMPI_UINT8_T,
            DType::U64 => ffi::RSMPI_UINT64_T,
            DType::I8 => ffi::RSMPI_INT8_T,
            DType::I16 => ffi::RSMPI_INT16_T,
            DType::U16 => ffi::RSMPI_UINT16_T,
            DType::U32 => ffi::RSMPI_UINT32_T,
            other => bail!("MPI has no type for {other}; leave out --against, or use --dtype f32"),
        })
    }
}

fn operation(op: ReduceOp) -> Result<ffi::MPI_Op> {
    // SAFETY: constants that the shim of rsmpi initialises statically.
    unsafe {
        Ok(match op {
            ReduceOp::Sum => ffi::RSMPI_SUM,
            ReduceOp::Min => ffi::RSMPI_MIN,
            ReduceOp::Max => ffi::RSMPI_MAX,
            ReduceOp::Product => ffi::RSMPI_PROD,
            ReduceOp::And => ffi::RSMPI_BAND,
            ReduceOp::Or => ffi::RSMPI_BOR,
            ReduceOp::Xor => ffi::RSMPI_BXOR,
            other => {
                bail!("MPI has no operation for {other}; leave out --against, or use --op sum")
            }
        })
    }
}

fn check(code: c_int, call: &str) -> Result<()> {
    // Every MPI has 0 for success: the standard says so.
    if code == 0 {
        return Ok(());
    }
    let mut text = [0u8; 1024];
    let mut length: c_int = 0;
    // SAFETY: the buffer is larger than the longest message of any MPI (512 bytes).
    let told = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut length) };
    if told != 0 {
        bail!("{call} failed with code {code}");
    }
    bail!("{call} failed: {}", String::from_utf8_lossy(&text[..length as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mpi_that_yields_is_measured() {
        assert!(judge_waiting("Open MPI v4.1.4", 1, None).is_ok());
        assert!(judge_waiting("Open MPI v4.1.4", -1, Some("1")).is_ok());
    }

    #[test]
    fn an_mpi_that_spins_is_refused_with_advice() {
        for (cvar, environment) in [(0, None), (0, Some("1")), (-1, None), (-1, Some("0"))] {
            let advice = judge_waiting("Open MPI v4.1.4", cvar, environment).unwrap_err();
            assert!(advice.contains("--mca mpi_yield_when_idle 1"), "{advice}");
        }
        assert!(judge_waiting("MPICH Version: 4.0.2", -1, Some("1")).unwrap_err().contains("no more ranks than cores"));
    }

    #[test]
    fn the_library_tells_its_version() {
        assert!(!library_version().is_empty());
        assert!(!library_version().contains('\n'));
    }

    #[test]
    fn without_mpi_there_is_no_peer() {
        let error = Mpi::attach().unwrap_err().to_string();
        assert!(error.contains("mpirun"), "{error}");
    }

    #[test]
    fn types_and_operations_that_mpi_lacks_are_errors() {
        assert!(datatype(DType::F16).unwrap_err().to_string().contains("f16"));
        assert!(operation(ReduceOp::Average).unwrap_err().to_string().contains("average"));
        assert!(count(1 << 31).unwrap_err().to_string().contains("--bytes"));
        assert_eq!(count(7).unwrap(), 7);
    }
}
