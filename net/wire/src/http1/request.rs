//! The head of an HTTP/1.1 request: request line and header fields.
//!
//! Owns: syntax. Does not know: bodies, connections.
//!
//! Stricter than the RFC's leniencies where two parsers could disagree about where a request ends: no folded lines, no
//! space before a colon, no second length, no length beside chunks.

use crate::connection::limits::HEADER_FIELDS_MAX;
use crate::connection::{Known, RequestHead};
use crate::h2::heads::parse_content_length;

/// What a head says about its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestLine {
    /// HTTP/1.0 rather than 1.1.
    pub is_http10: bool,
    /// The connection may serve another request afterwards.
    pub keep_alive: bool,
    /// The body comes in chunks.
    pub chunked: bool,
    /// The body's length, bytes; zero without one.
    pub content_length: u64,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// Why a head is refused: status and the text Go's net/http adds to it, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestError {
    /// HTTP status.
    pub status: u16,
    /// Text after the reason phrase; may be empty.
    pub text: &'static str,
}

const MALFORMED: RequestError = RequestError { status: 400, text: "" };

/// Parses a complete head (up to its empty line) into `head`.
pub fn parse_head(bytes: &[u8], head: &mut RequestHead) -> Result<RequestLine, RequestError> {
    head.clear();
    let mut lines = bytes.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let is_http10 = parse_request_line(lines.next().unwrap_or_default(), head)?;
    let mut name = Vec::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        parse_field(line, &mut name, head)?;
    }
    read_framing(head, is_http10)
}

/// `METHOD SP target SP HTTP/1.x`; whether it is HTTP/1.0.
fn parse_request_line(line: &[u8], head: &mut RequestHead) -> Result<bool, RequestError> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(MALFORMED);
    };
    if method.is_empty() || !method.iter().all(|&byte| is_token_byte(byte)) {
        return Err(MALFORMED);
    }
    let is_http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(RequestError { status: 505, text: "unsupported protocol version" });
        }
        _ => return Err(MALFORMED),
    };
    if target.iter().any(|&byte| !matches!(byte, 0x21..=0x7e | 0x80..)) {
        return Err(MALFORMED);
    }
    let path = if target.starts_with(b"/") || target == b"*" {
        target
    } else {
        // The absolute form (RFC 9112 section 3.2.2) names the authority too.
        let rest = target.strip_prefix(b"http://").or_else(|| target.strip_prefix(b"https://")).ok_or(MALFORMED)?;
        let slash = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
        head.push_pseudo(Known::Authority, &rest[..slash]);
        if slash == rest.len() { b"/" } else { &rest[slash..] }
    };
    head.push_pseudo(Known::Method, method);
    head.push_pseudo(Known::Path, path);
    Ok(is_http10)
}

fn parse_field(line: &[u8], name: &mut Vec<u8>, head: &mut RequestHead) -> Result<(), RequestError> {
    let colon = line.iter().position(|&byte| byte == b':').ok_or(MALFORMED)?;
    let value = line[colon + 1..].trim_ascii();
    if colon == 0
        || !line[..colon].iter().all(|&byte| is_token_byte(byte))
        || value.iter().any(|&byte| byte != b'\t' && (byte < 0x20 || byte == 0x7f))
    {
        return Err(MALFORMED);
    }
    if head.field_count() >= HEADER_FIELDS_MAX {
        return Err(RequestError { status: 431, text: "" });
    }
    name.clear();
    name.extend(line[..colon].iter().map(u8::to_ascii_lowercase));
    head.push_field(name, value, Known::of_field(name));
    Ok(())
}

/// How long the message is and whether the connection lives on (RFC 9112 sections 6 and 9.3).
fn read_framing(head: &RequestHead, is_http10: bool) -> Result<RequestLine, RequestError> {
    let mut line = RequestLine { is_http10, keep_alive: !is_http10, ..RequestLine::default() };
    let (mut hosts, mut lengths, mut encodings) = (0, 0, 0);
    for (name, value) in head.fields() {
        match name {
            b"host" => hosts += 1,
            b"content-length" => {
                lengths += 1;
                line.content_length = parse_content_length(value).ok_or(MALFORMED)?;
            }
            b"transfer-encoding" => {
                encodings += 1;
                line.chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            b"connection" => {
                for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    line.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    line.keep_alive &= !option.eq_ignore_ascii_case(b"close");
                }
            }
            b"expect" if value.eq_ignore_ascii_case(b"100-continue") => line.expects_continue = !is_http10,
            b"expect" => return Err(RequestError { status: 417, text: "" }),
            _ => {}
        }
    }
    if encodings > 1 || (encodings == 1 && !line.chunked) {
        return Err(RequestError { status: 501, text: "Unsupported transfer encoding" });
    }
    if lengths > 1 || (line.chunked && (lengths > 0 || is_http10)) {
        return Err(MALFORMED);
    }
    match hosts {
        0 if !is_http10 => Err(RequestError { status: 400, text: "missing required Host header" }),
        0 | 1 => Ok(line),
        _ => Err(RequestError { status: 400, text: "too many Host headers" }),
    }
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(RequestLine, RequestHead), RequestError> {
        let mut head = RequestHead::default();
        parse_head(text.as_bytes(), &mut head).map(|line| (line, head))
    }

    fn refused(text: &str) -> u16 {
        parse(text).map_or_else(|error| error.status, |_| 0)
    }

    #[test]
    fn a_plain_request() {
        let (line, head) = parse("GET /health?x=1 HTTP/1.1\r\nHost: a:1\r\nX-Y:  z \r\n\r\n").unwrap();
        assert_eq!(line, RequestLine { keep_alive: true, ..RequestLine::default() });
        assert_eq!((head.method(), head.path(), head.query()), (&b"GET"[..], &b"/health"[..], &b"x=1"[..]));
        assert_eq!(head.get(b"x-y"), Some(&b"z"[..]));
        assert_eq!(head.known(Known::Authority), Some(&b"a:1"[..]));
    }

    #[test]
    fn forms_and_versions() {
        let (line, head) = parse("GET http://h:2/p HTTP/1.0\nConnection: Keep-Alive\n\n").unwrap();
        assert!(line.is_http10 && line.keep_alive);
        assert_eq!((head.path(), head.known(Known::Authority)), (&b"/p"[..], Some(&b"h:2"[..])));
        assert!(!parse("GET / HTTP/1.0\r\n\r\n").unwrap().0.keep_alive);
        assert!(!parse("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n").unwrap().0.keep_alive);
        assert_eq!(parse("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().1.path(), b"*");
    }

    #[test]
    fn bodies() {
        let post = |fields: &str| parse(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).map(|(line, _)| line);
        assert_eq!(post("Content-Length: 12\r\n").unwrap().content_length, 12);
        assert!(post("Transfer-Encoding: Chunked\r\nExpect: 100-continue\r\n").unwrap().expects_continue);
        for (fields, status) in [
            ("Content-Length: 12\r\nContent-Length: 12\r\n", 400),
            ("Content-Length: 12\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Content-Length: +12\r\n", 400),
            ("Content-Length: 1234567890123456789\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Expect: x\r\n", 417),
        ] {
            assert_eq!(post(fields).unwrap_err().status, status, "{fields}");
        }
    }

    #[test]
    fn malformed_heads() {
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(refused("GET /\r\n\r\n"), 400);
        assert_eq!(refused("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
        assert_eq!(refused("GET x HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(refused("G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        for field in ["a", ": b", "a : b", " folded: x", "a: \u{1}", "Host: b"] {
            assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n")), 400, "{field}");
        }
        let many = "a: b\r\n".repeat(HEADER_FIELDS_MAX + 1);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")), 431);
    }
}
