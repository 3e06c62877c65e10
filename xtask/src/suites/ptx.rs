//! The kernels without a GPU: the committed PTX is what the sources compile to, and the assembler of a newer toolkit finds
//! registers for all of them.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::Context;
use crate::ptx::{self, Sources, wheels};
use crate::workspace::{root, target};

/// The GPUs that the sources are compiled for besides: A100, H100 and H200, B200.
const ARCHITECTURES: &[&str] = &["sm_80", "sm_90", "sm_100"];

/// The oldest GPU that the newer toolkit knows: for it the committed PTX is assembled, as a driver would.
const OLDEST: &str = "sm_75";

/// Kernels that may keep something in local memory, and why.
const MAY_USE_LOCAL_MEMORY: &[&str] = &[];

pub(crate) fn run(context: &Context) -> Result<()> {
    context.count(ptx::check(context.left())?);
    let sources = Sources::read()?;
    let toolkit = wheels::NVCC.ensure(context.left())?.join("nvidia/cu13");
    let output = target().join("wheels/assembled");
    std::fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    for (name, _) in &sources.units {
        let mut ptxas = Command::new(toolkit.join("bin/ptxas"));
        ptxas.args(["--verbose", "--gpu-name", OLDEST]).arg(format!("kernels/prebuilt/{name}.ptx"));
        ptxas.arg("--output-file").arg(output.join(name).with_extension("cubin")).current_dir(root());
        assemble(context, &mut ptxas, OLDEST)?;
    }
    for architecture in ARCHITECTURES {
        let mut nvcc = Command::new(toolkit.join("bin/nvcc"));
        nvcc.args(["--cubin", "--std=c++17", "--fmad=false", "--resource-usage", "-Werror=all-warnings"]);
        nvcc.arg(format!("--gpu-architecture={architecture}")).arg("--output-directory").arg(&output);
        nvcc.args(["--include-path", "kernels/include"]).current_dir(root());
        nvcc.args(sources.units.iter().map(|(name, _)| format!("kernels/{name}.cu")));
        assemble(context, &mut nvcc, architecture)?;
    }
    Ok(())
}

/// Runs a compiler that reports what each kernel uses, and fails if one uses local memory.
fn assemble(context: &Context, compiler: &mut Command, architecture: &str) -> Result<()> {
    let kernels = usage(&context.output(compiler)?)?;
    ensure!(!kernels.is_empty(), "ptxas reported no kernel for {architecture}");
    let spoiled: Vec<String> = kernels
        .iter()
        .filter(|kernel| kernel.bytes != [0; 3] && !MAY_USE_LOCAL_MEMORY.contains(&kernel.name.as_str()))
        .map(|Kernel { name, bytes: [stack, stores, loads] }| {
            format!("{name}: {stack} bytes of stack, {stores} bytes of spill stores, {loads} of spill loads")
        })
        .collect();
    ensure!(spoiled.is_empty(), "local memory on {architecture}:\n  {}", spoiled.join("\n  "));
    context.count(kernels.len() as u64);
    Ok(())
}

/// What ptxas reports of a kernel.
#[derive(Debug, PartialEq)]
struct Kernel {
    name: String,
    /// Of the stack frame, of spill stores, of spill loads.
    bytes: [u64; 3],
}

/// Reads what ptxas reports: "Function properties for NAME", and in the next line, three numbers of bytes.
fn usage(output: &str) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    let mut lines = output.lines();
    while let Some(line) = lines.next() {
        let Some((_, name)) = line.split_once("Function properties for ") else { continue };
        let line = lines.next().unwrap_or_default();
        let bytes = line.split(',').map(|part| part.trim().split(' ').next().unwrap_or_default().parse());
        match bytes.collect::<Result<Vec<u64>, _>>().ok().and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => kernels.push(Kernel { name: name.trim().to_owned(), bytes }),
            None => bail!("ptxas says of {name}, in words that are new to us: {line:?}"),
        }
    }
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_ptxas_is_read() {
        let report = "ptxas info    : Compiling entry function 'kolo_a' for 'sm_90'\n\
                      ptxas info    : Function properties for kolo_a\n    \
                      8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                      ptxas info    : Used 32 registers, used 0 barriers\n";
        assert_eq!(usage(report).unwrap(), [Kernel { name: "kolo_a".into(), bytes: [8, 4, 12] }]);
        assert!(usage("Function properties for kolo_b\n    nothing new\n").unwrap_err().to_string().contains("kolo_b"));
        assert!(usage("").unwrap().is_empty());
    }
}
