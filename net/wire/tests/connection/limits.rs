//! Limits against abuse: each has its explicit answer.

use trilith_wire::connection::ConnectionLimits;
use trilith_wire::connection::limits::{CONTROL_FRAMES_BURST_MAX, RESETS_BURST_MAX, SECOND};

use crate::client::*;
use crate::harness::{Owner, route};

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

fn start(limits: &ConnectionLimits) -> (Owner, Client) {
    let mut owner = Owner::new(limits);
    let mut client = Client::new(65_535);
    client.read(&owner.turn(&preface(&[])));
    (owner, client)
}

/// Feeds `piece` until the connection says why it ends, or `most` times.
fn flood(most: u64, mut piece: impl FnMut(u64) -> Vec<u8>) -> Option<(u64, u32, String)> {
    let (mut owner, mut client) = start(&ConnectionLimits::new(route));
    client.connection_window = 1 << 40;
    for round in 0..most {
        client.read(&owner.turn(&piece(round)));
        if let Some((_, code, text)) = client.goaways.pop() {
            assert!(owner.connection.is_finished());
            return Some((round, code, text));
        }
    }
    None
}

#[test]
fn floods_of_control_frames_end_the_connection() {
    let settings = |_| frame(SETTINGS, 0, 0, &[]);
    let acks = |_| frame(PING, ACK, 0, &[0; 8]);
    let updates = |_| number(WINDOW_UPDATE, 0, 1);
    let priorities = |_| frame(2, 0, 1, &[0, 0, 0, 0, 1]);
    let unknown = |_| frame(77, 0, 0, b"grease");
    let floods: [fn(u64) -> Vec<u8>; 5] = [settings, acks, updates, priorities, unknown];
    for piece in floods {
        let (rounds, code, _) = flood(CONTROL_FRAMES_BURST_MAX + 10, piece).expect("it must end");
        assert_eq!(code, ENHANCE_YOUR_CALM);
        assert!(rounds > 5_000, "not after so few as {rounds}");
    }
    let empty_data = |round| {
        if round == 0 { headers(1, 0, &call_fields("/test/Stream")) } else { frame(DATA, 0, 1, &[]) }
    };
    assert_eq!(flood(CONTROL_FRAMES_BURST_MAX + 10, empty_data).map(|(_, code, _)| code), Some(ENHANCE_YOUR_CALM));
}

#[test]
fn window_changes_cost_by_the_streams_they_touch() {
    let change = |round: u64| {
        if round < 2_000 {
            headers(1 + 2 * round as u32, 0, &call_fields("/test/Stream"))
        } else {
            // Many changes in one frame count once: only the last one is applied.
            let parameter = |value: u8| [0, 4, 0, 0, 0, value];
            let both = [parameter(1), parameter(2), parameter(round as u8)].concat();
            frame(SETTINGS, 0, 0, &both)
        }
    };
    let (rounds, code, _) = flood(CONTROL_FRAMES_BURST_MAX, change).expect("it must end");
    assert_eq!(code, ENHANCE_YOUR_CALM);
    assert!((2_200..2_500).contains(&rounds), "{rounds}");
}

#[test]
fn a_busy_clients_control_frames_are_no_flood() {
    let work = |round| {
        let stream = 1 + 2 * round as u32;
        [unary(stream, b"q"), number(WINDOW_UPDATE, 0, 9), frame(PING, 0, 0, &[1; 8])].concat()
    };
    assert_eq!(flood(2 * CONTROL_FRAMES_BURST_MAX, work), None);
}

#[test]
fn rapid_resets_end_the_connection() {
    let by_client = |round| {
        let stream = 1 + 2 * round as u32;
        [headers(stream, 0, &call_fields("/test/Unary")), number(RST_STREAM, stream, 8)].concat()
    };
    let by_error = |round| {
        let stream = 1 + 2 * round as u32;
        headers(stream, END_STREAM, &[(":method", "GET")])
    };
    let floods: [fn(u64) -> Vec<u8>; 2] = [by_client, by_error];
    for piece in floods {
        let (rounds, code, text) = flood(RESETS_BURST_MAX + 10, piece).expect("it must end");
        assert_eq!((code, text.as_str()), (ENHANCE_YOUR_CALM, "too many resets"));
        assert!(rounds > 5_000);
    }
}

#[test]
fn continuation_frames_are_counted() {
    let mut input = frame(HEADERS, 0, 1, &block(&call_fields("/test/Unary")));
    for _ in 0..8 {
        input.extend(frame(CONTINUATION, 0, 1, &block(&[("x", "y")])));
    }
    let (mut owner, mut client) = start(&ConnectionLimits::new(route));
    client.read(&owner.turn(&input));
    assert!(client.goaways.is_empty());
    client.read(&owner.turn(&frame(CONTINUATION, 0, 1, &[])));
    assert_eq!(client.goaways[0].1, ENHANCE_YOUR_CALM);
}

#[test]
fn an_oversized_header_list_is_431() {
    let (mut owner, mut client) = start(&ConnectionLimits::new(route));
    assert!(client.settings.contains(&(6, 16_384)));
    let long = "v".repeat(7_000);
    let mut fields = call_fields("/test/Unary");
    fields.extend([("a", long.as_str()), ("b", &long), ("c", &long)]);
    let all = block(&fields);
    let input = [frame(HEADERS, 0, 1, &all[..16_000]), frame(CONTINUATION, END_HEADERS, 1, &all[16_000..])].concat();
    client.read(&owner.turn(&input));
    assert_eq!(client.response(1).field(":status"), Some("431"));
    client.read(&owner.turn(&unary(3, b"next")));
    assert_eq!(client.response(3).status(), ("0", ""));
}

#[test]
fn streams_beyond_the_announced_number_are_refused() {
    let mut limits = ConnectionLimits::new(route);
    limits.concurrent_streams_announced = Some(2);
    let (mut owner, mut client) = start(&limits);
    assert!(client.settings.contains(&(3, 2)));
    owner.answers = false;
    client.read(&owner.turn(&[unary(1, b"a"), unary(3, b"b"), unary(5, b"c")].concat()));
    assert_eq!((owner.log.len(), client.response(5).reset), (2, Some(7)));
    limits.concurrent_streams_announced = None;
    limits.streams_max = 1;
    let (mut owner, mut client) = start(&limits);
    owner.answers = false;
    client.read(&owner.turn(&[unary(1, b"a"), unary(3, b"b")].concat()));
    assert_eq!((client.settings.len(), client.response(3).reset), (1, Some(7)));
}

#[test]
fn early_pings_are_too_many_but_not_between_answers() {
    let (mut owner, mut client) = start(&ConnectionLimits::new(route));
    let ping = frame(PING, 0, 0, b"abcdefgh");
    for round in 0..20 {
        client.read(&owner.turn(&unary(1 + 2 * round, b"q")));
        client.read(&owner.turn(&ping));
    }
    assert_eq!((client.goaways.len(), client.pings.len()), (0, 20));
    assert_eq!(client.pings[0], (ACK, b"abcdefgh".to_vec()));
    for _ in 0..2 {
        client.read(&owner.turn(&ping));
    }
    assert!(client.goaways.is_empty());
    client.read(&owner.turn(&ping));
    let (_, code, text) = &client.goaways[0];
    assert_eq!((*code, text.as_str()), (ENHANCE_YOUR_CALM, "too_many_pings"));
}

#[test]
fn keepalive_pings_at_the_allowed_interval_are_fine_while_a_stream_is_open() {
    let (mut owner, mut client) = start(&ConnectionLimits::new(route));
    client.read(&owner.turn(&headers(1, 0, &call_fields("/test/Stream"))));
    for round in 0..50 {
        owner.now = round * 5 * SECOND;
        client.read(&owner.turn(&frame(PING, 0, 0, &[0; 8])));
    }
    assert!(client.goaways.is_empty());
}

#[test]
fn last_words_are_taken_before_the_end_or_given_up_in_time() {
    let limits = ConnectionLimits::new(route);
    for kernel_takes in [true, false] {
        let (mut owner, mut client) = start(&limits);
        owner.connection.handle_bytes(frame(PING, 0, 0, &[0; 8]), 0);
        owner.poll();
        let mut output = Vec::new();
        owner.connection.take_output(&mut output, 0);
        // While that is on its way to the kernel the client breaks the protocol.
        owner.connection.handle_bytes(frame(DATA, 0, 9, &[]), SECOND);
        owner.poll();
        assert!(!owner.connection.is_finished() && !owner.connection.wants_bytes());
        if kernel_takes {
            owner.connection.handle_sent(2 * SECOND);
            client.read(&owner.drain());
            assert_eq!(client.goaways.len(), 1);
        } else {
            assert_eq!(owner.connection.deadline(), Some(limits.write_timeout));
            owner.connection.handle_timer(limits.write_timeout);
        }
        assert!(owner.connection.is_finished() && owner.connection.deadline().is_none());
    }
}

#[test]
fn silence_has_deadlines() {
    let limits = ConnectionLimits::new(route);
    // Nothing, half a preface, a preface without SETTINGS.
    let whole = preface(&[]);
    for sent in [0, 10, 24] {
        let mut owner = Owner::new(&limits);
        owner.turn(&whole[..sent]);
        assert_eq!(owner.connection.deadline(), Some(limits.preface_timeout), "{sent} bytes");
        owner.connection.handle_timer(limits.preface_timeout);
        assert!(owner.connection.is_finished(), "{sent} bytes");
    }
    // A header block without its end.
    let (mut owner, _) = start(&limits);
    owner.now = SECOND;
    owner.turn(&frame(HEADERS, 0, 1, &[]));
    owner.connection.handle_timer(SECOND + limits.header_timeout);
    assert!(owner.connection.is_finished());
}

#[test]
fn an_idle_connection_is_pinged_and_then_dropped() {
    let limits = ConnectionLimits::new(route);
    for answers in [true, false] {
        let (mut owner, mut client) = start(&limits);
        owner.now = SECOND;
        client.read(&owner.turn(&unary(1, b"q")));
        // Deadlines are looked at lazily: follow them until the ping is out.
        while client.pings.is_empty() {
            owner.now = owner.connection.deadline().unwrap();
            owner.connection.handle_timer(owner.now);
            client.read(&owner.drain());
        }
        assert_eq!(owner.now, SECOND + limits.keepalive_interval);
        if answers {
            client.read(&owner.turn(&frame(PING, ACK, 0, &client.pings[0].1.clone())));
        }
        owner.now += limits.keepalive_timeout;
        owner.connection.handle_timer(owner.now);
        assert_eq!(owner.connection.is_finished(), !answers);
        assert!(answers || owner.connection.deadline().is_none());
    }
}

#[test]
fn violations_end_the_connection_or_the_stream() {
    let open = headers(1, 0, &call_fields("/test/Unary"));
    let connection_errors: [(&[u8], u32); 8] = [
        (&frame(DATA, 0, 9, &[]), PROTOCOL_ERROR),
        (&frame(CONTINUATION, END_HEADERS, 1, &[]), PROTOCOL_ERROR),
        (&frame(HEADERS, END_HEADERS, 2, &[]), PROTOCOL_ERROR),
        (&frame(HEADERS, END_HEADERS, 3, &[0x80]), 9),
        (&frame(PING, 0, 0, &[0; 7]), 6),
        (&frame(SETTINGS, 0, 0, &[0; 5]), 6),
        (&frame(5, END_HEADERS, 1, &[0; 4]), PROTOCOL_ERROR),
        (&[0, 64, 1, 0, 0, 0, 0, 0, 1], 6),
    ];
    for (input, code) in connection_errors {
        let (mut owner, mut client) = start(&ConnectionLimits::new(route));
        client.read(&owner.turn(&[&open[..], input].concat()));
        assert_eq!(client.goaways.first().map(|goaway| goaway.1), Some(code), "{input:?}");
        assert!(owner.connection.is_finished() && !owner.connection.wants_bytes());
        assert!(owner.turn(&unary(11, b"ignored")).is_empty());
    }
    let stream_errors: [(&[u8], u32); 3] = [
        (&headers(1, 0, &[("x", "y")]), PROTOCOL_ERROR),
        (&number(WINDOW_UPDATE, 1, 0), PROTOCOL_ERROR),
        (&[number(WINDOW_UPDATE, 1, 0x7fff_ffff), number(WINDOW_UPDATE, 1, 1)].concat(), 3),
    ];
    for (input, code) in stream_errors {
        let (mut owner, mut client) = start(&ConnectionLimits::new(route));
        client.read(&owner.turn(&[&open[..], input].concat()));
        assert_eq!(client.response(1).reset, Some(code), "{input:?}");
        client.read(&owner.turn(&unary(3, b"alive")));
        assert_eq!(client.response(3).status(), ("0", ""));
    }
}

#[test]
fn input_is_not_parsed_while_the_kernel_takes_no_output() {
    let (mut owner, _) = start(&ConnectionLimits::new(route));
    let mut input = Vec::new();
    for index in 0..40_000u32 {
        input.extend(headers(1 + 2 * index, END_STREAM, &call_fields("/test/Nothing")));
    }
    owner.connection.handle_bytes(input, 0);
    owner.poll();
    let answered = owner.log.len();
    assert!(answered < 40_000 && !owner.connection.wants_bytes(), "{answered}");
    Client::new(65_535).read(&owner.turn(&[]));
    assert_eq!(owner.log.len(), 40_000, "and goes on when it does");
    assert!(owner.connection.wants_bytes());
}
