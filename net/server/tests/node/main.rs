//! The node over a port in memory: starts that crash, stalls, stops, limits.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cores;
mod disk;
mod hostile;
mod identity;
mod leases;
mod long;
mod open;
mod port;
mod shards;
mod surface;

use std::collections::BTreeMap;

use cores::Cores;
use port::MemoryPort;
use trilith_engine::replica::ReplicaOptions;
use trilith_engine::shard::ShardOptions;
use trilith_engine::store::StoreOptions;
use trilith_engine::store::row_log::RowLogOptions;
use trilith_reactor::{CloseReason, ConnectionId, Event};
use trilith_server::initial::Initial;
use trilith_server::journal::{Format, Journal, Level};
use trilith_server::surface::Surface;
use trilith_server::{BootError, NodeOptions};
use trilith_wire::hpack::{Decoder, FieldSink, Mark};

const SECOND: u64 = 1_000_000_000;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

fn options() -> NodeOptions {
    let mut log = trilith_raftlog::Options::standard();
    (log.segment_bytes, log.entry_bytes_max, log.batch_bytes_max) = (64 << 10, 32 << 10, 16 << 10);
    NodeOptions {
        name: "test".to_owned(),
        client_urls: vec!["http://10.0.0.1:2379".to_owned()],
        initial: Initial {
            peer_urls: vec!["http://10.0.0.1:2380".to_owned()],
            token: "test".to_owned(),
            ..Initial::default()
        },
        surface: Surface::default(),
        journal: Journal { level_min: Level::Fatal, format: Format::Json },
        replica: ReplicaOptions {
            log,
            checkpoint_overlay_bytes: 1 << 20,
            checkpoint_changes: 1000,
            checkpoint_log_bytes: 1 << 20,
            pending_bytes_max: 1 << 20,
            shards: ShardOptions::default(),
        },
        store: StoreOptions {
            index_file_bytes: 256 << 10,
            index_files_max: 64,
            row_segment_bytes: 256 << 10,
            write_bytes_max: 64 << 10,
            writes_in_flight_max: 2,
        },
        rows: RowLogOptions {
            segment_bytes: 256 << 10,
            block_bytes: 8 << 10,
            rows_resident_bytes_max: 64 << 10,
            write_bytes_max: 64 << 10,
        },
        request_bytes_max: 16 << 10,
        txn_ops_max: 128,
        quota_bytes: 2 << 30,
        streams_max: None,
        keepalive_min_time: 5 * SECOND,
        keepalive_interval: 7_200 * SECOND,
        keepalive_timeout: 20 * SECOND,
        lock_wait: SECOND,
        wal_discard_from_lsn: None,
        cache_bytes: u64::MAX,
        reserve_bytes: 0,
        watch_progress_interval: 600 * SECOND,
        watch_block_bytes_max: 1 << 20,
        scrub_interval: 0,
        connection_cores: 0,
        sequencer_serves: true,
    }
}

fn serving(port: &mut MemoryPort, options: NodeOptions) -> Cores {
    let mut node = Cores::boot(options, port).unwrap();
    let until = port.now + 3 * SECOND;
    assert_eq!(port.run(&mut node, until), None);
    assert!(node.is_serving());
    node
}

/// Starts on these files, each cut short after more changes of files than the one before, until one is not. What each
/// of them leaves goes to `next`, with the number of changes; returns the last number.
fn cut_starts_short(files: &BTreeMap<String, Vec<u8>>, mut next: impl FnMut(MemoryPort, usize)) -> usize {
    for steps in 0.. {
        let mut port = MemoryPort::default();
        (port.files, port.changes_left) = (files.clone(), Some(steps));
        let serves = Cores::boot(options(), &mut port).is_ok_and(|mut node| {
            port.run(&mut node, 3 * SECOND);
            node.is_serving()
        });
        let is_done = !port.is_dead();
        assert!(serves || !is_done, "{steps} steps");
        next(port.restarted(), steps);
        if is_done {
            return steps;
        }
    }
    unreachable!("there are as many numbers as changes")
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn greeting() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

/// A call with `message` of which all but the last `missing` bytes are sent.
fn call(stream: u32, path: &str, message: &[u8], missing: usize) -> Vec<u8> {
    [head(stream, path, &[]), body(stream, message, missing)].concat()
}

/// The head of a call, with further fields.
fn head(stream: u32, path: &str, further: &[(&str, &str)]) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for &(name, value) in fields.iter().chain(further) {
        block.push(0);
        for part in [name, value] {
            block.push(u8::try_from(part.len()).unwrap());
            block.extend_from_slice(part.as_bytes());
        }
    }
    frame(HEADERS, 4, stream, &block)
}

/// The last message of a call, all but the last `missing` bytes.
fn body(stream: u32, message: &[u8], missing: usize) -> Vec<u8> {
    frame(0, u8::from(missing == 0), stream, &prefixed(message, missing))
}

/// A message in gRPC's framing, of which `missing` bytes are to follow.
fn prefixed(message: &[u8], missing: usize) -> Vec<u8> {
    let length = u32::try_from(message.len() + missing).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

#[derive(Default)]
struct Fields(Vec<String>);

impl FieldSink for Fields {
    fn field(&mut self, name: &[u8], value: &[u8], mark: Mark) -> Mark {
        self.0.push(format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        mark
    }
}

fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        frames.push((bytes[3], stream, bytes[9..9 + length].to_vec()));
        bytes = &bytes[9 + length..];
    }
    assert!(bytes.is_empty());
    frames
}

/// The fields of all header blocks on a stream.
fn answer(port: &MemoryPort, connection: ConnectionId, stream: u32) -> Vec<String> {
    let (mut decoder, mut answer) = (Decoder::new(4096), Vec::new());
    for (kind, id, payload) in frames(port.sent.get(&connection).map_or(&[], Vec::as_slice)) {
        if kind == HEADERS {
            let mut fields = Fields::default();
            decoder.decode(&payload, &mut fields).unwrap();
            answer.extend((id == stream).then_some(fields.0).into_iter().flatten());
        }
    }
    answer
}

fn has(answer: &[String], field: &str) -> bool {
    answer.iter().any(|line| line == field)
}

/// PutRequest { key: "k", value: "v" }.
const PUT: &[u8] = b"\x0a\x01k\x12\x01v";
const PUT_PATH: &str = "/etcdserverpb.KV/Put";

#[test]
fn a_start_that_dies_between_any_two_steps_is_followed_by_one_that_serves() {
    let steps = cut_starts_short(&BTreeMap::new(), |mut port, _| drop(serving(&mut port, options())));
    assert!(steps > 10, "{steps} steps");
}

#[test]
fn a_put_over_a_stalled_disk_is_refused_in_time_and_answered_once() {
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options());
    let connection = port.accept(1);
    port.is_stalled = true;
    let bytes = [greeting(), call(1, PUT_PATH, PUT, 0)].concat();
    port.push(Event::Received { connection, bytes });
    let start = port.now;
    port.run(&mut node, start + 69 * SECOND / 10);
    assert_eq!(answer(&port, connection, 1), [""; 0]);
    port.run(&mut node, start + 8 * SECOND);
    let refused = answer(&port, connection, 1);
    assert!(has(&refused, "grpc-message: etcdserver: request timed out"), "{refused:?}");
    port.end_stall();
    port.push(Event::Received { connection, bytes: call(3, PUT_PATH, PUT, 0) });
    let until = port.now + SECOND;
    port.run(&mut node, until);
    assert_eq!(answer(&port, connection, 1), refused, "the late outcome is nobody's");
    assert!(has(&answer(&port, connection, 3), "grpc-status: 0"));
    assert_eq!(node.replica().keyspace().published().revision, 3, "both puts were applied");
}

#[test]
fn limits_that_the_files_cannot_hold_are_refused() {
    for (request_bytes_max, fits) in [((256 << 10) / 8 - 4096, true), ((256 << 10) / 8 - 4095, false)] {
        let mut options = NodeOptions { request_bytes_max, ..options() };
        options.replica.log.entry_bytes_max = 48 << 10;
        match Cores::boot(options, &mut MemoryPort::default()) {
            Ok(_) => assert!(fits),
            Err(error @ BootError::Options(_)) => {
                assert!(!fits && error.to_string().contains("--max-request-bytes=28673 exceeds 28672"), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    let mut options = options();
    options.replica.log.appends_in_flight_max = 0;
    assert!(matches!(Cores::boot(options, &mut MemoryPort::default()), Err(BootError::Options(_))));
}

#[test]
fn files_that_a_crashed_checkpoint_left_over_are_removed() {
    let mut port = MemoryPort::default();
    for name in ["store/index-0000", "store/rows-0000", "store/rows-0007"] {
        port.files.insert(name.to_owned(), vec![0xee; 256 << 10]);
    }
    serving(&mut port, options());
    let left = port.files.keys().filter(|name| name.starts_with("store/")).collect::<Vec<_>>();
    assert_eq!(left, ["store/superblock-0", "store/superblock-1"]);
}

#[test]
fn a_stop_before_service_began_serves_nobody() {
    let mut port = MemoryPort::default();
    let mut node = Cores::boot(options(), &mut port).unwrap();
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: [greeting(), call(1, PUT_PATH, PUT, 0)].concat() });
    port.push(Event::StopRequested { signal: 15 });
    assert_eq!(port.run(&mut node, 10 * SECOND), Some(143));
    assert_eq!(answer(&port, connection, 1), [""; 0]);
    assert_eq!(node.replica().keyspace().published().revision, 1);
    assert!(port.now < SECOND, "there is nothing to wait for");
    serving(&mut port.restarted(), options());
}

#[test]
fn a_call_that_came_before_service_began_is_answered_when_it_begins() {
    let mut port = MemoryPort::default();
    let mut node = Cores::boot(options(), &mut port).unwrap();
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: [greeting(), call(1, PUT_PATH, PUT, 0)].concat() });
    assert_eq!(port.run(&mut node, 3 * SECOND), None);
    assert!(has(&answer(&port, connection, 1), "grpc-status: 0"));
}

#[test]
fn a_message_that_waited_for_memory_goes_on_when_others_are_gone() {
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options());
    // Each declares half a megabyte; a core holds 64 MiB.
    let cores = node.fronts.len().max(1);
    let connections: Vec<_> = (1..=150 * cores as u64).map(|number| port.accept(number)).collect();
    for &connection in &connections {
        let bytes = [greeting(), call(1, PUT_PATH, &[], 500 << 10)].concat();
        port.push(Event::Received { connection, bytes });
    }
    let granted = |port: &MemoryPort, connection| {
        frames(&port.sent[&connection]).iter().any(|(kind, stream, _)| (*kind, *stream) == (WINDOW_UPDATE, 1))
    };
    let until = port.now + SECOND;
    port.run(&mut node, until);
    let starved: Vec<_> = connections.iter().copied().filter(|&connection| !granted(&port, connection)).collect();
    assert!((10 * cores..100 * cores).contains(&starved.len()), "{} of {} wait", starved.len(), connections.len());
    for &connection in connections.iter().filter(|connection| !starved.contains(connection)) {
        port.push(Event::Closed { connection, reason: CloseReason::Failed });
    }
    let until = port.now + SECOND;
    port.run(&mut node, until);
    assert!(starved.iter().all(|&connection| granted(&port, connection)));
}

#[test]
fn checkpoints_come_once_for_each_span_of_log() {
    let mut options = options();
    options.replica.checkpoint_log_bytes = 64 << 10;
    options.journal.level_min = Level::Debug;
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options);
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: greeting() });
    for number in 0..50 {
        port.push(Event::Received { connection, bytes: call(2 * number + 1, PUT_PATH, PUT, 0) });
        let until = port.now + SECOND;
        port.run(&mut node, until);
        assert!(has(&answer(&port, connection, 2 * number + 1), "grpc-status: 0"));
    }
    // Each put alone takes a block of 4 KiB: 16 of them are a span.
    let checkpoints = port.journal.iter().filter(|record| record.contains("checkpoint is durable")).count();
    assert_eq!(checkpoints, 3);
}

#[test]
fn a_full_store_takes_deletes_until_its_alarm_is_cleared() {
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, NodeOptions { quota_bytes: 200, ..options() });
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: greeting() });
    let mut stream = 1;
    let mut ask = |node: &mut Cores, port: &mut MemoryPort, path: &str, message: &[u8]| {
        port.push(Event::Received { connection, bytes: call(stream, path, message, 0) });
        let until = port.now + SECOND;
        port.run(node, until);
        stream += 2;
        answer(port, connection, stream - 2)
    };
    let full = "grpc-message: etcdserver: mvcc: database space exceeded";
    assert!(has(&ask(&mut node, &mut port, PUT_PATH, PUT), full));
    let alarms: Vec<_> = node.replica().tables().alarms().iter().copied().collect();
    assert_eq!(alarms.len(), 1, "the refusal raises the alarm");
    assert!(has(&ask(&mut node, &mut port, "/etcdserverpb.KV/DeleteRange", b"\x0a\x01k"), "grpc-status: 0"));
    drop(node);
    // The alarm is replicated state: with room enough it still holds, until exactly it is cleared.
    let mut port = port.restarted();
    let mut node = serving(&mut port, options());
    port.accept(1);
    port.push(Event::Received { connection, bytes: greeting() });
    assert!(has(&ask(&mut node, &mut port, PUT_PATH, PUT), full));
    let mut disarm = vec![0x08, 2, 0x10];
    let mut rest = alarms[0].member;
    while rest > 0x7f {
        disarm.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    disarm.extend_from_slice(&[rest as u8, 0x18, 1]);
    assert!(has(&ask(&mut node, &mut port, "/etcdserverpb.Maintenance/Alarm", &disarm), "grpc-status: 0"));
    assert!(has(&ask(&mut node, &mut port, PUT_PATH, PUT), "grpc-status: 0"));
}

#[test]
fn a_full_disk_refuses_puts_and_takes_deletes_until_there_is_room() {
    let mut options = NodeOptions { reserve_bytes: 1 << 20, ..options() };
    options.journal.level_min = Level::Info;
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options.clone());
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: greeting() });
    port.capacity = Some(port.used_bytes());
    let mut stream = 1;
    let mut ask = |node: &mut Cores, port: &mut MemoryPort, path: &str, message: &[u8]| {
        port.push(Event::Received { connection, bytes: call(stream, path, message, 0) });
        let until = port.now + SECOND;
        assert_eq!(port.run(node, until), None);
        stream += 2;
        answer(port, connection, stream - 2)
    };
    // PutRequest { key: "k", value: 8 KiB }: soon the log needs another segment.
    let put = [&b"\x0a\x01k\x12\x80\x40"[..], &[b'v'; 8192]].concat();
    let full = "grpc-message: etcdserver: mvcc: database space exceeded";
    let mut taken = 0;
    let refused = loop {
        let answer = ask(&mut node, &mut port, PUT_PATH, &put);
        if !has(&answer, "grpc-status: 0") {
            break answer;
        }
        taken += 1;
        assert!(taken < 200, "the disk is full");
    };
    assert!(taken > 0 && has(&refused, full), "{taken} puts, then {refused:?}");
    assert!(!port.files.contains_key("store/reserve"), "it made room for the log");
    assert_eq!(node.replica().tables().alarms().len(), 1);
    assert!(has(&ask(&mut node, &mut port, "/etcdserverpb.KV/DeleteRange", b"\x0a\x01k"), "grpc-status: 0"));
    let until = port.now + 20 * SECOND;
    port.run(&mut node, until);
    assert!(!port.files.contains_key("store/reserve"));
    let mut disarm = vec![0x08, 2, 0x10];
    let mut rest = node.replica().tables().alarms().iter().next().unwrap().member;
    while rest > 0x7f {
        disarm.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    disarm.extend_from_slice(&[rest as u8, 0x18, 1]);
    let alarm_path = "/etcdserverpb.Maintenance/Alarm";
    assert!(has(&ask(&mut node, &mut port, alarm_path, &disarm), "grpc-status: 0"));
    assert!(has(&ask(&mut node, &mut port, PUT_PATH, PUT), full), "the disk is as full as before");
    assert_eq!(node.replica().tables().alarms().len(), 1, "so the alarm is on again");

    port.capacity = Some(port.used_bytes() + (2 << 20));
    let until = port.now + 20 * SECOND;
    port.run(&mut node, until);
    assert_eq!(port.files["store/reserve"].len(), 1 << 20);
    assert!(has(&ask(&mut node, &mut port, PUT_PATH, PUT), full), "the alarm is an operator's to clear");
    assert!(has(&ask(&mut node, &mut port, alarm_path, &disarm), "grpc-status: 0"));
    assert!(has(&ask(&mut node, &mut port, PUT_PATH, PUT), "grpc-status: 0"));
    let said = |text: &str| port.journal.iter().filter(|record| record.contains(text)).count();
    assert_eq!((said("the disk is full"), said("the disk has room again")), (1, 1));

    // A start without room for the reserve serves, short of room.
    let mut port = port.restarted();
    port.files.remove("store/reserve");
    port.capacity = Some(port.used_bytes());
    let node = serving(&mut port, options);
    assert_eq!(node.replica().tables().alarms().len(), 1);
}

#[test]
fn a_stop_on_a_full_disk_ends_and_loses_nothing_that_was_acknowledged() {
    // What the last segment of the log has left when there is no room for another one: from nothing to enough.
    for shape in 0..36_usize {
        let mut options = NodeOptions { request_bytes_max: 12 << 10, ..options() };
        (options.replica.log.entry_bytes_max, options.replica.log.batch_bytes_max) = (16 << 10, 12 << 10);
        let mut port = MemoryPort::default();
        let mut node = serving(&mut port, options.clone());
        let connection = port.accept(1);
        port.push(Event::Received { connection, bytes: greeting() });
        port.capacity = Some(port.used_bytes());
        let mut stream = 1;
        let mut ask = |node: &mut Cores, port: &mut MemoryPort, path: &str, message: &[u8]| {
            port.push(Event::Received { connection, bytes: call(stream, path, message, 0) });
            let until = port.now + SECOND;
            assert_eq!(port.run(node, until), None);
            stream += 2;
            has(&answer(port, connection, stream - 2), "grpc-status: 0")
        };
        assert!(ask(&mut node, &mut port, PUT_PATH, PUT));
        // DeleteRangeRequest { key } of no key: a full disk takes them, as long as the log does.
        let mut delete = |node: &mut Cores, port: &mut MemoryPort, blocks: usize| {
            let len = 3500 + 4096 * blocks;
            let message = [&[0x0a, len as u8 | 0x80, (len >> 7) as u8][..], &vec![b'x'; len]].concat();
            ask(node, port, "/etcdserverpb.KV/DeleteRange", &message)
        };
        (0..shape / 9).for_each(|_| assert!(delete(&mut node, &mut port, 0)));
        let sizes = [shape % 3, shape / 3 % 3];
        let taken = (0..40).take_while(|number| delete(&mut node, &mut port, sizes[number % 2])).count();
        assert!(taken < 40, "the disk is full");
        port.push(Event::StopRequested { signal: 15 });
        let until = port.now + 30 * SECOND;
        assert_eq!(port.run(&mut node, until), Some(143), "shape {shape}");
        let mut port = port.restarted();
        port.capacity = None;
        let node = serving(&mut port, options);
        assert_eq!(node.replica().keyspace().published().revision, 2);
    }
}

#[test]
fn what_rots_on_the_disk_is_found_while_nobody_reads_it() {
    let mut options = NodeOptions { scrub_interval: 100 * SECOND, ..options() };
    options.journal.level_min = Level::Info;
    options.replica.checkpoint_log_bytes = 64 << 10;
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options);
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: greeting() });
    let mut stream = 1;
    let mut put = |node: &mut Cores, port: &mut MemoryPort| {
        port.push(Event::Received { connection, bytes: call(stream, PUT_PATH, PUT, 0) });
        let until = port.now + SECOND;
        assert_eq!(port.run(node, until), None);
        stream += 2;
        answer(port, connection, stream - 2)
    };
    for _ in 0..50 {
        assert!(has(&put(&mut node, &mut port), "grpc-status: 0"));
    }
    let said = |port: &MemoryPort, text: &str| port.journal.iter().filter(|record| record.contains(text)).count();
    let until = port.now + 250 * SECOND;
    port.run(&mut node, until);
    assert!((2..=4).contains(&said(&port, "scrubbed the data directory")), "a pass takes its interval");
    assert_eq!(said(&port, "the scrubber found"), 0);

    // A copy of what has two: it is reported, and writes go on.
    port.files.get_mut("wal/hard-state-1").unwrap()[30] ^= 1;
    let until = port.now + 110 * SECOND;
    port.run(&mut node, until);
    assert_eq!(said(&port, "\"file\":\"wal/hard-state-1\",\"offset\":0"), 1);
    assert!(has(&put(&mut node, &mut port), "grpc-status: 0"));

    // The key index: its root is the only page.
    let index = port.files.get_mut("store/index-0000").unwrap();
    for page in index.chunks_mut(4096) {
        page[2000] ^= 1;
    }
    let until = port.now + 110 * SECOND;
    port.run(&mut node, until);
    assert!(said(&port, "the scrubber found damaged data") > 0, "{:?}", port.journal.last());
    assert_eq!(node.replica().tables().alarms().iter().map(|alarm| alarm.alarm).collect::<Vec<_>>(), [2]);
    let refused = put(&mut node, &mut port);
    assert!(has(&refused, "grpc-message: etcdserver: corrupt cluster"), "{refused:?}");
}

#[test]
fn a_record_of_the_log_that_rots_is_made_superfluous() {
    let mut options = NodeOptions { scrub_interval: 100 * SECOND, ..options() };
    options.journal.level_min = Level::Info;
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options.clone());
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: greeting() });
    for stream in [1, 3, 5] {
        port.push(Event::Received { connection, bytes: call(stream, PUT_PATH, PUT, 0) });
        let until = port.now + SECOND;
        assert_eq!(port.run(&mut node, until), None);
        assert!(has(&answer(&port, connection, stream), "grpc-status: 0"));
    }
    // The payload of the first record: the member's configuration.
    port.files.get_mut("wal/seg-0000").unwrap()[4096 + 512] ^= 1;
    let until = port.now + 200 * SECOND;
    port.run(&mut node, until);
    let told: Vec<&String> =
        port.journal.iter().filter(|record| record.contains("damaged record of the log")).collect();
    assert!(!told.is_empty() && told[0].contains("\"file\":\"wal/seg-0000\",\"offset\":4096"), "{told:?}");
    assert!(node.replica().tables().alarms().is_empty(), "nothing is lost");
    let revision = node.replica().keyspace().published().revision;
    // A kill now: the start needs nothing of what is damaged.
    let mut port = port.restarted();
    let node = serving(&mut port, options);
    assert_eq!(node.replica().keyspace().published().revision, revision);
}
