//! The HTTP/2 frame header, frame types, flags and error codes (RFC 9113 sections 4, 6 and 7).
//!
//! Owns: nine bytes. Does not know: what a frame does.
//!
//! Layout: length (3 bytes, big endian), type (1), flags (1), reserved bit and stream identifier (4).

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 9;
/// What a client with prior knowledge sends first (section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types.
pub mod kind {
    #![expect(missing_docs, reason = "names of RFC 9113 section 6")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    #![expect(missing_docs, reason = "names of RFC 9113 section 6")]
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Parameters of SETTINGS frames.
pub mod setting {
    #![expect(missing_docs, reason = "names of RFC 9113 section 6.5.2")]
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Error codes of RST_STREAM and GOAWAY (section 7).
#[expect(missing_docs, reason = "names of RFC 9113 section 7")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    NoError = 0,
    ProtocolError = 1,
    InternalError = 2,
    FlowControlError = 3,
    StreamClosed = 5,
    FrameSizeError = 6,
    RefusedStream = 7,
    Cancel = 8,
    CompressionError = 9,
    EnhanceYourCalm = 11,
}

/// A parsed frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Payload length, bytes.
    pub length: usize,
    /// Frame type.
    pub kind: u8,
    /// Flags; undefined ones are ignored.
    pub flags: u8,
    /// Stream identifier without the reserved bit.
    pub stream: u32,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`; `None` if it is not complete.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<HEADER_BYTES>()?;
        Some(Self {
            length: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        })
    }

    /// The header's bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [high, l0, l1, l2] = (self.length as u32).to_be_bytes();
        assert!(high == 0, "a frame length has 24 bits");
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// Whether `flag` is set.
    #[inline]
    #[must_use]
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a frame header.
#[inline]
pub fn put_header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&FrameHeader { length, kind, flags, stream }.to_bytes());
}

/// Appends a frame whose payload is one 32-bit number: RST_STREAM and WINDOW_UPDATE.
pub fn put_number(out: &mut Vec<u8>, kind: u8, stream: u32, number: u32) {
    put_header(out, 4, kind, 0, stream);
    out.extend_from_slice(&number.to_be_bytes());
}

/// Appends a PING or its answer.
pub fn put_ping(out: &mut Vec<u8>, flags: u8, payload: [u8; 8]) {
    put_header(out, payload.len(), kind::PING, flags, 0);
    out.extend_from_slice(&payload);
}

/// Appends a GOAWAY.
pub fn put_goaway(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode, text: &str) {
    put_header(out, 8 + text.len(), kind::GOAWAY, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&(code as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends a SETTINGS frame with the given parameters.
pub fn put_settings(out: &mut Vec<u8>, parameters: &[(u16, u32)]) {
    put_header(out, parameters.len() * 6, kind::SETTINGS, 0, 0);
    for (identifier, value) in parameters {
        out.extend_from_slice(&identifier.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        for (length, stream) in [(0, 0), (1, 1), (16_384, 0x7fff_ffff), ((1 << 24) - 1, 12_345)] {
            for kind in 0..=9 {
                let header = FrameHeader { length, kind, flags: 0x25, stream };
                assert_eq!(FrameHeader::parse(&header.to_bytes()), Some(header));
                assert_eq!(FrameHeader::parse(&header.to_bytes()[..8]), None);
            }
        }
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        let parsed = FrameHeader::parse(&[0, 0, 4, 8, 0, 0x80, 0, 0, 7]).unwrap();
        assert_eq!(parsed, FrameHeader { length: 4, kind: kind::WINDOW_UPDATE, flags: 0, stream: 7 });
    }

    #[test]
    fn composed_frames_have_the_stated_lengths() {
        let mut out = Vec::new();
        put_goaway(&mut out, 0x7fff_ffff, ErrorCode::EnhanceYourCalm, "too_many_pings");
        put_settings(&mut out, &[(setting::MAX_FRAME_SIZE, 16_384)]);
        put_ping(&mut out, flag::ACK, *b"12345678");
        put_number(&mut out, kind::RST_STREAM, 3, ErrorCode::Cancel as u32);
        let mut rest = &out[..];
        let mut kinds = Vec::new();
        while let Some(header) = FrameHeader::parse(rest) {
            kinds.push(header.kind);
            rest = &rest[HEADER_BYTES + header.length..];
        }
        assert!(rest.is_empty());
        assert_eq!(kinds, [kind::GOAWAY, kind::SETTINGS, kind::PING, kind::RST_STREAM]);
    }
}
