//! Says early, and in words, when the feature `mpi` cannot be built.
//!
//! The bindings themselves are made by the crate `mpi-sys`, whose own complaint comes later and names no package.

use std::env;
use std::process::{Command, Stdio};

fn main() {
    for variable in ["MPICC", "MPI_PKG_CONFIG", "CRAY_MPICH_DIR", "PKG_CONFIG_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_MPI").is_some() && !mpi_is_there() {
        for line in [
            "no MPI found: there is no mpicc (or $MPICC), and pkg-config knows neither mpich nor ompi",
            "Debian, Ubuntu: apt install libopenmpi-dev openmpi-bin libclang-dev",
            "Fedora: dnf install openmpi-devel clang-devel, then `module load mpi`",
            "clusters: load the module of your MPI, or set MPICC to its compiler wrapper",
            "without MPI (one process, or ranks as threads): build with --no-default-features",
        ] {
            println!("cargo::error={line}");
        }
    }
}

/// The places where `mpi-sys` looks, in its order.
fn mpi_is_there() -> bool {
    if env::var_os("MPI_PKG_CONFIG").is_some() || env::var_os("CRAY_MPICH_DIR").is_some() {
        return true;
    }
    let mpicc = env::var_os("MPICC").unwrap_or_else(|| "mpicc".into());
    let starts = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if starts(Command::new(mpicc).arg("-show")).is_ok() {
        return true;
    }
    ["mpich", "ompi"]
        .iter()
        .any(|name| starts(Command::new("pkg-config").args(["--exists", name])).is_ok_and(|status| status.success()))
}
