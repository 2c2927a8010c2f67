//! One HTTP/2 connection of calls that stay open: messages in both directions, on many streams.
//!
//! Owns: streams, flow control both ways, gRPC framing. Sans-IO: bytes in, bytes out. Does not know: sockets, time,
//! what a message says. Header blocks are not looked into: a call that answers is taken for accepted, and its end for
//! an error of the server.
//!
//! Invariants
//! - I1: DATA is sent only within the connection's and the stream's windows and the peer's frame size, in order.
//! - I2: a held stream is given no window back; what the server may still send it is bounded by [`STREAM_WINDOW`].

use crate::h2::{self, Frame, Frames, flag, frame, setting};
use crate::hpack::RequestHeaders;
use crate::unsent::{PREFIX_BYTES, Unsent};
use std::collections::BTreeMap;

/// What a stream may send before it is given more.
pub const STREAM_WINDOW: i64 = 256 << 10;
const CONNECTION_WINDOW: i64 = 64 << 20;

#[derive(Default)]
struct Feed {
    unsent: Unsent,
    /// Received and not given back.
    credit: i64,
    is_held: bool,
    body: Vec<u8>,
}

/// The client's end of one connection.
pub struct Feeds {
    path: String,
    authority: String,
    headers: Option<RequestHeaders>,
    frames: Frames,
    streams: BTreeMap<u32, Feed>,
    next_stream: u32,
    frame_bytes_max: usize,
    stream_window: i64,
    send_window: i64,
    credit: i64,
}

impl Feeds {
    /// A connection for calls of `path`; what must be sent first is appended to `out`.
    pub fn new(path: &str, authority: &str, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(h2::PREFACE);
        h2::put_settings(out, &[(setting::ENABLE_PUSH, 0), (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW as u32)]);
        h2::put_window_update(out, 0, (CONNECTION_WINDOW - h2::WINDOW_DEFAULT) as u32);
        Self {
            path: path.to_owned(),
            authority: authority.to_owned(),
            headers: None,
            frames: Frames::default(),
            streams: BTreeMap::new(),
            next_stream: 1,
            frame_bytes_max: h2::FRAME_BYTES_DEFAULT,
            stream_window: h2::WINDOW_DEFAULT,
            send_window: h2::WINDOW_DEFAULT,
            credit: 0,
        }
    }

    /// Whether the server's SETTINGS came.
    pub fn is_ready(&self) -> bool {
        self.headers.is_some()
    }

    /// Opens a call; its stream.
    pub fn open(&mut self, out: &mut Vec<u8>) -> u32 {
        let block = self.headers.as_mut().expect("SETTINGS came before the first call").next_block();
        let id = self.next_stream;
        self.next_stream += 2;
        h2::put_head(out, block.len(), frame::HEADERS, flag::END_HEADERS, id);
        out.extend_from_slice(block);
        self.streams.insert(id, Feed { unsent: Unsent::new(self.stream_window), ..Feed::default() });
        id
    }

    /// Sends a message on a call.
    pub fn send(&mut self, id: u32, message: &[u8], out: &mut Vec<u8>) {
        let stream = self.streams.get_mut(&id).expect("the call is open");
        stream.unsent.push(message);
        self.send_blocked(id, out);
    }

    /// I1.
    fn send_blocked(&mut self, id: u32, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.unsent.send(id, &mut self.send_window, self.frame_bytes_max, 0, out);
    }

    /// Gives no window back on a call any more, or does again (I2).
    pub fn hold(&mut self, id: u32, is_held: bool, out: &mut Vec<u8>) {
        let stream = self.streams.get_mut(&id).expect("the call is open");
        stream.is_held = is_held;
        if !is_held && stream.credit > 0 {
            h2::put_window_update(out, id, std::mem::take(&mut stream.credit) as u32);
        }
    }

    /// Takes received bytes in; messages come with their streams. An error is final.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        hear: &mut impl FnMut(u32, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut frames = std::mem::take(&mut self.frames);
        frames.take(bytes, |frame| self.handle_frame(frame, out, hear))?;
        self.frames = frames;
        if self.credit > CONNECTION_WINDOW / 2 {
            h2::put_window_update(out, 0, std::mem::take(&mut self.credit) as u32);
        }
        Ok(())
    }

    fn handle_frame(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
        hear: &mut impl FnMut(u32, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        match frame.kind {
            frame::DATA => self.handle_data(frame, out, hear)?,
            frame::HEADERS if frame.has(flag::END_STREAM) => return Err("the server ended a call".to_owned()),
            frame::SETTINGS => {
                h2::put_acknowledgement(out, frame);
                if !frame.has(flag::ACK) {
                    self.handle_settings(frame);
                }
            }
            frame::PING => h2::put_acknowledgement(out, frame),
            frame::WINDOW_UPDATE => {
                let increment = i64::from(frame.number().ok_or("WINDOW_UPDATE without a number")?);
                if frame.stream == 0 {
                    self.send_window += increment;
                    let blocked: Vec<u32> = self.streams.keys().copied().collect();
                    blocked.into_iter().for_each(|id| self.send_blocked(id, out));
                } else if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.unsent.shift_window(increment);
                    self.send_blocked(frame.stream, out);
                }
            }
            frame::RST_STREAM => return Err(format!("RST_STREAM {:?}", frame.number())),
            frame::GOAWAY => return Err(format!("GOAWAY: {}", String::from_utf8_lossy(frame.payload))),
            _ => {}
        }
        Ok(())
    }

    fn handle_settings(&mut self, frame: &Frame<'_>) {
        for (identifier, value) in frame.settings() {
            match identifier {
                setting::INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.stream_window;
                    self.stream_window = i64::from(value);
                    self.streams.values_mut().for_each(|stream| stream.unsent.shift_window(change));
                }
                setting::MAX_FRAME_SIZE => self.frame_bytes_max = value as usize,
                _ => {}
            }
        }
        if self.headers.is_none() {
            self.headers = Some(RequestHeaders::new(&self.path, &self.authority, false));
        }
    }

    fn handle_data(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
        hear: &mut impl FnMut(u32, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let len = frame.payload.len() as i64;
        self.credit += len;
        let Some(stream) = self.streams.get_mut(&frame.stream) else { return Ok(()) };
        stream.credit += len;
        if !stream.is_held && stream.credit > STREAM_WINDOW / 2 {
            h2::put_window_update(out, frame.stream, std::mem::take(&mut stream.credit) as u32);
        }
        stream.body.extend_from_slice(frame.content().ok_or("broken padding")?);
        let mut taken = 0;
        while let Some(prefix) = stream.body[taken..].first_chunk::<PREFIX_BYTES>() {
            let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            let from = taken + PREFIX_BYTES;
            let Some(message) = stream.body.get(from..from + len) else { break };
            hear(frame.stream, message)?;
            taken = from + len;
        }
        stream.body.drain(..taken);
        if frame.has(flag::END_STREAM) {
            return Err("the server ended a call".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(out: &mut Vec<u8>, stream: u32, payload: &[u8]) {
        h2::put_head(out, payload.len(), frame::DATA, 0, stream);
        out.extend_from_slice(payload);
    }

    fn ready() -> (Feeds, u32) {
        let (mut out, mut settings) = (Vec::new(), Vec::new());
        let mut feeds = Feeds::new("/a/B", "host", &mut out);
        h2::put_settings(&mut settings, &[(setting::INITIAL_WINDOW_SIZE, 12)]);
        feeds.receive(&settings, &mut out, &mut |_, _| Ok(())).unwrap();
        let stream = feeds.open(&mut out);
        (feeds, stream)
    }

    #[test]
    fn messages_are_cut_by_windows_and_joined_from_pieces() {
        let (mut feeds, stream) = ready();
        let mut out = Vec::new();
        feeds.send(stream, &[7; 20], &mut out);
        assert_eq!(out.len(), 9 + 12, "I1: what the window allows");
        out.clear();
        let mut update = Vec::new();
        h2::put_window_update(&mut update, stream, 100);
        feeds.receive(&update, &mut out, &mut |_, _| Ok(())).unwrap();
        assert_eq!(out.len(), 9 + 13, "and the rest");

        let (mut bytes, mut heard) = (Vec::new(), Vec::new());
        data(&mut bytes, stream, &[0, 0, 0, 0, 2, 1]);
        data(&mut bytes, stream, &[2, 0, 0, 0, 0, 1, 3]);
        for piece in bytes.chunks(4) {
            let mut hear = |id: u32, message: &[u8]| {
                heard.push((id, message.to_vec()));
                Ok(())
            };
            feeds.receive(piece, &mut out, &mut hear).unwrap();
        }
        assert_eq!(heard, [(stream, vec![1, 2]), (stream, vec![3])]);
    }

    #[test]
    fn a_held_stream_is_given_nothing_back() {
        let (mut feeds, stream) = ready();
        let (mut out, mut bytes) = (Vec::new(), Vec::new());
        feeds.hold(stream, true, &mut out);
        (0..STREAM_WINDOW / 16_384).for_each(|_| data(&mut bytes, stream, &[0; 16_384]));
        feeds.receive(&bytes, &mut out, &mut |_, _| Ok(())).unwrap();
        assert!(out.is_empty());
        feeds.hold(stream, false, &mut out);
        let (update, _) = Frame::parse(&out).unwrap();
        assert_eq!((update.stream, update.number()), (stream, Some(STREAM_WINDOW as u32)));
    }
}
