//! What a server says to calls it cannot serve, and what it does with bytes that are no calls at all.
//!
//! Answers to well-framed calls must be etcd's to the letter, but for texts that come from a protobuf runtime. Garbage
//! must be answered or closed within a limit, and the server must serve the next client as if nothing had been.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::client::{Connection, frame, runtime};
use crate::differential::compare;
use crate::messages::{self, Message};
use crate::server::{Server, Subject};
use crate::setup::{Outcome, Setup};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];
/// Longest wait for the reaction to garbage.
const REACTION_SECONDS_MAX: u64 = 60;

/// One call and the name it has in the transcript.
struct Call {
    name: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Bytes,
}

/// Paths that no service has.
pub(super) fn unknown_methods(setup: &Setup) -> Result<Outcome> {
    let call = |name, path| Call { name, path, headers: GRPC, body: frame(&messages::range(b"k", b"")) };
    let calls = [
        call("unknown method", "/etcdserverpb.KV/Nope"),
        call("unknown service", "/no.such.Service/Range"),
        call("unknown service of a known package", "/etcdserverpb.Nope/Range"),
        call("no method", "/etcdserverpb.KV"),
        call("empty method", "/etcdserverpb.KV/"),
        call("three parts", "/etcdserverpb.KV/Range/more"),
        call("wrong case", "/etcdserverpb.kv/range"),
    ];
    compare(setup, |server| ask(server, &calls))
}

/// RPCs of etcd that the compatibility page lists as absent.
const ABSENT: &[&str] = &[
    "/etcdserverpb.Cluster/MemberAdd",
    "/etcdserverpb.Cluster/MemberRemove",
    "/etcdserverpb.Cluster/MemberUpdate",
    "/etcdserverpb.Cluster/MemberPromote",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Maintenance/Downgrade",
    "/etcdserverpb.Auth/AuthEnable",
    "/etcdserverpb.Auth/UserAdd",
    "/etcdserverpb.Auth/RoleAdd",
    "/v3lockpb.Lock/Lock",
    "/v3electionpb.Election/Campaign",
];

/// What is absent says so; nothing answers with a success it did not perform.
pub(super) fn absent_methods(setup: &Setup) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd has them all".to_owned()));
    }
    let server = setup.start()?;
    runtime()?.block_on(async {
        let connection = Connection::open(server.address()).await?;
        for path in ABSENT {
            let reply = connection.call(path, &[]).await.with_context(|| (*path).to_owned())?;
            if reply.http_status != 200 || reply.grpc_status != "12" {
                bail!("{path}: HTTP {} grpc-status '{}'", reply.http_status, reply.grpc_status);
            }
        }
        Ok(())
    })?;
    server.stop(&[])?;
    Ok(Outcome::Passed)
}

/// Calls whose head or body is wrong.
pub(super) fn malformed_calls(setup: &Setup) -> Result<Outcome> {
    let bad_fields: [(&'static str, Vec<u8>); 6] = [
        ("cut varint", vec![0x18, 0xff]),
        ("field longer than the message", vec![0x0a, 0x7f, b'k']),
        ("varint of eleven bytes", vec![0x18, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ("field number zero", vec![0x02, 0x00]),
        ("group end without start", vec![0x0c]),
        ("wire type seven", vec![0x0f]),
    ];
    let mut calls = Vec::new();
    for path in [PUT, RANGE, DELETE_RANGE] {
        for (name, message) in &bad_fields {
            calls.push(Call { name, path, headers: GRPC, body: frame(message) });
        }
    }
    let unknown_field = Message::new().bytes(1, b"k").number(999, 5).bytes(998, b"x").finish();
    let wrong_type = Message::new().number(1, 5).finish();
    calls.push(Call { name: "unknown fields", path: RANGE, headers: GRPC, body: frame(&unknown_field) });
    calls.push(Call { name: "known field of another type", path: RANGE, headers: GRPC, body: frame(&wrong_type) });
    calls.extend(bad_framing());
    compare(setup, |server| ask(server, &calls))
}

/// Calls that etcd leaves unanswered or refuses in words of its runtime, or whose answer is ours because we serve HTTP
/// over HTTP/2: any refusal will do.
pub(super) fn calls_to_refuse(setup: &Setup) -> Result<Outcome> {
    let message = frame(&messages::range(b"k", b""));
    let mut calls = vec![
        ("content type of JSON", &[("content-type", "application/json")][..], message.clone()),
        ("no content type", &[("te", "trailers")], message.clone()),
        ("half a prefix", GRPC, Bytes::from_static(&[0, 0, 0])),
        ("half a message", GRPC, Bytes::from_static(&[0, 0, 0, 0, 9, 1, 2])),
    ];
    if setup.subject == Subject::Trilithd {
        calls.push(("no message", GRPC, Bytes::new()));
        calls.push(("two messages", GRPC, Bytes::from([message.clone(), message.clone()].concat())));
    }
    let server = setup.start()?;
    for (name, headers, body) in calls {
        let reply =
            runtime()?.block_on(async { Connection::open(server.address()).await?.send(RANGE, headers, body).await });
        let reply = reply.with_context(|| format!("'{name}'"))?;
        let refused = reply.http_status >= 400 || !matches!(reply.grpc_status.as_str(), "" | "0");
        if !refused {
            bail!("'{name}' was served: HTTP {} grpc-status '{}'", reply.http_status, reply.grpc_status);
        }
        prove_alive(&server).with_context(|| format!("after '{name}'"))?;
    }
    server.stop(&[])?;
    Ok(Outcome::Passed)
}

fn bad_framing() -> Vec<Call> {
    let message = messages::range(b"k", b"");
    let compressed = Bytes::from([&[1, 0, 0, 0, 3][..], b"abc"].concat());
    let call = |name, headers, body| Call { name, path: RANGE, headers, body };
    vec![
        call("compressed flag without encoding", GRPC, compressed.clone()),
        call("unknown flag", GRPC, Bytes::from([&[7, 0, 0, 0, 3][..], b"abc"].concat())),
        call(
            "unknown encoding",
            &[("content-type", "application/grpc"), ("te", "trailers"), ("grpc-encoding", "br")],
            compressed,
        ),
        call("content type with suffix", &[("content-type", "application/grpc+proto"), ("te", "trailers")], {
            frame(&message)
        }),
        call("no te", &[("content-type", "application/grpc")], frame(&message)),
        call(
            "bad timeout",
            &[("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "soon")],
            frame(&message),
        ),
    ]
}

/// Requests around and beyond the limits of etcd.
pub(super) fn oversized_requests(setup: &Setup) -> Result<Outcome> {
    let limit = 1_572_864;
    let call = |name, path, body| Call { name, path, headers: GRPC, body };
    let put = |name, bytes: usize| call(name, PUT, frame(&messages::put(b"k", &vec![b'v'; bytes])));
    let calls = [
        put("well below the limit", limit - 4096),
        put("above the limit", limit + 1),
        put("just below the limit of gRPC", (2 << 20) - 16),
        put("above the limit of gRPC", (2 << 20) + 1),
        put("twice the limit of gRPC", 4 << 20),
        call("a large key in a range", RANGE, frame(&messages::range(&vec![b'k'; limit + 1], b""))),
        call("a declared length of 1 GiB", PUT, Bytes::from_static(&[0, 0x40, 0, 0, 0, 1, 2, 3])),
        call("an empty key", PUT, frame(&messages::put(b"", b"v"))),
    ];
    compare(setup, |server| ask(server, &calls))
}

/// Makes each call on its own connection and writes down the answers.
fn ask(server: &Server, calls: &[Call]) -> Result<String> {
    let mut text = String::new();
    for call in calls {
        text.push_str(&format!("$ {} {}\n", call.name, call.path));
        let answer = runtime()?.block_on(async {
            let connection = Connection::open(server.address()).await?;
            connection.send(call.path, call.headers, call.body.clone()).await
        });
        match answer {
            Ok(reply) => text.push_str(&format!(
                "HTTP {} {:?} grpc-status {:?} {:?}\n",
                reply.http_status,
                // grpc-go repeats the client's suffix (`+proto`); clients ask for the prefix only.
                reply.content_type.split('+').next().unwrap_or_default(),
                reply.grpc_status,
                without_runtime_text(&reply.grpc_message)
            )),
            Err(error) => text.push_str(&format!("no answer: {error:#}\n")),
        }
        prove_alive(server).with_context(|| format!("after '{}'", call.name))?;
    }
    Ok(text)
}

/// What follows this prefix is the protobuf runtime's own wording.
fn without_runtime_text(message: &str) -> &str {
    let prefix = "grpc: error unmarshalling request";
    if message.starts_with(prefix) { prefix } else { message }
}

/// A new client puts and reads.
fn prove_alive(server: &Server) -> Result<()> {
    runtime()?.block_on(async {
        let connection = Connection::open(server.address()).await?;
        let revision = connection.put(b"alive", b"yes").await?;
        match connection.range(b"alive", b"").await?.as_slice() {
            [pair] if pair.mod_revision == revision && pair.value == b"yes" => Ok(()),
            other => bail!("a key just put reads as {other:?}"),
        }
    })
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Byte strings that are no valid conversation.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let after_preface = |frames: &[&[u8]]| [&[PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0][..]], frames].concat().concat();
    let noise: Vec<u8> = (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    vec![
        ("nothing", Vec::new()),
        ("zeros", vec![0; 1024]),
        ("noise", noise.clone()),
        ("a TLS hello", [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &noise[..193]].concat()),
        ("half a preface", PREFACE[..11].to_vec()),
        ("a broken preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec()),
        ("a preface and noise", after_preface(&[&noise])),
        ("a preface without settings", [PREFACE, &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]].concat()),
        ("settings of a wrong length", [PREFACE, &[0, 0, 5, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]].concat()),
        ("data on stream zero", after_preface(&[&[0, 0, 1, 0, 0, 0, 0, 0, 0, 9]])),
        ("headers on an even stream", after_preface(&[&[0, 0, 1, 1, 5, 0, 0, 0, 2, 0x82]])),
        ("headers that no table has", after_preface(&[&[0, 0, 2, 1, 5, 0, 0, 0, 1, 0xff, 0x7f]])),
        ("a huffman string that ends early", after_preface(&[&[0, 0, 4, 1, 5, 0, 0, 0, 1, 0x40, 0x82, 0xff, 0xff]])),
        ("continuation without headers", after_preface(&[&[0, 0, 1, 9, 4, 0, 0, 0, 1, 0x82]])),
        ("a frame of 16 MiB", after_preface(&[&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]])),
        ("a window overflow", after_preface(&[&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]])),
        ("a window update of zero", after_preface(&[&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]])),
        ("a push promise", after_preface(&[&[0, 0, 4, 5, 4, 0, 0, 0, 1, 0, 0, 0, 2]])),
        ("an HTTP/1.1 line of 1 MiB", [b"GET /".as_slice(), &vec![b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n"].concat()),
        ("a million headers", [b"GET / HTTP/1.1\r\n".as_slice(), &b"a: b\r\n".repeat(1_000_000)].concat()),
        ("HTTP/1.1 without a host", b"GET /health HTTP/1.1\r\n\r\n".to_vec()),
        ("HTTP/0.9", b"GET /health\r\n\r\n".to_vec()),
        ("HTTP/3.0", b"GET /health HTTP/3.0\r\nHost: x\r\n\r\n".to_vec()),
        ("a header without a colon", b"GET /health HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n".to_vec()),
        ("a negative length", b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_vec()),
        ("two lengths", b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec()),
        ("a bad chunk", b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec()),
    ]
}

/// Sends each byte string twice: with the sending side closed after it, and left open (then the server may wait for
/// more, so only its health is checked).
pub(super) fn garbage_bytes(setup: &Setup) -> Result<Outcome> {
    let server = setup.start()?;
    for (name, bytes) in garbage() {
        let reaction = react(&server, &bytes).with_context(|| format!("'{name}'"))?;
        check_reaction(&reaction).with_context(|| format!("'{name}'"))?;
        let open = TcpStream::connect(server.address())?;
        // The server may close while we still send.
        let _ = (&open).write_all(&bytes);
        prove_alive(&server).with_context(|| format!("after '{name}'"))?;
    }
    server.stop(&[])?;
    Ok(Outcome::Passed)
}

/// Everything the server sends until it closes.
fn react(server: &Server, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut socket = TcpStream::connect(server.address())?;
    socket.set_read_timeout(Some(Duration::from_secs(REACTION_SECONDS_MAX)))?;
    socket.set_write_timeout(Some(Duration::from_secs(REACTION_SECONDS_MAX)))?;
    let sent = socket.write_all(bytes).and_then(|()| socket.shutdown(Shutdown::Write));
    if let Err(error) = sent
        && matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    {
        bail!("the server neither reads nor closes");
    }
    let mut received = Vec::new();
    match socket.read_to_end(&mut received) {
        Ok(_) => Ok(received),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            bail!("still open after {REACTION_SECONDS_MAX} s: {} bytes received", received.len())
        }
        // A reset is a close.
        Err(_) => Ok(received),
    }
}

/// Nothing, an HTTP/1.1 response, or HTTP/2 frames that begin with SETTINGS or GOAWAY.
fn check_reaction(received: &[u8]) -> Result<()> {
    let http1 = received.starts_with(b"HTTP/1.");
    let http2 = received.len() >= 9 && matches!(received[3], 4 | 7);
    if received.is_empty() || http1 || http2 {
        return Ok(());
    }
    bail!("the server answered {:?}", String::from_utf8_lossy(&received[..received.len().min(80)]))
}
