//! What the emulator reads in PTX: which kernels there are, the sizes of their parameters, and whether their threads wait
//! for each other. The instructions themselves are never run.

/// A module's text, as far as it matters.
#[derive(Debug, PartialEq)]
pub(crate) struct Text {
    /// `.version`, as (8, 1).
    pub(crate) version: (u32, u32),
    /// `.target`, as 70.
    pub(crate) target: u32,
    pub(crate) entries: Vec<Entry>,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Bytes of each parameter.
    pub(crate) parameters: Vec<usize>,
    /// Threads a block at most, if the kernel says so.
    pub(crate) max_threads: Option<u32>,
    pub(crate) waits: Waits,
}

/// How the threads of a kernel depend on each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Waits {
    /// They do not: they may run one after the other.
    #[default]
    Never,
    /// Threads of a block wait for each other.
    InBlock,
    /// A thread may wait for any other, of another block, launch or process.
    Anywhere,
}

/// The beginnings of instructions by which threads of a block meet.
const MEETINGS: &[&str] = &["bar.", "barrier.", "shfl.", "vote.", "match.", "redux.", "activemask"];
/// Those by which a thread looks for what others write, and calls, behind which anything may be.
const LOOKS: &[&str] = &["ld.acquire", "ld.volatile", "ld.relaxed", "nanosleep", "call"];

/// Reads a module. What is wrong is said in words.
pub(crate) fn parse(text: &str) -> Result<Text, String> {
    let text = without_comments(text);
    let version = directive(&text, ".version").ok_or("it has no .version")?;
    let version = version.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let target = directive(&text, ".target").ok_or("it has no .target")?;
    let number = |target: &str| target.strip_prefix("sm_")?.trim_end_matches(char::is_alphabetic).parse().ok();
    let mut entries = Vec::new();
    let mut rest = text.as_str();
    while let Some(at) = find_word(rest, ".entry") {
        rest = &rest[at + ".entry".len()..];
        let end = body_end(rest).ok_or("a kernel has no end")?;
        entries.push(entry(&rest[..end])?);
        rest = &rest[end..];
    }
    Ok(Text {
        version: version.ok_or("its .version is no number")?,
        target: number(target).ok_or_else(|| format!("its .target is {target}"))?,
        entries,
    })
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else {
            out.push('/');
            1
        };
        rest = &rest[skipped..];
    }
    out + rest
}

/// The word behind a directive.
fn directive<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = &text[find_word(text, name)? + name.len()..];
    rest.split(|c: char| c.is_whitespace() || c == ',').find(|word| !word.is_empty())
}

fn find_word(text: &str, word: &str) -> Option<usize> {
    let ends = |at: usize| text[at + word.len()..].starts_with(char::is_whitespace);
    text.match_indices(word).map(|(at, _)| at).find(|&at| ends(at))
}

/// Where the body ends that begins with the first brace.
fn body_end(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn entry(text: &str) -> Result<Entry, String> {
    let (head, body) = text.split_once('{').ok_or("a kernel has no body")?;
    let (name, list) = head.split_once('(').unwrap_or((head, ""));
    let name = name.trim().to_owned();
    let (list, tuning) = list.split_once(')').unwrap_or((list, head));
    let parameters = list.split(',').filter(|parameter| !parameter.trim().is_empty()).map(parameter);
    let parameters = parameters.collect::<Option<Vec<usize>>>();
    let threads = |text: &str| text.split(',').map(|word| word.trim().parse::<u32>().ok()).product::<Option<u32>>();
    let max_threads = ["\n.maxntid", " .maxntid", "\n.reqntid", " .reqntid"].iter().find_map(|directive| {
        let (_, rest) = tuning.split_once(directive)?;
        threads(rest.trim_start().split(['\n', '.']).next()?)
    });
    Ok(Entry {
        parameters: parameters.ok_or_else(|| format!("the parameters of {name} cannot be read"))?,
        name,
        max_threads,
        waits: waits(body),
    })
}

/// Bytes of `.param .u64 name` or `.param .align 8 .b8 name[144]`.
fn parameter(text: &str) -> Option<usize> {
    // ".u64", ".b8", ".f32": the only words of letters and digits behind a dot.
    let bits: usize = text
        .split_whitespace()
        .filter(|word| word.starts_with('.'))
        .find_map(|word| word.trim_start_matches(|c: char| c.is_ascii_alphabetic() || c == '.').parse().ok())?;
    let count = match text.split_once('[') {
        Some((_, count)) => count.trim_end().trim_end_matches(']').parse().ok()?,
        None => 1,
    };
    Some(bits / 8 * count)
}

fn waits(body: &str) -> Waits {
    let instruction = |line: &str| {
        // A predicate may stand before it.
        let line = line.trim_start().trim_start_matches(|c: char| c == '{' || c.is_whitespace());
        let line = if line.starts_with('@') {
            line.split_once(char::is_whitespace).map_or("", |(_, rest)| rest)
        } else {
            line
        };
        let starts = |list: &[&str]| list.iter().any(|word| line.trim_start().starts_with(word));
        match (starts(LOOKS), starts(MEETINGS)) {
            (true, _) => Waits::Anywhere,
            (_, true) => Waits::InBlock,
            _ => Waits::Never,
        }
    };
    body.split([';', '\n']).map(instruction).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "//\n// Generated by a compiler\n//\n.version 8.1\n.target sm_70\n.address_size 64\n\
        .visible .entry kolo_one(\n\t.param .u64 kolo_one_param_0,\n\t.param .align 8 .b8 kolo_one_param_1[144],\n\
        \t.param .f32 kolo_one_param_2\n)\n.maxntid 256, 1, 1\n{\n\t.reg .b32 %r<3>;\n\tbarrier.sync \t0;\n\t{ mov.u32 %r1, %r2; }\n\tret;\n}\n\
        .visible .entry kolo_two()\n{\n\tret; /* bar.sync 0; } */\n}\n\
        .visible .entry kolo_three(\n\t.param .u8 kolo_three_param_0\n)\n{\n$L:\n\t@%p1 ld.acquire.sys.global.u32 %r1, [%rd1];\n\tret;\n\n}\n";

    #[test]
    fn a_module_is_read() {
        let text = parse(MODULE).unwrap();
        assert_eq!((text.version, text.target), ((8, 1), 70));
        let entry = |name: &str, parameters: &[usize], max_threads, waits| Entry {
            name: name.into(),
            parameters: parameters.to_vec(),
            max_threads,
            waits,
        };
        let expected = [
            entry("kolo_one", &[8, 144, 4], Some(256), Waits::InBlock),
            entry("kolo_two", &[], None, Waits::Never),
            entry("kolo_three", &[1], None, Waits::Anywhere),
        ];
        assert_eq!(text.entries, expected);
    }

    #[test]
    fn what_is_no_module_is_said() {
        assert!(parse("hello").unwrap_err().contains(".version"));
        assert!(parse(".version 8.1\n").unwrap_err().contains(".target"));
        assert!(parse(".version 8.1\n.target sm_70\n.visible .entry f(\n.param .u64 a\n)\n{ ret;").is_err());
        assert!(parse(".version 8.1\n.target sm_70\n.visible .entry f(\n.param .texref a\n)\n{ ret; }").is_err());
    }

    #[test]
    fn how_threads_wait_is_seen_in_instructions_alone() {
        assert_eq!(waits("\tshfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;"), Waits::InBlock);
        assert_eq!(waits("\tmov.u32 %bar.x, 1;\n\t.reg .b32 call1;"), Waits::Never);
        assert_eq!(waits("\t{call.uni (x), f, (y);}"), Waits::Anywhere);
    }
}
