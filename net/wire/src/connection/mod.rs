//! One accepted client connection, as a step machine: decrypted bytes in, requests out, responses in, bytes out.
//!
//! Owns: the choice between HTTP/2 with prior knowledge and HTTP/1.1 (first 24 bytes), and the version-neutral surface
//! of both. Does not know: sockets, TLS, clocks (time is an argument), methods, messages.
//!
//! A turn of the owner:
//! 1. [`Connection::handle_bytes`] for what arrived, [`Connection::handle_sent`] when the kernel took the last output,
//!    [`Connection::handle_timer`] at [`Connection::deadline`];
//! 2. after any of these, [`Connection::poll_event`] until `None`, answering at once or in a later turn;
//! 3. once a turn, if no earlier output is still on its way to the kernel: [`Connection::take_output`], one write;
//! 4. if [`Connection::is_finished`] after that: close behind that write.
//!
//! Invariants
//! - I1: the events do not depend on how the input was cut into pieces.
//! - I2: a response method called with a stream that ended has no effect.
//! - I3: no input makes this code panic; memory is bounded by [`limits`].
//! - I4: all bytes that became sendable in a turn leave with one `take_output`.

mod budget;
mod event;
pub mod fuzz;
mod head;
pub mod limits;

pub use budget::{AssemblyBudget, OutputBudget};
pub use event::{ConnectionEvent, RequestShape, Route, StreamId};
pub use head::{Known, RequestHead};
pub use limits::ConnectionLimits;

use crate::h2::frame::PREFACE;
use crate::h2::{self, Event, Place};
use crate::http1;

/// What the first bytes have decided.
#[derive(Debug)]
enum Protocol {
    /// Nothing yet.
    Undecided(ConnectionLimits),
    Http2(Box<h2::Server>),
    Http1(Box<http1::Server>),
}

/// An accepted connection. Plain data: may move between cores when no event is borrowed.
#[derive(Debug)]
pub struct Connection {
    protocol: Protocol,
    accepted_at: u64,
    /// Received bytes; those before `at` are consumed, though the last event may still borrow from them.
    input: Vec<u8>,
    at: usize,
}

/// Calls one method on whichever protocol is spoken; `$undecided` before that is known.
macro_rules! dispatch {
    ($self:ident, $server:ident => $call:expr, $undecided:expr) => {
        match &$self.protocol {
            Protocol::Http2($server) => $call,
            Protocol::Http1($server) => $call,
            Protocol::Undecided(_) => $undecided,
        }
    };
    (mut $self:ident, $server:ident => $call:expr, $undecided:expr) => {
        match &mut $self.protocol {
            Protocol::Http2($server) => $call,
            Protocol::Http1($server) => $call,
            Protocol::Undecided(_) => $undecided,
        }
    };
}

impl Connection {
    /// A connection accepted at `now`.
    #[must_use]
    pub fn new(limits: &ConnectionLimits, now: u64) -> Self {
        let mut limits = limits.clone();
        limits.message_bytes_max = limits.message_bytes_max.min(limits::GRANTED_BYTES_MAX);
        limits.http_body_bytes_max = limits.http_body_bytes_max.min(limits::GRANTED_BYTES_MAX);
        Self { protocol: Protocol::Undecided(limits), accepted_at: now, input: Vec::new(), at: 0 }
    }

    /// Takes bytes in order of arrival.
    pub fn handle_bytes(&mut self, bytes: Vec<u8>, now: u64) {
        if self.at == self.input.len() {
            self.input = bytes;
        } else {
            self.input.drain(..self.at);
            self.input.extend_from_slice(&bytes);
        }
        self.at = 0;
        if let Protocol::Undecided(_) = self.protocol {
            self.decide(now);
        }
        if let Protocol::Http2(server) = &mut self.protocol {
            server.note_received(now);
        }
    }

    /// Chooses the protocol as soon as the bytes allow it.
    fn decide(&mut self, now: u64) {
        let Protocol::Undecided(limits) = &self.protocol else { return };
        let known = self.input.len().min(PREFACE.len());
        if self.input[..known] != PREFACE[..known] {
            self.protocol = Protocol::Http1(Box::new(http1::Server::new(limits.clone(), self.accepted_at)));
        } else if known == PREFACE.len() {
            self.at = PREFACE.len();
            self.protocol = Protocol::Http2(Box::new(h2::Server::new(limits.clone(), self.accepted_at, now)));
        }
    }

    /// The next event, or `None` until there is more input, output room or budget.
    #[inline]
    pub fn poll_event(&mut self, budget: &mut AssemblyBudget, now: u64) -> Option<ConnectionEvent<'_>> {
        let event = dispatch!(mut self, server => server.poll(&self.input, &mut self.at, budget, now), None);
        if let Some(event) = event {
            return Some(self.resolve(event));
        }
        if self.at == self.input.len() {
            // An idle connection holds no buffer.
            self.input = Vec::new();
            self.at = 0;
        }
        None
    }

    /// Lends the event the bytes it points to.
    #[inline]
    fn resolve(&self, event: Event) -> ConnectionEvent<'_> {
        let bytes = |place| match (place, &self.protocol) {
            (Place::Empty, _) | (_, Protocol::Undecided(_)) => &[][..],
            (Place::Input(start, end), _) => &self.input[start..end],
            (Place::Delivered(start), Protocol::Http2(server)) => &server.delivered()[start..],
            (Place::Delivered(start), Protocol::Http1(server)) => &server.body()[start..],
        };
        let head = || match &self.protocol {
            Protocol::Http2(server) => server.delivered_head(),
            Protocol::Http1(server) => server.head(),
            Protocol::Undecided(_) => unreachable!("an undecided connection has no events"),
        };
        match event {
            Event::GrpcRequest { stream, route, message } => {
                ConnectionEvent::GrpcRequest { stream, route, head: head(), message: bytes(message) }
            }
            Event::GrpcMessage { stream, message } => ConnectionEvent::GrpcMessage { stream, message: bytes(message) },
            Event::GrpcHalfClose { stream } => ConnectionEvent::GrpcHalfClose { stream },
            Event::HttpRequest { stream, body } => {
                ConnectionEvent::HttpRequest { stream, head: head(), body: bytes(body) }
            }
            Event::StreamReset { stream } => ConnectionEvent::StreamReset { stream },
            Event::StreamWritable { stream } => ConnectionEvent::StreamWritable { stream },
        }
    }

    /// Answers a call with its only message and status OK. `encode` appends exactly `len` bytes.
    #[inline]
    pub fn send_unary(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Protocol::Http2(server) = &mut self.protocol {
            server.send_unary(stream, len, encode);
        }
    }

    /// Sends one message of a response stream. `encode` appends exactly `len` bytes.
    pub fn send_message(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Protocol::Http2(server) = &mut self.protocol {
            server.send_message(stream, len, encode);
        }
    }

    /// Begins a message of a response stream whose `len` bytes follow in parts, as its backlog drains: a response need
    /// not stand in memory whole. Until all have followed, the call can only end with an error or a reset.
    pub fn begin_message(&mut self, stream: StreamId, len: usize) {
        if let Protocol::Http2(server) = &mut self.protocol {
            server.begin_message(stream, len);
        }
    }

    /// The next bytes of a message begun with [`Connection::begin_message`].
    pub fn send_part(&mut self, stream: StreamId, bytes: &[u8]) {
        if let Protocol::Http2(server) = &mut self.protocol {
            server.send_part(stream, bytes);
        }
    }

    /// Whether a gRPC call still takes an answer: neither ended by us nor given up by the client.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        match &self.protocol {
            Protocol::Http2(server) => server.is_open(stream),
            _ => false,
        }
    }

    /// Ends a gRPC call with a status code (0 = OK) and message, after the messages sent before.
    pub fn finish(&mut self, stream: StreamId, code: u32, message: &str) {
        if let Protocol::Http2(server) = &mut self.protocol {
            server.finish(stream, code, message);
        }
    }

    /// Gives a stream up: RST_STREAM CANCEL on HTTP/2, close on HTTP/1.1.
    pub fn reset(&mut self, stream: StreamId) {
        dispatch!(mut self, server => server.reset(stream), ());
    }

    /// Answers an HTTP request. `content-length` is added; names in lower case.
    pub fn send_http(&mut self, stream: StreamId, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        dispatch!(mut self, server => server.send_http(stream, status, headers, body), ());
    }

    /// Begins an HTTP response of unknown length (chunked on HTTP/1.1).
    pub fn start_http(&mut self, stream: StreamId, status: u16, headers: &[(&str, &str)]) {
        dispatch!(mut self, server => server.start_http(stream, status, headers), ());
    }

    /// The next piece of a response begun with [`Connection::start_http`].
    pub fn send_http_body(&mut self, stream: StreamId, body: &[u8]) {
        dispatch!(mut self, server => server.send_http_body(stream, body), ());
    }

    /// Ends a response begun with [`Connection::start_http`].
    pub fn finish_http(&mut self, stream: StreamId) {
        dispatch!(mut self, server => server.finish_http(stream), ());
    }

    /// Response bytes of a stream that wait for windows or the kernel. Zero for a stream that ended.
    #[must_use]
    pub fn backlog_bytes(&self, stream: StreamId) -> usize {
        dispatch!(self, server => server.backlog_bytes(stream), 0)
    }

    /// Moves everything sendable now to the end of `out`, bulk data up to [`limits::OUTPUT_AHEAD_BYTES_MAX`]. Call when
    /// the kernel has taken the previous output; if `out` is not empty afterwards, report back by `handle_sent`.
    pub fn take_output(&mut self, out: &mut Vec<u8>, now: u64) {
        dispatch!(mut self, server => server.take_output(out, now), ());
    }

    /// Accounts for what is unsent, and takes note of how much may be. Call at the end of a turn in which the
    /// connection was touched.
    pub fn settle_output(&mut self, output: &mut OutputBudget) {
        dispatch!(mut self, server => server.settle_output(output), ());
    }

    /// The kernel has taken all bytes of the last `take_output`.
    pub fn handle_sent(&mut self, now: u64) {
        dispatch!(mut self, server => server.note_sent(now), ());
    }

    /// When `handle_timer` is due, if ever.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let undecided = match &self.protocol {
            Protocol::Undecided(limits) => Some(self.accepted_at.saturating_add(limits.preface_timeout)),
            _ => None,
        };
        dispatch!(self, server => server.deadline(), undecided)
    }

    /// Acts on deadlines that have passed; then poll and take output as after input.
    pub fn handle_timer(&mut self, now: u64) {
        if let Protocol::Undecided(limits) = &self.protocol
            && self.accepted_at.saturating_add(limits.preface_timeout) <= now
        {
            self.close_silently();
        }
        dispatch!(mut self, server => server.handle_timer(now), ());
    }

    /// Graceful stop: no new requests; finished when the open ones are answered.
    pub fn start_drain(&mut self, now: u64) {
        match &mut self.protocol {
            Protocol::Undecided(_) => self.close_silently(),
            Protocol::Http2(server) => server.start_drain(now),
            Protocol::Http1(server) => server.start_drain(),
        }
    }

    /// Nothing was said: an HTTP/1.1 connection that closes between requests says nothing either.
    fn close_silently(&mut self) {
        if let Protocol::Undecided(limits) = &self.protocol {
            let mut server = http1::Server::new(limits.clone(), self.accepted_at);
            server.start_drain();
            self.protocol = Protocol::Http1(Box::new(server));
        }
    }

    /// Whether the owner should go on delivering bytes; false is backpressure or the end of a protocol.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        let pending_bytes = self.input.len() - self.at;
        !dispatch!(self, server => server.is_closed(), false)
            && match &self.protocol {
                Protocol::Undecided(_) => true,
                Protocol::Http2(server) => !server.is_backlogged() && pending_bytes < limits::INPUT_BYTES_MAX,
                Protocol::Http1(server) => {
                    !server.is_backlogged() && (!server.is_answering() || pending_bytes < limits::INPUT_BYTES_MAX)
                }
            }
    }

    /// Whether a message waits for the budget: poll again after other connections released some.
    #[must_use]
    pub fn waits_for_budget(&self) -> bool {
        matches!(&self.protocol, Protocol::Http2(server) if server.waits_for_budget())
    }

    /// Whether the protocol has ended and its last bytes have been taken: the owner writes those and closes. No event
    /// follows: it forgets all streams.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        dispatch!(self, server => server.is_finished(), false)
    }

    /// Returns what the connection holds of the budget. Call before dropping it.
    pub fn release(&mut self, budget: &mut AssemblyBudget) {
        dispatch!(mut self, server => server.release(budget), ());
    }

    /// Returns what the connection has of the account of output. Call before dropping it.
    pub fn release_output(&mut self, output: &mut OutputBudget) {
        dispatch!(mut self, server => server.release_output(output), ());
    }
}
