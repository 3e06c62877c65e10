//! Compiles kernels for the host: the sources that NVRTC turns into PTX, unchanged, with a header before each that gives
//! CUDA's words a meaning here. One library holds kolo's kernels, another those of this crate's tests.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// Bytes of dynamic shared memory that a block may use, and a little more.
const DYNAMIC: usize = (96 << 10) + 256;

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=shim");
    // Clippy has build scripts of its own run again, and looks at Rust alone.
    if env::var("RUSTC_WORKSPACE_WRAPPER").is_ok_and(|wrapper| wrapper.contains("clippy")) {
        return;
    }
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    // cudarc closes what it opens, to see whether it is there. Threads must not lose their code.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let mut runner = build(&here, &[]);
    for name in ["fiber.cpp", "block.cpp", "trap.cpp", "run.cpp"] {
        runner.file(here.join("shim").join(name));
    }
    let runner = compile(runner, &out.join("runner"));
    let libraries = [("kolo_kernels", here.join("../kernels")), ("kolo_test_kernels", here.join("tests/kernels"))];
    for (name, sources) in libraries {
        println!("cargo::rerun-if-changed={}", sources.display());
        let objects = kernels(&here, &sources, &out.join(name));
        link(&here, &out.join(format!("lib{name}.so")), &[runner.as_slice(), objects.as_slice()].concat());
    }
}

/// A compiler with the flags that all sources share.
fn build(here: &Path, includes: &[PathBuf]) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).pic(true).debug(false).cargo_metadata(false);
    build.include(here.join("shim")).includes(includes);
    let flags = [
        "-fno-exceptions",
        "-fno-rtti",
        "-fvisibility=hidden",
        // Products and sums are rounded one by one, as the PTX is made.
        "-ffp-contract=off",
        // The library has no thread-local object with a constructor.
        "-fno-extern-tls-init",
        // It forbids jumps from one stack to another.
        "-U_FORTIFY_SOURCE",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
    ];
    for flag in flags {
        build.flag(flag);
    }
    build
}

/// The flags for kernels: what they say is CUDA, with checks that a GPU makes and this machine does not.
fn kernel_build(here: &Path, sources: &Path) -> cc::Build {
    let mut build = build(here, &[here.join("../kernels/include"), sources.to_owned()]);
    build.define("KOLO_HOST", None).flag("-include").flag("kolo_cuda_host.h");
    build.flag("-fsanitize=alignment,bounds").flag("-fno-sanitize-recover=all");
    build
}

/// Compiles all kernels of a folder; returns the objects.
fn kernels(here: &Path, sources: &Path, out: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(sources)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    fs::create_dir_all(out).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).max(1);
    let mut objects = Vec::new();
    let mut dynamic = Vec::new();
    for group in files.chunks(jobs) {
        let threads: Vec<_> = group
            .iter()
            .map(|file| {
                let (here, sources, out, file) = (here.to_owned(), sources.to_owned(), out.to_owned(), file.clone());
                thread::spawn(move || one(&here, &sources, &out, &file))
            })
            .collect();
        for thread in threads {
            let (object, names) = thread.join().expect("a compiler's thread said why it failed");
            objects.extend(object);
            dynamic.extend(names);
        }
    }
    dynamic.sort();
    dynamic.dedup();
    objects.extend(dynamic_memory(here, out, &dynamic));
    objects
}

/// Compiles one source with its part of the table; returns the object, and the names of its dynamic shared memory.
fn one(here: &Path, sources: &Path, out: &Path, file: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let stem = file.file_stem().expect("it has an extension").to_string_lossy().into_owned();
    let mut scan = kernel_build(here, sources);
    scan.define("KOLO_HOST_SCAN", None).file(file).flag("-x").flag("c++");
    let text = String::from_utf8_lossy(&scan.expand()).into_owned();
    let names = kernel_names(&text);
    assert!(!names.is_empty(), "{} has no `extern \"C\" __global__` function", file.display());
    let table: String = names.iter().map(|name| format!("KOLO_TABLE({name})\n")).collect();
    let generated = out.join(format!("{stem}.cpp"));
    let source = format!("#include \"{}\"\n#include \"table.h\"\n{table}", file.display());
    write(&generated, &source);
    let mut build = kernel_build(here, sources);
    build.file(&generated);
    (compile(build, out), dynamic_names(&text))
}

/// The memory behind `extern __shared__ T name[]`: all kernels that use a name share it, since a thread runs one at a time.
fn dynamic_memory(here: &Path, out: &Path, names: &[String]) -> Vec<PathBuf> {
    if names.is_empty() {
        return Vec::new();
    }
    let lines: String =
        names.iter().map(|name| format!("alignas(128) thread_local unsigned char {name}[{DYNAMIC}];\n")).collect();
    let generated = out.join("dynamic_memory.cpp");
    write(&generated, &lines);
    let mut build = build(here, &[]);
    build.file(&generated);
    compile(build, out)
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn compile(mut build: cc::Build, out: &Path) -> Vec<PathBuf> {
    fs::create_dir_all(out).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
    build.out_dir(out).compile_intermediates()
}

fn link(here: &Path, library: &Path, objects: &[PathBuf]) {
    let mut command: Command = build(here, &[]).get_compiler().to_command();
    command.args(["-shared", "-Wl,-z,defs", "-Wl,--as-needed", "-Wl,-z,nodelete", "-pthread", "-o"]);
    command.arg(library).args(objects);
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

/// The functions that preprocessed text declares as `extern "C" __global__ void NAME(`.
fn kernel_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices("__global__") {
        if !text[..at].trim_end().ends_with("extern \"C\"") {
            continue;
        }
        let mut rest = text[at + "__global__".len()..].trim_start();
        rest = rest.strip_prefix("void").unwrap_or(rest).trim_start();
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
            rest = bounds.split_once(')').map_or("", |(_, rest)| rest).trim_start();
        }
        rest = rest.strip_prefix("void").unwrap_or(rest).trim_start();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        assert!(!name.is_empty(), "a kernel has no name in: {}", &text[at..(at + 80).min(text.len())]);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The names in `extern thread_local T name[]`, as preprocessed text has it.
fn dynamic_names(text: &str) -> Vec<String> {
    let parts = text.split("extern thread_local").skip(1);
    let name = |part: &str| {
        let declared = part.split(';').next()?.split('[').next()?.trim_end();
        declared.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
    };
    parts.filter_map(name).filter(|name| !name.is_empty()).collect()
}
