//! Attributes: a relaxed lint has a reason, and crates that need no unsafe code say so.

use super::mask::line_of;
use super::{File, Finding};

/// The folders whose crates may contain unsafe code; all other crate roots forbid it.
const UNSAFE_CRATES: &[&str] = &["net/reactor/", "bench/"];

/// `allow` and `expect` carry a reason.
pub(super) fn check_reasons(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for opening in ["#[", "#!["] {
        for (at, _) in file.code.match_indices(opening) {
            let body_at = at + opening.len();
            let Some(len) = closing_bracket(&file.code[body_at..]) else { continue };
            let body = &file.code[body_at..body_at + len];
            let relaxes = ["allow(", "expect("].iter().any(|word| body.contains(word));
            if relaxes && !body.contains("reason") {
                found.push(Finding::new(file, line_of(&file.code, at), "a relaxed lint needs `reason = \"..\"`"));
            }
        }
    }
    found
}

/// Bytes up to the bracket that closes the one before `text`.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (index, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' if depth == 0 => return Some(index),
            ']' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The root of every crate forbids unsafe code, the listed crates excepted.
pub(super) fn check_forbid_unsafe(file: &File) -> Vec<Finding> {
    let root =
        ["src/lib.rs", "src/main.rs"].iter().any(|end| file.path.ends_with(end)) || file.path.contains("/src/bin/");
    let excepted = UNSAFE_CRATES.iter().any(|folder| file.path.starts_with(folder));
    if !root || excepted || file.code.contains("#![forbid(unsafe_code)]") {
        return Vec::new();
    }
    vec![Finding::new(file, 1, "a crate root says `#![forbid(unsafe_code)]`")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        let lines =
            |text: &str| check_reasons(&File::new("a.rs", text)).iter().map(|finding| finding.line).collect::<Vec<_>>();
        assert_eq!(lines("#[allow(dead_code)]\nfn f() {}\n"), [1]);
        assert_eq!(lines("\n#![allow(dead_code)]\n"), [2]);
        assert_eq!(lines("#[expect(\n    dead_code,\n    clippy::all\n)]\nfn f() {}\n"), [1]);
        assert_eq!(lines("#[cfg_attr(test, allow(dead_code))]\n"), [1]);
        assert_eq!(lines("#[allow(dead_code, reason = \"the kernel writes it\")]\n"), [0; 0]);
        assert_eq!(lines("#[should_panic(expected = \"allow(\")]\nfn f() { a.expect(\"b\"); }\n"), [0; 0]);
    }

    #[test]
    fn forbidding() {
        let check = |path: &str, text: &str| check_forbid_unsafe(&File::new(path, text)).len();
        assert_eq!(check("engine/src/lib.rs", "//! A.\n"), 1);
        assert_eq!(check("engine/src/lib.rs", "//! A.\n#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(check("engine/src/lib.rs", "//! #![forbid(unsafe_code)]\n"), 1);
        assert_eq!(check("net/server/src/bin/trilithd.rs", "//! A.\n"), 1);
        assert_eq!(check("engine/src/store.rs", "//! A.\n"), 0);
        assert_eq!(check("net/reactor/src/lib.rs", "//! A.\n"), 0);
    }
}
