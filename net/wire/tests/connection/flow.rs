//! Flow control, both ways, against the client model's books.

use trilith_wire::connection::limits::{OUTPUT_AHEAD_BYTES_MAX, SECOND};
use trilith_wire::connection::{AssemblyBudget, ConnectionLimits, StreamId};

use crate::client::*;
use crate::harness::{Owner, route};

/// Random windows, random credit, random messages on many streams: nothing exceeds a window (the model asserts it) and
/// everything arrives complete and in order.
#[test]
fn responses_respect_every_window_and_arrive_whole() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let initial = [0, 1, 100, 65_535, 1_000_000][random.below(5) as usize];
        let mut owner = Owner::new(&ConnectionLimits::new(route));
        let mut client = Client::new(i64::from(initial));
        owner.answers = false;
        client.read(&owner.turn(&preface(&[(4, initial)])));
        let count = 1 + random.below(8) as u32;
        for index in 0..count {
            client.read(&owner.turn(&unary(1 + 2 * index, b"q")));
        }
        let mut expected = Vec::new();
        for stream in owner.streams.clone() {
            let sizes: Vec<usize> = (0..1 + random.below(4)).map(|_| random.below(90_000) as usize).collect();
            for size in &sizes {
                let bytes = vec![stream.number() as u8; *size];
                owner.connection.send_message(stream, *size, |out| out.extend_from_slice(&bytes));
            }
            owner.connection.finish(stream, 0, "");
            expected.push((stream.number(), sizes));
        }
        let mut turns = 0;
        while expected.iter().any(|(stream, _)| client.responses.get(stream).is_none_or(|response| !response.ended)) {
            client.read(&owner.drain());
            let mut credit = Vec::new();
            for index in 0..count {
                let (stream, amount) = (1 + 2 * index, 1 + random.below(60_000) as u32);
                credit.extend(number(WINDOW_UPDATE, stream, amount));
                *client.stream_windows.entry(stream).or_insert(0) += i64::from(amount);
            }
            let amount = 1 + random.below(100_000) as u32;
            credit.extend(number(WINDOW_UPDATE, 0, amount));
            client.connection_window += i64::from(amount);
            client.read(&owner.turn(&credit));
            turns += 1;
            assert!(turns < 2_000, "seed {seed} does not finish");
        }
        for (stream, sizes) in expected {
            let found: Vec<usize> = client.response(stream).messages().iter().map(|message| message.len()).collect();
            assert_eq!(found, sizes, "seed {seed}");
            assert!(client.response(stream).messages().concat().iter().all(|byte| *byte == stream as u8));
        }
    }
}

/// A long message handed over as the backlog drains is never held whole, and arrives as one.
#[test]
fn a_message_in_parts_arrives_whole_and_is_never_held_whole() {
    const PARTS: usize = 40;
    const PART_BYTES: usize = 48 << 10;
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(65_535);
    owner.answers = false;
    client.read(&owner.turn(&preface(&[])));
    client.read(&owner.turn(&unary(1, b"q")));
    let stream = owner.streams[0];
    owner.connection.begin_message(stream, PARTS * PART_BYTES);
    assert!(owner.connection.is_open(stream));
    let (mut sent, mut turns) = (0, 0);
    while client.responses.get(&1).is_none_or(|response| !response.ended) {
        while sent < PARTS && owner.connection.backlog_bytes(stream) < PART_BYTES {
            owner.connection.send_part(stream, &[sent as u8; PART_BYTES]);
            sent += 1;
            if sent == PARTS {
                owner.connection.finish(stream, 0, "");
            }
        }
        assert!(owner.connection.backlog_bytes(stream) <= 2 * PART_BYTES);
        client.read(&owner.drain());
        let credit = [number(WINDOW_UPDATE, 1, 30_000), number(WINDOW_UPDATE, 0, 30_000)].concat();
        *client.stream_windows.entry(1).or_insert(0) += 30_000;
        client.connection_window += 30_000;
        client.read(&owner.turn(&credit));
        turns += 1;
        assert!(turns < 200, "the response does not finish");
    }
    assert!(!owner.connection.is_open(stream));
    let messages = client.response(1).messages();
    assert_eq!(messages.len(), 1);
    let expected: Vec<u8> = (0..PARTS).flat_map(|part| [part as u8; PART_BYTES]).collect();
    assert_eq!(messages[0], expected);
}

#[test]
fn a_message_cut_short_ends_with_an_error_only() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(65_535);
    owner.answers = false;
    client.read(&owner.turn(&preface(&[])));
    client.read(&owner.turn(&unary(1, b"q")));
    let stream = owner.streams[0];
    owner.connection.begin_message(stream, 100);
    owner.connection.send_part(stream, &[1; 60]);
    owner.connection.finish(stream, 14, "gone");
    client.read(&owner.drain());
    assert_eq!(client.response(1).status(), ("14", "gone"));
    assert_eq!(client.response(1).body.len(), 5 + 60);
}

#[test]
fn a_changed_initial_window_applies_to_open_streams() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(10);
    client.read(&owner.turn(&preface(&[(4, 10)])));
    client.read(&owner.turn(&unary(1, &[7; 100])));
    assert_eq!(client.response(1).body.len(), 10);
    // Below zero: nothing may be sent until it is positive again.
    client.initial_window = 3;
    client.read(&owner.turn(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 3])));
    assert_eq!(client.response(1).body.len(), 10);
    client.initial_window = 105;
    client.read(&owner.turn(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 105])));
    assert_eq!((client.response(1).body.len(), client.response(1).status()), (105, ("0", "")));
}

#[test]
fn bulk_streams_take_turns_and_small_replies_overtake_them() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    owner.answers = false;
    owner.turn(&[preface(&[(4, 1 << 30)]), number(WINDOW_UPDATE, 0, 1 << 30)].concat());
    owner.turn(&[unary(1, b"a"), unary(3, b"b"), unary(5, b"c")].concat());
    let streams: Vec<StreamId> = owner.streams.clone();
    for stream in &streams[..2] {
        owner.connection.send_unary(*stream, 1 << 20, |out| out.resize(out.len() + (1 << 20), 1));
    }
    owner.connection.send_unary(streams[2], 3, |out| out.extend_from_slice(b"abc"));
    let mut first = Vec::new();
    owner.connection.take_output(&mut first, 0);
    assert!(first.len() < OUTPUT_AHEAD_BYTES_MAX + 2 * 16_384, "bounded ahead of the kernel: {}", first.len());
    let mut client = Client::new(1 << 30);
    client.connection_window = 1 << 31;
    client.read(&first);
    assert!(client.response(5).ended, "the small reply has left");
    let (one, three) = (client.response(1).body.len(), client.response(3).body.len());
    assert!(one.abs_diff(three) <= 16_384 && three > 0, "{one} and {three} bytes");
    owner.connection.handle_sent(0);
    client.read(&owner.drain());
    assert!(client.response(1).ended && client.response(3).ended);
}

#[test]
fn a_full_stream_tells_its_owner_when_it_has_drained() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(65_535);
    owner.answers = false;
    client.read(&owner.turn(&preface(&[])));
    client.read(&owner.turn(&headers(1, 0, &call_fields("/test/Stream"))));
    let stream = owner.streams[0];
    owner.connection.send_message(stream, 200_000, |out| out.resize(out.len() + 200_000, 1));
    client.read(&owner.drain());
    assert_eq!(owner.connection.backlog_bytes(stream), 200_005 - 65_535);
    assert_eq!(owner.log.len(), 1);
    client.connection_window += 100_000;
    client.stream_windows.insert(1, -65_535 + 100_000);
    client.read(&owner.turn(&[number(WINDOW_UPDATE, 0, 100_000), number(WINDOW_UPDATE, 1, 100_000)].concat()));
    assert_eq!(owner.connection.backlog_bytes(stream), 34_470);
    assert_eq!(owner.log.last().unwrap(), "1 writable");
}

/// A client that sends large messages exactly as credit allows, while the budget holds only a few of them.
#[test]
fn large_requests_are_granted_against_the_budget_and_all_complete() {
    let sizes = [1_500_000usize, 70_000, 2_097_152, 65_531, 1_000_000, 65_530, 300_000, 1_999_999];
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    owner.budget = AssemblyBudget::new(3 << 20);
    owner.answers = false;
    let mut client = Client::new(65_535);
    client.read(&owner.turn(&preface(&[])));
    let mut left: Vec<Vec<u8>> = sizes.iter().map(|size| message(&vec![b'x'; *size])).collect();
    let mut sent = vec![0i64; sizes.len()];
    let mut sent_in_all = 0;
    for index in 0..sizes.len() {
        client.read(&owner.turn(&headers(1 + 2 * index as u32, 0, &call_fields("/test/Unary"))));
    }
    let mut highest = 0;
    for round in 0.. {
        assert!(round < 10_000, "no progress: {sent:?}");
        let mut progress = false;
        for index in 0..sizes.len() {
            let stream = 1 + 2 * index as u32;
            let credit = 65_535 + client.granted_streams.get(&stream).copied().unwrap_or(0) - sent[index];
            let connection = 65_535 + client.granted_connection - sent_in_all;
            let take = credit.min(connection).min(16_384).min(left[index].len() as i64) as usize;
            if take == 0 {
                continue;
            }
            progress = true;
            let piece: Vec<u8> = left[index].drain(..take).collect();
            sent[index] += take as i64;
            sent_in_all += take as i64;
            let flags = if left[index].is_empty() { END_STREAM } else { 0 };
            client.read(&owner.turn(&frame(DATA, flags, stream, &piece)));
            highest = highest.max(owner.budget.used_bytes());
        }
        if !progress {
            break;
        }
    }
    assert!(left.iter().all(Vec::is_empty), "left: {:?}", left.iter().map(Vec::len).collect::<Vec<_>>());
    assert_eq!(owner.log.len(), sizes.len());
    // Beyond the grants, a stream holds at most its first window.
    assert!(highest <= (3 << 20) + sizes.len() * 65_535 + 10_000, "{highest}");
    assert!(!owner.connection.waits_for_budget());
    assert_eq!(owner.budget.used_bytes(), 0, "everything delivered is returned");
}

#[test]
fn a_connection_that_ends_returns_its_budget() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    owner.turn(&preface(&[]));
    let part = [&[0][..], &1_000_000u32.to_be_bytes(), &[1; 1000]].concat();
    owner.turn(&[headers(1, 0, &call_fields("/test/Unary")), frame(DATA, 0, 1, &part)].concat());
    assert!(owner.budget.used_bytes() > 900_000);
    owner.connection.release(&mut owner.budget);
    assert_eq!(owner.budget.used_bytes(), 0);
}

#[test]
fn an_exhausted_budget_refuses_new_streams() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(65_535);
    owner.budget = AssemblyBudget::new(20_000);
    client.read(&owner.turn(&preface(&[])));
    let long = "v".repeat(7_000);
    for stream in [1, 3, 5] {
        let fields = [call_fields("/test/Unary"), vec![("x", long.as_str())]].concat();
        client.read(&owner.turn(&headers(stream, 0, &fields)));
    }
    assert!(owner.budget.is_exhausted());
    let (mut other, mut honest) = (Owner::new(&ConnectionLimits::new(route)), Client::new(65_535));
    std::mem::swap(&mut owner.budget, &mut other.budget);
    honest.read(&other.turn(&[preface(&[]), unary(1, b"fine")].concat()));
    assert_eq!(honest.response(1).status(), ("0", ""), "who holds nothing is served");
    std::mem::swap(&mut owner.budget, &mut other.budget);
    client.read(&owner.turn(&unary(7, b"refused")));
    assert_eq!(client.response(7).reset, Some(7));
    client.read(&owner.turn(&number(RST_STREAM, 1, 8)));
    client.read(&owner.turn(&unary(9, b"fine")));
    assert_eq!(client.response(9).status(), ("0", ""));
}

#[test]
fn a_streams_credit_returns_as_its_messages_are_read() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(65_535);
    owner.answers = false;
    client.read(&owner.turn(&preface(&[])));
    client.read(&owner.turn(&headers(1, 0, &call_fields("/test/Stream"))));
    let piece = message(&[5; 9_995]);
    for _ in 0..1_000 {
        client.read(&owner.turn(&frame(DATA, 0, 1, &piece)));
    }
    assert_eq!(owner.log.len(), 1_001);
    let available = 65_535 + client.granted_streams[&1] - 10_000_000;
    assert!((32_000..=65_535).contains(&available), "{available}");
    assert!(65_535 + client.granted_connection - 10_000_000 > 1 << 20, "connection credit too");
}

#[test]
fn exceeding_a_window_is_an_error() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(65_535);
    owner.answers = false;
    client.read(&owner.turn(&preface(&[])));
    // Nobody reads the body of an unknown method, so no credit returns.
    client.read(&owner.turn(&headers(1, 0, &call_fields("/test/Nothing"))));
    for _ in 0..3 {
        client.read(&owner.turn(&frame(DATA, 0, 1, &[0; 16_384])));
    }
    client.read(&owner.turn(&frame(DATA, PADDED, 1, &[&[255][..], &[0; 16_382]].concat())));
    assert_eq!(client.responses.get(&1), None, "65,535 bytes, padding included, are within the window");
    client.read(&owner.turn(&frame(DATA, 0, 1, &[0])));
    assert_eq!(client.response(1).reset, Some(3), "FLOW_CONTROL_ERROR");
    assert_eq!(owner.log.last().unwrap(), "1 reset");
}

#[test]
fn padding_is_credited_but_not_charged_to_the_budget() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let mut client = Client::new(65_535);
    client.read(&owner.turn(&preface(&[])));
    let prefix = [&[0][..], &1_000u32.to_be_bytes()].concat();
    client.read(&owner.turn(&[headers(1, 0, &call_fields("/test/Unary")), frame(DATA, 0, 1, &prefix)].concat()));
    for _ in 0..1_000 {
        client.read(&owner.turn(&frame(DATA, PADDED, 1, &[&[255][..], &[0; 255]].concat())));
    }
    assert!(owner.budget.used_bytes() < 1_500, "{}", owner.budget.used_bytes());
    client.read(&owner.turn(&frame(DATA, END_STREAM, 1, &[1; 1_000])));
    assert_eq!(client.response(1).status(), ("0", ""));
}

#[test]
fn a_peer_that_takes_nothing_is_dropped() {
    let limits = ConnectionLimits::new(route);
    // The connection's window is used up and never renewed.
    let mut owner = Owner::new(&limits);
    owner.answers = false;
    owner.turn(&preface(&[(4, 1 << 30)]));
    owner.turn(&unary(1, b"q"));
    owner.connection.send_unary(owner.streams[0], 100_000, |out| out.resize(out.len() + 100_000, 1));
    owner.drain();
    owner.now = limits.write_timeout - 1;
    owner.connection.handle_timer(owner.now);
    assert!(!owner.connection.is_finished());
    owner.now = owner.connection.deadline().unwrap();
    owner.connection.handle_timer(owner.now);
    assert!(owner.connection.is_finished());

    // The kernel never takes the output.
    let mut owner = Owner::new(&limits);
    owner.connection.handle_bytes(preface(&[]), 0);
    owner.poll();
    owner.connection.take_output(&mut Vec::new(), SECOND);
    owner.connection.handle_timer(2 * limits.write_timeout);
    assert!(owner.connection.is_finished());
}

#[test]
fn a_finished_stream_whose_window_stays_shut_is_reset() {
    let limits = ConnectionLimits::new(route);
    let mut owner = Owner::new(&limits);
    let mut client = Client::new(10);
    client.read(&owner.turn(&preface(&[(4, 10)])));
    client.read(&owner.turn(&unary(1, &[1; 100])));
    client.read(&owner.turn(&unary(3, &[1; 100])));
    client.stream_windows.insert(3, 90);
    owner.now = limits.write_timeout / 2;
    client.read(&owner.turn(&number(WINDOW_UPDATE, 3, 80)));
    owner.now = limits.write_timeout;
    owner.connection.handle_timer(owner.now);
    client.read(&owner.drain());
    assert_eq!((client.response(1).reset, client.response(3).reset), (Some(8), None));
    assert!(!owner.connection.is_finished());
    assert_eq!(owner.budget.used_bytes(), 0);
}
