//! The verdict on one part of a program, from its lines on both servers.
//!
//! Pure: texts in, a verdict out.

/// Lines shown before and after the first difference.
const LINES_AROUND: usize = 3;
/// Longest part of a line that is shown.
const COLUMNS_SHOWN: usize = 400;

/// Whether a part passes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It does.
    Same,
    /// It does not; the text shows where.
    Different(String),
}

/// Judges a part. `absent` says that the subject answers all of it UNIMPLEMENTED; unless `strict`, it may also answer
/// as etcd does, for a server that has what this tree lacks.
pub(super) fn judge(part: &str, expected: &str, found: &str, absent: bool, strict: bool) -> Verdict {
    let Some(expected) = lines_of(part, expected) else {
        return Verdict::Different("  etcd did not get to it".to_owned());
    };
    let Some(found) = lines_of(part, found) else {
        return Verdict::Different("  the subject did not get to it".to_owned());
    };
    if expected.is_empty() || expected.iter().any(|line| is_unimplemented(line) && absent) {
        return Verdict::Different("  etcd itself has no answers".to_owned());
    }
    if absent && (strict || expected != found) {
        return match found.iter().find(|line| !is_unimplemented(line)) {
            None if !found.is_empty() => Verdict::Same,
            first => Verdict::Different(format!("  should be UNIMPLEMENTED\n{}", shown('+', first.copied()))),
        };
    }
    difference(&expected, &found).map_or(Verdict::Same, Verdict::Different)
}

/// The lines between the headings of the part and of the next.
fn lines_of<'a>(part: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let mut lines = text.lines().skip_while(|line| line.strip_prefix("== ") != Some(part));
    lines.next()?;
    Some(lines.take_while(|line| !line.starts_with("== ")).collect())
}

fn is_unimplemented(line: &str) -> bool {
    line.to_ascii_lowercase().contains("unimplemented")
}

/// The first lines that differ, with those around them.
fn difference(expected: &[&str], found: &[&str]) -> Option<String> {
    let same = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    if same == expected.len() && same == found.len() {
        return None;
    }
    let mut text = String::new();
    for line in &expected[same.saturating_sub(LINES_AROUND)..same] {
        text.push_str(&shown(' ', Some(line)));
    }
    for (sign, lines) in [('-', expected), ('+', found)] {
        let rest = &lines[same..];
        for line in rest.iter().take(LINES_AROUND) {
            text.push_str(&shown(sign, Some(line)));
        }
        if rest.is_empty() {
            text.push_str(&shown(sign, None));
        }
    }
    Some(text)
}

fn shown(sign: char, line: Option<&str>) -> String {
    let Some(line) = line else { return format!("{sign} (nothing more)\n") };
    format!("{sign} {}\n", line.chars().take(COLUMNS_SHOWN).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETCD: &str = "== a\none\ntwo\n== b\nthree\n== end\nexit status: 0\n";

    fn different(part: &str, found: &str, absent: bool, strict: bool) -> bool {
        judge(part, ETCD, found, absent, strict) != Verdict::Same
    }

    #[test]
    fn the_same_lines_pass_part_by_part() {
        let other = "== a\none\nTWO\n== b\nthree\n== end\nexit status: 0\n";
        assert!(!different("a", ETCD, false, true));
        assert!(different("a", other, false, true));
        assert!(!different("b", other, false, true));
    }

    #[test]
    fn a_missing_line_or_part_is_a_difference() {
        assert!(different("a", "== a\none\n== b\nthree\n", false, true));
        assert!(different("a", "== a\none\ntwo\nmore\n== b\nthree\n", false, true));
        assert!(different("b", "== a\none\ntwo\n", false, true));
        assert!(different("c", ETCD, false, true));
    }

    #[test]
    fn an_absent_part_is_unimplemented_in_every_line() {
        assert!(!different("a", "== a\none: error Unimplemented: x\n", true, true));
        assert!(different("a", "== a\none: error Unimplemented: x\ntwo\n", true, true));
        assert!(different("a", "== a\n== b\n", true, true));
        assert!(different("a", ETCD, true, true));
    }

    #[test]
    fn elsewhere_an_absent_part_may_be_there() {
        assert!(!different("a", ETCD, true, false));
        assert!(!different("a", "== a\nUNIMPLEMENTED\n", true, false));
        assert!(different("a", "== a\none\nthree\n", true, false));
    }

    #[test]
    fn a_difference_shows_what_is_around_it() {
        let text = difference(&["1", "2", "3", "4", "5"], &["1", "2", "3", "4", "6"]).unwrap();
        assert_eq!(text, "  2\n  3\n  4\n- 5\n+ 6\n");
        assert_eq!(difference(&["1"], &["1", "2"]).unwrap(), "  1\n- (nothing more)\n+ 2\n");
    }
}
