//! Unsafe code stands in few places, and each site says why it is sound.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Context;
use super::source::{self, Source};

/// Where unsafe code may stand. The documented raw entries elsewhere carry an `allow` of their own with its reason.
const ALLOWED: &[&str] =
    &["src/os", "src/transport", "src/device", "src/engine", "src/tensor", "src/integrations", "emulator"];

const DIRECTORIES: &[&str] = &["src", "bench", "emulator", "xtask", "tests", "examples"];

/// How far above a site its reason may begin.
const REACH: usize = 12;

pub(crate) fn run(context: &Context) -> Result<()> {
    let mut complaints = Vec::new();
    for directory in DIRECTORIES {
        for source in source::read_all(directory)? {
            let (sites, found) = check(&source);
            context.count(sites);
            complaints.extend(found);
        }
    }
    ensure!(complaints.is_empty(), "unsafe code:\n  {}", complaints.join("\n  "));
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Site {
    /// A block or an impl: `// SAFETY:` stands above it.
    Proof,
    /// A function or a trait: its documentation has a `# Safety` section.
    Contract,
}

fn check(source: &Source) -> (u64, Vec<String>) {
    let mut complaints = Vec::new();
    let mut sites = 0;
    let granted = source
        .code
        .iter()
        .zip(&source.lines)
        .any(|(code, line)| code.contains("allow(unsafe_code") && line.contains("reason"));
    for number in 0..source.code.len() {
        let Some(site) = site(&source.code[number..]) else { continue };
        sites += 1;
        let at = source.at(number);
        if !allowed(&source.path) && !granted {
            complaints.push(format!("{at}: unsafe code belongs into {}", ALLOWED.join(", ")));
        }
        if !explained(source, number, site) {
            let wanted = if site == Site::Proof { "`// SAFETY:` above it" } else { "a `# Safety` section" };
            complaints.push(format!("{at}: lacks {wanted}: say which invariant holds, and who upholds it"));
        }
    }
    (sites, complaints)
}

fn allowed(path: &Path) -> bool {
    ALLOWED.iter().any(|allowed| path.starts_with(allowed) || path.with_extension("") == Path::new(allowed))
}

/// What the unsafe code on this line is, if there is any. `below` are the lines from this one on.
fn site(below: &[String]) -> Option<Site> {
    let code = &below[0];
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let word =
        |at: usize| !code[..at].ends_with(part_of_word) && !code[at + "unsafe".len()..].starts_with(part_of_word);
    let at = code.match_indices("unsafe").map(|(at, _)| at).find(|&at| word(at))?;
    let rest = code[at + "unsafe".len()..].trim_start();
    // An attribute or a lint's name.
    if rest.starts_with(['(', ')', ',']) {
        return None;
    }
    // Texts are blanked, so `extern "C"` has lost its ABI.
    let rest = match rest.strip_prefix("extern").map(str::trim_start) {
        Some(rest) if rest.starts_with('{') => return None,
        Some(rest) => rest,
        None => rest,
    };
    if rest.starts_with("fn(") {
        return None;
    }
    if rest.starts_with("trait ") {
        return Some(Site::Contract);
    }
    if rest.starts_with("fn ") {
        return has_body(below).then_some(Site::Contract);
    }
    Some(Site::Proof)
}

/// Whether the function that begins here is defined, not only declared: a foreign function has the contract of its library.
fn has_body(below: &[String]) -> bool {
    let mut depth = 0_i32;
    for c in below.iter().flat_map(|line| line.chars()) {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' if depth == 0 => return true,
            ';' if depth == 0 => return false,
            _ => {}
        }
    }
    false
}

/// Looks for the reason above line `number`, up to the end of the item before.
fn explained(source: &Source, number: usize, site: Site) -> bool {
    let wanted = if site == Site::Proof { "SAFETY:" } else { "# Safety" };
    // The reason may also stand inside, or at the end of the line.
    if site == Site::Proof && source.lines[number..].iter().take(2).any(|line| line.contains(wanted)) {
        return true;
    }
    let above = source.lines[..number].iter().rev();
    if site == Site::Proof {
        return above.take(REACH).any(|line| line.contains(wanted));
    }
    let documentation = above.take_while(|line| {
        let line = line.trim();
        line.starts_with("//") || line.starts_with("#[") || line.starts_with(']') || line.ends_with(',')
    });
    // A method of an unsafe trait's implementation, or a foreign function, inherits its contract: clippy checks the rest.
    documentation.into_iter().any(|line| line.contains(wanted) || line.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(path: &str, text: &str) -> (u64, Vec<String>) {
        check(&Source::new(path.into(), text))
    }

    #[test]
    fn a_site_with_its_reason_passes() {
        let text = "// SAFETY: `len` bytes were mapped above.\nlet x = unsafe { f() };\n\
                    /// Reads.\n///\n/// # Safety\n/// `p` is valid.\n#[inline]\npub(crate) unsafe fn g(p: *const u8) {}\n\
                    // SAFETY: no interior.\nunsafe impl Send for X {}\n";
        assert_eq!(check_text("src/os/memory.rs", text), (3, vec![]));
    }

    #[test]
    fn a_site_without_is_found() {
        let (sites, found) = check_text("src/os/memory.rs", "\nlet x = unsafe { f() };\n");
        assert_eq!(sites, 1);
        assert!(found[0].starts_with("src/os/memory.rs:2: lacks `// SAFETY:`"), "{found:?}");
        assert!(check_text("src/os/x.rs", "pub unsafe fn g() {}").1[0].contains("# Safety"));
    }

    #[test]
    fn a_site_in_the_wrong_place_is_found() {
        let text = "// SAFETY: x\nunsafe { f() }";
        assert!(check_text("src/plan/ring.rs", text).1[0].contains("belongs into"));
        let granted = format!("#[allow(unsafe_code, reason = \"the raw entry\")]\n{text}");
        assert_eq!(check_text("src/handle/raw.rs", &granted), (1, vec![]));
    }

    #[test]
    fn words_are_no_sites() {
        let text = "#![deny(unsafe_code)]\n#[unsafe(no_mangle)]\n// unsafe {\nmod unsafety;\nlet unsafe_one = \"unsafe {\";\nf: unsafe fn(u8),\n\
                    unsafe extern \"C\" {\n    pub unsafe fn g(x: [u8; 2]);\n}\ntype F = unsafe extern \"C\" fn(u8);\n";
        assert_eq!(check_text("src/plan/mod.rs", text), (0, vec![]));
    }
}
