//! Entry points for byte fuzzers: plain functions that must return for any input.
//!
//! Owns: turning bytes into a conversation. Asserts what holds for every input: no panic, the budget comes back, no
//! event after the end. Driven by `tests/fuzz` and, with a fixed generator, by this crate's own tests.

use crate::connection::{
    AssemblyBudget, Connection, ConnectionEvent, ConnectionLimits, OutputBudget, RequestShape, Route, StreamId,
};
use crate::h2::frame::{self, PREFACE};
use crate::hpack::{Decoder, FieldSink, Mark};

fn route(path: &[u8]) -> Option<Route> {
    let shape = if path.ends_with(b"Stream") { RequestShape::Stream } else { RequestShape::Single };
    path.starts_with(b"/test/").then_some(Route { method: path.len() as u16, shape })
}

/// Answers whatever comes, in a way that depends on the stream number, so that all response methods are met.
fn answer(connection: &mut Connection, stream: StreamId, is_http: bool) {
    match (is_http, stream.number() / 2 % 4) {
        (false, 0 | 1) => connection.send_unary(stream, 40, |out| out.resize(out.len() + 40, b'a')),
        (false, 2) => {
            connection.send_message(stream, 100_000, |out| out.resize(out.len() + 100_000, b'b'));
            connection.finish(stream, 5, "etcdserver: \u{e9}");
        }
        (false, _) => connection.finish(stream, 0, ""),
        (true, 0 | 1) => connection.send_http(stream, 200, &[("content-type", "text/plain")], &[b'c'; 20_000]),
        (true, _) => {
            connection.start_http(stream, 503, &[]);
            connection.send_http_body(stream, b"piece");
            connection.finish_http(stream);
        }
    }
}

/// One connection fed `data` as it comes from a socket, in pieces of varying size, with time passing in between.
pub fn connection(data: &[u8]) {
    let (mut budget, mut unsent) = (AssemblyBudget::new(1 << 20), OutputBudget::new(1 << 16));
    let mut connection = Connection::new(&ConnectionLimits::new(route), 0);
    let (mut rest, mut now, mut output) = (data, 0u64, Vec::new());
    let mut piece_bytes = data.len() / 2 + 1;
    let mut postponed: Vec<(StreamId, bool)> = Vec::new();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(piece_bytes));
        rest = after;
        piece_bytes = piece_bytes / 2 + 1;
        now += 1_000_000;
        connection.handle_bytes(piece.to_vec(), now);
        // Answers to earlier pieces: their streams may be gone by now.
        for (stream, is_http) in postponed.drain(..) {
            answer(&mut connection, stream, is_http);
        }
        while let Some(event) = connection.poll_event(&mut budget, now) {
            let (stream, is_http) = match event {
                ConnectionEvent::GrpcRequest { stream, .. } => (stream, false),
                ConnectionEvent::GrpcMessage { stream, .. } => (stream, false),
                ConnectionEvent::HttpRequest { stream, .. } => (stream, true),
                _ => continue,
            };
            if stream.number() / 2 % 3 == 0 {
                postponed.push((stream, is_http));
            } else {
                answer(&mut connection, stream, is_http);
            }
        }
        output.clear();
        connection.take_output(&mut output, now);
        connection.settle_output(&mut unsent);
        connection.handle_sent(now);
        if connection.deadline().is_some_and(|deadline| deadline <= now) {
            connection.handle_timer(now);
        }
    }
    connection.start_drain(now);
    connection.handle_timer(u64::MAX);
    connection.release(&mut budget);
    connection.release_output(&mut unsent);
    assert_eq!((budget.used_bytes(), unsent.used_bytes()), (0, 0), "the budgets come back");
}

/// `data` as frames of a client that has sent its preface: every three bytes and what follows make one frame, so that
/// types, flags and streams are hit more often than by chance.
pub fn frames(data: &[u8]) {
    let mut input = PREFACE.to_vec();
    frame::put_settings(&mut input, &[]);
    let mut rest = data;
    while let Some((&[kind, flags, length], after)) = rest.split_first_chunk::<3>() {
        let (payload, after) = after.split_at(after.len().min(usize::from(length)));
        frame::put_header(&mut input, payload.len(), kind % 11, flags, u32::from(flags >> 4));
        input.extend_from_slice(payload);
        rest = after;
    }
    connection(&input);
}

struct Count(usize);

impl FieldSink for Count {
    fn field(&mut self, name: &[u8], value: &[u8], _: Mark) -> Mark {
        self.0 += name.len() + value.len();
        Mark::default()
    }
}

/// `data` as a sequence of header blocks for one decoder: a length byte, then the block.
pub fn header_blocks(data: &[u8]) {
    let mut decoder = Decoder::new(256);
    let mut rest = data;
    while let Some((&length, after)) = rest.split_first() {
        let (block, after) = after.split_at(after.len().min(usize::from(length)));
        if decoder.decode(block, &mut Count(0)).is_err() {
            return;
        }
        rest = after;
    }
}
