//! Calls and HTTP requests over HTTP/2: what the owner sees and what the client gets.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write as _;
use trilith_wire::connection::{ConnectionEvent, ConnectionLimits};

use crate::client::*;
use crate::harness::{Owner, route};

fn start() -> (Owner, Client) {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(65_535);
    client.read(&owner.turn(&preface(&[])));
    assert_eq!(client.settings_acks, 1);
    (owner, client)
}

#[test]
fn a_unary_call_is_answered_with_head_message_and_trailers() {
    let (mut owner, mut client) = start();
    client.read(&owner.turn(&unary(1, b"ping")));
    assert_eq!(owner.log, ["1 call /test/Unary ping"]);
    let response = client.response(1);
    assert_eq!(response.messages(), [b"ping"]);
    assert_eq!(response.field(":status"), Some("200"));
    assert_eq!(response.field("content-type"), Some("application/grpc"));
    assert_eq!((response.status(), response.reset), (("0", ""), None));
}

#[test]
fn later_answers_are_fixed_bytes() {
    let (mut owner, _) = start();
    owner.turn(&unary(1, b"x"));
    let expected = [
        frame(HEADERS, END_HEADERS, 3, &[0x88, 0xbf]),
        frame(DATA, 0, 3, &message(b"y")),
        frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0xbe]),
    ];
    assert_eq!(owner.turn(&unary(3, b"y")), expected.concat());
}

#[test]
fn messages_in_pieces_and_padding_are_put_together() {
    let (mut owner, mut client) = start();
    let whole = message(b"a message in many frames");
    let mut input = headers(1, 0, &call_fields("/test/Unary"));
    for piece in whole.chunks(3) {
        let padded = [&[2][..], piece, &[0, 0]].concat();
        input.extend(frame(DATA, PADDED, 1, &padded));
    }
    input.extend(frame(DATA, END_STREAM, 1, &[]));
    client.read(&owner.turn(&input));
    assert_eq!(client.response(1).messages(), [b"a message in many frames"]);
    assert_eq!(owner.budget.used_bytes(), 0);
}

#[test]
fn trailers_end_a_request() {
    let (mut owner, mut client) = start();
    let input = [
        headers(1, 0, &call_fields("/test/Unary")),
        frame(DATA, 0, 1, &message(b"m")),
        headers(1, END_STREAM, &[("x-trailer", "1")]),
    ];
    client.read(&owner.turn(&input.concat()));
    assert_eq!(client.response(1).status(), ("0", ""));
}

#[test]
fn a_bidirectional_stream_delivers_messages_as_they_come() {
    let (mut owner, mut client) = start();
    client.read(&owner.turn(&headers(1, 0, &call_fields("/test/Stream"))));
    let two = [message(b"one"), message(b"two"), message(b"three")[..4].to_vec()].concat();
    client.read(&owner.turn(&frame(DATA, 0, 1, &two)));
    assert_eq!(client.response(1).messages(), [b"one", b"two"]);
    let rest = [message(b"three")[4..].to_vec(), message(b"")].concat();
    client.read(&owner.turn(&frame(DATA, END_STREAM, 1, &rest)));
    let expected =
        ["1 call /test/Stream ", "1 message one", "1 message two", "1 message three", "1 message ", "1 half-close"];
    assert_eq!(owner.log, expected);
    assert_eq!(client.response(1).status(), ("0", ""));
    assert_eq!(client.response(1).messages().len(), 4);
}

/// A message as a client sends it that compresses.
fn packed(payload: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(payload).unwrap();
    let mut bytes = message(&encoder.finish().unwrap());
    bytes[0] = 1;
    bytes
}

#[test]
fn compressed_messages_are_expanded_wherever_they_lie() {
    let (mut owner, mut client) = start();
    let fields = |path: &'static str| {
        let mut fields = call_fields(path);
        fields.push(("grpc-encoding", "gzip"));
        fields
    };
    let words = b"many words, many words, many words";
    // Whole, in pieces, and with the end of the request in a frame of its own.
    let head = |stream| headers(stream, 0, &fields("/test/Unary"));
    client.read(&owner.turn(&[head(1), frame(DATA, END_STREAM, 1, &packed(words))].concat()));
    client.read(&owner.turn(&head(3)));
    for piece in packed(words).chunks(7) {
        client.read(&owner.turn(&frame(DATA, 0, 3, piece)));
    }
    client.read(&owner.turn(&frame(DATA, END_STREAM, 3, &[])));
    client.read(&owner.turn(&[head(5), frame(DATA, 0, 5, &packed(words)), frame(DATA, END_STREAM, 5, &[])].concat()));
    // One that is not compressed may stand among them.
    client.read(&owner.turn(&[head(7), frame(DATA, END_STREAM, 7, &message(words))].concat()));
    for stream in [1, 3, 5, 7] {
        assert_eq!(
            (client.response(stream).messages(), client.response(stream).status()),
            (vec![&words[..]], ("0", ""))
        );
    }
    owner.log.clear();
    let stream = [packed(b"one"), message(b"two"), packed(b"three")].concat();
    let (first, second) = stream.split_at(stream.len() - 4);
    client.read(&owner.turn(&[headers(9, 0, &fields("/test/Stream")), frame(DATA, 0, 9, first)].concat()));
    client.read(&owner.turn(&frame(DATA, END_STREAM, 9, second)));
    assert_eq!(
        owner.log,
        ["9 call /test/Stream ", "9 message one", "9 message two", "9 message three", "9 half-close"]
    );
    // What cannot be expanded ends its call, and no other.
    let mut broken = packed(words);
    broken.truncate(broken.len() - 3);
    broken[4] -= 3;
    for stream in [11, 13] {
        let path = if stream == 11 { "/test/Unary" } else { "/test/Stream" };
        let end = if stream == 11 { END_STREAM } else { 0 };
        client.read(&owner.turn(&[headers(stream, 0, &fields(path)), frame(DATA, end, stream, &broken)].concat()));
        let text = "grpc: failed to read decompressed data: unexpected EOF";
        assert_eq!(client.response(stream).status(), ("13", text));
    }
    assert_eq!(owner.budget.used_bytes(), 0);
}

#[test]
fn few_bytes_buy_little_expanding() {
    let (mut owner, mut client) = start();
    owner.answers = false;
    let zeros = packed(&vec![0; 2 << 20]);
    let call = |stream, body: &[u8]| {
        let mut fields = call_fields("/test/Unary");
        fields.push(("grpc-encoding", "gzip"));
        [headers(stream, 0, &fields), frame(DATA, END_STREAM, stream, body)].concat()
    };
    for stream in [1, 3, 5, 7] {
        client.read(&owner.turn(&call(stream, &zeros)));
    }
    assert_eq!(owner.log.len(), 4);
    client.read(&owner.turn(&call(9, &zeros)));
    let text = "grpc: received too many messages that are much longer after decompression";
    assert_eq!((client.response(9).status(), owner.log.len()), (("8", text), 4));
    client.read(&owner.turn(&call(11, &packed(b"little"))));
    assert_eq!(owner.log.len(), 5, "others are taken");
    owner.now += 1_000_000_000;
    client.read(&owner.turn(&call(13, &zeros)));
    assert_eq!(owner.log.len(), 6, "it comes back with time");
}

#[test]
fn an_owner_that_finishes_early_hears_no_more() {
    let (mut owner, mut client) = start();
    owner.answers = false;
    client.read(&owner.turn(&headers(1, 0, &call_fields("/test/Stream"))));
    owner.connection.finish(owner.streams[0], 5, "no such \u{e9}");
    let late = [frame(DATA, 0, 1, &message(b"late")), frame(DATA, END_STREAM, 1, &[])].concat();
    client.read(&owner.turn(&late));
    assert_eq!(owner.log.len(), 1);
    assert_eq!(client.response(1).status(), ("5", "no such %C3%A9"));
    assert_eq!(client.response(1).reset, Some(0), "NO_ERROR: the rest is not wanted");
    assert!(client.goaways.is_empty());
}

#[test]
fn a_reset_reaches_the_owner_and_its_late_answer_is_dropped() {
    let (mut owner, mut client) = start();
    owner.answers = false;
    client.read(&owner.turn(&unary(1, b"slow")));
    client.read(&owner.turn(&number(RST_STREAM, 1, 8)));
    assert_eq!(owner.log, ["1 call /test/Unary slow", "1 reset"]);
    owner.connection.send_unary(owner.streams[0], 1, |out| out.push(1));
    client.read(&owner.drain());
    assert!(client.responses.is_empty());
}

#[test]
fn metadata_and_timeouts_are_readable() {
    let (mut owner, _) = start();
    let mut fields = call_fields("/test/Unary");
    fields.extend([("token", "t.1"), ("hasleader", "true"), ("grpc-timeout", "5S"), ("x", "y")]);
    let input = [headers(1, 0, &fields), frame(DATA, END_STREAM, 1, &message(b""))].concat();
    owner.connection.handle_bytes(input, 0);
    let event = owner.connection.poll_event(&mut owner.budget, 0).unwrap();
    let ConnectionEvent::GrpcRequest { head, .. } = event else { panic!("{event:?}") };
    use trilith_wire::connection::Known;
    assert_eq!(head.known(Known::Token), Some(&b"t.1"[..]));
    assert_eq!(head.known(Known::HasLeader), Some(&b"true"[..]));
    assert_eq!(head.known(Known::Authorization), None);
    assert_eq!((head.get(b"x"), head.timeout()), (Some(&b"y"[..]), Some(5_000_000_000)));
}

/// Header fields, body; HTTP status, gRPC status and text of the answer.
type Refused<'a> = (Vec<(&'a str, &'a str)>, &'a [u8], &'a str, &'a str, &'a str);

/// Every refusal of the gRPC layer, with grpc-go's code and text, at whichever HTTP status it uses.
#[test]
fn calls_are_refused_as_grpc_go_does() {
    let large = [&[0][..], &2_097_153u32.to_be_bytes()].concat();
    let change = |at: usize, name: &'static str, value: &'static str| {
        let mut fields = call_fields("/test/Unary");
        fields[at] = (name, value);
        fields
    };
    let body = message(b"m");
    let cases: [Refused<'_>; 10] = [
        (change(2, ":path", "test/Unary"), &body, "200", "12", "malformed method name: \"test/Unary\""),
        (change(2, ":path", "/testUnary"), &body, "200", "12", "malformed method name: \"/testUnary\""),
        (change(2, ":path", "/test/Nothing"), &body, "200", "12", ""),
        (
            change(0, ":method", "PUT"),
            &body,
            "405",
            "13",
            "Received a HEADERS frame with :method \"PUT\" which should be POST",
        ),
        (change(3, "x", "y"), &body, "400", "13", "no host or :authority header present"),
        (
            change(5, "grpc-timeout", "1x"),
            &body,
            "400",
            "13",
            "malformed grpc-timeout: transport: timeout unit is not recognized: \"1x\"",
        ),
        (
            change(5, "grpc-encoding", "snappy"),
            &[1, 0, 0, 0, 1, 9],
            "200",
            "12",
            "grpc: Decompressor is not installed for grpc-encoding \"snappy\"",
        ),
        (change(5, "x", "y"), &large, "200", "8", "grpc: received message larger than max (2097153 vs. 2097152)"),
        (
            change(5, "x", "y"),
            &[],
            "200",
            "13",
            "cardinality violation: received no request message from non-client-streaming RPC",
        ),
        (
            change(5, "x", "y"),
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            "200",
            "13",
            "cardinality violation: received multiple request messages for non-client-streaming RPC",
        ),
    ];
    let (mut owner, mut client) = start();
    for (index, (fields, body, status, code, text)) in cases.into_iter().enumerate() {
        let stream = 1 + 2 * index as u32;
        let input = [headers(stream, 0, &fields), frame(DATA, END_STREAM, stream, body)].concat();
        client.read(&owner.turn(&input));
        let response = client.response(stream);
        assert_eq!((response.field(":status"), response.status()), (Some(status), (code, text)), "case {index}");
    }
    client.read(&owner.turn(&unary(101, b"alive")));
    assert_eq!(client.response(101).status(), ("0", ""));
    assert_eq!(owner.budget.used_bytes(), 0);
}

#[test]
fn other_content_types_are_http_requests() {
    let (mut owner, mut client) = start();
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/v3/kv?x=1"), (":authority", "a")];
    let input = [headers(1, 0, &fields), frame(DATA, 0, 1, b"hel"), frame(DATA, END_STREAM, 1, b"lo")].concat();
    client.read(&owner.turn(&input));
    assert_eq!(owner.log, ["1 POST /v3/kv hello"]);
    let response = client.response(1);
    assert_eq!((&response.body[..], response.field("content-length")), (&b"hello"[..], Some("5")));
    let head = [(":method", "HEAD"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    client.read(&owner.turn(&headers(3, END_STREAM, &head)));
    assert!(client.response(3).ended && client.response(3).body.is_empty());
}

#[test]
fn an_http_response_of_unknown_length() {
    let (mut owner, mut client) = start();
    owner.answers = false;
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/stream"), (":authority", "a")];
    client.read(&owner.turn(&headers(1, END_STREAM, &fields)));
    let stream = owner.streams[0];
    owner.connection.start_http(stream, 200, &[]);
    owner.connection.send_http_body(stream, b"one ");
    client.read(&owner.drain());
    assert_eq!((&client.response(1).body[..], client.response(1).ended), (&b"one "[..], false));
    owner.connection.send_http_body(stream, b"two");
    owner.connection.finish_http(stream);
    client.read(&owner.drain());
    assert_eq!((&client.response(1).body[..], client.response(1).ended), (&b"one two"[..], true));
}

#[test]
fn a_graceful_stop_answers_what_was_begun() {
    let (mut owner, mut client) = start();
    owner.answers = false;
    client.read(&owner.turn(&unary(1, b"a")));
    owner.connection.start_drain(0);
    client.read(&owner.drain());
    assert_eq!(client.goaways, [(0x7fff_ffff, 0, String::new())]);
    let (flags, payload) = client.pings.pop().unwrap();
    assert_eq!(flags, 0);
    client.read(&owner.turn(&unary(3, b"crossed the wire")));
    client.read(&owner.turn(&frame(PING, ACK, 0, &payload)));
    assert_eq!(client.goaways[1], (3, 0, String::new()));
    client.read(&owner.turn(&unary(5, b"too late")));
    assert_eq!(client.response(5).reset, Some(7), "REFUSED_STREAM");
    assert!(!owner.connection.is_finished());
    for stream in owner.streams.clone() {
        owner.connection.send_unary(stream, 0, |_| {});
    }
    client.read(&owner.drain());
    assert!(owner.connection.is_finished());
    assert_eq!((client.response(1).status().0, client.response(3).status().0), ("0", "0"));
}

#[test]
fn a_long_status_text_is_split_over_continuation_frames() {
    let (mut owner, _) = start();
    owner.answers = false;
    owner.turn(&unary(1, b"a"));
    owner.connection.finish(owner.streams[0], 2, &"e".repeat(40_000));
    let output = owner.drain();
    let (mut rest, mut frames) = (&output[..], Vec::new());
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        assert!(length <= 16_384);
        frames.push((rest[3], rest[4]));
        rest = &rest[9 + length..];
    }
    assert_eq!(frames, [(HEADERS, END_STREAM), (CONTINUATION, 0), (CONTINUATION, END_HEADERS)]);
}
