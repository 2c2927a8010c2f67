//! The server side of an HTTP/1.1 connection: one request at a time, in order.
//!
//! Owns: the state between requests, bodies, response syntax, deadlines. Does not know: what requests mean.
//!
//! Invariants
//! - I1: no byte of a request is parsed before the previous one is answered, so pipelined answers keep their order.
//! - I2: after a request whose end is uncertain the connection closes; what follows is not interpreted.
//! - I3: a peer whose first line is no HTTP request line gets no answer in a protocol it does not speak (etcd's
//!   multiplexer hangs up as well).

use crate::connection::limits::{
    GATHERING_PATIENCE, HELD_BYTES_FREE, HTTP1_HEAD_BYTES_MAX, OUTPUT_BACKLOG_BYTES_MAX, RESPONSE_BACKLOG_BYTES_MAX,
    STREAM_BACKLOG_LOW_BYTES,
};
use crate::connection::{AssemblyBudget, ConnectionLimits, OutputBudget, RequestHead, StreamId};
use crate::h2::{Event, Place};
use crate::hpack::decimal;
use crate::http1::chunked::ChunkedDecoder;
use crate::http1::request::{RequestError, RequestLine, is_token_byte, parse_head};

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Between requests or inside a head, of which that many bytes have been searched for its end.
    Head {
        searched: usize,
    },
    /// Inside a body with that many bytes to come.
    Body {
        left: usize,
    },
    Chunks(ChunkedDecoder),
    /// A request is with the owner.
    Answering {
        head_written: bool,
        chunked: bool,
    },
    Closed,
}

/// The connection.
#[derive(Debug)]
pub(crate) struct Server {
    limits: ConnectionLimits,
    phase: Phase,
    head: RequestHead,
    line: RequestLine,
    body: Vec<u8>,
    /// Ordinal of the request with the owner, or of the last one.
    ordinal: u32,
    draining: bool,
    writable_owed: bool,
    out: Vec<u8>,
    held_bytes: usize,
    /// Until when the present head or the next request must have come.
    input_by: Option<u64>,
    handed_over_at: Option<u64>,
    handed_over_bytes: usize,
    /// When a body that is still arriving must not keep memory that is short.
    body_check_at: Option<u64>,
    body_due: bool,
    /// What the account of output knows of, and what it allows.
    output_settled_bytes: usize,
    output_bytes_max: usize,
}

impl Server {
    pub(crate) fn new(limits: ConnectionLimits, accepted_at: u64) -> Self {
        let input_by = Some(accepted_at.saturating_add(limits.preface_timeout));
        Self {
            limits,
            phase: Phase::Head { searched: 0 },
            head: RequestHead::default(),
            line: RequestLine::default(),
            body: Vec::new(),
            ordinal: 0,
            draining: false,
            writable_owed: false,
            out: Vec::new(),
            held_bytes: 0,
            input_by,
            handed_over_at: None,
            handed_over_bytes: 0,
            body_check_at: None,
            body_due: false,
            output_settled_bytes: 0,
            output_bytes_max: RESPONSE_BACKLOG_BYTES_MAX,
        }
    }

    /// The next request from `input[*at..]`.
    pub(crate) fn poll(
        &mut self,
        input: &[u8],
        at: &mut usize,
        budget: &mut AssemblyBudget,
        now: u64,
    ) -> Option<Event> {
        self.look_at_body(budget, now);
        loop {
            match self.phase {
                Phase::Closed => {
                    *at = input.len();
                    return None;
                }
                Phase::Answering { .. } => return self.poll_writable(),
                Phase::Head { searched } => self.poll_head(input, at, searched, budget, now)?,
                Phase::Body { left } if left <= input.len() - *at && self.body.is_empty() => {
                    let start = *at;
                    *at += left;
                    return Some(self.deliver(Place::Input(start, *at)));
                }
                Phase::Body { left } => {
                    let take = left.min(input.len() - *at);
                    self.body.extend_from_slice(&input[*at..*at + take]);
                    *at += take;
                    self.phase = Phase::Body { left: left - take };
                    self.charge(budget, now);
                    if matches!(self.phase, Phase::Closed) {
                        continue;
                    }
                    if left > take {
                        return None;
                    }
                    return Some(self.deliver(Place::Delivered(0)));
                }
                Phase::Chunks(mut decoder) => {
                    let decoded = decoder.decode(&input[*at..], &mut self.body, self.limits.http_body_bytes_max);
                    let Ok(consumed) = decoded else {
                        self.refuse(RequestError { status: 400, text: "" });
                        continue;
                    };
                    *at += consumed;
                    self.phase = Phase::Chunks(decoder);
                    self.charge(budget, now);
                    if matches!(self.phase, Phase::Closed) {
                        continue;
                    }
                    if self.body.len() > self.limits.http_body_bytes_max {
                        self.refuse(RequestError { status: 413, text: "" });
                    } else if decoder.is_done() {
                        return Some(self.deliver(Place::Delivered(0)));
                    } else {
                        return None;
                    }
                }
            }
        }
    }

    /// Looks for a complete head; `None` if more input is needed.
    fn poll_head(
        &mut self,
        input: &[u8],
        at: &mut usize,
        searched: usize,
        budget: &mut AssemblyBudget,
        now: u64,
    ) -> Option<()> {
        if self.is_backlogged() {
            return None;
        }
        // RFC 9112 section 2.2: empty lines before a request are ignored.
        let mut searched = searched;
        while let Some(empty) = [&b"\r\n"[..], b"\n"].into_iter().find(|line| input[*at..].starts_with(line)) {
            *at += empty.len();
            searched = 0;
        }
        if searched == 0 {
            self.body = Vec::new();
            budget.release(std::mem::take(&mut self.held_bytes));
            if self.draining {
                self.phase = Phase::Closed;
                return Some(());
            }
        }
        let rest = &input[*at..];
        if self.ordinal == 0 && !may_be_http(rest) {
            // I3
            self.phase = Phase::Closed;
            return Some(());
        }
        let Some(length) = find_head_end(rest, searched) else {
            if rest.len() > HTTP1_HEAD_BYTES_MAX {
                self.refuse(RequestError { status: 431, text: "" });
                return Some(());
            }
            if searched == 0 && !rest.is_empty() && self.ordinal > 0 {
                self.input_by = Some(now.saturating_add(self.limits.header_timeout));
            }
            self.phase = Phase::Head { searched: rest.len() };
            return None;
        };
        *at += length;
        self.input_by = Some(now.saturating_add(self.limits.http1_idle_timeout));
        match parse_head(&rest[..length], &mut self.head) {
            Ok(line) => self.begin_body(line, budget),
            Err(error) => self.refuse(error),
        }
        Some(())
    }

    fn begin_body(&mut self, line: RequestLine, budget: &AssemblyBudget) {
        self.line = line;
        let has_body = line.chunked || line.content_length > 0;
        if line.content_length > self.limits.http_body_bytes_max as u64 {
            return self.refuse(RequestError { status: 413, text: "" });
        }
        if budget.is_pressed() && line.content_length > HELD_BYTES_FREE as u64 {
            return self.refuse(RequestError { status: 503, text: "" });
        }
        if has_body && line.expects_continue {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.phase = if line.chunked {
            Phase::Chunks(ChunkedDecoder::new())
        } else {
            // At most `http_body_bytes_max`, checked above.
            Phase::Body { left: line.content_length as usize }
        };
    }

    fn deliver(&mut self, body: Place) -> Event {
        self.ordinal = self.ordinal.wrapping_add(1).max(1);
        self.phase = Phase::Answering { head_written: false, chunked: false };
        self.input_by = None;
        Event::HttpRequest { stream: StreamId { number: self.ordinal, slot: 0 }, body }
    }

    /// Accounts for the body so far. Where the budget has no room for much of it, the request ends instead.
    fn charge(&mut self, budget: &mut AssemblyBudget, now: u64) {
        let missing = self.body.len().saturating_sub(self.held_bytes);
        if missing > 0 && budget.would_exceed(missing) && self.body.len() > HELD_BYTES_FREE {
            return self.refuse(RequestError { status: 503, text: "" });
        }
        budget.charge(missing);
        self.held_bytes += missing;
        self.body_check_at.get_or_insert_with(|| now.saturating_add(GATHERING_PATIENCE));
    }

    /// Ends a request whose body is slow to arrive while memory for such bodies is short.
    fn look_at_body(&mut self, budget: &AssemblyBudget, now: u64) {
        if !matches!(self.phase, Phase::Body { .. } | Phase::Chunks(_)) {
            (self.body_check_at, self.body_due) = (None, false);
        } else if std::mem::take(&mut self.body_due) {
            if budget.is_pressed() {
                return self.refuse(RequestError { status: 408, text: "" });
            }
            self.body_check_at = Some(now.saturating_add(GATHERING_PATIENCE));
        }
    }

    fn poll_writable(&mut self) -> Option<Event> {
        let drained = self.writable_owed && self.out.len() < STREAM_BACKLOG_LOW_BYTES;
        self.writable_owed &= !drained;
        drained.then_some(Event::StreamWritable { stream: StreamId { number: self.ordinal, slot: 0 } })
    }

    /// Answers what cannot be understood the way Go's net/http does, and closes (I2).
    fn refuse(&mut self, error: RequestError) {
        let reason = reason_phrase(error.status);
        let separator = if error.text.is_empty() { "" } else { ": " };
        let answer = format!(
            "HTTP/1.1 {0} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
             {0} {reason}{separator}{1}",
            error.status, error.text
        );
        self.out.extend_from_slice(answer.as_bytes());
        self.phase = Phase::Closed;
    }

    pub(crate) fn head(&self) -> &RequestHead {
        &self.head
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    fn is_current(&self, id: StreamId) -> bool {
        id.number == self.ordinal && matches!(self.phase, Phase::Answering { .. })
    }

    pub(crate) fn send_http(&mut self, id: StreamId, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        if !self.is_current(id) || matches!(self.phase, Phase::Answering { head_written: true, .. }) {
            return;
        }
        self.put_head(status, headers);
        self.put_field("content-length", decimal(body.len() as u64, &mut [0; 20]));
        self.out.extend_from_slice(b"\r\n");
        if self.head.method() != b"HEAD" {
            self.out.extend_from_slice(body);
        }
        self.end_answer();
    }

    pub(crate) fn start_http(&mut self, id: StreamId, status: u16, headers: &[(&str, &str)]) {
        if !self.is_current(id) || matches!(self.phase, Phase::Answering { head_written: true, .. }) {
            return;
        }
        let chunked = !self.line.is_http10;
        self.line.keep_alive &= chunked;
        self.put_head(status, headers);
        if chunked {
            self.put_field("transfer-encoding", b"chunked");
        }
        self.out.extend_from_slice(b"\r\n");
        self.phase = Phase::Answering { head_written: true, chunked };
    }

    pub(crate) fn send_http_body(&mut self, id: StreamId, body: &[u8]) {
        let Phase::Answering { head_written: true, chunked } = self.phase else { return };
        if id.number != self.ordinal || body.is_empty() || self.head.method() == b"HEAD" {
            return;
        }
        if chunked {
            let size = format!("{:x}\r\n", body.len());
            self.out.extend_from_slice(size.as_bytes());
        }
        self.out.extend_from_slice(body);
        if chunked {
            self.out.extend_from_slice(b"\r\n");
        }
        self.writable_owed |= self.out.len() > STREAM_BACKLOG_LOW_BYTES;
    }

    pub(crate) fn finish_http(&mut self, id: StreamId) {
        let Phase::Answering { head_written: true, chunked } = self.phase else { return };
        if id.number != self.ordinal {
            return;
        }
        if chunked && self.head.method() != b"HEAD" {
            self.out.extend_from_slice(b"0\r\n\r\n");
        }
        self.end_answer();
    }

    pub(crate) fn reset(&mut self, id: StreamId) {
        if self.is_current(id) {
            self.phase = Phase::Closed;
        }
    }

    fn put_head(&mut self, status: u16, headers: &[(&str, &str)]) {
        let line = format!("HTTP/1.1 {status} {}\r\n", reason_phrase(status));
        self.out.extend_from_slice(line.as_bytes());
        for (name, value) in headers {
            self.put_field(name, value.as_bytes());
        }
        if !self.line.keep_alive || self.draining {
            self.put_field("connection", b"close");
        } else if self.line.is_http10 {
            self.put_field("connection", b"keep-alive");
        }
    }

    /// Names are written the way Go writes them, for clients that compare them with case.
    fn put_field(&mut self, name: &str, value: &[u8]) {
        let mut at_start = true;
        self.out.extend(name.bytes().map(|byte| {
            let written = if at_start { byte.to_ascii_uppercase() } else { byte };
            at_start = byte == b'-';
            written
        }));
        self.out.extend_from_slice(b": ");
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
    }

    fn end_answer(&mut self) {
        self.writable_owed = false;
        self.phase = if self.line.keep_alive && !self.draining { Phase::Head { searched: 0 } } else { Phase::Closed };
    }

    pub(crate) fn backlog_bytes(&self, id: StreamId) -> usize {
        if self.is_current(id) { self.out.len() } else { 0 }
    }

    /// See `Connection::settle_output`.
    pub(crate) fn settle_output(&mut self, output: &mut OutputBudget) {
        let unsent = self.out.len() + self.handed_over_bytes;
        self.output_bytes_max = output.settle(self.output_settled_bytes, unsent);
        self.output_settled_bytes = unsent;
    }

    /// See `Connection::release_output`.
    pub(crate) fn release_output(&mut self, output: &mut OutputBudget) {
        output.settle(std::mem::take(&mut self.output_settled_bytes), 0);
    }

    pub(crate) fn take_output(&mut self, out: &mut Vec<u8>, now: u64) {
        if !self.out.is_empty() {
            self.handed_over_bytes = self.out.len();
            self.handed_over_at.get_or_insert(now);
            out.append(&mut self.out);
        }
    }

    pub(crate) fn note_sent(&mut self, now: u64) {
        self.handed_over_at = None;
        self.handed_over_bytes = 0;
        if matches!(self.phase, Phase::Head { searched: 0 }) {
            let idle_max = self.limits.http1_idle_timeout;
            self.input_by.get_or_insert_with(|| now.saturating_add(idle_max));
        }
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        let write_by = self.handed_over_at.map(|since| since.saturating_add(self.limits.write_timeout));
        if matches!(self.phase, Phase::Closed) {
            return write_by.filter(|_| !self.out.is_empty());
        }
        write_by.into_iter().chain(self.input_by).chain(self.body_check_at).min()
    }

    pub(crate) fn handle_timer(&mut self, now: u64) {
        if self.body_check_at.is_some_and(|at| at <= now) {
            // What the budget allows is known to the next poll.
            self.body_check_at = None;
            self.body_due = true;
        }
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.out.clear();
            self.phase = Phase::Closed;
        }
    }

    pub(crate) fn start_drain(&mut self) {
        self.draining = true;
        if matches!(self.phase, Phase::Head { searched: 0 }) {
            self.phase = Phase::Closed;
        }
    }

    /// Whether parsing stands still until the kernel takes output.
    pub(crate) fn is_backlogged(&self) -> bool {
        self.out.len() >= OUTPUT_BACKLOG_BYTES_MAX.min(self.output_bytes_max)
    }

    /// Whether a request is with the owner: nothing is parsed meanwhile.
    pub(crate) fn is_answering(&self) -> bool {
        matches!(self.phase, Phase::Answering { .. })
    }

    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Closed) && self.out.is_empty()
    }

    /// Whether input is of no use any more.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    pub(crate) fn release(&mut self, budget: &mut AssemblyBudget) {
        budget.release(std::mem::take(&mut self.held_bytes));
        self.phase = Phase::Closed;
    }
}

/// Whether the first line begins like a method, as a TLS handshake does not, and ends in an HTTP version if it ends.
fn may_be_http(bytes: &[u8]) -> bool {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return bytes.first().is_none_or(|&first| is_token_byte(first) || first == b'\r');
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    line.rsplit(|&byte| byte == b' ').next().is_some_and(|version| version.starts_with(b"HTTP/"))
}

/// Length of the head at the start of `bytes`, its empty line included; the first `searched` bytes held no end.
fn find_head_end(bytes: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(2);
    bytes.iter().enumerate().skip(from).filter(|(_, byte)| **byte == b'\n').find_map(|(at, _)| {
        let rest = &bytes[at + 1..];
        let end = if rest.starts_with(b"\n") { 1 } else { 2 };
        (end == 1 || rest.starts_with(b"\r\n")).then_some(at + 1 + end)
    })
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "status code",
    }
}
