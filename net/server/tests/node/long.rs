//! Answers that do not fit one step: one revision, in parts, with everything else going on.

use trilith_reactor::{CloseReason, ConnectionId, Event};
use trilith_server::NodeOptions;
use trilith_wire::proto::Message;
use trilith_wire::proto::etcdserverpb as pb;

use crate::cores::Cores;
use crate::port::MemoryPort;
use crate::{PUT_PATH, SECOND, WINDOW_UPDATE, answer, call, frame, frames, greeting, has, options, serving};

const RANGE_PATH: &str = "/etcdserverpb.KV/Range";
const RANGE_STREAM_PATH: &str = "/etcdserverpb.KV/RangeStream";
const TXN_PATH: &str = "/etcdserverpb.KV/Txn";
const DELETE_PATH: &str = "/etcdserverpb.KV/DeleteRange";
const COMPACT_PATH: &str = "/etcdserverpb.KV/Compact";
const KEYS: u32 = 600;

fn all() -> pb::RangeRequest<'static> {
    pb::RangeRequest { key: b"\0", range_end: b"\0", ..pb::RangeRequest::default() }
}

/// A node with a writer's connection, and what is asked on it.
struct Bench {
    port: MemoryPort,
    node: Cores,
    writer: ConnectionId,
    next_stream: u32,
}

impl Bench {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: NodeOptions) -> Self {
        let mut port = MemoryPort::default();
        let node = serving(&mut port, options);
        let writer = port.accept(1);
        let credit = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
        port.push(Event::Received { connection: writer, bytes: [greeting(), credit].concat() });
        let mut bench = Self { port, node, writer, next_stream: 1 };
        for number in 0..KEYS {
            bench.put(number, 1);
        }
        bench
    }

    fn run(&mut self) {
        let until = self.port.now + SECOND;
        self.port.run(&mut self.node, until);
    }

    /// A call on the writer's connection; its status.
    fn ask<'a>(&mut self, path: &str, message: &impl Message<'a>) -> Vec<String> {
        let bytes = call(self.next_stream, path, &message.encode_to_vec(), 0);
        self.port.push(Event::Received { connection: self.writer, bytes });
        self.run();
        self.next_stream += 2;
        answer(&self.port, self.writer, self.next_stream - 2)
    }

    fn put(&mut self, number: u32, generation: u8) {
        let (key, value) = (key(number), vec![generation; 1000]);
        let put = pb::PutRequest { key: &key, value: &value, ..pb::PutRequest::default() };
        assert!(has(&self.ask(PUT_PATH, &put), "grpc-status: 0"));
    }

    /// A reader's connection with one call, of which only the first window has arrived.
    fn read<'a>(&mut self, number: u64, path: &str, message: &impl Message<'a>) -> ConnectionId {
        let connection = self.port.accept(number);
        let bytes = [greeting(), call(1, path, &message.encode_to_vec(), 0)].concat();
        self.port.push(Event::Received { connection, bytes });
        self.run();
        connection
    }

    /// Lets everything through; the messages.
    fn finish(&mut self, connection: ConnectionId) -> Vec<Vec<u8>> {
        self.open_windows(connection);
        messages(&self.port, connection)
    }

    fn open_windows(&mut self, connection: ConnectionId) {
        let credit = (1_u32 << 30).to_be_bytes();
        let bytes = [frame(WINDOW_UPDATE, 0, 0, &credit), frame(WINDOW_UPDATE, 0, 1, &credit)].concat();
        self.port.push(Event::Received { connection, bytes });
        self.run();
    }

    fn pinned(&self) -> Option<i64> {
        self.node.replica().keyspace().oldest_pin()
    }
}

fn key(number: u32) -> Vec<u8> {
    format!("key-{number:05}").into_bytes()
}

fn data(port: &MemoryPort, connection: ConnectionId) -> Vec<u8> {
    let data = frames(&port.sent[&connection]).into_iter().filter(|(kind, stream, _)| (*kind, *stream) == (0, 1));
    data.flat_map(|(.., payload)| payload).collect()
}

fn messages(port: &MemoryPort, connection: ConnectionId) -> Vec<Vec<u8>> {
    let bytes = data(port, connection);
    let (mut rest, mut messages) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        messages.push(rest[5..5 + length].to_vec());
        rest = &rest[5 + length..];
    }
    messages
}

/// All keys with the value they had first.
fn assert_first_generation(response: &pb::RangeResponse<'_>) {
    assert_eq!(response.kvs.len(), KEYS as usize);
    for (number, kv) in (0..).zip(&response.kvs) {
        assert_eq!((kv.key, kv.version), (key(number).as_slice(), 1));
        assert!(kv.value.len() == 1000 && kv.value.iter().all(|&byte| byte == 1));
    }
}

#[test]
fn a_long_range_shows_one_revision_whatever_happens_meanwhile() {
    let mut bench = Bench::new();
    let reader = bench.read(2, RANGE_PATH, &all());
    assert_eq!(data(&bench.port, reader).len(), 65_535, "the client's window is full");
    assert_eq!(bench.pinned(), Some(i64::from(KEYS) + 1));
    for number in 0..KEYS {
        bench.put(number, 2);
    }
    let all = pb::DeleteRangeRequest { key: b"\0", range_end: b"\0", prev_kv: false };
    assert!(has(&bench.ask(DELETE_PATH, &all), "grpc-status: 0"));
    let compact = pb::CompactionRequest { revision: 2 * i64::from(KEYS) + 2, physical: false };
    assert!(has(&bench.ask(COMPACT_PATH, &compact), "grpc-status: 0"));
    let found = bench.finish(reader);
    let response = pb::RangeResponse::decode(&found[0]).unwrap();
    assert_first_generation(&response);
    assert_eq!((response.count, response.more), (i64::from(KEYS), false));
    assert_eq!(response.header.unwrap().revision, i64::from(KEYS) + 1);
    assert!(has(&answer(&bench.port, reader, 1), "grpc-status: 0"));
    assert_eq!((found.len(), bench.pinned()), (1, None));
}

#[test]
fn a_range_stream_is_chunks_of_one_range() {
    let mut bench = Bench::new();
    let limited = pb::RangeRequest { limit: i64::from(KEYS) - 1, keys_only: true, ..all() };
    let reader = bench.read(2, RANGE_STREAM_PATH, &limited);
    bench.put(0, 2);
    let found = bench.finish(reader);
    let chunks: Vec<_> =
        found.iter().map(|bytes| pb::RangeStreamResponse::decode(bytes).unwrap().range_response.unwrap()).collect();
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(before.iter().map(|chunk| chunk.kvs.len()).collect::<Vec<_>>()[..4], [10, 20, 40, 80]);
    assert!(before.iter().all(|chunk| chunk.header.is_none() && !chunk.more && chunk.count == 0));
    assert_eq!((last.header.as_ref().unwrap().revision, last.more, last.count), (601, true, i64::from(KEYS)));
    let rows: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.kvs).collect();
    assert_eq!(rows.len(), KEYS as usize - 1);
    assert!((0..).zip(rows).all(|(number, kv)| kv.key == key(number) && kv.version == 1));

    for (request, text) in [
        (pb::RangeRequest { sort_order: pb::SortOrder::DESCEND, ..all() }, "custom sort orders"),
        (pb::RangeRequest { max_mod_revision: 7, ..all() }, "revision filters"),
    ] {
        let refused = bench.ask(RANGE_STREAM_PATH, &request);
        assert!(has(&refused, &format!("grpc-message: RangeStream does not support {text}")), "{refused:?}");
        assert!(has(&refused, "grpc-status: 12"));
    }
}

#[test]
fn a_compaction_ends_a_range_stream_that_is_behind() {
    let mut bench = Bench::new();
    let reader = bench.read(2, RANGE_STREAM_PATH, &all());
    bench.put(0, 2);
    let compact = pb::CompactionRequest { revision: i64::from(KEYS) + 2, physical: false };
    assert!(has(&bench.ask(COMPACT_PATH, &compact), "grpc-status: 0"));
    assert!(!bench.finish(reader).is_empty());
    let end = answer(&bench.port, reader, 1);
    assert!(has(&end, "grpc-message: etcdserver: mvcc: required revision has been compacted"), "{end:?}");
    assert_eq!(bench.pinned(), None);
}

#[test]
fn long_answers_of_writes_are_sent_in_parts_too() {
    let mut bench = Bench::new();
    let range = pb::RequestOp { request: Some(pb::RequestOpRequest::Range(all())) };
    let delete = pb::DeleteRangeRequest { key: b"key-00300", range_end: b"\0", prev_kv: true };
    let delete = pb::RequestOp { request: Some(pb::RequestOpRequest::DeleteRange(delete)) };
    let txn = pb::TxnRequest { success: vec![range.clone(), delete, range], ..pb::TxnRequest::default() };
    let reader = bench.read(2, TXN_PATH, &txn);
    assert_eq!(bench.pinned(), Some(i64::from(KEYS) + 1));
    for number in 0..KEYS {
        bench.put(number, 2);
    }
    let compact = pb::CompactionRequest { revision: i64::from(KEYS) + 3, physical: false };
    assert!(has(&bench.ask(COMPACT_PATH, &compact), "grpc-status: 0"));
    let found = bench.finish(reader);
    let response = pb::TxnResponse::decode(&found[0]).unwrap();
    let [before, deleted, after] = response.responses.as_slice() else { panic!("three operations") };
    let Some(pb::ResponseOpResponse::Range(before)) = &before.response else { panic!("a range") };
    assert_first_generation(before);
    let Some(pb::ResponseOpResponse::DeleteRange(deleted)) = &deleted.response else { panic!("a delete") };
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (300, 300));
    assert!((300..).zip(&deleted.prev_kvs).all(|(number, kv)| kv.key == key(number) && kv.value == [1; 1000]));
    let Some(pb::ResponseOpResponse::Range(after)) = &after.response else { panic!("a range") };
    assert_eq!((after.count, after.header.as_ref().unwrap().revision), (300, i64::from(KEYS) + 2));
    assert_eq!(bench.pinned(), None);
}

#[test]
fn a_writing_transaction_that_reads_an_old_revision_holds_it() {
    let mut bench = Bench::new();
    for number in 0..KEYS {
        bench.put(number, 2);
    }
    let range = pb::RangeRequest { revision: i64::from(KEYS) + 1, ..all() };
    let range = pb::RequestOp { request: Some(pb::RequestOpRequest::Range(range)) };
    let put = pb::PutRequest { key: b"other", ..pb::PutRequest::default() };
    let put = pb::RequestOp { request: Some(pb::RequestOpRequest::Put(put)) };
    let txn = pb::TxnRequest { success: vec![put, range], ..pb::TxnRequest::default() };
    let reader = bench.read(2, TXN_PATH, &txn);
    assert_eq!(bench.pinned(), Some(i64::from(KEYS) + 1));
    let compact = pb::CompactionRequest { revision: 2 * i64::from(KEYS) + 2, physical: false };
    assert!(has(&bench.ask(COMPACT_PATH, &compact), "grpc-status: 0"));
    assert!(has(
        &bench.ask("/etcdserverpb.Maintenance/Defragment", &pb::DefragmentRequest::default()),
        "grpc-status: 0"
    ));
    let found = bench.finish(reader);
    let response = pb::TxnResponse::decode(&found[0]).unwrap();
    let Some(pb::ResponseOpResponse::Range(range)) = &response.responses[1].response else { panic!("a range") };
    assert_first_generation(range);
    assert_eq!(bench.pinned(), None);
}

#[test]
fn maintenance_is_answered_when_its_work_is_done() {
    let mut bench = Bench::new();
    for generation in 2..5 {
        (0..KEYS).for_each(|number| bench.put(number, generation));
    }
    let head = bench.node.replica().keyspace().published().revision;
    let before = bench.node.replica().store_bytes();
    let compact = pb::CompactionRequest { revision: head, physical: true };
    assert!(has(&bench.ask(COMPACT_PATH, &compact), "grpc-status: 0"));
    assert!(bench.node.replica().is_reclaimed(head));
    let again = bench.ask(COMPACT_PATH, &compact);
    assert!(has(&again, "grpc-message: etcdserver: mvcc: required revision has been compacted"), "{again:?}");
    let future = pb::CompactionRequest { revision: head + 1, physical: true };
    let refused = bench.ask(COMPACT_PATH, &future);
    assert!(has(&refused, "grpc-message: etcdserver: mvcc: required revision is a future revision"), "{refused:?}");
    assert!(has(
        &bench.ask("/etcdserverpb.Maintenance/Defragment", &pb::DefragmentRequest::default()),
        "grpc-status: 0"
    ));
    let (total, used) = (bench.node.replica().store_bytes(), bench.node.replica().store_bytes_in_use());
    assert!(total < before / 2 && used <= total && used > 600_000, "{before} before, {total} after, {used} in use");
}

#[test]
fn hashes_belong_to_the_revision_they_began_at() {
    let mut bench = Bench::new();
    for path in ["/etcdserverpb.Maintenance/HashKV", "/etcdserverpb.Maintenance/Hash"] {
        let bytes = call(bench.next_stream, path, &[], 0);
        bench.next_stream += 2;
        bench.port.push(Event::Received { connection: bench.writer, bytes });
        bench.run();
        assert!(has(&answer(&bench.port, bench.writer, bench.next_stream - 2), "grpc-status: 0"), "{path}");
    }
    let head = i64::from(KEYS) + 1;
    for (revision, text) in [(head + 1, "is a future revision"), (-1, "")] {
        let refused = bench.ask("/etcdserverpb.Maintenance/HashKV", &pb::HashKVRequest { revision });
        let refusal = refused.iter().find(|field| field.starts_with("grpc-message"));
        assert_eq!(refusal.is_some_and(|message| message.ends_with(text)), !text.is_empty(), "{refused:?}");
    }
    assert_eq!(bench.pinned(), None);
}

#[test]
fn a_reader_that_leaves_or_crawls_gives_its_pin_back() {
    let mut bench = Bench::new();
    let gone = bench.read(2, RANGE_PATH, &all());
    let reset = bench.read(3, RANGE_PATH, &all());
    let slow = bench.read(4, RANGE_PATH, &all());
    assert!(bench.pinned().is_some());
    bench.port.push(Event::Closed { connection: gone, reason: CloseReason::Failed });
    bench.port.push(Event::Received { connection: reset, bytes: frame(3, 0, 1, &[0, 0, 0, 8]) });
    bench.run();
    assert!(bench.pinned().is_some(), "one still reads");
    // One that takes nothing at all is dropped with its connection; one that takes too little runs out of time.
    for _ in 0..61 {
        assert!(bench.pinned().is_some());
        let credit = 100_u32.to_be_bytes();
        let bytes = [frame(WINDOW_UPDATE, 0, 0, &credit), frame(WINDOW_UPDATE, 0, 1, &credit)].concat();
        bench.port.push(Event::Received { connection: slow, bytes });
        let until = bench.port.now + 10 * SECOND;
        bench.port.run(&mut bench.node, until);
        bench.port.now = until;
    }
    bench.run();
    assert_eq!(bench.pinned(), None);
    bench.open_windows(slow);
    let end = answer(&bench.port, slow, 1);
    assert!(has(&end, "grpc-status: 4") && has(&end, "grpc-message: context deadline exceeded"), "{end:?}");
}

#[test]
fn a_physical_compaction_waits_for_no_slow_reader() {
    let mut bench = Bench::new();
    bench.read(2, RANGE_PATH, &all());
    let revision = bench.node.replica().keyspace().published().revision + 1;
    bench.put(0, 9);
    assert!(bench.pinned().is_some_and(|pinned| pinned < revision));
    let request = pb::CompactionRequest { revision, physical: true };
    let answer = bench.ask(COMPACT_PATH, &request);
    assert!(has(&answer, "grpc-status: 0"), "{answer:?}");
    assert!(bench.pinned().is_some(), "it still reads");
}

#[test]
fn many_that_wait_for_the_store_are_bounded_and_leave_the_node_at_rest() {
    let mut bench = Bench::new();
    let path = "/etcdserverpb.Maintenance/Defragment";
    bench.port.is_stalled = true;
    let connections: Vec<_> = (10..16).map(|number| bench.port.accept(number)).collect();
    for &connection in &connections {
        let calls = (0..20).flat_map(|stream| call(2 * stream + 1, path, &[], 0));
        let bytes = greeting().into_iter().chain(calls).collect();
        bench.port.push(Event::Received { connection, bytes });
    }
    // The loop that never rests fails in there.
    bench.run();
    let count = |bench: &Bench, field: &str| {
        let calls = connections.iter().flat_map(|&connection| (0..20).map(move |stream| (connection, 2 * stream + 1)));
        calls.filter(|&(connection, stream)| has(&answer(&bench.port, connection, stream), field)).count()
    };
    let refusal = "grpc-message: etcdserver: too many requests";
    assert_eq!((count(&bench, refusal), count(&bench, "grpc-status: 0")), (120 - 64, 0));
    let waits = (0..20).filter(|stream| answer(&bench.port, connections[0], 2 * stream + 1).is_empty()).count();
    bench.port.push(Event::Closed { connection: connections[0], reason: CloseReason::Failed });
    bench.port.end_stall();
    bench.run();
    assert_eq!((count(&bench, refusal), count(&bench, "grpc-status: 0")), (120 - 64, 64 - waits));
}

#[test]
fn hashes_that_are_computed_at_once_are_bounded() {
    let mut bench = Bench::new();
    for path in ["/etcdserverpb.Maintenance/HashKV", "/etcdserverpb.Maintenance/Hash"] {
        let streams: Vec<u32> = (0..100).map(|number| bench.next_stream + 2 * number).collect();
        bench.next_stream += 200;
        let bytes = streams.iter().flat_map(|&stream| call(stream, path, &[], 0)).collect();
        bench.port.push(Event::Received { connection: bench.writer, bytes });
        bench.run();
        let count = |field| streams.iter().filter(|&&it| has(&answer(&bench.port, bench.writer, it), field)).count();
        let refused = count("grpc-message: etcdserver: too many requests");
        assert_eq!((refused, count("grpc-status: 0")), (100 - 64, 64), "{path}");
        assert_eq!(bench.pinned(), None);
    }
}

#[test]
fn long_answers_of_writes_count_with_those_of_reads() {
    // Memory for the addresses of three answers: all keys, and the one that is written.
    let mut bench = Bench::with(NodeOptions { cache_bytes: 64 * 3 * u64::from(KEYS + 1), ..options() });
    let range = pb::RequestOp { request: Some(pb::RequestOpRequest::Range(all())) };
    let put = pb::PutRequest { key: b"other", ..pb::PutRequest::default() };
    let put = pb::RequestOp { request: Some(pb::RequestOpRequest::Put(put)) };
    let txn = |ranges: usize| {
        let success = std::iter::once(put.clone()).chain(std::iter::repeat_n(range.clone(), ranges)).collect();
        pb::TxnRequest { success, ..pb::TxnRequest::default() }
    };
    let revision = |bench: &Bench| bench.node.replica().keyspace().published().revision;
    let first = bench.read(2, TXN_PATH, &txn(1));
    // It is applied, but what it shows is too much: its outcome is unknown to the caller.
    let before = revision(&bench);
    let second = bench.read(3, TXN_PATH, &txn(3));
    let refused = answer(&bench.port, second, 1);
    assert!(has(&refused, "grpc-message: etcdserver: request timed out"), "{refused:?}");
    assert_eq!(revision(&bench), before + 1);
    // With all of the memory taken, nothing more of the kind enters the log.
    let others = [4, 5].map(|number| bench.read(number, TXN_PATH, &txn(1)));
    let before = revision(&bench);
    let delete = pb::DeleteRangeRequest { key: b"\0", range_end: b"\0", prev_kv: true };
    for (path, message) in [(TXN_PATH, txn(1).encode_to_vec()), (DELETE_PATH, delete.encode_to_vec())] {
        let bytes = call(bench.next_stream, path, &message, 0);
        bench.port.push(Event::Received { connection: bench.writer, bytes });
        bench.run();
        let refused = answer(&bench.port, bench.writer, bench.next_stream);
        assert!(has(&refused, "grpc-message: etcdserver: too many requests"), "{refused:?}");
        bench.next_stream += 2;
    }
    assert_eq!(revision(&bench), before);
    for reader in [first, others[0], others[1]] {
        assert_eq!(bench.finish(reader).len(), 1);
        assert!(has(&answer(&bench.port, reader, 1), "grpc-status: 0"));
    }
    assert_eq!(bench.pinned(), None);
    let last = bench.read(6, TXN_PATH, &txn(1));
    assert_eq!(bench.finish(last).len(), 1, "there is memory again");
}
