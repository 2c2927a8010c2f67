//! gRPC over HTTP/2: message prefix, status codes used by the transport, timeouts, percent encoding, content types.
//!
//! Owns: the texts and rules of the gRPC layer itself, equal to grpc-go's so that clients cannot tell the difference.
//! Does not know: HTTP/2 frames, methods, etcd's own errors.
//!
//! Invariants
//! - I1: everything sent in `grpc-message` is printable ASCII.

pub(crate) mod gzip;

use std::fmt::Write as _;

/// Compressed flag (1 byte) and message length (4 bytes, big endian).
pub const PREFIX_BYTES: usize = 5;

/// `codes.InvalidArgument`.
pub const INVALID_ARGUMENT: u32 = 3;
/// `codes.ResourceExhausted`.
pub const RESOURCE_EXHAUSTED: u32 = 8;
/// `codes.Unimplemented`.
pub const UNIMPLEMENTED: u32 = 12;
/// `codes.Internal`.
pub const INTERNAL: u32 = 13;

/// A call refused by the transport: status code and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC status code.
    pub code: u32,
    /// `grpc-message`, not yet percent-encoded.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn no_message() -> Self {
        let text = "cardinality violation: received no request message from non-client-streaming RPC";
        Self::new(INTERNAL, text)
    }

    pub(crate) fn several_messages() -> Self {
        let text = "cardinality violation: received multiple request messages for non-client-streaming RPC";
        Self::new(INTERNAL, text)
    }

    pub(crate) fn cut_message() -> Self {
        Self::new(INTERNAL, "unexpected EOF")
    }

    pub(crate) fn malformed_path(path: &[u8]) -> Self {
        Self::new(UNIMPLEMENTED, format!("malformed method name: {}", quoted(path)))
    }

    pub(crate) fn wrong_method(method: &[u8]) -> Self {
        let quoted = quoted(method);
        Self::new(INTERNAL, format!("Received a HEADERS frame with :method {quoted} which should be POST"))
    }
}

/// Reads a message prefix: the length of the message that follows, compressed if its first byte is not zero, or why the
/// call is refused. `encoding` is the call's `grpc-encoding`.
pub fn check_prefix(
    prefix: [u8; PREFIX_BYTES],
    message_bytes_max: usize,
    encoding: Option<&[u8]>,
) -> Result<usize, Refusal> {
    let [format, length @ ..] = prefix;
    let length = u32::from_be_bytes(length) as usize;
    if length > message_bytes_max {
        let text = format!("grpc: received message larger than max ({length} vs. {message_bytes_max})");
        return Err(Refusal::new(RESOURCE_EXHAUSTED, text));
    }
    match (format, encoding.unwrap_or_default()) {
        (0, _) | (1, b"gzip") => Ok(length),
        (1, b"" | b"identity") => {
            Err(Refusal::new(INTERNAL, "grpc: compressed flag set with identity or empty encoding"))
        }
        (1, encoding) => {
            let text = format!("grpc: Decompressor is not installed for grpc-encoding {}", quoted(encoding));
            Err(Refusal::new(UNIMPLEMENTED, text))
        }
        (other, _) => Err(Refusal::new(INTERNAL, format!("grpc: received unexpected payload format {other}"))),
    }
}

/// Whether a content type selects gRPC: `application/grpc`, alone or followed by `+` or `;`.
#[must_use]
pub fn is_grpc_content_type(value: &[u8]) -> bool {
    value
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

/// Whether a path has the form `/service/method`.
#[must_use]
pub fn is_method_path(path: &[u8]) -> bool {
    path.strip_prefix(b"/").is_some_and(|rest| rest.contains(&b'/'))
}

/// `grpc-timeout` in nanoseconds; beyond what 64 bits hold it saturates. The error is grpc-go's text.
pub fn parse_timeout(value: &[u8]) -> Result<u64, String> {
    let complaint = |what: &str| Err(format!("transport: timeout {what}: {}", quoted(value)));
    let [digits @ .., unit] = value else { return complaint("string is too short") };
    if digits.is_empty() {
        return complaint("string is too short");
    }
    if value.len() > 9 {
        return complaint("string is too long");
    }
    let unit: u64 = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return complaint("unit is not recognized"),
    };
    let mut count = 0u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(format!("strconv.ParseUint: parsing {}: invalid syntax", quoted(digits)));
        }
        // At most eight digits: cannot overflow.
        count = count * 10 + u64::from(digit - b'0');
    }
    Ok(count.saturating_mul(unit).min(i64::MAX as u64))
}

/// Appends `message` as a `grpc-message` value: all but printable ASCII, and `%`, as `%XX` of its UTF-8 bytes.
pub fn percent_encode(message: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// A string in double quotes with everything unprintable escaped, as Go's `%q` shows it.
#[must_use]
pub fn quoted(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    text.push('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                control if control.is_control() => {
                    let _ = write!(text, "\\x{:02x}", u32::from(control));
                }
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_go_reads_them() {
        assert_eq!(parse_timeout(b"5S"), Ok(5_000_000_000));
        assert_eq!(parse_timeout(b"4999876u"), Ok(4_999_876_000));
        assert_eq!(parse_timeout(b"0n"), Ok(0));
        assert_eq!(parse_timeout(b"99999999H"), Ok(i64::MAX as u64));
        assert_eq!(parse_timeout(b""), Err("transport: timeout string is too short: \"\"".into()));
        assert_eq!(parse_timeout(b"S"), Err("transport: timeout string is too short: \"S\"".into()));
        assert_eq!(parse_timeout(b"123456789S"), Err("transport: timeout string is too long: \"123456789S\"".into()));
        assert_eq!(parse_timeout(b"1s"), Err("transport: timeout unit is not recognized: \"1s\"".into()));
        assert_eq!(parse_timeout(b"-1S"), Err("strconv.ParseUint: parsing \"-1\": invalid syntax".into()));
    }

    #[test]
    fn messages_are_percent_encoded() {
        let encoded = |message| {
            let mut out = Vec::new();
            percent_encode(message, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(encoded("etcdserver: key not found"), "etcdserver: key not found");
        assert_eq!(encoded("100%\n"), "100%25%0A");
        assert_eq!(encoded("\u{e9}\u{4e16}"), "%C3%A9%E4%B8%96");
    }

    #[test]
    fn content_types() {
        for yes in ["application/grpc", "application/grpc+proto", "application/grpc;x"] {
            assert!(is_grpc_content_type(yes.as_bytes()), "{yes}");
        }
        for no in ["", "application/json", "application/grpc-web", "application/grp"] {
            assert!(!is_grpc_content_type(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn prefixes() {
        let refused = |prefix, encoding: Option<&str>| {
            check_prefix(prefix, 2_097_152, encoding.map(str::as_bytes)).map_err(|refusal| refusal.message)
        };
        assert_eq!(refused([0, 0, 0x20, 0, 0], None), Ok(2_097_152));
        let larger = "grpc: received message larger than max (2097153 vs. 2097152)";
        assert_eq!(refused([0, 0, 0x20, 0, 1], None), Err(larger.into()));
        assert_eq!(refused([1, 0, 0, 0, 9], Some("gzip")), Ok(9));
        let snappy = "grpc: Decompressor is not installed for grpc-encoding \"snappy\"";
        assert_eq!(refused([1, 0, 0, 0, 0], Some("snappy")), Err(snappy.into()));
        let identity = "grpc: compressed flag set with identity or empty encoding";
        assert_eq!(refused([1, 0, 0, 0, 0], None), Err(identity.into()));
        assert_eq!(refused([7, 0, 0, 0, 0], None), Err("grpc: received unexpected payload format 7".into()));
    }

    #[test]
    fn quoting() {
        assert_eq!(quoted(b"a\"\\\n\x01\xff"), r#""a\"\\\n\x01\xff""#);
    }
}
