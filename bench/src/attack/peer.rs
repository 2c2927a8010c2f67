//! One connection of an attacker: what it has sent, and what the server made of it.
//!
//! Owns: reading the server's frames or HTTP/1.1 answers, as far as they tell how an attack was met. Does not know:
//! sockets. What does not decode is counted, not judged.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Instant;

use crate::h2::{Frame, Frames, flag, frame};
use crate::hpack::Decoder;

/// How often something was seen.
pub type Counts = BTreeMap<String, u64>;

/// Adds one.
pub fn count(counts: &mut Counts, what: String) {
    *counts.entry(what).or_default() += 1;
}

/// A connection.
pub(super) struct Peer {
    /// When it was opened.
    pub(super) opened: Instant,
    /// Pieces sent so far.
    pub(super) round: u64,
    /// Why the server said it ends.
    goaway: Option<u32>,
    decoder: Decoder,
    frames: Frames,
    begun: bool,
    is_http1: bool,
}

impl Peer {
    pub(super) fn new(opened: Instant) -> Self {
        let (decoder, frames) = (Decoder::default(), Frames::default());
        Self { opened, round: 0, goaway: None, decoder, frames, begun: false, is_http1: false }
    }

    /// Reads what arrived; `answers` counts it.
    pub(super) fn receive(&mut self, bytes: &[u8], answers: &mut Counts) {
        if !self.begun {
            self.begun = true;
            self.is_http1 = bytes.starts_with(b"HTTP/");
        }
        if self.is_http1 {
            // The status of an answer that begins with these bytes; the rest does not matter.
            if let Some(status) = bytes.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3)) {
                count(answers, format!("http1 {}", String::from_utf8_lossy(status)));
            }
            return;
        }
        let mut frames = std::mem::take(&mut self.frames);
        let Ok(()) = frames.take(bytes, |frame| {
            self.read_frame(frame, answers);
            Ok::<_, Infallible>(())
        });
        self.frames = frames;
    }

    fn read_frame(&mut self, frame: &Frame<'_>, answers: &mut Counts) {
        match frame.kind {
            frame::RST_STREAM => count(answers, format!("rst {}", frame.number().unwrap_or_default())),
            frame::GOAWAY => {
                let code = frame.payload.get(4..8).and_then(|bytes| bytes.first_chunk());
                self.goaway = Some(code.copied().map_or(0, u32::from_be_bytes));
            }
            frame::HEADERS if frame.has(flag::END_HEADERS) => {
                let read = self.decoder.decode(frame.content().unwrap_or_default(), |name, value| {
                    let text = String::from_utf8_lossy(value);
                    match name {
                        b":status" if value != b"200" => count(answers, format!("status {text}")),
                        b"grpc-status" => count(answers, format!("grpc {text}")),
                        _ => {}
                    }
                });
                if read.is_none() {
                    count(answers, "undecodable".to_owned());
                }
            }
            _ => {}
        }
    }

    /// How its end is named once the socket is closed.
    pub(super) fn end(&self) -> String {
        self.goaway.map_or_else(|| "silently".to_owned(), |code| format!("goaway {code}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2;

    #[test]
    fn answers_are_told_apart_however_they_are_cut() {
        let mut bytes = Vec::new();
        h2::put_settings(&mut bytes, &[]);
        h2::put_head(&mut bytes, 4, frame::RST_STREAM, 0, 1);
        bytes.extend_from_slice(&7_u32.to_be_bytes());
        // :status 404, grpc-status 12 as a literal.
        let block = [&[0x8d, 0, 11][..], b"grpc-status", &[2], b"12"].concat();
        h2::put_head(&mut bytes, block.len(), frame::HEADERS, flag::END_HEADERS, 3);
        bytes.extend(block);
        h2::put_head(&mut bytes, 8, frame::GOAWAY, 0, 0);
        bytes.extend_from_slice(&[0, 0, 0, 3, 0, 0, 0, 11]);
        for cut in 0..bytes.len() {
            let (mut peer, mut answers) = (Peer::new(Instant::now()), Counts::new());
            peer.receive(&bytes[..cut], &mut answers);
            peer.receive(&bytes[cut..], &mut answers);
            let expected = [("grpc 12", 1), ("rst 7", 1), ("status 404", 1)];
            assert_eq!(answers, expected.map(|(what, times)| (what.to_owned(), times)).into(), "cut at {cut}");
            assert_eq!(peer.end(), "goaway 11");
        }
    }

    #[test]
    fn an_answer_in_clear_text_has_a_status() {
        let (mut peer, mut answers) = (Peer::new(Instant::now()), Counts::new());
        peer.receive(b"HTTP/1.1 431 Request Header Fields Too Large\r\n", &mut answers);
        assert_eq!((answers.get("http1 431"), peer.end().as_str()), (Some(&1), "silently"));
    }
}
