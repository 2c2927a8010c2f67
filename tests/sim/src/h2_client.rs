//! The client's end of an HTTP/2 connection with gRPC calls, unary and of many messages (RFC 9113 and the gRPC protocol
//! page).
//!
//! Owns: framing, both directions of flow control, and the strict reading of what the server sends. Does not know:
//! methods, messages, sockets.
//!
//! Invariants
//! - I1: any breach of the protocol by the server is an error, never tolerated: windows, frame sizes, stream states.
//! - I2: every call ends exactly once, by its trailers, a reset, a GOAWAY that excludes it, or the connection's end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use trilith_wire::hpack::{Decoder, FieldSink, Mark};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const FLAG_END_STREAM: u8 = 1;
const FLAG_ACK: u8 = 1;
const FLAG_END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const FRAME_BYTES_MAX: usize = 16_384;
const WINDOW_DEFAULT: i64 = 65_535;
/// Answers beyond this may come in slices.
const LARGE_BYTES: usize = 64 << 10;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Outcome {
    /// Trailers arrived: gRPC status, its text, and the message (empty unless the status is 0).
    Answered { code: u32, text: String, message: Vec<u8> },
    /// The server says that it never looked at the request.
    Refused,
    /// The stream was reset with this error code; nobody knows what happened.
    Reset(u32),
}

#[derive(Debug)]
struct Stream {
    unsent: Vec<u8>,
    unsent_from: usize,
    send_window: i64,
    receive_window: i64,
    received: Vec<u8>,
    headers_seen: bool,
    /// Many messages may come, and are handed out one by one.
    is_streaming: bool,
    /// This side has more to send.
    stays_open: bool,
    /// The reader is slow: so many bytes are taken, and their room is not given back.
    withheld: Option<i64>,
    /// When the server sent the first and the last of it.
    sent: (u64, u64),
}

#[derive(Debug, Default)]
struct Fields(Vec<(String, String)>);

impl FieldSink for Fields {
    fn field(&mut self, name: &[u8], value: &[u8], mark: Mark) -> Mark {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        self.0.push((text(name), text(value)));
        mark
    }
}

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

/// One connection.
#[derive(Debug)]
pub struct H2Client {
    output: Vec<u8>,
    input: Vec<u8>,
    decoder: Decoder,
    next_stream: u32,
    streams: BTreeMap<u32, Stream>,
    /// Given up from this side: the server may not know yet.
    cancelled: BTreeSet<u32>,
    ended: VecDeque<(u32, Outcome)>,
    /// Messages of calls of many.
    messages: VecDeque<(u32, Vec<u8>)>,
    send_window: i64,
    send_window_initial: i64,
    receive_window: i64,
    receive_window_initial: i64,
    /// A header block that CONTINUATION frames complete: stream, fragment, end of stream.
    block: Option<(u32, Vec<u8>, bool)>,
    going_away: bool,
    /// When the server sent what is being looked at.
    sent_at: u64,
    /// Large answers that came in several turns of the server.
    sliced: u64,
}

impl H2Client {
    /// A new connection whose streams start with a receive window of `window` bytes.
    #[must_use]
    pub fn new(window: u32) -> Self {
        let mut client = Self {
            output: PREFACE.to_vec(),
            input: Vec::new(),
            decoder: Decoder::new(4096),
            next_stream: 1,
            streams: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            ended: VecDeque::new(),
            messages: VecDeque::new(),
            send_window: WINDOW_DEFAULT,
            send_window_initial: WINDOW_DEFAULT,
            receive_window: WINDOW_DEFAULT,
            receive_window_initial: i64::from(window),
            block: None,
            going_away: false,
            sent_at: 0,
            sliced: 0,
        };
        let mut settings = Vec::new();
        // ENABLE_PUSH = 0, INITIAL_WINDOW_SIZE = window.
        settings.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 4]);
        settings.extend_from_slice(&window.to_be_bytes());
        client.push_frame(SETTINGS, 0, 0, &settings);
        client
    }

    fn push_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        self.output.extend_from_slice(&length[1..]);
        self.output.extend_from_slice(&[kind, flags]);
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(payload);
    }

    /// Whether new calls must go to another connection.
    #[must_use]
    pub fn is_going_away(&self) -> bool {
        self.going_away
    }

    /// Calls that have not ended.
    #[must_use]
    pub fn open_calls(&self) -> usize {
        self.streams.len()
    }

    /// Begins a unary call.
    pub fn call(&mut self, path: &str, message: &[u8]) -> u32 {
        let id = self.open(path);
        let stream = self.streams.get_mut(&id).expect("just opened");
        (stream.is_streaming, stream.stays_open) = (false, false);
        self.send(id, message);
        id
    }

    /// Begins a call of many messages in both directions.
    pub fn open(&mut self, path: &str) -> u32 {
        let id = self.begin(path);
        let stream = Stream {
            unsent: Vec::new(),
            unsent_from: 0,
            send_window: self.send_window_initial,
            receive_window: self.receive_window_initial,
            received: Vec::new(),
            headers_seen: false,
            is_streaming: true,
            stays_open: true,
            withheld: None,
            sent: (u64::MAX, 0),
        };
        self.streams.insert(id, stream);
        id
    }

    /// Sends a message of a call that has not ended.
    pub fn send(&mut self, id: u32, message: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.unsent.push(0);
        stream.unsent.extend_from_slice(&(message.len() as u32).to_be_bytes());
        stream.unsent.extend_from_slice(message);
        self.send_data();
    }

    /// Nothing more is sent on a call of many messages.
    pub fn half_close(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.stays_open) else { return };
        stream.stays_open = false;
        if stream.unsent.is_empty() {
            self.push_frame(DATA, FLAG_END_STREAM, id, &[]);
        }
    }

    /// The reader of a call stops to take anything: the window closes by and by.
    pub fn stop_reading(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.withheld.get_or_insert(0);
        }
    }

    /// It goes on. Whether the window had closed.
    pub fn go_on_reading(&mut self, id: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let Some(withheld) = stream.withheld.take().filter(|withheld| *withheld > 0) else { return false };
        let was_closed = stream.receive_window == 0;
        stream.receive_window += withheld;
        self.push_frame(WINDOW_UPDATE, 0, id, &(withheld as u32).to_be_bytes());
        was_closed
    }

    /// The bytes received on a stream, and those that its message will have if that is known.
    #[must_use]
    pub fn progress(&self, id: u32) -> (usize, Option<usize>) {
        let received = self.streams.get(&id).map_or(&[][..], |stream| &stream.received);
        let expected = received.first_chunk::<5>().map(|[_, len @ ..]| u32::from_be_bytes(*len) as usize + 5);
        (received.len(), expected)
    }

    /// Gives a call up; nothing more is heard of it.
    pub fn cancel(&mut self, id: u32) {
        if self.streams.remove(&id).is_some() {
            self.cancelled.insert(id);
            self.push_frame(RST_STREAM, 0, id, &CANCEL.to_be_bytes());
        }
    }

    /// Begins a call that never gets its whole message.
    pub fn abandon(&mut self, path: &str, beginning: &[u8]) {
        let id = self.begin(path);
        self.cancelled.insert(id);
        let len = beginning.len() as i64;
        if len <= self.send_window.min(self.send_window_initial) {
            self.send_window -= len;
            self.push_frame(DATA, 0, id, beginning);
        }
    }

    fn begin(&mut self, path: &str) -> u32 {
        let id = self.next_stream;
        self.next_stream += 2;
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "sim"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            push_literal(&mut block, name, value);
        }
        self.push_frame(HEADERS, FLAG_END_HEADERS, id, &block);
        id
    }

    /// Sends what the windows allow.
    fn send_data(&mut self) {
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for id in ids {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            while stream.unsent_from < stream.unsent.len() {
                let room = self.send_window.min(stream.send_window).clamp(0, FRAME_BYTES_MAX as i64) as usize;
                let take = room.min(stream.unsent.len() - stream.unsent_from);
                if take == 0 {
                    break;
                }
                let piece = stream.unsent[stream.unsent_from..stream.unsent_from + take].to_vec();
                stream.unsent_from += take;
                stream.send_window -= take as i64;
                self.send_window -= take as i64;
                let is_last = stream.unsent_from == stream.unsent.len() && !stream.stays_open;
                let flags = if is_last { FLAG_END_STREAM } else { 0 };
                let length = (take as u32).to_be_bytes();
                self.output.extend_from_slice(&length[1..]);
                self.output.extend_from_slice(&[DATA, flags]);
                self.output.extend_from_slice(&id.to_be_bytes());
                self.output.extend_from_slice(&piece);
            }
            if stream.unsent_from == stream.unsent.len() {
                stream.unsent.clear();
                stream.unsent_from = 0;
            }
        }
    }

    /// Bytes for the server.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The next call that ended.
    pub fn poll_outcome(&mut self) -> Option<(u32, Outcome)> {
        self.ended.pop_front()
    }

    /// The next message of a call of many.
    pub fn poll_message(&mut self) -> Option<(u32, Vec<u8>)> {
        self.messages.pop_front()
    }

    /// Large answers that came in several turns of the server, since the last call.
    pub fn take_sliced(&mut self) -> u64 {
        std::mem::take(&mut self.sliced)
    }

    /// The server sent what comes next at this time.
    pub fn set_sent_at(&mut self, sent_at: u64) {
        self.sent_at = sent_at;
    }

    /// Takes bytes of the server.
    ///
    /// # Errors
    /// The server broke the protocol; the text says how.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        while rest.len() >= 9 {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            if length > FRAME_BYTES_MAX {
                return Err(format!("frame of {length} bytes"));
            }
            if rest.len() < 9 + length {
                break;
            }
            let stream = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]) & 0x7fff_ffff;
            self.handle_frame(rest[3], rest[4], stream, &rest[9..9 + length])?;
            rest = &rest[9 + length..];
        }
        self.input = rest.to_vec();
        self.send_data();
        Ok(())
    }

    fn handle_frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) -> Result<(), String> {
        if self.block.is_some() && kind != CONTINUATION {
            return Err(format!("frame type {kind} inside a header block"));
        }
        match kind {
            DATA => self.handle_data(flags, id, payload),
            HEADERS | CONTINUATION => self.handle_header_fragment(kind, flags, id, payload),
            RST_STREAM => {
                let code = read_u32(payload)?;
                if self.streams.remove(&id).is_some() {
                    let outcome = if code == REFUSED_STREAM { Outcome::Refused } else { Outcome::Reset(code) };
                    self.ended.push_back((id, outcome));
                }
                Ok(())
            }
            SETTINGS => self.handle_settings(flags, id, payload),
            PING => {
                if flags & FLAG_ACK == 0 {
                    self.push_frame(PING, FLAG_ACK, 0, payload);
                }
                Ok(())
            }
            GOAWAY => {
                let last = read_u32(payload)? & 0x7fff_ffff;
                let code = read_u32(payload.get(4..).unwrap_or_default())?;
                if code != 0 {
                    return Err(format!("GOAWAY with error {code}"));
                }
                self.going_away = true;
                let excluded: Vec<u32> = self.streams.range(last.saturating_add(1)..).map(|(id, _)| *id).collect();
                for id in excluded {
                    self.streams.remove(&id);
                    self.ended.push_back((id, Outcome::Refused));
                }
                Ok(())
            }
            WINDOW_UPDATE => self.handle_window_update(id, payload),
            other => Err(format!("unexpected frame type {other}")),
        }
    }

    fn handle_settings(&mut self, flags: u8, id: u32, payload: &[u8]) -> Result<(), String> {
        if id != 0 || !payload.len().is_multiple_of(6) {
            return Err("malformed SETTINGS".to_owned());
        }
        if flags & FLAG_ACK != 0 {
            return Ok(());
        }
        for setting in payload.chunks(6) {
            if setting[..2] == [0, 4] {
                let initial = i64::from(read_u32(&setting[2..])?);
                let change = initial - self.send_window_initial;
                self.send_window_initial = initial;
                self.streams.values_mut().for_each(|stream| stream.send_window += change);
            }
        }
        self.push_frame(SETTINGS, FLAG_ACK, 0, &[]);
        Ok(())
    }

    fn handle_window_update(&mut self, id: u32, payload: &[u8]) -> Result<(), String> {
        let increment = i64::from(read_u32(payload)?);
        if increment == 0 {
            return Err("WINDOW_UPDATE of zero".to_owned());
        }
        let window = match (id, self.streams.get_mut(&id)) {
            (0, _) => &mut self.send_window,
            (_, Some(stream)) => &mut stream.send_window,
            (_, None) => return Ok(()),
        };
        *window += increment;
        if *window > i64::from(i32::MAX) { Err(format!("window of stream {id} overflows")) } else { Ok(()) }
    }

    fn handle_data(&mut self, flags: u8, id: u32, payload: &[u8]) -> Result<(), String> {
        self.receive_window -= payload.len() as i64;
        let Some(stream) = self.streams.get_mut(&id) else {
            if !self.cancelled.contains(&id) {
                return Err(format!("DATA on closed stream {id}"));
            }
            if !payload.is_empty() {
                self.receive_window += payload.len() as i64;
                self.push_frame(WINDOW_UPDATE, 0, 0, &(payload.len() as u32).to_be_bytes());
            }
            return Ok(());
        };
        stream.receive_window -= payload.len() as i64;
        if self.receive_window < 0 || stream.receive_window < 0 {
            return Err(format!("DATA beyond the window of stream {id}"));
        }
        if !stream.headers_seen {
            return Err(format!("DATA before HEADERS on stream {id}"));
        }
        if flags & FLAG_END_STREAM != 0 {
            return Err(format!("stream {id} ends without trailers"));
        }
        stream.received.extend_from_slice(payload);
        stream.sent = (stream.sent.0.min(self.sent_at), stream.sent.1.max(self.sent_at));
        while stream.is_streaming
            && let Some(message) = split_message(&mut stream.received)?
        {
            self.messages.push_back((id, message));
        }
        if !payload.is_empty() {
            let slow = stream.withheld.as_mut().map(|withheld| *withheld += payload.len() as i64).is_some();
            if !slow {
                stream.receive_window += payload.len() as i64;
            }
            self.receive_window += payload.len() as i64;
            let increment = (payload.len() as u32).to_be_bytes();
            self.push_frame(WINDOW_UPDATE, 0, 0, &increment);
            if !slow {
                self.push_frame(WINDOW_UPDATE, 0, id, &increment);
            }
        }
        Ok(())
    }

    fn handle_header_fragment(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) -> Result<(), String> {
        let (stream, mut block, end_stream) = match (kind, self.block.take()) {
            (HEADERS, None) if flags & 0x28 == 0 => (id, Vec::new(), flags & FLAG_END_STREAM != 0),
            (CONTINUATION, Some(open)) if open.0 == id => open,
            _ => return Err("header fragments out of order, padded or prioritised".to_owned()),
        };
        block.extend_from_slice(payload);
        if flags & FLAG_END_HEADERS == 0 {
            self.block = Some((stream, block, end_stream));
            return Ok(());
        }
        let mut fields = Fields::default();
        self.decoder.decode(&block, &mut fields).map_err(|error| format!("header block: {error:?}"))?;
        self.handle_headers(id, &fields, end_stream)
    }

    fn handle_headers(&mut self, id: u32, fields: &Fields, end_stream: bool) -> Result<(), String> {
        let Some(stream) = self.streams.get_mut(&id) else {
            let known = self.cancelled.contains(&id);
            return if known { Ok(()) } else { Err(format!("HEADERS on closed stream {id}")) };
        };
        if !stream.headers_seen {
            stream.headers_seen = true;
            if fields.get(":status") != Some("200") || fields.get("content-type").is_none() {
                return Err(format!("response head {:?}", fields.0));
            }
        } else if !end_stream {
            return Err(format!("second HEADERS of stream {id} do not end it"));
        }
        if !end_stream {
            return Ok(());
        }
        let stream = self.streams.remove(&id).expect("present above");
        self.sliced += u64::from(stream.received.len() > LARGE_BYTES && stream.sent.0 < stream.sent.1);
        let code = fields.get("grpc-status").and_then(|code| code.parse().ok());
        let code: u32 = code.ok_or_else(|| format!("trailers without grpc-status: {:?}", fields.0))?;
        let text = fields.get("grpc-message").unwrap_or_default().to_owned();
        let message = match (code, stream.received.as_slice()) {
            (_, []) if stream.is_streaming => Vec::new(),
            _ if stream.is_streaming => return Err(format!("stream {id} ends within a message")),
            (0, [0, a, b, c, d, message @ ..]) if u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len() => {
                message.to_vec()
            }
            (0, _) => return Err(format!("stream {id} is OK without exactly one message")),
            (_, []) => Vec::new(),
            _ => return Err(format!("stream {id} failed after a message")),
        };
        self.ended.push_back((id, Outcome::Answered { code, text, message }));
        Ok(())
    }
}

/// Takes a whole message off what was received.
fn split_message(received: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    let [flag, a, b, c, d, rest @ ..] = received.as_slice() else { return Ok(None) };
    if *flag != 0 {
        return Err(format!("a message with flag {flag}"));
    }
    let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    if rest.len() < len {
        return Ok(None);
    }
    let message = rest[..len].to_vec();
    received.drain(..5 + len);
    Ok(Some(message))
}

fn read_u32(bytes: &[u8]) -> Result<u32, String> {
    match bytes {
        [a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err("frame too short".to_owned()),
    }
}

/// A literal field without indexing and without Huffman coding (RFC 7541 section 6.2.2).
fn push_literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        assert!(text.len() < 127, "request fields are short");
        block.push(text.len() as u8);
        block.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
        bytes.extend_from_slice(payload);
        bytes
    }

    fn answer() -> Vec<u8> {
        let mut head = vec![0x88];
        push_literal(&mut head, "content-type", "application/grpc");
        let mut trailers = Vec::new();
        push_literal(&mut trailers, "grpc-status", "0");
        let mut bytes = frame(HEADERS, FLAG_END_HEADERS, 1, &head);
        bytes.extend(frame(DATA, 0, 1, &[0, 0, 0, 0, 2, 7, 8]));
        bytes.extend(frame(HEADERS, FLAG_END_HEADERS | FLAG_END_STREAM, 1, &trailers));
        bytes
    }

    #[test]
    fn answer_in_single_bytes() {
        let mut client = H2Client::new(1_000);
        assert_eq!(client.call("/x", b"request"), 1);
        for byte in answer() {
            client.handle_bytes(&[byte]).expect("a correct answer");
        }
        let outcome = Outcome::Answered { code: 0, text: String::new(), message: vec![7, 8] };
        assert_eq!(client.poll_outcome(), Some((1, outcome)));
        assert_eq!(client.open_calls(), 0);
    }

    #[test]
    fn a_slow_reader_keeps_its_window_closed() {
        let mut client = H2Client::new(9);
        let id = client.open("/x");
        client.send(id, b"one");
        client.send(id, b"two");
        client.half_close(id);
        let sent = client.take_output();
        assert!(sent.ends_with(&frame(DATA, FLAG_END_STREAM, 1, &[])), "{sent:?}");
        client.stop_reading(id);
        let mut head = vec![0x88];
        push_literal(&mut head, "content-type", "application/grpc");
        client.handle_bytes(&frame(HEADERS, FLAG_END_HEADERS, 1, &head)).expect("head");
        client.handle_bytes(&frame(DATA, 0, 1, &[0, 0, 0, 0, 1, 7, 0, 0, 0])).expect("a message and part of one");
        assert_eq!((client.poll_message(), client.poll_message()), (Some((1, vec![7])), None));
        let updates = |client: &mut H2Client| client.take_output();
        assert_eq!(updates(&mut client), frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 9]), "the stream's window stays");
        assert!(client.go_on_reading(id) && !client.go_on_reading(id));
        assert_eq!(updates(&mut client), frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 9]));
        client.handle_bytes(&frame(DATA, 0, 1, &[0, 0])).expect("an empty message");
        assert_eq!(client.poll_message(), Some((1, Vec::new())));
    }

    #[test]
    fn server_breaches_are_errors() {
        let breaches = [
            frame(DATA, 0, 1, &[0; 6]),
            frame(HEADERS, FLAG_END_HEADERS, 3, &[0x88]),
            frame(CONTINUATION, FLAG_END_HEADERS, 1, &[0x88]),
            frame(WINDOW_UPDATE, 0, 1, &[0; 4]),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 2]),
        ];
        for breach in breaches {
            let mut client = H2Client::new(5);
            client.call("/x", b"");
            assert!(client.handle_bytes(&breach).is_err(), "{breach:?}");
        }
        let mut client = H2Client::new(5);
        client.call("/x", b"");
        assert!(client.handle_bytes(&answer()).is_err(), "seven bytes of data exceed a window of five");
    }

    #[test]
    fn goaway_refuses_later_streams() {
        let mut client = H2Client::new(1_000);
        client.call("/x", b"");
        client.call("/x", b"");
        client.handle_bytes(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).expect("a graceful GOAWAY");
        assert_eq!(client.poll_outcome(), Some((3, Outcome::Refused)));
        assert!(client.is_going_away() && client.open_calls() == 1);
    }

    #[test]
    fn requests_wait_for_windows() {
        let mut client = H2Client::new(1_000);
        let preface_bytes = client.take_output().len();
        client.call("/x", &vec![1; 100_000]);
        let sent = client.take_output().len();
        assert!(preface_bytes > 24 && (65_535..66_000).contains(&sent), "{sent} bytes sent");
        client.handle_bytes(&frame(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0])).expect("connection window");
        assert!(client.take_output().is_empty(), "the stream's own window is still closed");
        client.handle_bytes(&frame(WINDOW_UPDATE, 0, 1, &[0, 1, 0, 0])).expect("stream window");
        assert!(client.take_output().len() > 34_000);
    }
}
