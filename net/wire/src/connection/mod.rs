//! One accepted client connection, as a step machine: decrypted bytes in, requests out, responses in, bytes out.
//!
//! Owns: the choice between HTTP/2 with prior knowledge and HTTP/1.1 (first 24 bytes), and the version-neutral surface
//! of both. Does not know: sockets, TLS, clocks (time is an argument), methods, messages.
//!
//! A turn of the owner:
//! 1. [`Connection::handle_bytes`] for what arrived, [`Connection::handle_sent`] when the kernel took the last output,
//!    [`Connection::handle_timer`] at [`Connection::deadline`];
//! 2. [`Connection::poll_event`] until `None`, answering at once or in a later turn;
//! 3. once a turn, if no earlier output is still on its way to the kernel: [`Connection::take_output`], one write;
//! 4. if [`Connection::is_finished`]: close after that write.
//!
//! Invariants
//! - I1: the events do not depend on how the input was cut into pieces.
//! - I2: a response method called with a stream that ended has no effect.
//! - I3: no input makes this code panic; memory is bounded by [`limits`].
//! - I4: all bytes that became sendable in a turn leave with one `take_output`.

mod budget;
mod event;
mod head;
pub mod limits;

pub use budget::AssemblyBudget;
pub use event::{ConnectionEvent, RequestShape, Route, StreamId};
pub use head::{Known, RequestHead};
pub use limits::ConnectionLimits;

/// An accepted connection. Plain data: may move between cores when no event is borrowed.
#[derive(Debug)]
pub struct Connection {
    output: Vec<u8>,
}

impl Connection {
    /// A connection accepted at `now`.
    #[must_use]
    pub fn new(limits: &ConnectionLimits, now: u64) -> Self {
        let _ = (limits, now);
        Self { output: Vec::new() }
    }

    /// Takes bytes in order of arrival.
    pub fn handle_bytes(&mut self, bytes: Vec<u8>, now: u64) {
        let _ = (bytes, now);
        self.output.clear();
    }

    /// The next event, or `None` until there is more input, output room or budget.
    pub fn poll_event(&mut self, budget: &mut AssemblyBudget, now: u64) -> Option<ConnectionEvent<'_>> {
        let _ = (budget, now);
        self.output.clear();
        None
    }

    /// Answers a call with its only message and status OK. `encode` appends exactly `len` bytes.
    pub fn send_unary(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        let _ = (stream, len);
        encode(&mut self.output);
    }

    /// Sends one message of a response stream. `encode` appends exactly `len` bytes.
    pub fn send_message(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        let _ = (stream, len);
        encode(&mut self.output);
    }

    /// Ends a gRPC call with a status code (0 = OK) and message, after the messages sent before.
    pub fn finish(&mut self, stream: StreamId, code: u32, message: &str) {
        let _ = (stream, code, message);
        self.output.clear();
    }

    /// Gives a stream up: RST_STREAM CANCEL on HTTP/2, close on HTTP/1.1.
    pub fn reset(&mut self, stream: StreamId) {
        let _ = stream;
        self.output.clear();
    }

    /// Answers an HTTP request. `content-length` is added; names in lower case.
    pub fn send_http(&mut self, stream: StreamId, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let _ = (stream, status, headers, body);
        self.output.clear();
    }

    /// Begins an HTTP response of unknown length (chunked on HTTP/1.1).
    pub fn start_http(&mut self, stream: StreamId, status: u16, headers: &[(&str, &str)]) {
        let _ = (stream, status, headers);
        self.output.clear();
    }

    /// The next piece of a response begun with [`Connection::start_http`].
    pub fn send_http_body(&mut self, stream: StreamId, body: &[u8]) {
        let _ = (stream, body);
        self.output.clear();
    }

    /// Ends a response begun with [`Connection::start_http`].
    pub fn finish_http(&mut self, stream: StreamId) {
        let _ = stream;
        self.output.clear();
    }

    /// Response bytes of a stream that wait for windows or the kernel. Zero for a stream that ended.
    #[must_use]
    pub fn backlog_bytes(&self, stream: StreamId) -> usize {
        let _ = stream;
        0
    }

    /// Moves everything sendable now to the end of `out`, bulk data up to [`limits::OUTPUT_AHEAD_BYTES_MAX`]. Call when
    /// the kernel has taken the previous output; if `out` is not empty afterwards, report back by `handle_sent`.
    pub fn take_output(&mut self, out: &mut Vec<u8>, now: u64) {
        let _ = now;
        out.append(&mut self.output);
    }

    /// The kernel has taken all bytes of the last `take_output`.
    pub fn handle_sent(&mut self, now: u64) {
        let _ = now;
        self.output.clear();
    }

    /// When `handle_timer` is due, if ever.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        None
    }

    /// Acts on deadlines that have passed; then poll and take output as after input.
    pub fn handle_timer(&mut self, now: u64) {
        let _ = now;
        self.output.clear();
    }

    /// Graceful stop: no new requests; finished when the open ones are answered.
    pub fn start_drain(&mut self, now: u64) {
        let _ = now;
        self.output.clear();
    }

    /// Whether the owner should go on delivering bytes; false is backpressure or the end of a protocol.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        true
    }

    /// Whether a message waits for the budget: poll again after other connections released some.
    #[must_use]
    pub fn waits_for_budget(&self) -> bool {
        false
    }

    /// Whether nothing remains but to write the output and close.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        false
    }

    /// Returns what the connection holds of the budget. Call before dropping it.
    pub fn release(&mut self, budget: &mut AssemblyBudget) {
        let _ = budget;
        self.output.clear();
    }
}
