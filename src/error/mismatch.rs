//! What ranks asked for when they did not ask for the same, as a table that stays readable for a thousand of them.

use std::fmt;

/// A request field by field: what each is called, and its value. Equal requests have equal fields.
pub(crate) type Fields = Vec<(&'static str, String)>;

/// Different requests that are shown; more are counted.
const VIEWS: usize = 12;
/// Runs of consecutive ranks that stand before one request; more are counted.
const RUNS: usize = 6;

/// What each rank asked for, when they did not ask for the same.
///
/// Shown as a table: one line for all ranks that ask for the same, and only the fields in which they differ.
///
/// ```text
/// 'layer.3/weight': the ranks ask for different things (dtype, shape):
///                   dtype  shape
///   ranks 0-2, 4-7  f32    [512, 64]
///   rank 3          f16    [512, 32]
/// equal on all: allreduce sum, host memory
/// make every rank pass the same; nothing was changed and the job can go on
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// The operation's name (a tensor's name, or "communicator operation 17").
    pub name: String,
    /// Each rank's request in words, by global rank.
    pub views: Vec<(u32, String)>,
    /// The fields of requests, by their words. Words without fields are shown as they are.
    fields: Vec<(String, Fields)>,
}

/// Ranks that ask for the same.
struct Group<'a> {
    ranks: Vec<u32>,
    words: &'a str,
    fields: Option<&'a Fields>,
}

impl Mismatch {
    pub(crate) fn new(name: impl Into<String>, views: Vec<(u32, String)>) -> Self {
        Self { name: name.into(), views, fields: Vec::new() }
    }

    /// Says what the fields of a request are.
    pub(crate) fn explain(&mut self, words: &str, fields: Fields) {
        // Fields that do not tell two requests apart explain nothing.
        if self.fields.iter().all(|(known, of)| known != words && *of != fields) {
            self.fields.push((words.to_owned(), fields));
        }
    }

    /// The fields in which the ranks differ, as the message calls them: `dtype`, `shape`. Empty if the requests are of
    /// kinds that have no fields in common, or some ranks could not ask at all.
    #[must_use]
    pub fn differing(&self) -> Vec<&str> {
        differing(&self.groups())
    }

    /// In the order of their lowest ranks.
    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (rank, words) in &self.views {
            match groups.iter_mut().find(|group| group.words == words) {
                Some(group) => group.ranks.push(*rank),
                None => {
                    let fields = self.fields.iter().find(|(known, _)| known == words).map(|(_, fields)| fields);
                    groups.push(Group { ranks: vec![*rank], words, fields });
                }
            }
        }
        groups
    }
}

fn value<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.iter().find(|(field, _)| *field == name).map_or("-", |(_, value)| value)
}

fn differing<'a>(groups: &[Group<'a>]) -> Vec<&'a str> {
    let explained: Vec<&'a Fields> = groups.iter().filter_map(|group| group.fields).collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in explained.iter().copied().flatten() {
        let differs = explained.iter().any(|fields| value(fields, name) != value(explained[0], name));
        if differs && !names.contains(name) {
            names.push(name);
        }
    }
    names
}

/// What stands behind the ranks of each line: the whole request, or a cell for each field.
enum Row<'a> {
    Words(&'a str),
    Cells(Vec<&'a str>),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.groups();
        let names = differing(&groups);
        let mut rows: Vec<(String, Row<'_>)> = Vec::new();
        if names.is_empty() {
            writeln!(f, "'{}': the ranks ask for different things:", self.name)?;
        } else {
            writeln!(f, "'{}': the ranks ask for different things ({}):", self.name, names.join(", "))?;
            rows.push((String::new(), Row::Cells(names.clone())));
        }
        for group in groups.iter().take(VIEWS) {
            let row = match group.fields.filter(|_| !names.is_empty()) {
                Some(fields) => Row::Cells(names.iter().map(|name| value(fields, name)).collect()),
                None => Row::Words(group.words),
            };
            let end = if names.is_empty() { ":" } else { " " };
            rows.push((ranks_in_words(&group.ranks) + end, row));
        }
        write_rows(f, &rows)?;
        if groups.len() > VIEWS {
            let more: Vec<u32> = groups[VIEWS..].iter().flat_map(|group| &group.ranks).copied().collect();
            writeln!(f, "  and {} more requests, of {} ranks", groups.len() - VIEWS, more.len())?;
        }
        if let Some(fields) = groups.iter().find_map(|group| group.fields).filter(|_| !names.is_empty()) {
            let equal = fields.iter().filter(|(name, _)| !names.contains(name)).map(|(_, value)| value.as_str());
            let equal: Vec<&str> = equal.collect();
            if !equal.is_empty() {
                writeln!(f, "equal on all: {}", equal.join(", "))?;
            }
        }
        write!(f, "make every rank pass the same; nothing was changed and the job can go on")
    }
}

fn write_rows(f: &mut fmt::Formatter<'_>, rows: &[(String, Row<'_>)]) -> fmt::Result {
    let wide = |text: &str| text.chars().count();
    let label = rows.iter().map(|(label, _)| wide(label)).max().unwrap_or(0);
    let mut widths: Vec<usize> = Vec::new();
    for (_, row) in rows {
        let Row::Cells(cells) = row else { continue };
        widths.resize(cells.len().max(widths.len()), 0);
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = wide(cell).max(*width);
        }
    }
    for (ranks, row) in rows {
        let text = match row {
            Row::Words(words) => (*words).to_owned(),
            Row::Cells(cells) => {
                let padded = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
                padded.collect::<Vec<_>>().join("  ")
            }
        };
        writeln!(f, "{}", format!("  {ranks:<label$} {text}").trim_end())?;
    }
    Ok(())
}

/// Ranks as words, ascending: `rank 3`, `ranks 0-2, 7`. Of many runs only the first, and how many ranks follow.
pub(crate) fn ranks_in_words(ranks: &[u32]) -> String {
    let runs: Vec<&[u32]> = ranks.chunk_by(|a, b| a + 1 == *b).collect();
    // One more run takes no more room than saying that there is one.
    let shown = if runs.len() > RUNS + 1 { RUNS } else { runs.len() };
    let mut words: Vec<String> = runs[..shown]
        .iter()
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            run => run.iter().map(u32::to_string).collect(),
        })
        .collect();
    if shown < runs.len() {
        words.push(format!("and {} more", runs[shown..].iter().map(|run| run.len()).sum::<usize>()));
    }
    format!("rank{} {}", if ranks.len() == 1 { "" } else { "s" }, words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(dtype: &str, shape: &str) -> (String, Fields) {
        let fields = [("operation", "allreduce sum"), ("dtype", dtype), ("shape", shape), ("memory", "host memory")];
        let fields = fields.map(|(name, value)| (name, value.to_owned())).to_vec();
        (format!("allreduce sum of {dtype}{shape} in host memory"), fields)
    }

    fn mismatch(views: impl IntoIterator<Item = (String, Option<Fields>)>) -> Mismatch {
        let views: Vec<_> = views.into_iter().collect();
        let words = (0..).zip(views.iter().map(|(words, _)| words.clone())).collect();
        let mut mismatch = Mismatch::new("x", words);
        for (words, fields) in views {
            if let Some(fields) = fields {
                mismatch.explain(&words, fields);
            }
        }
        mismatch
    }

    fn explained((words, fields): (String, Fields)) -> (String, Option<Fields>) {
        (words, Some(fields))
    }

    #[test]
    fn ranks_with_one_request_share_a_line_and_only_differences_have_columns() {
        let views = (0..8).map(|rank| explained(request(if rank == 3 { "f16" } else { "f32" }, "[512, 64]")));
        let mut views: Vec<_> = views.collect();
        views[7] = explained(request("f32", "[1]"));
        let mismatch = mismatch(views);
        assert_eq!(mismatch.differing(), ["dtype", "shape"]);
        assert_eq!(
            mismatch.to_string(),
            "'x': the ranks ask for different things (dtype, shape):\
            \n                  dtype  shape\
            \n  ranks 0-2, 4-6  f32    [512, 64]\
            \n  rank 3          f16    [512, 64]\
            \n  rank 7          f32    [1]\
            \nequal on all: allreduce sum, host memory\
            \nmake every rank pass the same; nothing was changed and the job can go on"
        );
    }

    #[test]
    fn what_has_no_fields_is_shown_in_words() {
        let refused = ("refused there: no such root".to_owned(), None);
        let first = mismatch([explained(request("f32", "[4]")), refused.clone(), explained(request("f32", "[4]"))]);
        assert_eq!(first.differing(), [""; 0]);
        assert!(first.to_string().contains(
            "different things:\n  ranks 0, 2: allreduce sum of f32[4] in host memory\
            \n  rank 1:     refused there: no such root\nmake"
        ));
        let both = mismatch([explained(request("f32", "[4]")), refused, explained(request("f64", "[4]"))]);
        let text = both.to_string();
        assert!(
            text.contains("(dtype):\n          dtype\n  rank 0  f32\n  rank 1  refused there: no such root\n"),
            "{text}"
        );
    }

    #[test]
    fn a_field_that_only_some_have_differs() {
        let (words, mut fields) = request("f32", "[4]");
        fields.push(("prescale", "2".to_owned()));
        let mismatch = mismatch([explained(request("f32", "[4]")), (words + ", prescale 2", Some(fields))]);
        assert_eq!(mismatch.differing(), ["prescale"]);
        assert!(mismatch.to_string().contains("  rank 0  -\n  rank 1  2\n"), "{mismatch}");
    }

    #[test]
    fn a_thousand_ranks_stay_readable() {
        let all_differ = mismatch((0..1000).map(|rank| explained(request("f32", &format!("[{rank}]")))));
        let text = all_differ.to_string();
        assert!(text.lines().count() < 20 && text.len() < 1000, "{text}");
        assert!(text.contains("  and 988 more requests, of 988 ranks\n"), "{text}");
        let every_third =
            mismatch((0..1000).map(|rank| explained(request("f32", if rank % 3 == 0 { "[1]" } else { "[2]" }))));
        let text = every_third.to_string();
        assert!(text.lines().count() == 6 && text.len() < 500, "{text}");
        assert!(text.contains("  ranks 0, 3, 6, 9, 12, 15, and 328 more                  [1]\n"), "{text}");
    }

    #[test]
    fn runs_of_ranks_are_ranges() {
        assert_eq!(ranks_in_words(&[4]), "rank 4");
        assert_eq!(ranks_in_words(&[0, 1, 2, 5, 8, 9]), "ranks 0-2, 5, 8-9");
        assert_eq!(ranks_in_words(&[0, 2, 4, 6, 8, 10, 12]), "ranks 0, 2, 4, 6, 8, 10, 12");
        assert_eq!(ranks_in_words(&[0, 2, 4, 6, 8, 10, 12, 14, 15]), "ranks 0, 2, 4, 6, 8, 10, and 3 more");
    }
}
