//! Responses out: heads, messages, bodies, trailers, and the order in which they leave.
//!
//! Owns: send windows, the queues of streams, the output buffer. Does not know: what the bytes mean.
//!
//! What fits the windows at once goes straight into the output, so heads and small replies overtake bulk data; what
//! does not waits in its stream's queue and leaves in turns of one quantum when the kernel asks for more.
//!
//! Invariants
//! - I1: DATA never exceeds the peer's windows or its frame size.
//! - I2: bytes of one stream keep their order: nothing is sent directly while its queue holds bytes.
//! - I3: `backlog_bytes` is the sum of the queues.
//! - I4: an open stream with queued bytes is in `ready`, or its own window is not positive.

use crate::connection::StreamId;
use crate::connection::limits::{OUTPUT_AHEAD_BYTES_MAX, SEND_QUANTUM_BYTES, STREAM_BACKLOG_LOW_BYTES};
use crate::grpc::{self, PREFIX_BYTES};
use crate::h2::frame::{self, ErrorCode, HEADER_BYTES, flag, kind};
use crate::h2::server::{Event, Phase, Server};
use crate::h2::streams::{Closed, End, Intake, Response, Stream};
use crate::hpack::{ResponseEncoder, decimal};

/// Queues up to this capacity are kept when they drain.
const QUEUE_KEPT_BYTES_MAX: usize = 64 << 10;

#[inline]
fn put_message(out: &mut Vec<u8>, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
    put_prefix(out, len);
    let start = out.len();
    encode(out);
    assert!(out.len() - start == len, "an encoder must write the announced length");
}

#[inline]
fn put_prefix(out: &mut Vec<u8>, len: usize) {
    let length = u32::try_from(len).expect("a message is shorter than 4 GiB");
    let [l0, l1, l2, l3] = length.to_be_bytes();
    out.extend_from_slice(&[0, l0, l1, l2, l3]);
}

impl Server {
    /// See `Connection::send_unary`.
    #[inline]
    pub(crate) fn send_unary(&mut self, id: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        let frame_bytes = len + PREFIX_BYTES;
        let Some(stream) = self.streams.peek(id) else { return };
        if stream.response != Response::Awaited || !self.fits(stream, frame_bytes) {
            self.send_message(id, len, encode);
            self.finish(id, 0, "");
            return;
        }
        self.put_headers(id, 0, ResponseEncoder::grpc_head);
        self.send_window -= frame_bytes as i64;
        frame::put_header(&mut self.out, frame_bytes, kind::DATA, 0, id.number);
        put_message(&mut self.out, len, encode);
        self.put_headers(id, flag::END_STREAM, ResponseEncoder::grpc_trailers_ok);
        self.end_response(id);
    }

    /// Sends the head if it is still owed; whether messages may follow.
    fn begin_grpc(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get(id) else { return false };
        assert_eq!(stream.message_left, 0, "a message is sent whole before the next");
        match stream.response {
            Response::Ending => return false,
            Response::Begun => {}
            Response::Awaited => {
                stream.response = Response::Begun;
                self.put_headers(id, 0, ResponseEncoder::grpc_head);
            }
        }
        true
    }

    /// See `Connection::begin_message`.
    pub(crate) fn begin_message(&mut self, id: StreamId, len: usize) {
        if self.begin_grpc(id) {
            self.enqueue(id, PREFIX_BYTES, |queue| put_prefix(queue, len));
            if let Some(stream) = self.streams.get(id) {
                stream.message_left = len;
            }
        }
    }

    /// See `Connection::send_part`.
    pub(crate) fn send_part(&mut self, id: StreamId, bytes: &[u8]) {
        let Some(stream) = self.streams.get(id) else { return };
        if stream.response != Response::Begun || bytes.is_empty() {
            return;
        }
        let left = stream.message_left.checked_sub(bytes.len());
        stream.message_left = left.expect("the parts of a message are as long as announced");
        self.enqueue(id, bytes.len(), |queue| queue.extend_from_slice(bytes));
    }

    /// See `Connection::is_open`.
    pub(crate) fn is_open(&self, id: StreamId) -> bool {
        self.streams.peek(id).is_some_and(|stream| stream.response != Response::Ending)
    }

    /// See `Connection::send_message`.
    pub(crate) fn send_message(&mut self, id: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        if !self.begin_grpc(id) {
            return;
        }
        let frame_bytes = len + PREFIX_BYTES;
        let Some(stream) = self.streams.peek(id) else { return };
        if self.fits(stream, frame_bytes) {
            self.charge_windows(id, frame_bytes);
            frame::put_header(&mut self.out, frame_bytes, kind::DATA, 0, id.number);
            put_message(&mut self.out, len, encode);
            return;
        }
        self.enqueue(id, frame_bytes, |queue| put_message(queue, len, encode));
    }

    /// See `Connection::finish`.
    pub(crate) fn finish(&mut self, id: StreamId, code: u32, message: &str) {
        let Some(stream) = self.streams.get(id) else { return self.forget_reset(id) };
        if stream.response == Response::Ending {
            return;
        }
        assert!(code != 0 || stream.message_left == 0, "success follows whole messages");
        if stream.queued_bytes() == 0 {
            self.put_end(id, code, message);
            return;
        }
        self.end_later(id, End::Grpc(code, message.to_owned()));
    }

    /// A response that is only a head, with a gRPC status.
    pub(super) fn finish_at_head(&mut self, id: StreamId, status: u16, code: u32, message: &str) {
        self.put_headers(id, flag::END_STREAM, |encoder, out| {
            encoder.begin(out);
            encoder.status(out, status);
            encoder.content_type(out);
            put_grpc_status(encoder, out, code, message);
        });
        self.end_response(id);
    }

    /// See `Connection::reset`.
    pub(crate) fn reset(&mut self, id: StreamId) {
        if self.streams.peek(id).is_some() {
            frame::put_number(&mut self.out, kind::RST_STREAM, id.number, ErrorCode::Cancel as u32);
            self.close_stream(id, Closed::ByUs);
        }
    }

    /// See `Connection::send_http`.
    pub(crate) fn send_http(&mut self, id: StreamId, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let Some(stream) = self.streams.get(id) else { return };
        if stream.response != Response::Awaited {
            return;
        }
        let without_body = body.is_empty() || stream.is_head_request;
        self.put_http_head(id, status, headers, Some(body.len()), if without_body { flag::END_STREAM } else { 0 });
        if without_body {
            self.end_response(id);
            return;
        }
        self.streams.get(id).expect("just looked at").response = Response::Begun;
        self.send_http_body(id, body);
        self.finish_http(id);
    }

    /// See `Connection::start_http`.
    pub(crate) fn start_http(&mut self, id: StreamId, status: u16, headers: &[(&str, &str)]) {
        let Some(stream) = self.streams.get(id) else { return };
        if stream.response == Response::Awaited {
            stream.response = Response::Begun;
            self.put_http_head(id, status, headers, None, 0);
        }
    }

    /// See `Connection::send_http_body`.
    pub(crate) fn send_http_body(&mut self, id: StreamId, body: &[u8]) {
        let Some(stream) = self.streams.get(id) else { return };
        if stream.response == Response::Begun && !stream.is_head_request && !body.is_empty() {
            self.enqueue(id, body.len(), |queue| queue.extend_from_slice(body));
        }
    }

    /// See `Connection::finish_http`.
    pub(crate) fn finish_http(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(id) else { return self.forget_reset(id) };
        if stream.response != Response::Begun {
            return;
        }
        if stream.queued_bytes() > 0 {
            self.end_later(id, End::Http);
            return;
        }
        frame::put_header(&mut self.out, 0, kind::DATA, flag::END_STREAM, id.number);
        self.end_response(id);
    }

    /// See `Connection::backlog_bytes`.
    pub(crate) fn backlog_bytes(&self, id: StreamId) -> usize {
        self.streams.peek(id).map_or(0, Stream::queued_bytes)
    }

    /// See `Connection::take_output`.
    pub(crate) fn take_output(&mut self, out: &mut Vec<u8>, now: u64) {
        if self.backlog_bytes > 0 && self.phase != Phase::Closed {
            self.pump(now);
        }
        if out.is_empty() {
            std::mem::swap(out, &mut self.out);
        } else {
            out.append(&mut self.out);
        }
        self.handed_over_bytes = out.len();
        self.timers.output_taken(!out.is_empty(), self.backlog_bytes > 0 && self.send_window <= 0, now);
    }

    /// Whether DATA of that length may go straight into the output (I1, I2).
    #[inline]
    fn fits(&self, stream: &Stream, frame_bytes: usize) -> bool {
        let window = stream.send_window.min(self.send_window);
        stream.queued_bytes() == 0
            && frame_bytes <= self.peer_frame_bytes.min(SEND_QUANTUM_BYTES)
            && frame_bytes as i64 <= window
            && self.out.len() < OUTPUT_AHEAD_BYTES_MAX
    }

    fn charge_windows(&mut self, id: StreamId, bytes: usize) {
        self.send_window -= bytes as i64;
        self.streams.get(id).expect("the caller holds an open stream").send_window -= bytes as i64;
        self.pings.note_sent();
        self.control.earn(2);
    }

    /// Bytes that no window allows yet, or that shall not overtake. Where too much waits already, the stream ends
    /// instead: its client asks faster than it reads.
    fn enqueue(&mut self, id: StreamId, bytes: usize, append: impl FnOnce(&mut Vec<u8>)) {
        if self.backlog_bytes > 0 && self.backlog_bytes + bytes > self.output_bytes_max {
            return self.end_unread(id);
        }
        let stream = self.streams.get(id).expect("the caller holds an open stream");
        stream.queue.reserve(bytes);
        append(&mut stream.queue);
        stream.was_full |= stream.queued_bytes() > STREAM_BACKLOG_LOW_BYTES;
        self.backlog_bytes += bytes;
        let may_send = stream.send_window > 0;
        if may_send && !stream.is_ready {
            stream.is_ready = true;
            self.ready.push_back(id);
        }
    }

    #[cold]
    fn end_unread(&mut self, id: StreamId) {
        let ended = self.stream_error(id, ErrorCode::EnhanceYourCalm, self.polled_at);
        if let Err(violation) = ended {
            self.fail(violation);
        }
    }

    /// An owner that has finished a stream hears no more of it, also if that stream ended on the way.
    #[cold]
    fn forget_reset(&mut self, id: StreamId) {
        self.events.retain(|event| *event != Event::StreamReset { stream: id });
    }

    /// The owner is done; the end follows the queue. Whatever the client still sends is not looked at.
    fn end_later(&mut self, id: StreamId, end: End) {
        let stream = self.streams.get(id).expect("the caller holds an open stream");
        stream.end = Some(Box::new(end));
        stream.response = Response::Ending;
        stream.intake = Intake::Discard;
        stream.was_full = false;
        if let Some(since) = stream.blocked_at {
            self.timers.stream_blocked(id, since);
        }
    }

    /// Puts a stream on or off the ready list after its window changed (I4).
    pub(super) fn update_ready(&mut self, id: StreamId, now: u64) {
        let Some(stream) = self.streams.get(id) else { return };
        if stream.queued_bytes() == 0 || stream.is_ready {
            return;
        }
        if stream.send_window > 0 {
            stream.is_ready = true;
            stream.blocked_at = None;
            self.ready.push_back(id);
        } else {
            self.note_blocked(id, now);
        }
    }

    fn note_blocked(&mut self, id: StreamId, now: u64) {
        let stream = self.streams.get(id).expect("the caller holds an open stream");
        if stream.blocked_at.is_none() {
            stream.blocked_at = Some(now);
            if stream.response == Response::Ending {
                self.timers.stream_blocked(id, now);
            }
        }
    }

    /// Moves queued bytes into the output, stream by stream, a quantum each.
    fn pump(&mut self, now: u64) {
        let ahead_max = OUTPUT_AHEAD_BYTES_MAX.min(self.output_bytes_max);
        while self.out.len() < ahead_max && self.send_window > 0 {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(stream) = self.streams.get(id) else { continue };
            stream.is_ready = false;
            if stream.send_window <= 0 {
                self.note_blocked(id, now);
                continue;
            }
            let window = stream.send_window.min(self.send_window) as usize;
            let bytes = stream.queued_bytes().min(SEND_QUANTUM_BYTES).min(self.peer_frame_bytes).min(window);
            let is_last = bytes == stream.queued_bytes();
            let ends = is_last && matches!(stream.end.as_deref(), Some(End::Http));
            let flags = if ends { flag::END_STREAM } else { 0 };
            frame::put_header(&mut self.out, bytes, kind::DATA, flags, id.number);
            self.out.extend_from_slice(&stream.queue[stream.queue_at..stream.queue_at + bytes]);
            stream.queue_at += bytes;
            self.backlog_bytes -= bytes;
            self.charge_windows(id, bytes);
            self.after_sending(id, is_last, now);
        }
    }

    /// Settles a stream that has just sent from its queue: its end, its place in the ready list, its owner's wish.
    fn after_sending(&mut self, id: StreamId, drained: bool, now: u64) {
        let stream = self.streams.get(id).expect("it has just sent");
        if stream.was_full && stream.queued_bytes() < STREAM_BACKLOG_LOW_BYTES {
            stream.was_full = false;
            self.events.push_back(Event::StreamWritable { stream: id });
        }
        if !drained {
            if stream.queue_at >= QUEUE_KEPT_BYTES_MAX && stream.queue_at * 2 >= stream.queue.len() {
                stream.queue.drain(..stream.queue_at);
                stream.queue_at = 0;
            }
            return self.update_ready(id, now);
        }
        stream.queue_at = 0;
        stream.queue.clear();
        if stream.queue.capacity() > QUEUE_KEPT_BYTES_MAX {
            stream.queue = Vec::new();
        }
        match stream.end.take().map(|end| *end) {
            None => {}
            Some(End::Http) => self.end_response(id),
            Some(End::Grpc(code, message)) => self.put_end(id, code, &message),
        }
    }

    /// gRPC trailers of a stream with an empty queue, or the only head of a response without messages.
    fn put_end(&mut self, id: StreamId, code: u32, message: &str) {
        let stream = self.streams.peek(id).expect("the caller holds an open stream");
        if stream.response == Response::Awaited {
            self.finish_at_head(id, 200, code, message);
            return;
        }
        if code == 0 && message.is_empty() {
            self.put_headers(id, flag::END_STREAM, ResponseEncoder::grpc_trailers_ok);
        } else {
            self.put_headers(id, flag::END_STREAM, |encoder, out| {
                encoder.begin(out);
                put_grpc_status(encoder, out, code, message);
            });
        }
        self.end_response(id);
    }

    fn put_http_head(&mut self, id: StreamId, status: u16, headers: &[(&str, &str)], length: Option<usize>, flags: u8) {
        self.put_headers(id, flags, |encoder, out| {
            encoder.begin(out);
            encoder.status(out, status);
            for (name, value) in headers {
                encoder.field(out, name.as_bytes(), value.as_bytes());
            }
            if let Some(length) = length {
                encoder.field(out, b"content-length", decimal(length as u64, &mut [0; 20]));
            }
        });
    }

    /// Appends a header block as HEADERS, with CONTINUATION if it is longer than a frame may be.
    #[inline]
    fn put_headers(&mut self, id: StreamId, flags: u8, encode: impl FnOnce(&mut ResponseEncoder, &mut Vec<u8>)) {
        let at = self.out.len();
        frame::put_header(&mut self.out, 0, kind::HEADERS, flags | flag::END_HEADERS, id.number);
        encode(&mut self.encoder, &mut self.out);
        self.pings.note_sent();
        let length = self.out.len() - at - HEADER_BYTES;
        if length > self.peer_frame_bytes {
            self.split_block(at, flags, id.number);
            return;
        }
        let [_, l0, l1, l2] = (length as u32).to_be_bytes();
        self.out[at..at + 3].copy_from_slice(&[l0, l1, l2]);
    }

    #[cold]
    fn split_block(&mut self, at: usize, flags: u8, number: u32) {
        let block = self.out.split_off(at + HEADER_BYTES);
        self.out.truncate(at);
        let count = block.len().div_ceil(self.peer_frame_bytes);
        for (index, piece) in block.chunks(self.peer_frame_bytes).enumerate() {
            let (kind, flags) = if index == 0 { (kind::HEADERS, flags) } else { (kind::CONTINUATION, 0) };
            let last = if index + 1 == count { flag::END_HEADERS } else { 0 };
            frame::put_header(&mut self.out, piece.len(), kind, flags | last, number);
            self.out.extend_from_slice(piece);
        }
    }

    /// END_STREAM has been written: the stream is over, whether or not the client has said all it wanted.
    #[inline]
    fn end_response(&mut self, id: StreamId) {
        let stream = self.streams.peek(id).expect("the caller holds an open stream");
        if stream.request_ended {
            self.close_stream(id, Closed::ByClient);
        } else {
            frame::put_number(&mut self.out, kind::RST_STREAM, id.number, ErrorCode::NoError as u32);
            self.close_stream(id, Closed::ByUs);
        }
    }
}

fn put_grpc_status(encoder: &mut ResponseEncoder, out: &mut Vec<u8>, code: u32, message: &str) {
    encoder.field(out, b"grpc-status", decimal(u64::from(code), &mut [0; 20]));
    if !message.is_empty() {
        let mut encoded = Vec::with_capacity(message.len());
        grpc::percent_encode(message, &mut encoded);
        encoder.field(out, b"grpc-message", &encoded);
    }
}
