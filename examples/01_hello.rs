//! Who am I, and who are the others?
//!
//! ```text
//! cargo run --example 01_hello
//! mpirun -np 4 target/debug/examples/01_hello
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    kolo::run(|kolo| {
        println!(
            "rank {} of {}, {} of {} on {}",
            kolo.rank(),
            kolo.size(),
            kolo.local_rank(),
            kolo.local_size(),
            kolo.host()
        );
        Ok::<(), kolo::Error>(())
    })
}
