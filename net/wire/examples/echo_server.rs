//! A blocking test server over the wire codecs: one thread a connection, plain sockets.
//!
//! Answers `/echo/Unary` with the request's bytes, `/echo/Stream` message by message, and any HTTP request with a short
//! text (`/large?N` with N bytes). For protocol checkers and load generators on the loopback interface:
//! `cargo run --release --example echo_server -- 127.0.0.1:5080 [max-concurrent-streams]`.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test program around the pure codec")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use trilith_wire::connection::{
    AssemblyBudget, Connection, ConnectionEvent, ConnectionLimits, RequestShape, Route, StreamId,
};

const UNARY: Route = Route { method: 0, shape: RequestShape::Single };
const STREAM: Route = Route { method: 1, shape: RequestShape::Stream };
const UNIMPLEMENTED: u32 = 12;

fn route(path: &[u8]) -> Option<Route> {
    match path {
        b"/echo/Unary" => Some(UNARY),
        b"/echo/Stream" => Some(STREAM),
        _ => None,
    }
}

/// What an event asks for, free of its borrows.
enum Answer {
    Unary(StreamId, usize),
    Message(StreamId, usize),
    Finish(StreamId, u32),
    Http(StreamId, usize),
    Nothing,
}

fn consider(event: &ConnectionEvent<'_>, copy: &mut Vec<u8>) -> Answer {
    copy.clear();
    match *event {
        ConnectionEvent::GrpcRequest { stream, route: Some(UNARY), message, .. } => {
            copy.extend_from_slice(message);
            Answer::Unary(stream, message.len())
        }
        ConnectionEvent::GrpcRequest { stream, route: None, .. } => Answer::Finish(stream, UNIMPLEMENTED),
        ConnectionEvent::GrpcMessage { stream, message } => {
            copy.extend_from_slice(message);
            Answer::Message(stream, message.len())
        }
        ConnectionEvent::GrpcHalfClose { stream } => Answer::Finish(stream, 0),
        ConnectionEvent::HttpRequest { stream, head, .. } => {
            let query = std::str::from_utf8(head.query()).unwrap_or_default();
            Answer::Http(stream, query.parse().unwrap_or(12))
        }
        _ => Answer::Nothing,
    }
}

fn serve(mut socket: TcpStream, limits: &ConnectionLimits, started: Instant) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let now = || started.elapsed().as_nanos() as u64;
    let mut budget = AssemblyBudget::new(64 << 20);
    let mut connection = Connection::new(limits, now());
    let (mut buffer, mut copy, mut output) = (vec![0; 64 << 10], Vec::new(), Vec::new());
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        connection.handle_bytes(buffer[..count].to_vec(), now());
        loop {
            while let Some(event) = connection.poll_event(&mut budget, now()) {
                match consider(&event, &mut copy) {
                    Answer::Unary(stream, len) => {
                        connection.send_unary(stream, len, |out| out.extend_from_slice(&copy));
                    }
                    Answer::Message(stream, len) => {
                        connection.send_message(stream, len, |out| out.extend_from_slice(&copy));
                    }
                    Answer::Finish(stream, code) => connection.finish(stream, code, ""),
                    Answer::Http(stream, len) => {
                        connection.send_http(stream, 200, &[("content-type", "text/plain")], &vec![b'x'; len]);
                    }
                    Answer::Nothing => {}
                }
            }
            output.clear();
            connection.take_output(&mut output, now());
            if output.is_empty() {
                break;
            }
            socket.write_all(&output)?;
            connection.handle_sent(now());
        }
        if connection.is_finished() {
            return Ok(());
        }
    }
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:5080".to_owned());
    let mut limits = ConnectionLimits::new(route);
    limits.concurrent_streams_announced = arguments.next().and_then(|count| count.parse().ok());
    let listener = TcpListener::bind(address)?;
    let started = Instant::now();
    for socket in listener.incoming() {
        let (socket, limits) = (socket?, limits.clone());
        thread::spawn(move || {
            if let Err(error) = serve(socket, &limits, started) {
                eprintln!("connection: {error}");
            }
        });
    }
    Ok(())
}
