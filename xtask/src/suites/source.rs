//! Rust source as the checks of this crate see it: lines of code without their comments and texts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::root;

/// One source file.
pub(crate) struct Source {
    /// Relative to the root of the repository.
    pub(crate) path: PathBuf,
    /// The lines as they stand.
    pub(crate) lines: Vec<String>,
    /// The same lines, with comments and the insides of string and character literals blanked out.
    pub(crate) code: Vec<String>,
}

impl Source {
    pub(crate) fn new(path: PathBuf, text: &str) -> Self {
        let owned = |text: &str| text.lines().map(str::to_owned).collect();
        Self { path, lines: owned(text), code: owned(&blank(text)) }
    }

    /// "src/plan/ring.rs:12", as editors like it.
    pub(crate) fn at(&self, line: usize) -> String {
        format!("{}:{}", self.path.display(), line + 1)
    }

    /// For each line, whether only test builds compile it.
    pub(crate) fn in_tests(&self) -> Vec<bool> {
        let mut flags = vec![false; self.code.len()];
        let mut line = 0;
        while line < self.code.len() {
            if !is_test_attribute(&self.code[line]) {
                line += 1;
                continue;
            }
            let end = item_end(&self.code, line);
            flags[line..=end].fill(true);
            line = end + 1;
        }
        flags
    }

    /// The names in `#[cfg(test)] mod name;`: their files hold only tests.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        let flags = self.in_tests();
        let lines = self.code.iter().zip(flags).filter(|(_, test)| *test);
        lines.filter_map(|(line, _)| Some(module_word(line)?.strip_suffix(';')?.to_owned())).collect()
    }
}

fn module_word(line: &str) -> Option<&str> {
    let (_, rest) = line.trim().split_once("mod ")?;
    rest.split_whitespace().next()
}

fn is_test_attribute(line: &str) -> bool {
    let line = line.trim();
    let Some(condition) = line.strip_prefix("#[cfg(") else { return false };
    let condition = condition.replace("not(test)", "");
    condition.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "test")
}

/// The last line of the item that the attribute on line `start` belongs to: where its braces close, or at a `;` before any.
fn item_end(code: &[String], start: usize) -> usize {
    let mut depth = 0_i32;
    for (number, line) in code.iter().enumerate().skip(start) {
        let text = if number == start { line.split_once(']').map_or("", |(_, rest)| rest) } else { line };
        for c in text.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if (c == '}' && depth <= 0) || (c == ';' && depth == 0) {
                return number;
            }
        }
    }
    code.len() - 1
}

/// All Rust files below `directory`, sorted by path.
pub(crate) fn read_all(directory: &str) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    collect(&root().join(directory), &mut paths)?;
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let path = path.strip_prefix(root()).map(Path::to_owned).unwrap_or(path);
        Ok(Source::new(path, &text))
    };
    paths.into_iter().map(read).collect()
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}

/// Blanks comments and literals; keeps every line break, so that line numbers stay.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut word = false;
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            'r' | 'b' if !word => raw_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if skipped > 0 {
            out.extend(rest[..skipped].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[skipped..];
            word = false;
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            word = c.is_alphanumeric() || c == '_';
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn string(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `r"..", r#".."#, b"..", br#".."#`; 0 where the letter begins a word.
fn raw_string(text: &str) -> usize {
    let prefix = text.find(['"', '#', '\'']).unwrap_or(0);
    if !matches!(&text[..prefix], "r" | "b" | "br") {
        return 0;
    }
    if !text[..prefix].ends_with('r') {
        let rest = &text[prefix..];
        return if rest.starts_with('"') { prefix + string(rest) } else { 0 };
    }
    let hashes = text[prefix..].bytes().take_while(|&byte| byte == b'#').count();
    let open = prefix + hashes;
    if text.as_bytes().get(open) != Some(&b'"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    text[open + 1..].find(&close).map_or(text.len(), |at| open + 1 + at + close.len())
}

/// A character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 3),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        Source::new("src/x.rs".into(), text).code.iter().map(|line| line.trim_end().to_owned()).collect()
    }

    #[test]
    fn comments_and_texts_are_blank() {
        assert_eq!(code("a(); // crate::b\nc();"), ["a();", "c();"]);
        assert_eq!(code("/* x /* y */ z */ a();"), ["                  a();"]);
        assert_eq!(code(r#"a("crate::b \" x", c);"#), ["a(               , c);"]);
        assert_eq!(code("a(r#\"x \" y\"#, b);"), ["a(          , b);"]);
        assert_eq!(code("a(b\"x\", 'y', '\\'', '\"');"), ["a(    ,    ,     ,    );"]);
        assert_eq!(code("\"two\nlines\" b"), ["", "       b"]);
    }

    #[test]
    fn words_that_begin_like_literals_are_kept() {
        let text = "for r in b { bar(r, 'a: loop {}) } fn f<'b>(x: &'b u8) {} r#type();";
        assert_eq!(code(text), [text]);
    }

    #[test]
    fn test_code_is_known() {
        let text = "use a;\n#[cfg(test)]\nmod tests {\n    fn f() {}\n}\nfn g() {}\n#[cfg(all(test, x))]\nuse b;\n\
                    #[cfg(not(test))]\nuse c;\n#[cfg(test)] mod more;\nuse d;\n";
        let source = Source::new("src/x.rs".into(), text);
        let numbers: Vec<_> =
            source.in_tests().iter().enumerate().filter(|(_, test)| **test).map(|(at, _)| at).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 6, 7, 10]);
        assert_eq!(source.test_modules(), ["more"]);
    }
}
