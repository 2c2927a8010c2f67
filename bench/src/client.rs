//! One HTTP/2 connection of the load generator: unary gRPC calls, many at a time.
//!
//! Owns: streams, both directions of flow control, header compression. Sans-IO: bytes in, bytes out.
//! Does not know: sockets, time, what a message says.
//!
//! Invariants
//! - I1: DATA is sent only within the connection's and the stream's windows and the peer's frame size.
//! - I2: a stream is opened only within the peer's limit, and only after its SETTINGS came.
//! - I3: every call ends exactly once, as a [`Finished`].
//! - I4: received DATA beyond the windows we granted is an error of the peer.

use crate::h2::{self, Frame, Frames, flag, frame, setting};
use crate::hpack::{Decoder, RequestHeaders, TABLE_BYTES_MAX};
use crate::unsent::{PREFIX_BYTES, Unsent};
use std::collections::{HashMap, VecDeque};

const STREAM_WINDOW: i64 = 4 << 20;
const CONNECTION_WINDOW: i64 = 16 << 20;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The gRPC status; the message is there if it is zero.
    Status(u32),
    /// RST_STREAM with this code.
    Reset(u32),
    /// The response broke a rule.
    Broken(&'static str),
}

/// A call that ended.
#[derive(Debug)]
pub struct Finished<T> {
    /// What the caller gave to [`Client::call`].
    pub tag: T,
    /// How it ended.
    pub outcome: Outcome,
    /// The response message without its prefix.
    pub message: Vec<u8>,
}

struct Stream<T> {
    tag: T,
    unsent: Unsent,
    /// What the server may still send.
    granted: i64,
    body: Vec<u8>,
    http_ok: bool,
    status: Option<u32>,
}

/// The client's end of one connection.
pub struct Client<T> {
    path: String,
    authority: String,
    headers: Option<RequestHeaders>,
    decoder: Decoder,
    frames: Frames,
    /// A header block whose CONTINUATION frames are still to come.
    open_block: Option<(u32, bool, Vec<u8>)>,
    streams: HashMap<u32, Stream<T>>,
    next_stream: u32,
    streams_max: usize,
    frame_bytes_max: usize,
    stream_window: i64,
    send_window: i64,
    blocked: VecDeque<u32>,
    granted: i64,
    credit: i64,
}

impl<T> Client<T> {
    /// A connection that calls `path`; what must be sent first is appended to `out`.
    pub fn new(path: &str, authority: &str, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(h2::PREFACE);
        h2::put_settings(out, &[(setting::ENABLE_PUSH, 0), (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW as u32)]);
        h2::put_window_update(out, 0, (CONNECTION_WINDOW - h2::WINDOW_DEFAULT) as u32);
        Self {
            path: path.to_owned(),
            authority: authority.to_owned(),
            headers: None,
            decoder: Decoder::default(),
            frames: Frames::default(),
            open_block: None,
            streams: HashMap::new(),
            next_stream: 1,
            streams_max: 0,
            frame_bytes_max: h2::FRAME_BYTES_DEFAULT,
            stream_window: h2::WINDOW_DEFAULT,
            send_window: h2::WINDOW_DEFAULT,
            blocked: VecDeque::new(),
            granted: CONNECTION_WINDOW,
            credit: 0,
        }
    }

    /// Calls under way.
    pub fn outstanding(&self) -> usize {
        self.streams.len()
    }

    /// Whether another call may start now (I2).
    pub fn has_room(&self) -> bool {
        self.streams.len() < self.streams_max
    }

    /// Starts a call.
    pub fn call(&mut self, message: &[u8], tag: T, out: &mut Vec<u8>) {
        assert!(self.has_room(), "I2: {} streams", self.streams.len());
        let block = self.headers.as_mut().expect("SETTINGS came before the first call").next_block();
        let id = self.next_stream;
        self.next_stream += 2;
        h2::put_head(out, block.len(), frame::HEADERS, flag::END_HEADERS, id);
        out.extend_from_slice(block);
        let mut unsent = Unsent::new(self.stream_window);
        unsent.push(message);
        let stream = Stream { tag, unsent, granted: STREAM_WINDOW, body: Vec::new(), http_ok: false, status: None };
        self.streams.insert(id, stream);
        self.blocked.push_back(id);
        self.send_blocked(out);
    }

    /// Sends what the windows allow, oldest stream first (I1).
    fn send_blocked(&mut self, out: &mut Vec<u8>) {
        for _ in 0..self.blocked.len() {
            let Some(id) = self.blocked.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.unsent.send(id, &mut self.send_window, self.frame_bytes_max, flag::END_STREAM, out);
            if !stream.unsent.is_empty() {
                self.blocked.push_back(id);
            }
        }
    }

    /// Takes received bytes in. An error is the peer's fault and final.
    pub fn receive(&mut self, bytes: &[u8], out: &mut Vec<u8>, finished: &mut Vec<Finished<T>>) -> Result<(), String> {
        let mut frames = std::mem::take(&mut self.frames);
        frames.take(bytes, |frame| self.handle_frame(frame, out, finished))?;
        self.frames = frames;
        if self.credit > CONNECTION_WINDOW / 2 {
            h2::put_window_update(out, 0, self.credit as u32);
            self.granted += std::mem::take(&mut self.credit);
        }
        Ok(())
    }

    fn handle_frame(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
        finished: &mut Vec<Finished<T>>,
    ) -> Result<(), String> {
        match frame.kind {
            frame::DATA => self.handle_data(frame, out, finished),
            frame::HEADERS | frame::CONTINUATION => self.handle_headers(frame, finished),
            frame::SETTINGS => {
                h2::put_acknowledgement(out, frame);
                if !frame.has(flag::ACK) {
                    self.handle_settings(frame);
                    self.send_blocked(out);
                }
                Ok(())
            }
            frame::PING => {
                h2::put_acknowledgement(out, frame);
                Ok(())
            }
            frame::WINDOW_UPDATE => {
                let increment = i64::from(frame.number().ok_or("WINDOW_UPDATE without a number")?);
                if frame.stream == 0 {
                    self.send_window += increment;
                } else if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.unsent.shift_window(increment);
                }
                self.send_blocked(out);
                Ok(())
            }
            frame::RST_STREAM => {
                let code = frame.number().ok_or("RST_STREAM without a code")?;
                if let Some(stream) = self.streams.remove(&frame.stream) {
                    finished.push(Finished { tag: stream.tag, outcome: Outcome::Reset(code), message: Vec::new() });
                }
                Ok(())
            }
            frame::GOAWAY => Err(format!("GOAWAY: {}", String::from_utf8_lossy(frame.payload))),
            frame::PRIORITY => Ok(()),
            // Unknown types are ignored (RFC 9113, 5.5).
            kind if kind > frame::CONTINUATION => Ok(()),
            kind => Err(format!("unexpected frame type {kind}")),
        }
    }

    fn handle_settings(&mut self, frame: &Frame<'_>) {
        let mut table_bytes = TABLE_BYTES_MAX;
        let mut streams_max = u32::MAX;
        for (identifier, value) in frame.settings() {
            match identifier {
                setting::HEADER_TABLE_SIZE => table_bytes = value as usize,
                setting::MAX_CONCURRENT_STREAMS => streams_max = value,
                setting::INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.stream_window;
                    self.stream_window = i64::from(value);
                    for stream in self.streams.values_mut() {
                        stream.unsent.shift_window(change);
                    }
                }
                setting::MAX_FRAME_SIZE => self.frame_bytes_max = value as usize,
                _ => {}
            }
        }
        if self.headers.is_none() {
            let dynamic = table_bytes >= TABLE_BYTES_MAX;
            self.headers = Some(RequestHeaders::new(&self.path, &self.authority, dynamic));
            self.streams_max = streams_max as usize;
        }
    }

    fn handle_data(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
        finished: &mut Vec<Finished<T>>,
    ) -> Result<(), String> {
        let len = frame.payload.len() as i64;
        self.granted -= len;
        self.credit += len;
        if self.granted < 0 {
            return Err("more DATA than the connection's window".to_owned());
        }
        let Some(stream) = self.streams.get_mut(&frame.stream) else { return Ok(()) };
        stream.granted -= len;
        if stream.granted < 0 {
            return Err("more DATA than the stream's window".to_owned());
        }
        if stream.granted < STREAM_WINDOW / 2 && !frame.has(flag::END_STREAM) {
            h2::put_window_update(out, frame.stream, (STREAM_WINDOW - stream.granted) as u32);
            stream.granted = STREAM_WINDOW;
        }
        stream.body.extend_from_slice(frame.content().ok_or("broken padding")?);
        if frame.has(flag::END_STREAM) {
            self.finish(frame.stream, finished);
        }
        Ok(())
    }

    fn handle_headers(&mut self, frame: &Frame<'_>, finished: &mut Vec<Finished<T>>) -> Result<(), String> {
        let content = frame.content().ok_or("broken padding")?;
        let (id, end_stream, block) = match (frame.kind, self.open_block.take()) {
            (frame::HEADERS, None) => (frame.stream, frame.has(flag::END_STREAM), content.to_vec()),
            (frame::CONTINUATION, Some((id, end_stream, mut block))) if id == frame.stream => {
                block.extend_from_slice(content);
                (id, end_stream, block)
            }
            _ => return Err("a header block is interrupted".to_owned()),
        };
        if !frame.has(flag::END_HEADERS) {
            self.open_block = Some((id, end_stream, block));
            return Ok(());
        }
        let (mut http_ok, mut status) = (None, None);
        let read = self.decoder.decode(&block, |name, value| match name {
            b":status" => http_ok = Some(value == b"200"),
            b"grpc-status" => status = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
            _ => {}
        });
        read.ok_or("a header block does not decode")?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.http_ok = http_ok.unwrap_or(stream.http_ok);
            stream.status = status.or(stream.status);
            if end_stream {
                self.finish(id, finished);
            }
        }
        Ok(())
    }

    fn finish(&mut self, id: u32, finished: &mut Vec<Finished<T>>) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        let outcome = match stream.status {
            _ if !stream.http_ok => Outcome::Broken("the HTTP status is not 200"),
            None => Outcome::Broken("no grpc-status"),
            Some(0) => match unframe(&mut stream.body) {
                Some(()) => Outcome::Status(0),
                None => Outcome::Broken("not exactly one message"),
            },
            Some(status) => Outcome::Status(status),
        };
        finished.push(Finished { tag: stream.tag, outcome, message: stream.body });
    }
}

/// Removes the prefix of the one uncompressed message that `body` must be.
fn unframe(body: &mut Vec<u8>) -> Option<()> {
    let (prefix, message) = body.split_first_chunk::<PREFIX_BYTES>()?;
    let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || message.len() != len {
        return None;
    }
    body.drain(..PREFIX_BYTES);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(settings: &[(u16, u32)]) -> Client<u32> {
        let mut out = Vec::new();
        let mut client = Client::new("/a/B", "host", &mut out);
        assert!(!client.has_room(), "I2: not before SETTINGS");
        let mut bytes = Vec::new();
        h2::put_settings(&mut bytes, settings);
        client.receive(&bytes, &mut out, &mut Vec::new()).unwrap();
        client
    }

    fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, usize)> {
        let mut frames = Vec::new();
        while let Some((frame, rest)) = Frame::parse(bytes) {
            frames.push((frame.kind, frame.flags, frame.stream, frame.payload.len()));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        frames
    }

    #[test]
    fn data_waits_for_windows_and_is_cut_into_frames() {
        let mut client = ready(&[(setting::INITIAL_WINDOW_SIZE, 20_000), (setting::MAX_CONCURRENT_STREAMS, 2)]);
        let mut out = Vec::new();
        client.call(&[7; 29_995], 1, &mut out);
        let sent = frames(&out);
        assert_eq!(sent[1..], [(frame::DATA, 0, 1, 16_384), (frame::DATA, 0, 1, 3_616)]);
        client.call(&[7; 59_995], 2, &mut out);
        assert!(!client.has_room());
        // A larger stream window: now the connection's 65,535 bytes are the limit.
        out.clear();
        let mut bytes = Vec::new();
        h2::put_settings(&mut bytes, &[(setting::INITIAL_WINDOW_SIZE, 1 << 20)]);
        client.receive(&bytes, &mut out, &mut Vec::new()).unwrap();
        let sent: usize = frames(&out).iter().filter(|sent| sent.0 == frame::DATA).map(|sent| sent.3).sum();
        assert_eq!(sent, 65_535 - 40_000);
        out.clear();
        bytes.clear();
        h2::put_window_update(&mut bytes, 0, 100_000);
        client.receive(&bytes, &mut out, &mut Vec::new()).unwrap();
        let sent = frames(&out);
        assert_eq!(sent.iter().map(|sent| sent.3).sum::<usize>(), 90_000 - 65_535);
        assert!(sent.iter().any(|sent| sent.1 == flag::END_STREAM && sent.2 == 3));
    }

    fn answer(stream: u32, trailers: &[u8], data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        h2::put_head(&mut bytes, 1, frame::HEADERS, flag::END_HEADERS, stream);
        bytes.push(0x88);
        h2::put_head(&mut bytes, data.len(), frame::DATA, 0, stream);
        bytes.extend_from_slice(data);
        h2::put_head(&mut bytes, trailers.len(), frame::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream);
        bytes.extend_from_slice(trailers);
        bytes
    }

    #[test]
    fn every_call_ends_once_with_what_the_server_said() {
        let mut client = ready(&[]);
        let (mut out, mut finished) = (Vec::new(), Vec::new());
        for tag in 0..5 {
            client.call(b"x", tag, &mut out);
        }
        let mut bytes = answer(1, b"\x00\x0bgrpc-status\x010", &[0, 0, 0, 0, 2, 8, 9]);
        bytes.extend(answer(3, b"\x00\x0bgrpc-status\x0214", b""));
        bytes.extend(answer(5, b"\x00\x0bgrpc-status\x010", &[0, 0, 0, 0, 3, 8, 9]));
        bytes.extend(answer(7, b"", &[0, 0, 0, 0, 0]));
        h2::put_head(&mut bytes, 4, frame::RST_STREAM, 0, 9);
        bytes.extend_from_slice(&7_u32.to_be_bytes());
        // In pieces: frames may be cut anywhere.
        for piece in bytes.chunks(3) {
            client.receive(piece, &mut out, &mut finished).unwrap();
        }
        let outcomes: Vec<_> = finished.iter().map(|finished| (finished.tag, finished.outcome.clone())).collect();
        let expected = [
            (0, Outcome::Status(0)),
            (1, Outcome::Status(14)),
            (2, Outcome::Broken("not exactly one message")),
            (3, Outcome::Broken("no grpc-status")),
            (4, Outcome::Reset(7)),
        ];
        assert_eq!(outcomes, expected);
        assert_eq!(finished[0].message, [8, 9]);
        assert_eq!(client.outstanding(), 0);
    }

    #[test]
    fn a_long_answer_gets_more_window_as_it_comes() {
        let mut client = ready(&[]);
        let (mut out, mut finished) = (Vec::new(), Vec::new());
        client.call(b"x", 0, &mut out);
        let message = vec![7; 3 * STREAM_WINDOW as usize];
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(&message);
        let mut windows = [CONNECTION_WINDOW, STREAM_WINDOW];
        let mut bytes = Vec::new();
        h2::put_head(&mut bytes, 1, frame::HEADERS, flag::END_HEADERS, 1);
        bytes.push(0x88);
        for piece in body.chunks(h2::FRAME_BYTES_DEFAULT) {
            h2::put_head(&mut bytes, piece.len(), frame::DATA, 0, 1);
            bytes.extend_from_slice(piece);
            out.clear();
            client.receive(&bytes, &mut out, &mut finished).unwrap();
            bytes.clear();
            for window in &mut windows {
                *window -= piece.len() as i64;
            }
            let mut rest = &out[..];
            while let Some((frame, after)) = Frame::parse(rest) {
                windows[frame.stream as usize] += i64::from(frame.number().unwrap());
                rest = after;
            }
            assert!(windows.iter().all(|&window| window >= h2::FRAME_BYTES_DEFAULT as i64), "{windows:?}");
        }
        let trailers = b"\x00\x0bgrpc-status\x010";
        h2::put_head(&mut bytes, trailers.len(), frame::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1);
        bytes.extend_from_slice(trailers);
        client.receive(&bytes, &mut out, &mut finished).unwrap();
        assert_eq!((&finished[0].outcome, finished[0].message.len()), (&Outcome::Status(0), message.len()));
    }

    #[test]
    fn data_beyond_the_window_is_the_peers_fault() {
        let mut client = ready(&[]);
        let mut out = Vec::new();
        client.call(b"x", 0, &mut out);
        let mut bytes = Vec::new();
        h2::put_head(&mut bytes, (STREAM_WINDOW + 1) as usize, frame::DATA, 0, 1);
        bytes.resize(bytes.len() + STREAM_WINDOW as usize + 1, 0);
        assert!(client.receive(&bytes, &mut out, &mut Vec::new()).is_err());
    }
}
