//! Hostile clients: they are refused or closed, and others are served meanwhile.

use trilith_reactor::{CloseReason, ConnectionId, CoreLoop, Event, Turn};

use crate::cores::Cores;
use crate::port::MemoryPort;
use crate::{
    HEADERS, PUT, PUT_PATH, SECOND, SETTINGS, WINDOW_UPDATE, answer, call, frame, frames, greeting, has, head, options,
    prefixed, serving,
};

const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ENHANCE_YOUR_CALM: u8 = 11;
const RANGE_PATH: &str = "/etcdserverpb.KV/Range";
const STATUS_PATH: &str = "/etcdserverpb.Maintenance/Status";
const WATCH_PATH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE_PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// What one piece of an attack looks like.
type Piece = fn(u32) -> Vec<u8>;

const FLOODS: [(&str, u32, Piece); 5] = [
    ("requests that are reset", 11_000, |number| {
        let stream = 2 * number + 1;
        [call(stream, RANGE_PATH, b"\x0a\x01k", 0), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    }),
    ("requests that the server must reset", 11_000, |number| {
        let stream = 2 * number + 1;
        [call(stream, RANGE_PATH, b"\x0a\x01k", 0), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
    }),
    ("pings", 4, |_| frame(PING, 0, 0, &[0; 8])),
    ("settings", 11_000, |_| frame(SETTINGS, 0, 0, &[])),
    ("a header block without end", 100, |number| {
        let kind = if number == 0 { HEADERS } else { CONTINUATION };
        frame(kind, 0, 1, &[b'x'; 100])
    }),
];

#[test]
fn floods_end_with_their_connection_and_others_are_served() {
    for (what, pieces, piece) in FLOODS {
        let mut port = MemoryPort::default();
        let mut node = serving(&mut port, options());
        let (hostile, other) = (port.accept(1), port.accept(2));
        port.push(Event::Received { connection: hostile, bytes: greeting() });
        port.push(Event::Received { connection: other, bytes: greeting() });
        let all: Vec<Vec<u8>> = (0..pieces).map(piece).collect();
        for (turn, some) in all.chunks(1_000).enumerate() {
            let stream = 2 * u32::try_from(turn).unwrap() + 1;
            port.push(Event::Received { connection: hostile, bytes: some.concat() });
            port.push(Event::Received { connection: other, bytes: call(stream, PUT_PATH, PUT, 0) });
            let until = port.now + SECOND / 100;
            port.run(&mut node, until);
            assert!(has(&answer(&port, other, stream), "grpc-status: 0"), "{what}, turn {turn}");
        }
        let sent = frames(&port.sent[&hostile]);
        let goaway = sent.iter().find(|(kind, ..)| *kind == GOAWAY).map(|(_, _, payload)| payload[7]);
        assert_eq!(goaway, Some(ENHANCE_YOUR_CALM), "{what}: {:?}", &sent[sent.len() - 3..]);
    }
}

#[test]
fn requests_left_unfinished_keep_nobody_from_putting_and_give_way() {
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options());
    // Together they announce 125 MiB, and send what they may without being granted it.
    let hostile: Vec<_> = (1..=250).map(|number| port.accept(number)).collect();
    for &connection in &hostile {
        let message = prefixed(&[b'x'; 60_000], 452_000);
        let pieces = message.chunks(16_384).map(|piece| frame(0, 0, 1, piece));
        let bytes = [greeting(), head(1, PUT_PATH, &[]), pieces.collect::<Vec<_>>().concat()].concat();
        port.push(Event::Received { connection, bytes });
    }
    let until = port.now + SECOND;
    port.run(&mut node, until);
    let other = port.accept(999);
    port.push(Event::Received { connection: other, bytes: [greeting(), call(1, PUT_PATH, PUT, 0)].concat() });
    let until = port.now + SECOND;
    port.run(&mut node, until);
    assert!(has(&answer(&port, other, 1), "grpc-status: 0"));
    let until = port.now + 20 * SECOND;
    port.run(&mut node, until);
    let reset = |(kind, stream, payload): &(u8, u32, Vec<u8>)| {
        (*kind, *stream, payload.last()) == (RST_STREAM, 1, Some(&ENHANCE_YOUR_CALM))
    };
    let gave_way = hostile.iter().filter(|connection| frames(&port.sent[connection]).iter().any(reset)).count();
    assert!(gave_way > 50, "{gave_way} of 250 gave way");
    // Then there is room for a large one again.
    port.push(Event::Received { connection: other, bytes: head(3, PUT_PATH, &[]) });
    for piece in prefixed(&[b'x'; 60_000], 340_000).chunks(16_384) {
        port.push(Event::Received { connection: other, bytes: frame(0, 0, 3, piece) });
    }
    let until = port.now + SECOND;
    port.run(&mut node, until);
    let granted = |(kind, stream, _): &(u8, u32, Vec<u8>)| (*kind, *stream) == (WINDOW_UPDATE, 3);
    assert!(frames(&port.sent[&other]).iter().any(granted));
}

/// Many pieces that cost little each.
const CHEAP: [(&str, Piece); 4] = [
    ("calls", |stream| call(stream, STATUS_PATH, b"", 0)),
    ("calls of methods there are not", |stream| call(stream, "/etcdserverpb.KV/Nope", b"", 0)),
    ("calls that end with their head", |stream| {
        [head(stream, KEEP_ALIVE_PATH, &[]), frame(0, 1, stream, &[])].concat()
    }),
    ("calls that are given up", |stream| {
        [head(stream, KEEP_ALIVE_PATH, &[]), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    }),
];

/// One turn of every core.
fn turn(node: &mut Cores, port: &mut MemoryPort) {
    let mut events = port.take_events();
    assert_eq!(node.handle_turn(port, &mut events), Turn::Continue);
}

fn is_answered(port: &MemoryPort, connection: ConnectionId, stream: u32) -> bool {
    !answer(port, connection, stream).is_empty()
}

#[test]
fn one_call_is_answered_before_the_thousands_that_another_connection_has_sent() {
    for (what, piece) in CHEAP {
        let mut port = MemoryPort::default();
        let mut node = serving(&mut port, options());
        let (hostile, other) = (port.accept(1), port.accept(2));
        for connection in [hostile, other] {
            port.push(Event::Received { connection, bytes: greeting() });
        }
        let until = port.now + SECOND;
        port.run(&mut node, until);
        let pieces = (0..4_000).flat_map(|number| piece(2 * number + 1)).collect();
        port.push(Event::Received { connection: hostile, bytes: pieces });
        port.push(Event::Received { connection: hostile, bytes: call(8_001, STATUS_PATH, b"", 0) });
        port.push(Event::Received { connection: other, bytes: call(1, STATUS_PATH, b"", 0) });
        turn(&mut node, &mut port);
        if !node.fronts.is_empty() {
            // To the sequencer and back.
            turn(&mut node, &mut port);
        }
        assert!(is_answered(&port, other, 1), "{what}");
        assert!(!is_answered(&port, hostile, 8_001), "{what}: the thousands came first");
        let until = port.now + SECOND;
        port.run(&mut node, until);
        assert!(is_answered(&port, hostile, 8_001), "{what}");
    }
}

#[test]
fn a_turn_is_bounded_however_many_connections_ask() {
    const CONNECTIONS: u64 = 400;
    const CALLS: u32 = 100;
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options());
    let asking: Vec<_> = (1..=CONNECTIONS).map(|number| port.accept(number)).collect();
    for &connection in &asking {
        port.push(Event::Received { connection, bytes: greeting() });
    }
    let other = port.accept(CONNECTIONS + 1);
    port.push(Event::Received { connection: other, bytes: greeting() });
    let until = port.now + SECOND;
    port.run(&mut node, until);
    for &connection in &asking {
        let bytes = (0..CALLS).flat_map(|number| call(2 * number + 1, STATUS_PATH, b"", 0)).collect();
        port.push(Event::Received { connection, bytes });
    }
    // Not all of them have had a share when another one comes.
    turn(&mut node, &mut port);
    port.push(Event::Received { connection: other, bytes: call(1, STATUS_PATH, b"", 0) });
    let begun = |port: &MemoryPort| asking.iter().filter(|it| is_answered(port, **it, 1)).count();
    let cores = node.fronts.len().max(1);
    assert!(begun(&port) <= 300 * cores, "{} had a share of one turn", begun(&port));
    for _ in 0..3 {
        turn(&mut node, &mut port);
    }
    assert!(is_answered(&port, other, 1));
    let ended = |port: &MemoryPort| asking.iter().filter(|it| is_answered(port, **it, 2 * CALLS - 1)).count();
    assert_eq!((begun(&port), ended(&port)), (asking.len(), 0), "everybody had a share, nobody had all");
    let until = port.now + SECOND;
    port.run(&mut node, until);
    assert_eq!(ended(&port), asking.len());
}

#[test]
fn thousands_of_open_calls_that_end_with_their_connection_are_forgotten_some_at_a_time() {
    const CALLS: u32 = 5_000;
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options());
    let hostile = port.accept(1);
    let calls = (0..CALLS).flat_map(|number| head(2 * number + 1, WATCH_PATH, &[])).collect();
    port.push(Event::Received { connection: hostile, bytes: [greeting(), calls].concat() });
    let until = port.now + SECOND;
    port.run(&mut node, until);
    assert_eq!(node.calls_kept(), CALLS as usize);
    port.push(Event::Closed { connection: hostile, reason: CloseReason::Failed });
    while node.calls_kept() == CALLS as usize {
        turn(&mut node, &mut port);
    }
    assert!(node.calls_kept() > CALLS as usize / 2, "{} are left after a turn", node.calls_kept());
    let other = port.accept(2);
    port.push(Event::Received { connection: other, bytes: [greeting(), call(1, PUT_PATH, PUT, 0)].concat() });
    let until = port.now + SECOND;
    port.run(&mut node, until);
    assert!(has(&answer(&port, other, 1), "grpc-status: 0"));
    assert_eq!(node.calls_kept(), 0);
}
