//! Attacks on a server: what a hostile client sends, how fast, and what must become of it.
//!
//! Owns: the table of attacks. Their bytes are in `bytes`, the connections in `campaign`. Rates are bounded and stated,
//! so that two systems can be put under the same attack and the machine stays able to measure others' latency.
//! Does not know: how the well-behaved clients fare meanwhile; that is measured beside it.

pub mod bytes;
pub mod campaign;
mod peer;

/// What one connection sends next: its greeting first, then one piece after another.
pub type Piece = fn(round: u64, out: &mut Vec<u8>);

/// What must become of the attacker.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// Each connection is closed by the server, at the latest after so many seconds.
    Closed(f64),
    /// Its requests are refused, with an answer of this name (see [`campaign::Outcome::answers`]).
    Refused(&'static str),
    /// Nothing: it does what clients may do, and must only be harmless.
    Harmless,
}

/// One attack.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// Its name on the command line and in tables.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Connections held at a time.
    pub connections: usize,
    /// How many of them are opened in a second.
    pub connects_per_second: u32,
    /// A connection that was closed is replaced, within that rate.
    pub reconnects: bool,
    /// Pieces sent in a second, by all connections together.
    pub pieces_per_second: u32,
    /// What arrives is read. Otherwise the kernel's buffers fill up.
    pub reads: bool,
    /// The client closes a connection as soon as it was greeted.
    pub hangs_up: bool,
    /// What a connection sends first.
    pub greeting: Piece,
    /// What it sends then.
    pub piece: Piece,
    /// What must become of it.
    pub expect: Expect,
}

const NOTHING: Piece = |_, _| {};

/// A few connections that send as fast as the rate says, and come again when they were closed.
const FLOOD: Attack = Attack {
    name: "",
    summary: "",
    connections: 4,
    connects_per_second: 20,
    reconnects: true,
    pieces_per_second: 20_000,
    reads: true,
    hangs_up: false,
    greeting: bytes::greeting,
    piece: NOTHING,
    expect: Expect::Closed(8.0),
};

/// All attacks, in the order of a run.
pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "idle",
        summary: "HTTP/2 connections that say hello and nothing more",
        connections: 10_000,
        connects_per_second: 2_500,
        reconnects: false,
        pieces_per_second: 0,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "half-open",
        summary: "connections that say nothing",
        connections: 10_000,
        connects_per_second: 2_500,
        reconnects: false,
        pieces_per_second: 0,
        greeting: NOTHING,
        ..FLOOD
    },
    Attack {
        name: "slow-preface",
        summary: "the HTTP/2 preface, a byte a second",
        connections: 2_000,
        connects_per_second: 1_000,
        pieces_per_second: 2_000,
        greeting: NOTHING,
        piece: bytes::preface_byte,
        ..FLOOD
    },
    Attack {
        name: "rapid-reset",
        summary: "a range, reset at once (CVE-2023-44487)",
        piece: bytes::rapid_reset,
        ..FLOOD
    },
    Attack {
        name: "server-reset",
        summary: "a range, then a frame for which the server must reset it (CVE-2025-8671)",
        piece: bytes::server_reset,
        ..FLOOD
    },
    Attack {
        name: "continuation",
        summary: "a header block without end (CVE-2024-27316)",
        pieces_per_second: 2_000,
        piece: bytes::continuation,
        ..FLOOD
    },
    Attack {
        name: "header-list",
        summary: "requests with 24 KiB of headers",
        pieces_per_second: 500,
        piece: bytes::long_headers,
        expect: Expect::Refused("status 431"),
        ..FLOOD
    },
    Attack {
        name: "hpack-bomb",
        summary: "15,000 references a request to a field of 4 KB",
        pieces_per_second: 500,
        piece: bytes::hpack_bomb,
        expect: Expect::Refused("status 431"),
        ..FLOOD
    },
    Attack {
        name: "hpack-resize",
        summary: "4,000 changes of the table's size a request",
        pieces_per_second: 500,
        piece: bytes::hpack_resize,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack { name: "ping", summary: "PING frames", piece: bytes::ping, ..FLOOD },
    Attack { name: "settings", summary: "SETTINGS that move the windows", piece: bytes::settings, ..FLOOD },
    Attack { name: "window-update", summary: "WINDOW_UPDATE of one byte", piece: bytes::window_update, ..FLOOD },
    Attack { name: "empty-data", summary: "empty DATA on an open stream", piece: bytes::empty_data, ..FLOOD },
    Attack { name: "priority", summary: "PRIORITY frames", piece: bytes::priority, ..FLOOD },
    Attack {
        name: "zero-window",
        summary: "ranges of 1 MB with a stream window of zero",
        connections: 20,
        pieces_per_second: 200,
        greeting: bytes::greeting_zero_window,
        piece: bytes::large_range,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "unread",
        summary: "ranges of 1 MB, windows wide open, nothing read from the socket",
        connections: 20,
        pieces_per_second: 200,
        reads: false,
        greeting: bytes::greeting_wide_window,
        piece: bytes::large_range,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "unread-small",
        summary: "ranges of one key, windows of zero, many in one write",
        connections: 20,
        pieces_per_second: 20_000,
        greeting: bytes::greeting_zero_window,
        piece: bytes::small_range,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "slow-body",
        summary: "puts of 1 MiB of which 60 KB come at once and the rest a byte a second",
        connections: 1_000,
        connects_per_second: 500,
        pieces_per_second: 1_000,
        piece: bytes::slow_body,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "many-bodies",
        summary: "puts of 1 MiB of which 60 KB come, all on a few connections",
        pieces_per_second: 1_000,
        piece: bytes::half_body,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "huge-length",
        summary: "puts that announce 4 GiB",
        pieces_per_second: 2_000,
        piece: bytes::huge_length,
        expect: Expect::Refused("grpc 8"),
        ..FLOOD
    },
    Attack {
        name: "compressed",
        summary: "puts that claim to be compressed",
        pieces_per_second: 2_000,
        piece: bytes::compressed,
        expect: Expect::Refused("grpc 13"),
        ..FLOOD
    },
    Attack {
        name: "many-streams",
        summary: "watch calls on one connection that never ask for anything",
        connections: 1,
        pieces_per_second: 40_000,
        piece: bytes::open_watch,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "unread-watches",
        summary: "watches of all keys, previous values included, that are never read",
        connections: 10,
        pieces_per_second: 1_000,
        reads: false,
        greeting: bytes::greeting_wide_window,
        piece: bytes::create_watch,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "http1-slow",
        summary: "HTTP/1.1 headers, a byte a second",
        connections: 2_000,
        connects_per_second: 1_000,
        pieces_per_second: 2_000,
        greeting: bytes::http1_beginning,
        piece: bytes::http1_byte,
        ..FLOOD
    },
    Attack {
        name: "http1-long-line",
        summary: "an HTTP/1.1 request line without end, 16 KiB a piece",
        pieces_per_second: 400,
        greeting: bytes::http1_line,
        piece: bytes::http1_line_more,
        ..FLOOD
    },
    Attack {
        name: "http1-pipeline",
        summary: "HTTP/1.1 requests, 100 in a piece, answers never read",
        pieces_per_second: 200,
        reads: false,
        greeting: NOTHING,
        piece: bytes::http1_pipeline,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "http1-slow-body",
        summary: "HTTP/1.1 requests of 2 MB of which 256 KiB come",
        connections: 1_000,
        connects_per_second: 500,
        pieces_per_second: 1_000,
        greeting: bytes::http1_body,
        piece: bytes::http1_byte,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "churn",
        summary: "connections that are closed at once",
        connections: 200,
        connects_per_second: 2_000,
        pieces_per_second: 0,
        hangs_up: true,
        expect: Expect::Harmless,
        ..FLOOD
    },
    Attack {
        name: "garbage",
        summary: "connections that send 1 KiB of noise",
        connections: 200,
        connects_per_second: 1_000,
        pieces_per_second: 0,
        greeting: bytes::noise,
        ..FLOOD
    },
    Attack {
        name: "tls",
        summary: "TLS handshakes on the clear port",
        connections: 200,
        connects_per_second: 1_000,
        pieces_per_second: 0,
        greeting: bytes::client_hello,
        ..FLOOD
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::Frame;

    #[test]
    fn names_differ_and_every_attack_says_something() {
        for (number, attack) in ATTACKS.iter().enumerate() {
            assert!(ATTACKS[..number].iter().all(|other| other.name != attack.name), "{}", attack.name);
            assert!(!attack.summary.is_empty() && attack.connections > 0 && attack.connects_per_second > 0);
        }
    }

    #[test]
    fn what_is_sent_as_http2_consists_of_whole_frames() {
        for attack in ATTACKS {
            let mut out = Vec::new();
            (attack.greeting)(0, &mut out);
            let Some(mut rest) = out.strip_prefix(crate::h2::PREFACE).map(<[u8]>::to_vec) else { continue };
            for round in 0..3 {
                (attack.piece)(round, &mut rest);
            }
            let mut rest = rest.as_slice();
            while let Some((_, after)) = Frame::parse(rest) {
                rest = after;
            }
            assert!(rest.is_empty(), "{}: {} bytes are no frame", attack.name, rest.len());
        }
    }
}
