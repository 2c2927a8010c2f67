//! Figures that may only fall: long functions, long files, unsafe code.
//!
//! Owns: how they are counted and `tools/xtask/ratchet.txt`, the committed list of what exceeds the limits. A line is
//! `KIND FIGURE PATH [FUNCTION]`; kinds are `function` (lines), `file` (lines) and `unsafe` (occurrences).
//!
//! Invariants:
//! - I1: the list is exact. What grows or is new must be shortened; what shrank is lowered by `tidy --tighten`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::mask::{line_of, words};
use super::{File, Finding};

const LIST_PATH: &str = "tools/xtask/ratchet.txt";
/// Lines from the `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 1200;

/// What is counted: kind, path, and the function's name where it is about one.
type Key = (String, String, String);

/// Compares the tree with the list.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let list = files.iter().find(|file| file.path == LIST_PATH);
    let listed = match list.map_or_else(|| Ok(BTreeMap::new()), |file| parse(&file.text)) {
        Ok(listed) => listed,
        Err(line) => return vec![Finding { path: LIST_PATH.into(), line, what: "not a line of the list".into() }],
    };
    compare(&listed, &measure(files))
}

/// Lowers every figure of the list that is too high and drops lines that are no longer needed; raises nothing.
pub(super) fn tighten(root: &Path, files: &mut [File]) -> Result<()> {
    let measured = measure(files);
    let Some(list) = files.iter_mut().find(|file| file.path == LIST_PATH) else { return Ok(()) };
    let listed = parse(&list.text).ok().with_context(|| format!("{LIST_PATH} is malformed"))?;
    let mut text = String::new();
    for (key, figure) in &listed {
        if let Some((now, _)) = measured.get(key) {
            let (kind, path, function) = key;
            text.push_str(format!("{kind} {} {path} {function}", figure.min(now)).trim_end());
            text.push('\n');
        }
    }
    fs::write(root.join(LIST_PATH), &text).context(LIST_PATH)?;
    list.text = text;
    Ok(())
}

fn parse(text: &str) -> Result<BTreeMap<Key, usize>, usize> {
    let mut listed = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let parts: Vec<&str> = line.split(' ').collect();
        let (kind, figure, path, function) = match parts.as_slice() {
            [kind @ "function", figure, path, function] => (kind, figure, path, *function),
            [kind @ ("file" | "unsafe"), figure, path] => (kind, figure, path, ""),
            _ => return Err(index + 1),
        };
        let figure = figure.parse().map_err(|_| index + 1)?;
        let key = ((*kind).to_owned(), (*path).to_owned(), function.to_owned());
        if listed.insert(key, figure).is_some() {
            return Err(index + 1);
        }
    }
    Ok(listed)
}

/// Everything that exceeds its limit: figure and line.
fn measure(files: &[File]) -> BTreeMap<Key, (usize, usize)> {
    let mut measured = BTreeMap::new();
    for file in files.iter().filter(|file| file.is_rust() && !file.is_generated()) {
        let key = |kind: &str, function: &str| (kind.to_owned(), file.path.clone(), function.to_owned());
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX {
            measured.insert(key("file", ""), (lines, 1));
        }
        let mut unsafe_at = words(&file.code, "unsafe").peekable();
        if let Some(first) = unsafe_at.peek().copied() {
            measured.insert(key("unsafe", ""), (unsafe_at.count(), line_of(&file.code, first)));
        }
        for (name, line, len) in functions(&file.code) {
            if len > FUNCTION_LINES_MAX {
                // Of functions with one name in one file the longest counts.
                let entry = measured.entry(key("function", name)).or_insert((len, line));
                *entry = (*entry).max((len, line));
            }
        }
    }
    measured
}

/// Name, first line and number of lines of every function with a body.
fn functions(code: &str) -> Vec<(&str, usize, usize)> {
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let rest = &code[at + 2..];
        let name = rest.trim_start().split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or("");
        // A function pointer type has no name, a trait method may have no body.
        if name.is_empty() {
            continue;
        }
        let mut depth = 0usize;
        let mut brackets = 0usize;
        for (index, c) in rest.char_indices() {
            match c {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets = brackets.saturating_sub(1),
                ';' if depth == 0 && brackets == 0 => break,
                '{' => depth += 1,
                '}' if depth > 1 => depth -= 1,
                '}' => {
                    let first = line_of(code, at);
                    found.push((name, first, line_of(code, at + 2 + index) - first + 1));
                    break;
                }
                _ => {}
            }
        }
    }
    found
}

fn compare(listed: &BTreeMap<Key, usize>, measured: &BTreeMap<Key, (usize, usize)>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (key, (figure, line)) in measured {
        let (kind, path, function) = key;
        let say = match (kind.as_str(), listed.get(key)) {
            (_, Some(allowed)) if allowed == figure => continue,
            (_, Some(allowed)) if allowed > figure => {
                format!("{kind} {function} fell from {allowed} to {figure}: run `cargo xtask tidy --tighten`")
            }
            ("function", _) => format!("`{function}` has {figure} lines, more than {FUNCTION_LINES_MAX}: split it"),
            ("file", _) => format!("{figure} lines, more than {FILE_LINES_MAX}: split the file"),
            (_, None) => format!("unsafe code ({figure}) in a file where none is listed in {LIST_PATH}"),
            (_, Some(allowed)) => format!("unsafe code grew from {allowed} to {figure}"),
        };
        found.push(Finding { path: path.clone(), line: *line, what: say });
    }
    for (kind, path, function) in listed.keys().filter(|key| !measured.contains_key(*key)) {
        let what = format!("{kind} {path} {function} is within the limits: run `cargo xtask tidy --tighten`");
        found.push(Finding { path: LIST_PATH.to_owned(), line: 0, what });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, lines: usize) -> String {
        format!("fn {name}() {{\n{}}}\n", "    call();\n".repeat(lines - 2))
    }

    fn whats(list: &str, files: &[(&str, String)]) -> Vec<String> {
        let mut all: Vec<File> = files.iter().map(|(path, text)| File::new(*path, text.clone())).collect();
        all.push(File::new(LIST_PATH, list));
        check(&all).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn functions_are_measured() {
        let code = "impl A {\n    fn a(&self, f: fn(u8) -> [u8; 2]) -> B {\n        if c {\n        }\n    }\n\
            fn b();\n}\nfn d<T>() where T: E {}\n";
        assert_eq!(functions(code), [("a", 2, 4), ("d", 8, 1)]);
    }

    #[test]
    fn long_functions() {
        let fits = [("a.rs", function("f", FUNCTION_LINES_MAX))];
        let long = [("a.rs", function("f", 80))];
        assert_eq!(whats("", &fits), [""; 0]);
        assert!(whats("", &long)[0].contains("`f` has 80 lines"));
        assert_eq!(whats("function 80 a.rs f\n", &long), [""; 0]);
        assert!(whats("function 79 a.rs f\n", &long)[0].contains("`f` has 80 lines"));
        assert!(whats("function 81 a.rs f\n", &long)[0].contains("fell from 81 to 80"));
        assert!(whats("function 80 a.rs f\n", &fits)[0].contains("within the limits"));
        assert!(whats("function 80 a.rs g\n", &long).len() == 2, "another function's allowance does not help");
    }

    #[test]
    fn long_files() {
        let fits = [("a.rs", "\n".repeat(FILE_LINES_MAX))];
        let long = [("a.rs", "\n".repeat(FILE_LINES_MAX + 1))];
        assert_eq!(whats("", &fits), [""; 0]);
        assert!(whats("", &long)[0].contains("1201 lines"));
        assert_eq!(whats("file 1201 a.rs\n", &long), [""; 0]);
        let generated = format!("{}\n{}", crate::generate::GENERATED_MARK, long[0].1);
        assert_eq!(whats("", &[("a.rs", generated)]), [""; 0]);
    }

    #[test]
    fn unsafe_code() {
        let two = [("a.rs", "unsafe fn f() {}\n// unsafe\nfn g() { unsafe { f() } }\n".to_owned())];
        assert!(whats("", &two)[0].contains("none is listed"));
        assert_eq!(whats("unsafe 2 a.rs\n", &two), [""; 0]);
        assert!(whats("unsafe 1 a.rs\n", &two)[0].contains("grew from 1 to 2"));
        assert!(whats("unsafe 3 a.rs\n", &two)[0].contains("fell from 3 to 2"));
    }

    #[test]
    fn a_malformed_list_is_found() {
        for list in ["functions 1 a.rs f\n", "function x a.rs f\n", "unsafe 1 a.rs f\n", "file 1 a\nfile 2 a\n"] {
            assert_eq!(whats(list, &[]), ["not a line of the list"], "{list}");
        }
    }
}
