//! `cargo xtask tidy`: house rules that neither rustc nor clippy knows.
//!
//! Owns: the list of files that count (everything git tracks or would track), the rules, and the report. Every rule is
//! a pure function over a path and a text, so that its test shows it failing.
//!
//! Does not know: formatting (rustfmt), lints (clippy), the direction of dependencies (`arrows`).
//!
//! Invariants:
//! - I1: a finding names file and line and says what to do.
//! - I2: the ratchet list holds the exact present figures: growth is a finding, and so is a figure that could be lower.

mod attributes;
mod mask;
mod names;
mod ratchet;
mod text;
mod tree;
mod words;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::options::Options;
use crate::workspace::Workspace;
use crate::{generate, process};

/// One breach of a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// Counted from 1; 0 stands for the file as a whole.
    line: usize,
    what: String,
}

impl Finding {
    fn new(file: &File, line: usize, what: impl Into<String>) -> Self {
        Self { path: file.path.clone(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// One text file of the tree.
#[derive(Debug)]
struct File {
    /// From the root, with `/`.
    path: String,
    text: String,
    /// For Rust: the text with comments and the contents of literals blanked; otherwise empty.
    code: String,
}

impl File {
    fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let code = if path.ends_with(".rs") { mask::mask(&text) } else { String::new() };
        Self { path, text, code }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_generated(&self) -> bool {
        self.text.starts_with(generate::GENERATED_MARK)
    }
}

type FileRule = fn(&File) -> Vec<Finding>;
type TreeRule = fn(&[File]) -> Vec<Finding>;

/// The rules that look at one file.
const FILE_RULES: &[FileRule] = &[
    text::check_characters,
    text::check_columns,
    text::check_markdown_title,
    words::check_words,
    words::check_places,
    words::check_lock_sources,
    names::check_header,
    names::check_type_names,
    attributes::check_reasons,
    attributes::check_forbid_unsafe,
    tree::check_manifest,
];

/// The rules that look at the tree.
const TREE_RULES: &[TreeRule] = &[tree::check_dead_files, ratchet::check];

/// `tidy [--tighten]`: checks the tree and prints every finding; with `--tighten` the ratchet list is lowered first.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &["tighten"], &[])?;
    options.no_arguments()?;
    let root = Workspace::find()?.root;
    let mut files = read_files(&root)?;
    if options.has("tighten") {
        ratchet::tighten(&root, &mut files)?;
    }
    let mut findings = findings(&files);
    for (path, _) in generate::stale(&root)? {
        let path = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        findings.push(Finding { path, line: 0, what: "stale: run `cargo xtask generate`".to_owned() });
    }
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    Ok(())
}

fn findings(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        findings.extend(FILE_RULES.iter().flat_map(|rule| rule(file)));
    }
    findings.extend(TREE_RULES.iter().flat_map(|rule| rule(files)));
    findings
}

/// Every text file that git tracks or would track. Recorded bytes (fixtures, corpora) are not text.
fn read_files(root: &Path) -> Result<Vec<File>> {
    let mut git = std::process::Command::new("git");
    git.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let list = process::capture(&mut git)?;
    let mut paths: Vec<&str> = list.split('\0').filter(|path| !path.is_empty() && is_text(path)).collect();
    paths.sort_unstable();
    paths.dedup();
    let mut files = Vec::new();
    for path in paths {
        // A file deleted but not yet committed is still listed.
        let Ok(bytes) = fs::read(root.join(path)) else { continue };
        files.push(File::new(path, String::from_utf8(bytes).with_context(|| format!("{path} is not UTF-8"))?));
    }
    Ok(files)
}

fn is_text(path: &str) -> bool {
    let recorded = ["tests/fixtures/", "tests/fuzz/corpus/"];
    let binary = [".bin", ".png", ".gz", ".db", ".pem", ".der"];
    !recorded.iter().any(|folder| path.starts_with(folder)) && !binary.iter().any(|end| path.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_file_has_no_findings_and_each_breach_is_found() {
        let clean = "//! Owns nothing.\n\nfn main() {}\n";
        let check = |text: &str| -> Vec<Finding> {
            let file = File::new("bench/src/part.rs", text);
            FILE_RULES.iter().flat_map(|rule| rule(&file)).collect()
        };
        assert_eq!(check(clean), []);
        for breach in ["fn main() {} // \u{e9}\n", "struct LeaseManager;\n", "#[allow(dead_code)]\nfn f() {}\n"] {
            assert_eq!(check(&format!("{clean}{breach}")).len(), 1, "{breach}");
        }
        assert_eq!(check("fn main() {}\n").len(), 1, "no header");
    }

    #[test]
    fn recorded_bytes_are_left_alone() {
        assert!(is_text("engine/src/lib.rs"));
        assert!(!is_text("tests/fuzz/corpus/hpack/a"));
        assert!(!is_text("tests/fixtures/v1/seg-0001"));
    }
}
