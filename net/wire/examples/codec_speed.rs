//! How long the codec takes for one unary call, in both directions, without sockets.
//!
//! `cargo run --release --example codec_speed`: nanoseconds a request for the request shapes that clients send.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a measurement around the pure codec")]

use std::hint::black_box;
use std::time::Instant;

use trilith_wire::connection::{AssemblyBudget, Connection, ConnectionEvent, ConnectionLimits, RequestShape, Route};
use trilith_wire::h2::frame::{self, PREFACE, flag, kind};

const MESSAGE_BYTES: usize = 300;
const REQUESTS_PER_READ: u32 = 100;
const READS: u32 = 5_000;

fn literal(block: &mut Vec<u8>, first: u8, name: &str, value: &str) {
    block.push(first);
    for text in [name, value] {
        block.push(text.len() as u8);
        block.extend_from_slice(text.as_bytes());
    }
}

/// The header block as Go's client sends it the first time; later ones are indices, plus a literal timeout if asked.
fn block(first: bool, timeout: Option<u32>) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    if first {
        literal(&mut block, 0x40, ":path", "/etcdserverpb.KV/Put");
        literal(&mut block, 0x40, ":authority", "127.0.0.1:2379");
        literal(&mut block, 0x40, "content-type", "application/grpc");
        literal(&mut block, 0x40, "user-agent", "grpc-go/1.79.3");
        literal(&mut block, 0x40, "te", "trailers");
        literal(&mut block, 0x40, "client-api-version", "3.7");
    } else {
        block.extend((62..68).rev().map(|index| 0x80 | index));
    }
    if let Some(timeout) = timeout {
        literal(&mut block, 0x00, "grpc-timeout", &format!("{timeout}u"));
    }
    block
}

fn request(out: &mut Vec<u8>, stream: u32, block: &[u8]) {
    frame::put_header(out, block.len(), kind::HEADERS, flag::END_HEADERS, stream);
    out.extend_from_slice(block);
    frame::put_header(out, MESSAGE_BYTES + 5, kind::DATA, flag::END_STREAM, stream);
    out.push(0);
    out.extend_from_slice(&(MESSAGE_BYTES as u32).to_be_bytes());
    out.resize(out.len() + MESSAGE_BYTES, b'm');
}

fn run(name: &str, timeouts: bool) {
    let route = |_: &[u8]| Some(Route { method: 1, shape: RequestShape::Single });
    let mut connection = Connection::new(&ConnectionLimits::new(route), 0);
    let mut budget = AssemblyBudget::new(64 << 20);
    let mut input = PREFACE.to_vec();
    frame::put_settings(&mut input, &[]);
    frame::put_number(&mut input, kind::WINDOW_UPDATE, 0, 1 << 30);
    connection.handle_bytes(input, 0);
    let (mut stream, mut output, mut answered) = (1u32, Vec::new(), 0u32);
    let mut spent = std::time::Duration::ZERO;
    for read in 0..READS {
        let mut input = Vec::new();
        for index in 0..REQUESTS_PER_READ {
            request(&mut input, stream, &block(read == 0 && index == 0, timeouts.then_some(4_900_000 + read + index)));
            stream += 2;
        }
        if read % 100 == 99 {
            frame::put_number(&mut input, kind::WINDOW_UPDATE, 0, 1 << 20);
        }
        let started = Instant::now();
        connection.handle_bytes(input, 0);
        let mut pending = Vec::new();
        while let Some(event) = connection.poll_event(&mut budget, 0) {
            let ConnectionEvent::GrpcRequest { stream, message, head, .. } = event else { continue };
            black_box((message, head.timeout()));
            pending.push(stream);
        }
        for stream in pending {
            connection.send_unary(stream, 30, |out| out.extend_from_slice(&[7; 30]));
            answered += 1;
        }
        output.clear();
        connection.take_output(&mut output, 0);
        connection.handle_sent(0);
        black_box(&output);
        spent += started.elapsed();
    }
    assert_eq!(answered, READS * REQUESTS_PER_READ);
    let nanoseconds = spent.as_nanos() as f64 / f64::from(answered);
    println!("{name}: {nanoseconds:.0} ns a request, {} bytes of output a read", output.len());
}

fn main() {
    run("indexed headers", false);
    run("with a literal timeout", true);
}
