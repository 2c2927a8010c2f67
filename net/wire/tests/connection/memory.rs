//! Memory that hostile clients may take: what is held for one of them is bounded, and does not keep others from work.

use trilith_wire::connection::limits::{
    GATHERING_PATIENCE, GRANT_PATIENCE, HELD_BYTES_FREE, OUTPUT_FAIR_BYTES, OUTPUT_LEAST_BYTES,
    RESPONSE_BACKLOG_BYTES_MAX, SECOND,
};
use trilith_wire::connection::{AssemblyBudget, ConnectionLimits, OutputBudget};

use crate::client::*;
use crate::harness::{Owner, route};

const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
const BUDGET_BYTES: usize = 1 << 20;

fn start(settings: &[(u16, u32)]) -> (Owner, Client) {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    owner.budget = AssemblyBudget::new(BUDGET_BYTES);
    let mut client = Client::new(settings.iter().find(|(id, _)| *id == 4).map_or(65_535, |(_, value)| (*value).into()));
    client.read(&owner.turn(&preface(settings)));
    (owner, client)
}

/// A call that announces `announced` bytes and sends so many of them.
fn unfinished(path: &str, stream: u32, announced: usize, sent: usize) -> Vec<u8> {
    let body = [&[0][..], &(announced as u32).to_be_bytes(), &vec![b'x'; sent]].concat();
    let mut input = headers(stream, 0, &call_fields(path));
    body.chunks(16_384).for_each(|piece| input.extend(frame(DATA, 0, stream, piece)));
    input
}

/// Two connections of one core: what `first` holds counts for `second`.
fn lend(first: &mut Owner, second: &mut Owner) {
    std::mem::swap(&mut first.budget, &mut second.budget);
}

#[test]
fn unfinished_requests_beyond_the_budget_are_refused_and_small_ones_of_others_are_not() {
    for path in ["/test/Unary", "/test/Stream"] {
        let (mut hostile, mut client) = start(&[]);
        // Opened while there is room; then each sends as much as its first window allows.
        let opened: Vec<u8> = (0..200).flat_map(|index| headers(1 + 2 * index, 0, &call_fields(path))).collect();
        client.read(&hostile.turn(&opened));
        for index in 0..200 {
            let body = [&[0][..], &2_000_000u32.to_be_bytes(), &[b'x'; 60_000]].concat();
            for piece in body.chunks(16_384) {
                client.read(&hostile.turn(&frame(DATA, 0, 1 + 2 * index, piece)));
            }
            assert!(hostile.budget.used_bytes() <= BUDGET_BYTES + HELD_BYTES_FREE, "{}", hostile.budget.used_bytes());
        }
        let refused = if path == "/test/Unary" { REFUSED_STREAM } else { ENHANCE_YOUR_CALM };
        assert_eq!(client.response(399).reset, Some(refused), "{path}");

        let (mut other, mut honest) = start(&[]);
        lend(&mut hostile, &mut other);
        let mut call = unfinished("/test/Unary", 1, 9_000, 5_000);
        call.extend(frame(DATA, END_STREAM, 1, &[b'y'; 4_000]));
        for piece in call.chunks(1_000) {
            honest.read(&other.turn(piece));
        }
        assert_eq!(honest.response(1).status(), ("0", ""), "a small request has room, however it arrives");
        lend(&mut hostile, &mut other);
        hostile.connection.release(&mut hostile.budget);
        assert_eq!(hostile.budget.used_bytes(), 0);
    }
}

#[test]
fn slow_requests_give_way_only_while_memory_is_short() {
    for short in [false, true] {
        let (mut owner, mut client) = start(&[]);
        let (first, second) = if short { (900_000, 900_000) } else { (100_000, 60_000) };
        client.read(&owner.turn(&unfinished("/test/Unary", 1, first, 30_000)));
        client.read(&owner.turn(&unfinished("/test/Unary", 3, second, 50)));
        let mut ended_at = None;
        while owner.now < 100 * SECOND && owner.connection.deadline().is_some() {
            owner.now = owner.connection.deadline().unwrap();
            owner.connection.handle_timer(owner.now);
            client.read(&owner.drain());
            if client.responses.contains_key(&1) && ended_at.is_none() {
                ended_at = Some(owner.now);
            }
        }
        if short {
            // 30,000 bytes earned it two seconds more than the others have.
            let ended_at = ended_at.expect("it must give way");
            assert!((GATHERING_PATIENCE + SECOND..GRANT_PATIENCE).contains(&ended_at), "{ended_at}");
            assert_eq!(client.response(1).reset, Some(ENHANCE_YOUR_CALM));
            assert_eq!(owner.budget.used_bytes(), 0, "what they held is free at once");
        } else {
            assert!(ended_at.is_none() && client.responses.is_empty());
        }
    }
}

#[test]
fn a_message_that_goes_on_arriving_does_not_give_way() {
    let (mut owner, mut client) = start(&[]);
    client.read(&owner.turn(&unfinished("/test/Unary", 1, 900_000, 1_000)));
    assert!(owner.budget.used_bytes() > 900_000);
    for _ in 0..56 {
        owner.now += SECOND;
        if owner.connection.deadline().is_some_and(|deadline| deadline <= owner.now) {
            owner.connection.handle_timer(owner.now);
        }
        client.read(&owner.turn(&frame(DATA, 0, 1, &[b'x'; 16_000])));
    }
    client.read(&owner.turn(&frame(DATA, END_STREAM, 1, &[b'x'; 3_000])));
    assert!(owner.log.len() == 1 && owner.log[0].starts_with("1 call /test/Unary 900000#"), "{:?}", owner.log);
}

#[test]
fn what_a_client_gives_up_is_free_at_once_also_if_it_says_nothing_more() {
    let (mut owner, mut client) = start(&[]);
    let granted = |client: &Client| client.granted_streams.contains_key(&3);
    client.read(&owner.turn(&unfinished("/test/Unary", 1, 900_000, 1_000)));
    client.read(&owner.turn(&unfinished("/test/Unary", 3, 900_000, 1_000)));
    assert!(!granted(&client));
    client.read(&owner.turn(&number(RST_STREAM, 1, 8)));
    assert!(granted(&client) && owner.budget.used_bytes() < 910_000);
    client.read(&owner.turn(&number(RST_STREAM, 3, 8)));
    assert_eq!(owner.budget.used_bytes(), 0);
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let (mut owner, mut client) = start(&[(4, 0)]);
    owner.answers = false;
    let calls: Vec<u8> = (0..200).flat_map(|index| unary(1 + 2 * index, b"q")).collect();
    client.read(&owner.turn(&calls));
    assert_eq!(owner.streams.len(), 200);
    for stream in owner.streams.clone() {
        owner.connection.send_unary(stream, 1 << 20, |out| out.resize(out.len() + (1 << 20), b'a'));
    }
    let held: usize = owner.streams.iter().map(|stream| owner.connection.backlog_bytes(*stream)).sum();
    assert!(held <= RESPONSE_BACKLOG_BYTES_MAX && held > RESPONSE_BACKLOG_BYTES_MAX - (2 << 20), "{held}");
    client.read(&owner.drain());
    assert_eq!(client.response(399).reset, Some(ENHANCE_YOUR_CALM));
    assert_eq!(owner.log.len(), 200, "who has answered a call hears no more of it");
}

#[test]
fn who_has_much_unsent_yields_to_who_has_little() {
    let mut output = OutputBudget::new(8 << 20);
    let answer = |owner: &mut Owner, stream: usize, len: usize| {
        let id = owner.streams[stream];
        owner.connection.send_unary(id, len, |out| out.resize(out.len() + len, b'a'));
        owner.connection.backlog_bytes(id)
    };
    let ready = || {
        let (mut owner, mut client) = start(&[(4, 0)]);
        owner.answers = false;
        client.read(&owner.turn(&(0..20).flat_map(|index| unary(1 + 2 * index, b"q")).collect::<Vec<u8>>()));
        owner
    };
    let (mut hostile, mut other, mut third) = (ready(), ready(), ready());
    for stream in 0..9 {
        assert!(answer(&mut hostile, stream, 1 << 20) > 0);
    }
    hostile.connection.settle_output(&mut output);
    assert_eq!(answer(&mut hostile, 9, 1 << 20), 0, "it has its share");
    other.connection.settle_output(&mut output);
    assert!(answer(&mut other, 0, OUTPUT_FAIR_BYTES - 100) > 0);
    assert_eq!(answer(&mut other, 1, 1_000), 0, "more than its fair share");
    // Together they reach twice the limit, and only little is left for each.
    let (mut fourth, len) = (ready(), 8 << 20);
    fourth.connection.settle_output(&mut output);
    assert!(answer(&mut fourth, 0, len) > 0, "a single answer may be of any size");
    fourth.connection.settle_output(&mut output);
    third.connection.settle_output(&mut output);
    assert!(answer(&mut third, 0, OUTPUT_LEAST_BYTES - 100) > 0);
    assert_eq!(answer(&mut third, 1, 1_000), 0);
    for owner in [&mut hostile, &mut other, &mut third, &mut fourth] {
        owner.connection.release_output(&mut output);
    }
    assert_eq!(output.used_bytes(), 0);
}

#[test]
fn pipelined_requests_wait_until_the_kernel_takes_the_answers() {
    let mut owner = Owner::new(&ConnectionLimits::new(route));
    let request = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n";
    let one = [&request[..], &[b'x'; 10_000]].concat();
    // The owner answers with the body.
    owner.connection.handle_bytes(one.repeat(300), 0);
    owner.poll();
    let answered = owner.log.len();
    assert!((100..110).contains(&answered) && !owner.connection.wants_bytes(), "{answered}");
    owner.drain();
    assert_eq!(owner.log.len(), 300);
    assert!(owner.connection.wants_bytes());
}

#[test]
fn bodies_over_http1_give_way_while_memory_is_short() {
    let request = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n";
    let begin = |share: usize| {
        let mut owner = Owner::new(&ConnectionLimits::new(route));
        owner.budget = AssemblyBudget::new(BUDGET_BYTES);
        let output = owner.turn(&[&request[..], &vec![b'x'; share]].concat());
        (owner, String::from_utf8(output).unwrap())
    };
    let (mut hostile, _) = begin(BUDGET_BYTES / 2);
    for (length, status) in [(HELD_BYTES_FREE, "200"), (HELD_BYTES_FREE + 1, "503")] {
        let mut other = Owner::new(&ConnectionLimits::new(route));
        lend(&mut hostile, &mut other);
        let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        let mut output = other.turn(head.as_bytes());
        if status == "200" {
            output = vec![b'x'; length].chunks(1_000).flat_map(|piece| other.turn(piece)).collect();
        }
        assert!(output.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{length}");
        lend(&mut hostile, &mut other);
    }
    let (owner, output) = begin(BUDGET_BYTES + 1);
    assert!(output.starts_with("HTTP/1.1 503 ") && owner.connection.is_finished());
    assert!(owner.budget.used_bytes() <= BUDGET_BYTES);
    for (share, ends) in [(BUDGET_BYTES / 2, true), (BUDGET_BYTES / 2 - 1, false)] {
        let (mut owner, output) = begin(share);
        assert_eq!((output.as_str(), owner.connection.deadline()), ("", Some(GATHERING_PATIENCE)));
        owner.now = GATHERING_PATIENCE;
        owner.connection.handle_timer(owner.now);
        let output = String::from_utf8(owner.drain()).unwrap();
        assert_eq!((output.starts_with("HTTP/1.1 408 "), owner.connection.is_finished()), (ends, ends));
    }
}

#[test]
fn a_header_block_of_many_lists_is_not_kept() {
    let (mut owner, mut client) = start(&[]);
    let mut input = frame(HEADERS, 0, 1, &[b'x'; 16_384]);
    input.extend(frame(CONTINUATION, 0, 1, &[b'x'; 16_384]));
    client.read(&owner.turn(&input));
    assert!(client.goaways.is_empty(), "two lists' length is decoded");
    client.read(&owner.turn(&frame(CONTINUATION, 0, 1, b"x")));
    assert_eq!(client.goaways[0].1, ENHANCE_YOUR_CALM);
}
