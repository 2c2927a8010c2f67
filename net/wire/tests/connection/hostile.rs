//! Input cut anywhere gives the same events; input of any kind gives no panic.

use trilith_wire::connection::{ConnectionLimits, fuzz};

use crate::client::*;
use crate::harness::{Owner, route};

/// A conversation with a bit of everything.
fn script() -> Vec<u8> {
    let fields = call_fields("/test/Unary");
    let all = block(&fields);
    let http = [(":method", "POST"), (":scheme", "http"), (":path", "/v3/x?y=z"), (":authority", "a")];
    let long = message(&[b'l'; 30_000]);
    [
        preface(&[(4, 1 << 20), (1, 100)]),
        number(WINDOW_UPDATE, 0, 1 << 20),
        unary(1, b"first"),
        headers(3, 0, &call_fields("/test/Stream")),
        frame(HEADERS, 0, 5, &all[..10]),
        frame(CONTINUATION, 0, 5, &all[10..11]),
        frame(CONTINUATION, END_HEADERS, 5, &all[11..]),
        frame(DATA, 0, 5, &long[..16_000]),
        frame(DATA, 0, 3, &[message(b"a"), message(b"bb"), message(b"ccc")[..3].to_vec()].concat()),
        frame(PING, 0, 0, b"12345678"),
        frame(DATA, END_STREAM, 5, &long[16_000..]),
        frame(DATA, PADDED, 3, &[&[4][..], &message(b"ccc")[3..], &[0; 4]].concat()),
        headers(7, 0, &http),
        frame(DATA, 0, 7, b"{\"key\""),
        frame(77, 3, 9, b"an unknown frame"),
        frame(DATA, END_STREAM, 7, b":1}"),
        headers(9, END_STREAM, &call_fields("/test/Nothing")),
        headers(11, END_STREAM, &[("bad", "head")]),
        headers(13, 0, &fields),
        number(RST_STREAM, 13, 8),
        frame(DATA, END_STREAM, 3, &message(b"last")),
        frame(GOAWAY, 0, 0, &[0; 8]),
        unary(15, b"after goaway"),
    ]
    .concat()
}

fn run(pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let output = pieces.iter().flat_map(|piece| owner.turn(piece)).collect();
    assert_eq!(owner.budget.used_bytes(), 0);
    (owner.log, output)
}

/// What a client makes of the output; how bulk data of several streams interleaves may depend on the cuts.
fn answers(output: &[u8]) -> impl PartialEq {
    let mut client = Client::new(1 << 20);
    client.connection_window = 1 << 21;
    client.read(output);
    (client.responses, client.pings, client.goaways, client.granted_streams)
}

#[test]
fn events_do_not_depend_on_how_input_is_cut() {
    let script = script();
    let whole = run(&[&script]);
    assert_eq!(whole.0.len(), 11, "{:#?}", whole.0);
    let bytes: Vec<&[u8]> = script.chunks(1).collect();
    assert_eq!(run(&bytes).0, whole.0);
    for seed in 0..300 {
        let mut random = Random(seed);
        let (mut rest, mut pieces) = (&script[..], Vec::new());
        let most = [3, 20, 300, 20_000][seed as usize % 4];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(1 + random.below(most) as usize));
            pieces.push(piece);
            rest = after;
        }
        let cut = run(&pieces);
        assert_eq!(cut.0, whole.0, "seed {seed}");
        assert!(answers(&cut.1) == answers(&whole.1), "seed {seed}: the answers differ");
    }
}

#[test]
fn http1_events_do_not_depend_on_how_input_is_cut() {
    let script = "\r\nPOST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789GET /q HTTP/1.1\nHost: a\n\n\
                  POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: v\r\n\r\n\
                  HEAD / HTTP/1.0\r\n\r\n";
    let whole = run(&[script.as_bytes()]);
    assert_eq!(whole.0, ["1 POST /p 0123456789", "2 GET /q ", "3 POST /c abc", "4 HEAD / "]);
    for step in 1..40 {
        let pieces: Vec<&[u8]> = script.as_bytes().chunks(step).collect();
        assert_eq!(run(&pieces), whole, "pieces of {step}");
    }
}

/// Mutants of a valid conversation: flipped, cut, repeated and inserted bytes.
#[test]
fn mutated_conversations_do_no_harm() {
    let script = script();
    for seed in 0..3_000 {
        let mut random = Random(seed);
        let mut input = script.clone();
        for _ in 0..1 + random.below(8) {
            let at = random.below(input.len() as u64) as usize;
            match random.below(5) {
                0 => input[at] ^= 1 << random.below(8),
                1 => input[at] = random.below(256) as u8,
                2 => input.truncate(at.max(40)),
                3 => {
                    let piece: Vec<u8> = input[at..].iter().take(random.below(60) as usize).copied().collect();
                    input.splice(at..at, piece);
                }
                _ => {
                    let end = (at + random.below(30) as usize).min(input.len());
                    input.drain(at..end);
                    input.push(0);
                }
            }
        }
        fuzz::connection(&input);
    }
}

#[test]
fn noise_does_no_harm() {
    for seed in 0..3_000 {
        let mut random = Random(seed);
        let length = random.below(400) as usize;
        let noise: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        fuzz::connection(&noise);
        fuzz::connection(&[&preface(&[])[..], &noise].concat());
        fuzz::frames(&noise);
        fuzz::header_blocks(&noise);
    }
}
