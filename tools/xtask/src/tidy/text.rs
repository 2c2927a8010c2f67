//! Characters, columns and titles.

use super::{File, Finding};

/// Columns of a line of source.
const COLUMNS_MAX: usize = 120;

/// ASCII only, no blanks at the end of a line, one newline at the end of the file.
pub(super) fn check_characters(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        if let Some(other) = line.chars().find(|c| !c.is_ascii()) {
            found.push(Finding::new(file, index + 1, format!("write ASCII, not {other:?}")));
        }
        if line.ends_with([' ', '\t', '\r']) {
            found.push(Finding::new(file, index + 1, "drop the blanks at the end"));
        }
    }
    let newlines = file.text.len() - file.text.trim_end_matches('\n').len();
    if !file.text.is_empty() && newlines != 1 {
        found.push(Finding::new(file, 0, "end the file with one newline"));
    }
    found
}

/// Lines of source fit the column limit; prose and tables of Markdown may run on.
pub(super) fn check_columns(file: &File) -> Vec<Finding> {
    if ![".rs", ".toml", ".proto", ".sh", ".py"].iter().any(|end| file.path.ends_with(end)) {
        return Vec::new();
    }
    let lines = file.text.lines().enumerate();
    let long = lines.filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
    long.map(|(index, _)| Finding::new(file, index + 1, format!("wrap at {COLUMNS_MAX} columns"))).collect()
}

/// A Markdown file has one title, on its first line.
pub(super) fn check_markdown_title(file: &File) -> Vec<Finding> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let mut titles = Vec::new();
    let mut fenced = false;
    for (index, line) in file.text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if !fenced && line.starts_with("# ") {
            titles.push(index + 1);
        }
    }
    match titles.as_slice() {
        [1] => Vec::new(),
        [] => vec![Finding::new(file, 1, "open the page with a `# ` title")],
        [1, second, ..] => vec![Finding::new(file, *second, "one title a page: make this a `## ` section")],
        [first, ..] => vec![Finding::new(file, *first, "the title stands on the first line")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters() {
        let lines = |text: &str| check_characters(&File::new("a.rs", text)).iter().map(|f| f.line).collect::<Vec<_>>();
        assert_eq!(lines("a\nb\n"), [0; 0]);
        assert_eq!(lines(""), [0; 0]);
        assert_eq!(lines("a\n\u{2014}\n"), [2]);
        assert_eq!(lines("a \nb\n"), [1]);
        assert_eq!(lines("a\r\nb\n"), [0; 0], "lines() drops the carriage return; rustfmt rejects it");
        assert_eq!(lines("a"), [0]);
        assert_eq!(lines("a\n\n"), [0]);
    }

    #[test]
    fn columns() {
        let line = "x".repeat(COLUMNS_MAX);
        assert!(check_columns(&File::new("a.rs", line.clone())).is_empty());
        assert_eq!(check_columns(&File::new("a.rs", format!("{line}x"))).len(), 1);
        assert!(check_columns(&File::new("a.md", format!("{line}x"))).is_empty());
    }

    #[test]
    fn titles() {
        let lines =
            |text: &str| check_markdown_title(&File::new("a.md", text)).iter().map(|f| f.line).collect::<Vec<_>>();
        assert_eq!(lines("# A\n\n## B\n```\n# comment\n```\n"), [0; 0]);
        assert_eq!(lines("## A\n"), [1]);
        assert_eq!(lines("# A\n\n# B\n"), [3]);
        assert_eq!(lines("\n# A\n"), [2]);
    }
}
