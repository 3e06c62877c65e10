//! The floors of the house: each module imports only from modules on floors below its own. DESIGN.md draws them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::Context;
use super::source::{self, Source};

/// From the ground up; modules on one floor do not import from each other. `lib.rs` stands on top and may import all.
const FLOORS: &[&[&str]] = &[
    &["error", "fields"],
    &["event"],
    &["os"],
    &["tensor", "config", "topology"],
    &["transport", "device", "plan", "object"],
    &["membership"],
    &["engine"],
    &["coordinator"],
    &["handle"],
    &["process_set", "communicator"],
    &["collective"],
    &["observe"],
    &["runtime"],
    &["optim", "data"],
    &["integrations"],
];

/// Modules that are pure: events in, actions out. What they must not know, although it stands below them.
const PURE: &[&str] = &["plan", "coordinator"];
const IMPURE_MODULES: &[&str] = &["os", "transport", "device", "engine"];
/// Texts are blanked, so `extern` stands without its ABI.
const IMPURE_WORDS: &[&str] = &["Instant::now", "SystemTime", "std::thread", "libc::", "rustix::", "extern "];

pub(crate) fn run(context: &Context) -> Result<()> {
    let sources = source::read_all("src")?;
    let complaints = check(&sources);
    context.count(sources.len() as u64);
    ensure!(complaints.is_empty(), "imports that climb:\n  {}", complaints.join("\n  "));
    if sources.is_empty() {
        bail!("no sources below src/");
    }
    Ok(())
}

fn check(sources: &[Source]) -> Vec<String> {
    let exports = sources.iter().find(|source| source.path.ends_with("src/lib.rs")).map(exports).unwrap_or_default();
    let skipped = test_files(sources);
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !skipped.contains(&source.path)) {
        let module = module_path(&source.path);
        let Some(own) = module.first() else { continue };
        let Some(own_floor) = floor(own) else {
            complaints.push(format!(
                "{}: `{own}` is on no floor; give it one in {} and DESIGN.md",
                source.at(0),
                file!()
            ));
            continue;
        };
        let tests = source.in_tests();
        for (number, line) in source.code.iter().enumerate().filter(|(number, _)| !tests[*number]) {
            let at = source.at(number);
            for target in targets(line, &module) {
                let target = exports.get(&target).unwrap_or(&target);
                if target == own {
                    continue;
                }
                match floor(target) {
                    Some(floor) if floor >= own_floor => {
                        complaints.push(format!("{at}: `{own}` imports `{target}`, which is not below it"));
                    }
                    Some(_) if PURE.contains(&own.as_str()) && IMPURE_MODULES.contains(&target.as_str()) => {
                        complaints.push(format!("{at}: `{own}` is pure, but imports `{target}`"));
                    }
                    Some(_) => {}
                    None if target.starts_with(char::is_uppercase) => {
                        complaints.push(format!("{at}: import `{target}` from the module that defines it"));
                    }
                    // A macro, or a function that lib.rs defines: nothing else is lower case and no module.
                    None => {}
                }
            }
            if PURE.contains(&own.as_str()) {
                let word = IMPURE_WORDS.iter().find(|word| line.contains(**word));
                complaints.extend(word.map(|word| format!("{at}: `{own}` is pure, but uses `{word}`")));
            }
        }
    }
    complaints
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// src/plan/ring.rs is plan::ring, src/plan/mod.rs is plan, src/lib.rs is nothing.
fn module_path(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix("src").unwrap_or(path).with_extension("");
    let mut parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// Files that only test builds compile.
fn test_files(sources: &[Source]) -> HashSet<PathBuf> {
    let mut files = HashSet::new();
    for source in sources {
        let module: PathBuf = Path::new("src").join(module_path(&source.path).iter().collect::<PathBuf>());
        for name in source.test_modules() {
            files.insert(module.join(&name).with_extension("rs"));
            files.insert(module.join(&name).join("mod.rs"));
        }
    }
    let below = |path: &Path| {
        files.iter().any(|file| file.ends_with("mod.rs") && path.starts_with(file.parent().unwrap_or(file)))
    };
    sources.iter().map(|source| source.path.clone()).filter(|path| files.contains(path) || below(path)).collect()
}

/// The names that `lib.rs` re-exports, with the module each comes from.
fn exports(library: &Source) -> HashMap<String, String> {
    let text = library.code.join(" ");
    let mut names = HashMap::new();
    for statement in text.split("pub use ").skip(1) {
        let statement = statement.split(';').next().unwrap_or_default();
        let path = statement.trim().trim_start_matches("crate::");
        let Some((module, rest)) = path.split_once("::") else { continue };
        for name in
            rest.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| name.starts_with(char::is_uppercase))
        {
            names.insert(name.to_owned(), module.to_owned());
        }
    }
    names
}

/// The first segment behind each `crate::` and behind each chain of `super::` that ends at the root.
fn targets(line: &str, module: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        // Not `$crate::` of a macro's other users, nor a longer word.
        if !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            found.extend(names(&line[at + "crate::".len()..]));
        }
    }
    let mut rest = line;
    while let Some(at) = rest.find("super::") {
        let whole = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let mut climbed = 0;
        rest = &rest[at..];
        while let Some(after) = rest.strip_prefix("super::") {
            climbed += 1;
            rest = after;
        }
        if whole && climbed >= module.len() {
            found.extend(names(rest));
        }
    }
    found
}

/// `a::b` names a; `{a, b::{c, d}}` names a and b.
fn names(path: &str) -> Vec<String> {
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let (mut depth, mut start, mut words) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                words.push(word(&group[start..at]));
                return words.into_iter().filter(|word| !word.is_empty()).collect();
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                words.push(word(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    words.push(word(&group[start..]));
    words.into_iter().filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(files: &[(&str, &str)]) -> Vec<String> {
        check(&files.iter().map(|(path, text)| Source::new(path.into(), text)).collect::<Vec<_>>())
    }

    #[test]
    fn downward_is_fine() {
        let files = [
            ("src/lib.rs", "mod error; pub use error::Error; pub use tensor::{DType, span::Span};"),
            (
                "src/plan/ring.rs",
                "use crate::tensor::Span;\nuse crate::{error::Result, DType, Error};\nuse super::Round;",
            ),
            ("src/handle/mod.rs", "use crate::coordinator::Request; fn f() { crate::os::wake() }"),
        ];
        assert_eq!(complaints(&files), [""; 0]);
    }

    #[test]
    fn upward_and_sideways_are_found_with_their_line() {
        let files = [
            ("src/os/mod.rs", "\nuse crate::{error::Result, handle::Handle};"),
            ("src/plan/mod.rs", "fn f() { crate::device::add() }"),
            ("src/error.rs", "use super::runtime::Kolo;"),
            ("src/tensor/span.rs", "use super::super::engine::Engine;"),
        ];
        assert_eq!(
            complaints(&files),
            [
                "src/os/mod.rs:2: `os` imports `handle`, which is not below it",
                "src/plan/mod.rs:1: `plan` imports `device`, which is not below it",
                "src/error.rs:1: `error` imports `runtime`, which is not below it",
                "src/tensor/span.rs:1: `tensor` imports `engine`, which is not below it",
            ]
        );
    }

    #[test]
    fn what_is_exported_counts_where_it_is_defined() {
        let files =
            [("src/lib.rs", "pub use runtime::Kolo;"), ("src/engine/mod.rs", "use crate::Kolo;\nuse crate::Odd;")];
        let found = complaints(&files);
        assert!(found[0].contains("`engine` imports `runtime`"), "{found:?}");
        assert!(found[1].contains("import `Odd` from the module that defines it"), "{found:?}");
    }

    #[test]
    fn pure_modules_know_no_machine() {
        let files = [("src/coordinator/mod.rs", "use crate::transport::Link;\nlet now = Instant::now();")];
        let found = complaints(&files);
        assert!(
            found[0].contains("is pure, but imports `transport`") && found[1].contains("Instant::now"),
            "{found:?}"
        );
    }

    #[test]
    fn tests_may_climb() {
        let files = [
            ("src/os/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::handle::Handle;\n}\n#[cfg(test)]\nmod more;"),
            ("src/os/more.rs", "use crate::runtime::Kolo;"),
        ];
        assert_eq!(complaints(&files), [""; 0]);
    }

    #[test]
    fn a_new_module_needs_a_floor() {
        assert!(complaints(&[("src/attic.rs", "")])[0].contains("is on no floor"));
    }
}
