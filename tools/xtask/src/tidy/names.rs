//! Headers and names of types.

use super::mask::{line_of, words};
use super::{File, Finding};

/// Lines of a header; what needs more belongs in `docs/`.
const HEADER_LINES_MAX: usize = 60;

/// Endings that name an act or nothing at all, in place of the thing.
const BANNED_SUFFIXES: &[&str] = &["Manager", "Helper", "Helpers", "Util", "Utils", "Wrapper", "Impl", "Data", "Info"];

/// A Rust file opens with `//!`.
pub(super) fn check_header(file: &File) -> Vec<Finding> {
    if !file.is_rust() {
        return Vec::new();
    }
    match file.text.lines().take_while(|line| line.starts_with("//!")).count() {
        0 => vec![Finding::new(file, 1, "open with `//!`: what it owns, what it does not know, invariants")],
        lines if lines > HEADER_LINES_MAX => {
            vec![Finding::new(file, 1, format!("a header has at most {HEADER_LINES_MAX} lines, this {lines}"))]
        }
        _ => Vec::new(),
    }
}

/// Types are named after things. Generated code takes its names from the protocol.
pub(super) fn check_type_names(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    if file.is_generated() {
        return found;
    }
    for keyword in ["struct", "enum", "trait", "union", "type"] {
        for at in words(&file.code, keyword) {
            let rest = file.code[at + keyword.len()..].trim_start();
            let name: &str = rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default();
            // An associated type may implement somebody else's trait.
            let column = at - file.code[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let indented = file.code[..at][at - column..].starts_with(' ');
            if keyword == "type" && indented {
                continue;
            }
            if let Some(suffix) = BANNED_SUFFIXES.iter().find(|suffix| name.ends_with(**suffix)) {
                let what = format!("name the thing, not `..{suffix}`: `{name}`");
                found.push(Finding::new(file, line_of(&file.code, at), what));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        assert!(check_header(&File::new("a.rs", "//! Owns a.\n")).is_empty());
        assert!(check_header(&File::new("a.md", "text\n")).is_empty());
        assert_eq!(check_header(&File::new("a.rs", "\n//! Owns a.\n")).len(), 1);
        assert_eq!(check_header(&File::new("a.rs", "// Owns a.\n")).len(), 1);
        let long = "//! a\n".repeat(HEADER_LINES_MAX + 1);
        assert_eq!(check_header(&File::new("a.rs", long)).len(), 1);
    }

    #[test]
    fn type_names() {
        let lines = |text: &str| {
            check_type_names(&File::new("a.rs", text)).iter().map(|finding| finding.line).collect::<Vec<_>>()
        };
        for suffix in BANNED_SUFFIXES {
            assert_eq!(lines(&format!("//!\npub struct Lease{suffix}<'a> {{}}\n")), [2], "{suffix}");
        }
        assert_eq!(lines("enum PeerInfo {}\n"), [1]);
        assert_eq!(lines("trait TreeHelper {}\n"), [1]);
        assert_eq!(lines("type RowData = u8;\n"), [1]);
        assert_eq!(lines("pub(crate) type RowData = u8;\n"), [1]);
        assert_eq!(lines("impl Body for B {\n    type Data = u8;\n}\n"), [0; 0]);
        assert_eq!(lines("struct DataFrame; struct Database; // struct RowData\n"), [0; 0]);
        assert_eq!(lines("let a = \"struct RowData\";\n"), [0; 0]);
        let generated = format!("{}\npub struct DowngradeInfo;\n", crate::generate::GENERATED_MARK);
        assert_eq!(lines(&generated), [0; 0]);
    }
}
