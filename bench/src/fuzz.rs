//! Command lines as people and scripts write them.

use crate::cli::Cli;
use crate::sizes::{Sweep, parse_bytes};
use xtask::fuzz::{Random, fuzz};

fn size(random: &mut Random) -> String {
    let unit = *random.of(&["", "B", "KiB", "MiB", "GB", "k", "G"]);
    match random.below(3) {
        0 => format!("{}{unit}", random.number()),
        1 => format!("{}.{}{unit}", random.below(100), random.below(1000)),
        _ => format!("{}{unit}", "9".repeat(random.below(30))),
    }
}

#[test]
fn fuzz_sizes() {
    let valid = |random: &mut Random| {
        let parts: Vec<String> = (0..1 + random.below(3)).map(|_| size(random)).collect();
        parts.join(":").into_bytes()
    };
    fuzz("sizes", &[], valid, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Err(why) = parse_bytes(&text) {
            assert!(!why.is_empty());
        }
        match text.parse::<Sweep>() {
            Ok(sweep) => {
                let sizes = sweep.sizes();
                // Each is at least twice the one before.
                assert!(!sizes.is_empty() && sizes.len() <= 64 && sizes.is_sorted(), "{text:?}: {sizes:?}");
                true
            }
            Err(why) => {
                assert!(!why.is_empty());
                false
            }
        }
    });
}

#[test]
fn fuzz_command_lines() {
    const LINES: &[&str] = &[
        "allreduce --bytes 4:256MiB:4 --dtype f32 --op sum --api communicator --buffers private --rounds 7 --json x.json",
        "allreduce --in-place --algorithm ring --against mpi",
        "list --preset resnet50 --against mpi,mpi-fused --dtype bf16",
        "list --op average --buffers shared",
        "idle --seconds 0.5 --preset gpt2",
        "late --seconds 1s --rounds 3",
        "flight /tmp/a /tmp/b --json found.json",
        "flight-cost --directory /dev/shm --rounds 9",
        "help list",
    ];
    let valid = |random: &mut Random| {
        let mut line = (*random.of(LINES)).to_owned();
        if random.once_in(4) {
            line += &format!(" --bytes {}", size(random));
        }
        line.into_bytes()
    };
    fuzz("command lines", &[], valid, |bytes| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let words = std::iter::once("kolo-bench").chain(text.split(' '));
        match Cli::from_args(words.map(Into::into)) {
            Ok(cli) => {
                assert!(cli.shared_bytes().is_none_or(|bytes| bytes > 0));
                true
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                error.kind() == clap::error::ErrorKind::DisplayHelp
            }
        }
    });
}
