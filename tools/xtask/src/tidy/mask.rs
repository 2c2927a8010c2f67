//! Blanks out what is not code, so that rules may search Rust text without parsing it.
//!
//! Comments and the contents of string and character literals become blanks; lines and columns stay where they were.

/// The text with comments and contents of literals blanked.
pub(super) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => {
                let end = find(bytes, at, b"\n");
                blank(&mut out[at..end]);
                end
            }
            b'/' if bytes[at..].starts_with(b"/*") => {
                let end = block_comment_end(bytes, at);
                blank(&mut out[at..end]);
                end
            }
            b'"' => {
                let end = string_end(bytes, at + 1);
                blank(&mut out[at + 1..end.saturating_sub(1)]);
                end
            }
            b'r' if !is_word(bytes, at) && raw_hashes(bytes, at).is_some() => {
                let hashes = raw_hashes(bytes, at).unwrap_or_default();
                let end = find(bytes, at + hashes + 2, &[b"\"", &b"#".repeat(hashes)[..]].concat());
                blank(&mut out[at + hashes + 2..end]);
                end + hashes + 1
            }
            b'\'' => {
                let end = char_end(bytes, at);
                if end > at + 1 {
                    blank(&mut out[at + 1..end - 1]);
                }
                end
            }
            _ => at + 1,
        };
        at = end;
    }
    // Only whole characters were blanked, and by ASCII.
    String::from_utf8_lossy(&out).into_owned()
}

/// Number of the line that holds byte `at`, from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Byte positions of `word` where it is a word of its own.
pub(super) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let bytes = code.as_bytes();
        let after = bytes.get(at + word.len()).is_some_and(|byte| is_word_byte(*byte));
        !is_word(bytes, *at) && !after
    })
}

fn blank(bytes: &mut [u8]) {
    bytes.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether the byte before `at` continues a word.
fn is_word(bytes: &[u8], at: usize) -> bool {
    // The prefix of a byte or C string literal is part of the literal.
    let before = at.checked_sub(1).map(|index| bytes[index]);
    match before {
        Some(b'b' | b'c') if bytes[at] == b'r' => at >= 2 && is_word_byte(bytes[at - 2]),
        Some(byte) => is_word_byte(byte),
        None => false,
    }
}

fn find(bytes: &[u8], from: usize, needle: &[u8]) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    rest.windows(needle.len()).position(|window| window == needle).map_or(bytes.len(), |index| from + index)
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut at) = (0, at);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at.min(bytes.len())
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// How many `#` stand between `r` and the quote, if this starts a raw string.
fn raw_hashes(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    (bytes.get(at + 1 + hashes) == Some(&b'"')).then_some(hashes)
}

/// End of a character literal; just past the quote if it starts a lifetime.
fn char_end(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at + 1) {
        Some(b'\\') => find(bytes, at + 3, b"'").saturating_add(1).min(bytes.len()),
        Some(first) => {
            let width = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            if bytes.get(at + 1 + width) == Some(&b'\'') { at + width + 2 } else { at + 1 }
        }
        None => at + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_in_place() {
        for (text, expected) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            ("f(\"x{y\", z)", "f(\"   \", z)"),
            ("\"a\\\"b\" c", "\"    \" c"),
            ("r#\"a\"b\"# c", "r#\"   \"# c"),
            ("br\"a\\\" c", "br\"  \" c"),
            ("'{' 'a 'b'", "' ' 'a ' '"),
            ("'\\'' x", "'  ' x"),
            ("'\\u{1F600}' x", "'         ' x"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("for r in 0..1 {}", "for r in 0..1 {}"),
        ] {
            assert_eq!(mask(text), expected);
        }
    }

    #[test]
    fn words_are_whole() {
        let found: Vec<_> = words("unsafe unsafe_code an_unsafe (unsafe)", "unsafe").collect();
        assert_eq!(found, [0, 30]);
        assert_eq!(line_of("a\nb\nc", 4), 3);
    }
}
