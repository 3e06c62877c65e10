//! What is reduced out of place is never somewhere else meanwhile. Alone in this file, because it measures the whole process.

use std::fs;

use kolo::ReduceOp;

/// Bytes of memory that the process has, and the most that it had since it was last asked to forget.
fn resident() -> (usize, usize) {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is there");
    let field = |name: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of it");
        let number = line.trim().strip_suffix(" kB").expect("in kB");
        number.parse::<usize>().expect("a number") << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Forgets how much memory there was at most.
fn forget() {
    fs::write("/proc/self/clear_refs", "5").expect("it is this process's own");
}

#[test]
fn no_copy_of_a_tensor_is_made() {
    const COUNT: usize = 4 << 20;
    for hosts in [&[2][..], &[2, 2]] {
        let ranks = hosts.iter().sum();
        let builder = kolo::Builder::new().hosts(hosts.iter().copied());
        let outcomes = builder.threads(ranks, |kolo| -> kolo::Result<()> {
            let input = vec![kolo.rank() as f32 + 1.0; COUNT];
            let mut output = vec![-1.0; COUNT];
            let sum = (ranks * (ranks + 1) / 2) as f32;
            // The first time it also makes room for its messages.
            kolo.allreduce_into("x", &input[..COUNT / 4], &mut output[..COUNT / 4], ReduceOp::Sum)?;
            kolo.barrier()?;
            if kolo.rank() == 0 {
                forget();
            }
            let before = resident().0;
            kolo.barrier()?;
            kolo.allreduce_into("y", &input, &mut output, ReduceOp::Sum)?;
            kolo.barrier()?;
            let most = resident().1;
            assert!(output.iter().all(|value| *value == sum));
            // A copy on one rank would be that much.
            assert!(most < before + size_of_val(&input[..]) / 2, "{before} bytes before, {most} at most, on {hosts:?}");
            kolo.barrier()
        });
        outcomes.expect("no rank panics").into_iter().collect::<kolo::Result<Vec<()>>>().expect("no rank fails");
    }
}
