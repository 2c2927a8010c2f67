//! What the hardware allows: a server that does nothing but HTTP/2 framing and durable, group-committed writes.
//!
//! One thread on a raw io_uring. A Put is answered after a direct write that holds its bytes, and an `fdatasync`; at
//! most two of them are in flight, and everything that waits joins the next one. A Range is answered at once with a
//! fixed value of 256 bytes. It keeps no keys, checks nothing and decodes no headers: a message with a second field is
//! a Put. No server that promises durability can do less, so its figures are the ceiling for a machine and a client.
//!
//! `trilith-floor --listen 127.0.0.1:2379 --file /path/on/the/disk [--size MiB]`

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use trilith_bench::h2::{self, Frame, flag, frame, setting};
use trilith_bench::sockets::{Block, Completion, Sockets};

const BLOCK_BYTES: usize = 4096;
const BATCH_BYTES_MAX: usize = 1 << 20;
const WRITES_IN_FLIGHT_MAX: u64 = 2;
const VALUE_BYTES: usize = 256;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

struct Options {
    listen: String,
    file: String,
    file_bytes: u64,
}

fn options() -> Result<Options> {
    let (mut listen, mut file, mut mebibytes) = (None, None, 256_u64);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--listen" => listen = Some(value),
            "--file" => file = Some(value),
            "--size" => mebibytes = value.parse().context("--size is a number of MiB")?,
            _ => bail!("unknown flag {name}; flags are --listen, --file, --size"),
        }
    }
    Ok(Options {
        listen: listen.context("--listen is missing")?,
        file: file.context("--file is missing")?,
        file_bytes: mebibytes << 20,
    })
}

/// A file whose blocks are all written, so that later writes change no metadata.
fn prepare_file(options: &Options) -> Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&options.file)
        .with_context(|| format!("cannot open {}", options.file))?;
    let zeros = Block::new(1 << 20);
    for offset in (0..options.file_bytes).step_by(1 << 20) {
        file.write_all_at(zeros.bytes(), offset)?;
    }
    file.sync_all()?;
    Ok(file)
}

/// One client.
struct Connection {
    serial: u64,
    greeted: bool,
    answered: bool,
    /// Bytes of an incomplete frame.
    rest: Vec<u8>,
    /// Messages that came in several DATA frames.
    partial: HashMap<u32, Vec<u8>>,
    /// DATA bytes whose window was not given back yet.
    credit: u32,
}

/// A Put whose answer waits for a write.
struct Waiting {
    slot: usize,
    serial: u64,
    stream: u32,
}

struct Floor {
    sockets: Sockets,
    connections: Vec<Option<Connection>>,
    accepted: u64,
    file: File,
    file_bytes: u64,
    offset: u64,
    batch: Vec<u8>,
    waiting: Vec<Waiting>,
    in_flight: HashMap<u64, Vec<Waiting>>,
    writes: u64,
    revision: u64,
}

fn main() -> Result<()> {
    let options = options()?;
    let file = prepare_file(&options)?;
    let listener =
        TcpListener::bind(&options.listen).with_context(|| format!("cannot listen on {}", options.listen))?;
    let mut sockets = Sockets::new().context("cannot set up io_uring")?;
    sockets.listen(listener);
    eprintln!("ready on {}", options.listen);
    let mut floor = Floor {
        sockets,
        connections: Vec::new(),
        accepted: 0,
        file,
        file_bytes: options.file_bytes,
        offset: 0,
        batch: Vec::new(),
        waiting: Vec::new(),
        in_flight: HashMap::new(),
        writes: 0,
        revision: 1,
    };
    let mut completions = Vec::new();
    loop {
        floor.sockets.wait(None, &mut completions)?;
        for completion in completions.drain(..) {
            floor.handle(completion)?;
        }
        floor.start_writes();
    }
}

impl Floor {
    fn handle(&mut self, completion: Completion) -> Result<()> {
        match completion {
            Completion::Accepted(slot) => self.greet(slot),
            Completion::Received(slot, bytes) => {
                self.receive(slot, &bytes);
                self.sockets.receive_again(slot, bytes);
            }
            Completion::Closed(slot) => self.connections[slot] = None,
            Completion::Written(number, result) => {
                result.context("the disk failed")?;
                for waiting in self.in_flight.remove(&number).context("a write was in flight")? {
                    self.answer_put(&waiting);
                }
            }
        }
        Ok(())
    }

    fn greet(&mut self, slot: usize) {
        self.accepted += 1;
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        self.connections[slot] = Some(Connection {
            serial: self.accepted,
            greeted: false,
            answered: false,
            rest: Vec::new(),
            partial: HashMap::new(),
            credit: 0,
        });
        let out = self.sockets.queue(slot);
        h2::put_settings(out, &[(setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW)]);
        h2::put_window_update(out, 0, CONNECTION_WINDOW);
    }

    fn receive(&mut self, slot: usize, bytes: &[u8]) {
        let Some(mut connection) = self.connections[slot].take() else { return };
        let mut joined = std::mem::take(&mut connection.rest);
        let mut input = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined
        };
        if !connection.greeted && input.len() >= h2::PREFACE.len() {
            connection.greeted = true;
            input = &input[h2::PREFACE.len()..];
        }
        while connection.greeted
            && let Some((frame, rest)) = Frame::parse(input)
        {
            self.handle_frame(slot, &mut connection, &frame);
            input = rest;
        }
        connection.rest = input.to_vec();
        if connection.credit > CONNECTION_WINDOW / 2 {
            h2::put_window_update(self.sockets.queue(slot), 0, connection.credit);
            connection.credit = 0;
        }
        self.connections[slot] = Some(connection);
    }

    fn handle_frame(&mut self, slot: usize, connection: &mut Connection, frame: &Frame<'_>) {
        match frame.kind {
            frame::SETTINGS | frame::PING => h2::put_acknowledgement(self.sockets.queue(slot), frame),
            frame::DATA => {
                connection.credit += frame.payload.len() as u32;
                let content = frame.content().unwrap_or_default();
                if !frame.has(flag::END_STREAM) {
                    connection.partial.entry(frame.stream).or_default().extend_from_slice(content);
                } else if let Some(mut message) = connection.partial.remove(&frame.stream) {
                    message.extend_from_slice(content);
                    self.handle_message(slot, connection, frame.stream, &message);
                } else {
                    self.handle_message(slot, connection, frame.stream, content);
                }
            }
            frame::RST_STREAM => drop(connection.partial.remove(&frame.stream)),
            _ => {}
        }
    }

    /// A gRPC message: five bytes of prefix, then protobuf.
    fn handle_message(&mut self, slot: usize, connection: &mut Connection, stream: u32, message: &[u8]) {
        let Some((&0x0a, rest)) = message.get(5..).and_then(<[u8]>::split_first) else { return };
        let (key, taken) = length_delimited(rest);
        if rest.get(taken) == Some(&0x12) {
            self.batch.extend_from_slice(rest);
            self.waiting.push(Waiting { slot, serial: connection.serial, stream });
            return;
        }
        let first = !std::mem::replace(&mut connection.answered, true);
        let response = range_response(key, self.revision);
        put_response(self.sockets.queue(slot), stream, first, &response);
    }

    fn start_writes(&mut self) {
        while !self.waiting.is_empty() && (self.in_flight.len() as u64) < WRITES_IN_FLIGHT_MAX {
            let len = self.batch.len().next_multiple_of(BLOCK_BYTES);
            assert!(len <= 64 * BATCH_BYTES_MAX, "outstanding requests are bounded by the clients' windows");
            let mut block = self.sockets.block(len);
            block.bytes_mut()[..self.batch.len()].copy_from_slice(&self.batch);
            self.batch.clear();
            if self.offset + len as u64 > self.file_bytes {
                self.offset = 0;
            }
            self.writes += 1;
            self.sockets.write(&self.file, self.writes, self.offset, block, len);
            self.offset += len as u64;
            self.in_flight.insert(self.writes, std::mem::take(&mut self.waiting));
        }
    }

    fn answer_put(&mut self, waiting: &Waiting) {
        let Some(connection) = self.connections[waiting.slot].as_mut() else { return };
        if connection.serial != waiting.serial {
            return;
        }
        self.revision += 1;
        let first = !std::mem::replace(&mut connection.answered, true);
        let mut response = vec![0x0a, 0];
        put_header(&mut response, self.revision);
        response[1] = (response.len() - 2) as u8;
        put_response(self.sockets.queue(waiting.slot), waiting.stream, first, &response);
    }
}

/// A length-delimited field's content and the bytes it takes with its length.
fn length_delimited(bytes: &[u8]) -> (&[u8], usize) {
    let (mut len, mut at) = (0_usize, 0);
    while let Some(&byte) = bytes.get(at)
        && at < 4
    {
        len |= usize::from(byte & 0x7f) << (7 * at);
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (bytes.get(at..at + len).unwrap_or_default(), at + len)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The fields of `etcdserverpb.ResponseHeader`: cluster 1, member 1, the revision, term 2.
fn put_header(out: &mut Vec<u8>, revision: u64) {
    out.extend_from_slice(&[0x08, 1, 0x10, 1, 0x18]);
    put_varint(out, revision);
    out.extend_from_slice(&[0x20, 2]);
}

/// `etcdserverpb.RangeResponse` with one key-value pair.
fn range_response(key: &[u8], revision: u64) -> Vec<u8> {
    let mut header = Vec::new();
    put_header(&mut header, revision);
    let mut pair = vec![0x0a];
    put_varint(&mut pair, key.len() as u64);
    pair.extend_from_slice(key);
    // Create revision, modification revision and version.
    pair.extend_from_slice(&[0x10, 1, 0x18, 1, 0x20, 1, 0x2a]);
    put_varint(&mut pair, VALUE_BYTES as u64);
    // The load generator checks that a value begins with its key.
    pair.extend_from_slice(&key[..key.len().min(VALUE_BYTES)]);
    pair.resize(pair.len() + VALUE_BYTES - key.len().min(VALUE_BYTES), b'v');
    let mut response = vec![0x0a, header.len() as u8];
    response.extend_from_slice(&header);
    response.push(0x12);
    put_varint(&mut response, pair.len() as u64);
    response.extend_from_slice(&pair);
    response.extend_from_slice(&[0x20, 1]);
    response
}

/// Headers, message and trailers of one answer. The first answer of a connection puts its two fields into the header
/// table, later ones name them.
fn put_response(out: &mut Vec<u8>, stream: u32, first: bool, message: &[u8]) {
    let headers: &[u8] = if first { b"\x88\x5f\x10application/grpc" } else { &[0x88, 0xbf] };
    let trailers: &[u8] = if first { b"\x40\x0bgrpc-status\x010" } else { &[0xbe] };
    h2::put_head(out, headers.len(), frame::HEADERS, flag::END_HEADERS, stream);
    out.extend_from_slice(headers);
    h2::put_head(out, message.len() + 5, frame::DATA, 0, stream);
    out.push(0);
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    h2::put_head(out, trailers.len(), frame::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream);
    out.extend_from_slice(trailers);
}
