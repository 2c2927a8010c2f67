//! HTTP/2 frames (RFC 9113, sections 4 and 6) as the floor and the load generator need them.
//!
//! Owns: frame heads and the payloads both ends write. Does not know: header compression, streams' state.

/// What a client sends first (RFC 9113, 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame head.
pub const HEAD_BYTES: usize = 9;
/// Connection and stream windows before any SETTINGS or WINDOW_UPDATE.
pub const WINDOW_DEFAULT: i64 = 65_535;
/// Largest frame payload a peer must accept without asking.
pub const FRAME_BYTES_DEFAULT: usize = 16_384;

/// Frame types.
pub mod frame {
    #![expect(missing_docs, reason = "the names are those of RFC 9113, section 6")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    #![expect(missing_docs, reason = "the names are those of RFC 9113, section 6")]
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

/// Settings.
pub mod setting {
    #![expect(missing_docs, reason = "the names are those of RFC 9113, section 6.5.2")]
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
}

/// One frame, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// See [`frame`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Zero is the connection.
    pub stream: u32,
    /// Payload, padding included.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame of `bytes` and what follows it; `None` if it is not complete.
    pub fn parse(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let (payload, rest) = rest.split_at_checked(len)?;
        Some((Self { kind: head[3], flags: head[4], stream, payload }, rest))
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without padding and, in HEADERS, without priority fields.
    pub fn content(&self) -> Option<&'a [u8]> {
        let mut content = self.payload;
        let mut padding = 0;
        if self.has(flag::PADDED) {
            let (&len, rest) = content.split_first()?;
            (padding, content) = (usize::from(len), rest);
        }
        if self.kind == frame::HEADERS && self.has(flag::PRIORITY) {
            content = content.get(5..)?;
        }
        content.get(..content.len().checked_sub(padding)?)
    }

    /// The (identifier, value) pairs of SETTINGS.
    pub fn settings(&self) -> impl Iterator<Item = (u16, u32)> + use<'a> {
        let pairs = self.payload.chunks_exact(6);
        pairs.map(|pair| {
            let identifier = u16::from_be_bytes([pair[0], pair[1]]);
            (identifier, u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]))
        })
    }

    /// The increment of WINDOW_UPDATE, the code of RST_STREAM.
    pub fn number(&self) -> Option<u32> {
        self.payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

/// Bytes as they arrive, cut into frames.
#[derive(Debug, Default)]
pub struct Frames {
    /// The beginning of a frame.
    rest: Vec<u8>,
}

impl Frames {
    /// Gives every frame that is complete with `bytes` to `handle`; the first error ends it, and is final.
    pub fn take<E>(&mut self, bytes: &[u8], mut handle: impl FnMut(&Frame<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut joined = std::mem::take(&mut self.rest);
        let mut input = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined
        };
        while let Some((frame, rest)) = Frame::parse(input) {
            handle(&frame)?;
            input = rest;
        }
        self.rest = input.to_vec();
        Ok(())
    }
}

/// Appends a frame head.
pub fn put_head(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    debug_assert!(len < 1 << 24, "a frame's length has 24 bits");
    let len = (len as u32).to_be_bytes();
    out.extend_from_slice(&[len[1], len[2], len[3], kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Appends SETTINGS.
pub fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(out, settings.len() * 6, frame::SETTINGS, 0, 0);
    for (identifier, value) in settings {
        out.extend_from_slice(&identifier.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends WINDOW_UPDATE.
pub fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put_head(out, 4, frame::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// Appends the answer to a PING or SETTINGS frame; nothing for one that is itself an answer.
pub fn put_acknowledgement(out: &mut Vec<u8>, frame: &Frame<'_>) {
    if frame.has(flag::ACK) {
        return;
    }
    match frame.kind {
        frame::PING => {
            put_head(out, frame.payload.len(), frame::PING, flag::ACK, 0);
            out.extend_from_slice(frame.payload);
        }
        frame::SETTINGS => put_head(out, 0, frame::SETTINGS, flag::ACK, 0),
        other => panic!("frame type {other} has no acknowledgement"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_parsed_only_when_complete() {
        let mut bytes = Vec::new();
        put_settings(&mut bytes, &[(setting::INITIAL_WINDOW_SIZE, 7), (setting::ENABLE_PUSH, 0)]);
        put_window_update(&mut bytes, 3, 1 << 20);
        for len in 0..21 {
            assert!(Frame::parse(&bytes[..len]).is_none(), "{len} bytes");
        }
        let (settings, rest) = Frame::parse(&bytes).unwrap();
        assert_eq!(settings.settings().collect::<Vec<_>>(), [(4, 7), (2, 0)]);
        let (update, rest) = Frame::parse(rest).unwrap();
        assert_eq!((update.kind, update.stream, update.number()), (frame::WINDOW_UPDATE, 3, Some(1 << 20)));
        assert!(rest.is_empty());
    }

    #[test]
    fn padding_and_priority_are_left_out() {
        let flags = flag::PADDED | flag::PRIORITY;
        let frame = Frame { kind: frame::HEADERS, flags, stream: 1, payload: &[2, 9, 9, 9, 9, 9, 1, 2, 3, 0, 0] };
        assert_eq!(frame.content(), Some(&[1, 2, 3][..]));
        let frame = Frame { kind: frame::DATA, flags: flag::PADDED, stream: 1, payload: &[9, 1] };
        assert_eq!(frame.content(), None, "more padding than payload");
    }
}
