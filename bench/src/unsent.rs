//! What a client has to send on one stream: gRPC messages, cut into frames of DATA as the windows allow.
//!
//! Owns: the bytes and the stream's send window. Does not know: which calls there are, and whose turn it is.

use crate::h2::{self, frame};

/// What gRPC puts before a message.
pub const PREFIX_BYTES: usize = 5;

/// The sending half of a stream.
#[derive(Default)]
pub struct Unsent {
    bytes: Vec<u8>,
    window: i64,
}

impl Unsent {
    /// Of a stream with this window, nothing yet.
    pub fn new(window: i64) -> Self {
        Self { bytes: Vec::new(), window }
    }

    /// Whether everything is sent.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a message.
    pub fn push(&mut self, message: &[u8]) {
        self.bytes.reserve(PREFIX_BYTES + message.len());
        self.bytes.push(0);
        self.bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(message);
    }

    /// The peer gave more window, or took some back.
    pub fn shift_window(&mut self, by: i64) {
        self.window += by;
    }

    /// Sends what both windows allow on stream `id`. The frame after which nothing is left has the flags `at_end`.
    pub fn send(
        &mut self,
        id: u32,
        connection_window: &mut i64,
        frame_bytes_max: usize,
        at_end: u8,
        out: &mut Vec<u8>,
    ) {
        let mut sent = 0;
        while sent < self.bytes.len() {
            let window = self.window.min(*connection_window).max(0) as usize;
            let len = (self.bytes.len() - sent).min(window).min(frame_bytes_max);
            if len == 0 {
                break;
            }
            let piece = &self.bytes[sent..sent + len];
            sent += len;
            h2::put_head(out, len, frame::DATA, if sent == self.bytes.len() { at_end } else { 0 }, id);
            out.extend_from_slice(piece);
            *connection_window -= len as i64;
            self.window -= len as i64;
        }
        self.bytes.drain(..sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::{Frame, flag};

    /// Lengths and flags of what is sent, and what is left of the connection's window.
    fn sent(unsent: &mut Unsent, connection_window: i64) -> (Vec<(usize, u8)>, i64) {
        let (mut out, mut window, mut pieces) = (Vec::new(), connection_window, Vec::new());
        unsent.send(7, &mut window, 4, flag::END_STREAM, &mut out);
        let mut rest = out.as_slice();
        while let Some((frame, after)) = Frame::parse(rest) {
            assert_eq!((frame.kind, frame.stream), (frame::DATA, 7));
            pieces.push((frame.payload.len(), u8::from(frame.has(flag::END_STREAM))));
            rest = after;
        }
        (pieces, window)
    }

    #[test]
    fn bytes_leave_in_frames_as_both_windows_allow_and_the_last_one_ends() {
        let mut unsent = Unsent::new(6);
        unsent.push(b"abcdef");
        assert_eq!(sent(&mut unsent, 100), (vec![(4, 0), (2, 0)], 94));
        assert_eq!(sent(&mut unsent, 100), (vec![], 100), "the stream's window is used up");
        unsent.shift_window(100);
        assert_eq!(sent(&mut unsent, 3), (vec![(3, 0)], 0));
        assert_eq!(sent(&mut unsent, -1), (vec![], -1), "a window may be owed");
        assert_eq!(sent(&mut unsent, 9), (vec![(2, 1)], 7));
        assert!(unsent.is_empty());
    }
}
