//! Do the ranks train the same model?
//!
//! Every rank writes its view as lines: the settings first, then a line a parameter. Ranks first compare a digest; only if
//! one differs do they exchange the lines, and every rank then finds the same first difference. Both exchanges are named
//! sums in which each rank fills the row of its own and leaves the others zero: a gather that needs no order of calls.

use sha2::{Digest, Sha256};

use crate::{Error, Kolo, Mismatch, ReduceOp, Result};

/// Words of a rank's row: four of digest, one for the length of its lines in bytes.
const ROW: usize = 5;

/// Compares the views of all ranks. `view` is this rank's lines, or why it cannot take part.
///
/// A rank with an error returns that error; its peers, and all ranks that differ, return what differs.
pub(crate) fn verify(kolo: &Kolo, prefix: &str, view: Result<Vec<String>>) -> Result<()> {
    let (lines, own_error) = match view {
        Ok(lines) => (lines, None),
        Err(error) => (vec![format!("{REFUSES}{error}")], Some(error)),
    };
    let text = lines.join("\n");
    let (rank, size) = (kolo.rank(), kolo.size());

    let mut rows = vec![0_u64; ROW * size];
    let own = &mut rows[ROW * rank..][..ROW];
    for (word, bytes) in own.iter_mut().zip(Sha256::digest(&text).chunks_exact(8)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    own[ROW - 1] = text.len() as u64;
    kolo.allreduce(&format!("{prefix}:model"), &mut rows, ReduceOp::Sum)?;

    let all_equal = rows.chunks_exact(ROW).all(|row| row == &rows[..ROW]);
    let difference = if all_equal { None } else { first_difference(prefix, &exchange(kolo, prefix, &text, &rows)?) };
    match (own_error, difference) {
        (Some(error), _) => Err(error),
        (None, Some(mismatch)) => Err(Error::Mismatch(mismatch.into())),
        (None, None) => Ok(()),
    }
}

/// Every rank's lines, by rank.
fn exchange(kolo: &Kolo, prefix: &str, text: &str, rows: &[u64]) -> Result<Vec<Vec<String>>> {
    let lengths = || rows.chunks_exact(ROW).map(|row| row[ROW - 1] as usize);
    let width = lengths().max().unwrap_or(0);
    let mut bytes = vec![0_u8; width * kolo.size()];
    bytes[width * kolo.rank()..][..text.len()].copy_from_slice(text.as_bytes());
    kolo.allreduce(&format!("{prefix}:model:views"), &mut bytes, ReduceOp::Sum)?;
    let lines = |(row, length): (&[u8], usize)| {
        String::from_utf8_lossy(&row[..length]).split('\n').map(str::to_owned).collect()
    };
    Ok(bytes.chunks_exact(width.max(1)).zip(lengths()).map(lines).collect())
}

/// Opens the only line of a rank that cannot take part.
const REFUSES: &str = "cannot build its optimizer: ";

/// One line of a view: name, type and shape of a parameter. Names are escaped, so that a line stays a line.
pub(crate) fn parameter_line(name: &str, dtype: crate::DType, shape: &[usize]) -> String {
    format!("{name:?} {dtype} {shape:?}")
}

/// The first line in which a rank differs from rank 0, as every rank sees it.
fn first_difference(prefix: &str, views: &[Vec<String>]) -> Option<Mismatch> {
    let first = views.first()?;
    let differs = |line: usize| views.iter().any(|view| view.get(line) != first.get(line));
    let longest = views.iter().map(Vec::len).max()?;
    let line = (0..longest).find(|&line| differs(line))?;
    if line == 0 {
        let view = |view: &Vec<String>| view[0].clone();
        return Some(mismatch(format!("{prefix}: settings of the optimizer"), views.iter().map(view)));
    }
    let describe = |view: &Vec<String>| {
        let other = views.iter().find_map(|other| other.get(line).filter(|&other| view.get(line) != Some(other)));
        describe_parameter(view, line, other)
    };
    Some(mismatch(format!("{prefix}: parameter {} of the model", line - 1), views.iter().map(describe)))
}

/// A rank's parameter at `line`; where another rank's there has another name, also what this rank knows of that name.
fn describe_parameter(view: &[String], line: usize, other: Option<&String>) -> String {
    let own = match view.get(line) {
        Some(own) => own.clone(),
        None => format!("none, its model has {}", view.len() - 1),
    };
    let Some(other) = other.map(|other| name_of(other)) else { return own };
    if view.get(line).is_some_and(|own| name_of(own) == other) {
        return own;
    }
    match view.iter().skip(1).position(|own| name_of(own) == other) {
        Some(place) => format!("{own} ({other} is its parameter {place})"),
        None => format!("{own} (it has no {other})"),
    }
}

/// The quoted name that opens a parameter's line: what follows it holds no quote.
fn name_of(line: &str) -> &str {
    line.rfind('"').map_or(line, |end| &line[..=end])
}

fn mismatch(name: String, views: impl Iterator<Item = String>) -> Mismatch {
    Mismatch::new(name, (0..).zip(views).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn view(parameters: &[(&str, &[usize])]) -> Vec<String> {
        let lines = parameters.iter().map(|(name, shape)| parameter_line(name, DType::F32, shape));
        std::iter::once("f32, average".to_owned()).chain(lines).collect()
    }

    fn difference(views: &[Vec<String>]) -> String {
        first_difference("gradient", views).expect("a difference").to_string()
    }

    #[test]
    fn equal_views_do_not_differ() {
        let views = [view(&[("a", &[1])]), view(&[("a", &[1])])];
        assert_eq!(first_difference("gradient", &views), None);
        assert_eq!(first_difference("gradient", &[]), None);
    }

    #[test]
    fn another_shape_is_shown_with_every_view() {
        let same = view(&[("a", &[1]), ("b", &[3, 3])]);
        let text = difference(&[same.clone(), same, view(&[("a", &[1]), ("b", &[5, 5])])]);
        assert!(text.contains("parameter 1 of the model"), "{text}");
        assert!(text.contains("  ranks 0-1: \"b\" f32 [3, 3]\n"), "{text}");
        assert!(text.contains("  rank 2:    \"b\" f32 [5, 5]\n"), "{text}");
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let text = difference(&[view(&[("a", &[1]), ("b", &[2]), ("c", &[3])]), view(&[("a", &[1]), ("c", &[3])])]);
        assert!(text.contains("rank 0: \"b\" f32 [2] (\"c\" is its parameter 2)\n"), "{text}");
        assert!(text.contains("rank 1: \"c\" f32 [3] (it has no \"b\")\n"), "{text}");
    }

    #[test]
    fn a_missing_last_parameter_is_named() {
        let text = difference(&[view(&[("a", &[1])]), view(&[("a", &[1]), ("b", &[2])])]);
        assert!(text.contains("rank 0: none, its model has 1 (it has no \"b\")\n"), "{text}");
        assert!(text.contains("rank 1: \"b\" f32 [2]\n"), "{text}");
    }

    #[test]
    fn another_order_is_shown_as_such() {
        let text = difference(&[view(&[("a", &[1]), ("b", &[2])]), view(&[("b", &[2]), ("a", &[1])])]);
        assert!(text.contains("parameter 0 of the model"), "{text}");
        assert!(text.contains("rank 0: \"a\" f32 [1] (\"b\" is its parameter 1)\n"), "{text}");
        assert!(text.contains("rank 1: \"b\" f32 [2] (\"a\" is its parameter 1)\n"), "{text}");
    }

    #[test]
    fn other_settings_come_before_other_parameters() {
        let mut other = view(&[("b", &[1])]);
        other[0] = "f32, sum".to_owned();
        let text = difference(&[view(&[("a", &[1])]), other]);
        assert!(text.contains("settings of the optimizer"), "{text}");
        assert!(text.contains("rank 0: f32, average\n") && text.contains("rank 1: f32, sum\n"), "{text}");
    }

    #[test]
    fn names_with_quotes_and_line_breaks_stay_one_line() {
        let line = parameter_line("a \"b\"\n", DType::F64, &[2]);
        assert_eq!(line, "\"a \\\"b\\\"\\n\" f64 [2]");
        assert_eq!(name_of(&line), "\"a \\\"b\\\"\\n\"");
    }
}
