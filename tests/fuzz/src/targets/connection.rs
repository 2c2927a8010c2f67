//! A server connection: the bytes a client sends, whole and cut into pieces.

use trilith_wire::api::{Kind, Method};
use trilith_wire::connection::{
    AssemblyBudget, Connection, ConnectionEvent, ConnectionLimits, RequestShape, Route, StreamId,
};

use crate::Target;
use crate::mutate::Random;
use crate::targets::no_repair;

pub(crate) const HTTP2: Target = Target { name: "http2", run, seeds: http2_seeds, repair: no_repair, cost: 2 };
pub(crate) const HTTP1: Target = Target { name: "http1", run, seeds: http1_seeds, repair: no_repair, cost: 2 };

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SECOND: u64 = 1_000_000_000;
/// Beyond this many events a connection does not make progress by its input alone.
const EVENTS_MAX: usize = 100_000;

fn route(path: &[u8]) -> Option<Route> {
    let method = Method::from_path(path)?;
    let shape = if method.kind() == Kind::BidiStream { RequestShape::Stream } else { RequestShape::Single };
    Some(Route { method: method as u16, shape })
}

/// When the owner answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// In the turn of the request.
    AtOnce,
    /// When all input was delivered: what the client did meanwhile does not meet closed streams.
    AtEnd,
}

/// The owner of one connection.
struct Owner {
    connection: Connection,
    budget: AssemblyBudget,
    answers: Answers,
    requests: usize,
    open: Vec<(StreamId, Answer)>,
    now: u64,
}

#[derive(Clone, Copy)]
enum Answer {
    Unary,
    Message(usize),
    Finish,
    Unknown,
    Http,
}

impl Owner {
    fn new(answers: Answers) -> Self {
        let connection = Connection::new(&ConnectionLimits::new(route), 0);
        Self { connection, budget: AssemblyBudget::new(1 << 20), answers, requests: 0, open: Vec::new(), now: 0 }
    }

    /// Feeds the pieces, answers, then lets time pass and stops. Returns how many requests there were.
    fn converse<'a>(mut self, pieces: impl Iterator<Item = &'a [u8]>) -> usize {
        for piece in pieces {
            self.connection.handle_bytes(piece.to_vec(), self.now);
            self.turn();
        }
        for (stream, answer) in std::mem::take(&mut self.open) {
            self.answer(stream, answer);
        }
        self.turn();
        for _ in 0..4 {
            self.now = self.connection.deadline().unwrap_or(self.now + SECOND).max(self.now);
            self.connection.handle_timer(self.now);
            self.turn();
        }
        self.connection.start_drain(self.now);
        self.turn();
        self.connection.release(&mut self.budget);
        assert_eq!(self.budget.used_bytes(), 0, "a released connection holds nothing of the budget");
        self.requests
    }

    fn turn(&mut self) {
        let mut events = 0;
        while let Some(event) = self.connection.poll_event(&mut self.budget, self.now) {
            events += 1;
            assert!(events < EVENTS_MAX, "events end when the input does");
            self.requests +=
                usize::from(matches!(event, ConnectionEvent::GrpcRequest { .. } | ConnectionEvent::HttpRequest { .. }));
            let Some((stream, answer)) = plan_answer(&event) else { continue };
            match self.answers {
                Answers::AtOnce => self.answer(stream, answer),
                Answers::AtEnd => self.open.push((stream, answer)),
            }
        }
        let mut output = Vec::new();
        for _ in 0..2 {
            self.connection.take_output(&mut output, self.now);
            self.connection.handle_sent(self.now);
        }
    }

    fn answer(&mut self, stream: StreamId, answer: Answer) {
        let connection = &mut self.connection;
        match answer {
            Answer::Unary => connection.send_unary(stream, 3, |out| out.extend_from_slice(b"abc")),
            Answer::Message(len) => connection.send_message(stream, len, |out| out.resize(out.len() + len, b'y')),
            Answer::Finish => connection.finish(stream, 0, ""),
            Answer::Unknown => connection.finish(stream, 12, "unknown method \u{e9}%"),
            Answer::Http => connection.send_http(stream, 200, &[("content-type", "text/plain")], b"ok\n"),
        }
    }
}

fn plan_answer(event: &ConnectionEvent<'_>) -> Option<(StreamId, Answer)> {
    Some(match *event {
        ConnectionEvent::GrpcRequest { stream, route, .. } => match route.map(|route| route.shape) {
            Some(RequestShape::Single) => (stream, Answer::Unary),
            Some(RequestShape::Stream) => (stream, Answer::Message(1)),
            None => (stream, Answer::Unknown),
        },
        ConnectionEvent::GrpcMessage { stream, message } => (stream, Answer::Message(message.len().min(1 << 16))),
        ConnectionEvent::GrpcHalfClose { stream } => (stream, Answer::Finish),
        ConnectionEvent::HttpRequest { stream, .. } => (stream, Answer::Http),
        ConnectionEvent::StreamReset { .. } | ConnectionEvent::StreamWritable { .. } => return None,
    })
}

/// True if a request came through. Cutting the input must not change how many do.
fn run(input: &[u8]) -> bool {
    let mut random = Random::new(input.len() as u64);
    let mut cuts: Vec<usize> = (0..random.below(12)).map(|_| random.below(input.len() + 1)).collect();
    cuts.extend([0, input.len()]);
    cuts.sort_unstable();
    let pieces = || cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]);
    let whole = Owner::new(Answers::AtEnd).converse(std::iter::once(input));
    let cut = Owner::new(Answers::AtEnd).converse(pieces());
    assert_eq!(whole, cut, "requests do not depend on how the input was cut");
    Owner::new(Answers::AtOnce).converse(pieces()) > 0
}

fn frame(frame_type: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[frame_type, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block without dynamic entries: POST, http, path, and the fields a gRPC client sends.
fn grpc_block(path: &[u8]) -> Vec<u8> {
    let mut block = b"\x83\x86\x04".to_vec();
    let mut literal = |name: Option<&[u8]>, value: &[u8]| {
        if let Some(name) = name {
            block.push(0x00);
            block.push(name.len() as u8);
            block.extend_from_slice(name);
        }
        block.push(value.len() as u8);
        block.extend_from_slice(value);
    };
    literal(None, path);
    literal(Some(b":authority"), b"localhost");
    literal(Some(b"content-type"), b"application/grpc");
    literal(Some(b"te"), b"trailers");
    literal(Some(b"grpc-timeout"), b"5S");
    block
}

fn message(body: &[u8]) -> Vec<u8> {
    [&[0][..], &(body.len() as u32).to_be_bytes(), body].concat()
}

fn http2_seeds() -> Vec<Vec<u8>> {
    let (data, headers, priority, reset, settings, ping, window, continuation) = (0, 1, 2, 3, 4, 6, 8, 9);
    let start =
        [PREFACE, &frame(settings, 0, 0, b"\0\x03\0\0\0\x64\0\x04\0\x01\0\0"), &frame(settings, 1, 0, b"")].concat();
    let put = |stream| {
        let block = grpc_block(b"/etcdserverpb.KV/Put");
        [frame(headers, 4, stream, &block), frame(data, 1, stream, &message(b"\x0a\x01k\x12\x01v"))].concat()
    };
    let watch = [
        frame(headers, 4, 1, &grpc_block(b"/etcdserverpb.Watch/Watch")),
        frame(data, 0, 1, &[message(b"\x0a\x03\x0a\x01k"), message(b"\x1a\0")].concat()),
        frame(window, 0, 1, &1000u32.to_be_bytes()),
        frame(data, 1, 1, b""),
    ]
    .concat();
    let block = grpc_block(b"/etcdserverpb.KV/Range");
    let cut_block = [
        frame(headers, 0, 1, &block[..10]),
        frame(continuation, 0, 1, &block[10..20]),
        frame(continuation, 4, 1, &block[20..]),
        frame(data, 0, 1, &message(b"\x0a\x01k")[..3]),
        frame(data, 1, 1, &message(b"\x0a\x01k")[3..]),
    ]
    .concat();
    // HEADERS padded and with priority, DATA padded.
    let padded = [
        frame(headers, 0x2c, 1, &[&b"\x02\0\0\0\0\x10"[..], &block, &[0, 0]].concat()),
        frame(data, 9, 1, &[&[3][..], &message(b""), &[0; 3]].concat()),
    ]
    .concat();
    let others = [
        frame(ping, 0, 0, &[7; 8]),
        frame(priority, 0, 3, &[0, 0, 0, 1, 9]),
        frame(window, 0, 0, &[0, 0, 1, 0]),
        frame(0x42, 0xff, 0, b"unknown"),
        frame(headers, 4, 1, &block),
        frame(reset, 0, 1, &8u32.to_be_bytes()),
    ]
    .concat();
    let get = b"\x82\x86\x04\x07/health\x01\x09localhost".to_vec();
    [
        put(1),
        [put(1), put(3), put(5)].concat(),
        watch,
        cut_block,
        padded,
        [others, put(3)].concat(),
        frame(headers, 5, 1, &get),
    ]
    .into_iter()
    .map(|frames| [start.clone(), frames].concat())
    .collect()
}

fn http1_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 5] = [
        b"GET /health HTTP/1.1\r\nHost: localhost:2379\r\n\r\n",
        b"GET /version?a=b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n\
            {\"key\":\"Zm9v\",\"b\":1}\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
            4\r\n{\"a\"\r\n3;x=y\r\n:1}\r\n0\r\nTrailer: b\r\n\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
    ];
    seeds.into_iter().map(<[u8]>::to_vec).collect()
}
