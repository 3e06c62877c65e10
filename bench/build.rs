//! Compiles the C shim with the MPI that rsmpi links: constants that exist only as macros, and a look at MPI's settings.

fn main() {
    println!("cargo:rerun-if-changed=src/shim.c");
    println!("cargo:rerun-if-env-changed=MPICC");
    let mpi = match build_probe_mpi::probe() {
        Ok(mpi) => mpi,
        Err(reasons) => {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            panic!(
                "no MPI found; install one (Debian: openmpi-bin libopenmpi-dev), or point MPICC at its compiler:\n{}",
                reasons.join("\n")
            );
        }
    };
    let mut build = cc::Build::new();
    build.file("src/shim.c");
    match mpi.mpicc {
        Some(mpicc) => {
            build.compiler(mpicc);
        }
        None => {
            build.includes(&mpi.include_paths);
        }
    }
    build.compile("kolo_bench_shim");
}
