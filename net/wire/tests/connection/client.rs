//! A model of an HTTP/2 client: an independent, naive reading of RFC 9113 that the server is checked against.
//!
//! Owns: composing frames, and the books of a client: windows, stream states, responses. It asserts whatever a server
//! must not do: exceed a window or the frame size, send DATA before HEADERS or anything after the end.

use std::collections::BTreeMap;

use trilith_wire::hpack::{Decoder, FieldSink, Mark};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

pub(crate) fn preface(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (identifier, value) in settings {
        payload.extend_from_slice(&identifier.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &payload)].concat()
}

/// A header block of plain literals.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            // Lengths from 127 on take continuation bytes (RFC 7541 section 5.1).
            if text.len() < 127 {
                out.push(text.len() as u8);
            } else {
                out.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    out.push((rest % 128 + 128) as u8);
                    rest /= 128;
                }
                out.push(rest as u8);
            }
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

pub(crate) fn call_fields(path: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

pub(crate) fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(fields))
}

pub(crate) fn message(payload: &[u8]) -> Vec<u8> {
    [&[0][..], &(payload.len() as u32).to_be_bytes(), payload].concat()
}

/// A whole unary call in two frames.
pub(crate) fn unary(stream: u32, payload: &[u8]) -> Vec<u8> {
    [headers(stream, 0, &call_fields("/test/Unary")), frame(DATA, END_STREAM, stream, &message(payload))].concat()
}

pub(crate) fn number(kind: u8, stream: u32, value: u32) -> Vec<u8> {
    frame(kind, 0, stream, &value.to_be_bytes())
}

#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl FieldSink for Fields {
    fn field(&mut self, name: &[u8], value: &[u8], _: Mark) -> Mark {
        self.0.push((String::from_utf8(name.to_vec()).unwrap(), String::from_utf8(value.to_vec()).unwrap()));
        Mark::default()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) head: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) ended: bool,
    pub(crate) reset: Option<u32>,
}

impl Response {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.trailers.iter().chain(&self.head);
        fields.find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// grpc-status and grpc-message of a finished call.
    pub(crate) fn status(&self) -> (&str, &str) {
        assert!(self.ended, "no end of the response: {self:?}");
        (self.field("grpc-status").unwrap_or(""), self.field("grpc-message").unwrap_or(""))
    }

    /// The gRPC messages in the body.
    pub(crate) fn messages(&self) -> Vec<&[u8]> {
        let (mut rest, mut messages) = (&self.body[..], Vec::new());
        while let Some((prefix, after)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            messages.push(&after[..length]);
            rest = &after[length..];
        }
        assert!(rest.is_empty(), "a cut message");
        messages
    }
}

pub(crate) struct Client {
    buffer: Vec<u8>,
    decoder: Decoder,
    pub(crate) responses: BTreeMap<u32, Response>,
    /// What we allow the server to send.
    pub(crate) connection_window: i64,
    pub(crate) initial_window: i64,
    pub(crate) stream_windows: BTreeMap<u32, i64>,
    /// What the server allows us to send, beyond the initial 65,535.
    pub(crate) granted_connection: i64,
    pub(crate) granted_streams: BTreeMap<u32, i64>,
    pub(crate) frame_bytes_max: usize,
    pub(crate) settings: Vec<(u16, u32)>,
    pub(crate) settings_acks: u32,
    pub(crate) pings: Vec<(u8, Vec<u8>)>,
    pub(crate) goaways: Vec<(u32, u32, String)>,
}

impl Client {
    pub(crate) fn new(initial_window: i64) -> Self {
        Self {
            buffer: Vec::new(),
            decoder: Decoder::new(4096),
            responses: BTreeMap::new(),
            connection_window: 65_535,
            initial_window,
            stream_windows: BTreeMap::new(),
            granted_connection: 0,
            granted_streams: BTreeMap::new(),
            frame_bytes_max: 16_384,
            settings: Vec::new(),
            settings_acks: 0,
            pings: Vec::new(),
            goaways: Vec::new(),
        }
    }

    pub(crate) fn response(&self, stream: u32) -> &Response {
        self.responses.get(&stream).unwrap_or_else(|| panic!("no response on stream {stream}"))
    }

    pub(crate) fn read(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= 9 {
            let length = u32::from_be_bytes([0, self.buffer[0], self.buffer[1], self.buffer[2]]) as usize;
            assert!(length <= self.frame_bytes_max, "a frame of {length} bytes");
            if self.buffer.len() < 9 + length {
                break;
            }
            let rest = self.buffer.split_off(9 + length);
            let whole = std::mem::replace(&mut self.buffer, rest);
            let stream = u32::from_be_bytes([whole[5], whole[6], whole[7], whole[8]]);
            self.frame(whole[3], whole[4], stream, &whole[9..]);
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            DATA => {
                self.connection_window -= payload.len() as i64;
                let window = self.stream_windows.entry(stream).or_insert(0);
                *window -= payload.len() as i64;
                assert!(*window + self.initial_window >= 0, "stream {stream} exceeds its window");
                assert!(self.connection_window >= 0, "the connection's window is exceeded");
                let response = self.responses.get_mut(&stream).expect("DATA before HEADERS");
                assert!(!response.ended && response.reset.is_none(), "DATA after the end");
                response.body.extend_from_slice(payload);
                response.ended = flags & END_STREAM != 0;
            }
            HEADERS => {
                assert_eq!(flags & END_HEADERS, END_HEADERS, "the model does not read CONTINUATION");
                let mut fields = Fields::default();
                self.decoder.decode(payload, &mut fields).expect("the server's HPACK");
                let is_trailers = self.responses.contains_key(&stream);
                let response = self.responses.entry(stream).or_default();
                assert!(!response.ended && response.reset.is_none(), "HEADERS after the end");
                assert!(!is_trailers || flags & END_STREAM != 0, "trailers end the stream");
                *(if is_trailers { &mut response.trailers } else { &mut response.head }) = fields.0;
                response.ended = flags & END_STREAM != 0;
            }
            RST_STREAM => self.responses.entry(stream).or_default().reset = Some(word(0)),
            SETTINGS if flags & ACK != 0 => self.settings_acks += 1,
            SETTINGS => {
                let parameter = |six: &[u8]| {
                    (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]))
                };
                self.settings.extend(payload.chunks(6).map(parameter));
            }
            PING => self.pings.push((flags, payload.to_vec())),
            GOAWAY => {
                let text = String::from_utf8(payload[8..].to_vec()).unwrap();
                self.goaways.push((word(0), word(4), text));
            }
            WINDOW_UPDATE if stream == 0 => self.granted_connection += i64::from(word(0)),
            WINDOW_UPDATE => *self.granted_streams.entry(stream).or_insert(0) += i64::from(word(0)),
            other => panic!("a frame of type {other}"),
        }
    }
}

/// A small deterministic generator for the property tests.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 20) % bound
    }
}
