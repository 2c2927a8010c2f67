//! Calls that stay open, and calls with a deadline of their own.

use trilith_reactor::{ConnectionId, Event};
use trilith_server::NodeOptions;
use trilith_wire::proto::{Message, etcdserverpb as pb, health};

use crate::cores::Cores;
use crate::port::MemoryPort;
use crate::{
    PUT, PUT_PATH, SECOND, WINDOW_UPDATE, answer, body, call, frame, frames, greeting, has, head, options, prefixed,
    serving,
};

const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const RST_STREAM: u8 = 3;

/// A node and one connection to it.
pub(crate) struct World {
    pub(crate) port: MemoryPort,
    pub(crate) node: Cores,
    pub(crate) connection: ConnectionId,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(options())
    }

    pub(crate) fn with(options: NodeOptions) -> Self {
        let mut port = MemoryPort::default();
        let node = serving(&mut port, options);
        Self::over(port, node)
    }

    fn over(mut port: MemoryPort, node: Cores) -> Self {
        let connection = port.accept(1);
        let mut world = Self { port, node, connection };
        world.say(greeting());
        world
    }

    /// The process dies, and another one starts.
    pub(crate) fn restarted(self) -> Self {
        let mut port = self.port.restarted();
        let node = serving(&mut port, options());
        Self::over(port, node)
    }

    /// Sends bytes, and lets some time pass.
    pub(crate) fn say(&mut self, bytes: Vec<u8>) {
        self.port.push(Event::Received { connection: self.connection, bytes });
        self.wait(SECOND / 10);
    }

    pub(crate) fn wait(&mut self, time: u64) {
        let until = self.port.now + time;
        self.port.run(&mut self.node, until);
        self.port.now = until;
    }

    pub(crate) fn message(&mut self, stream: u32, message: &[u8]) {
        self.say(frame(0, 0, stream, &prefixed(message, 0)));
    }

    /// The messages received on a stream.
    pub(crate) fn messages(&self, stream: u32) -> Vec<Vec<u8>> {
        let sent = self.port.sent.get(&self.connection).map_or(&[][..], Vec::as_slice);
        let of_stream = frames(sent).into_iter().filter(|(kind, id, _)| (*kind, *id) == (0, stream));
        let bytes: Vec<u8> = of_stream.flat_map(|(_, _, payload)| payload).collect();
        let (mut rest, mut messages) = (bytes.as_slice(), Vec::new());
        while let Some((prefix, after)) = rest.split_at_checked(5) {
            let len = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
            messages.push(after[..len].to_vec());
            rest = &after[len..];
        }
        messages
    }

    pub(crate) fn answer(&self, stream: u32) -> Vec<String> {
        answer(&self.port, self.connection, stream)
    }
}

pub(crate) fn encoded<'a>(message: &impl Message<'a>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode_into(&mut bytes);
    bytes
}

#[test]
fn a_call_ends_when_its_client_wanted_it_to() {
    let mut world = World::new();
    world.port.is_stalled = true;
    world.say([head(1, PUT_PATH, &[("grpc-timeout", "500m")]), body(1, PUT, 0)].concat());
    world.wait(3 * SECOND / 10);
    assert_eq!(world.answer(1), [""; 0]);
    world.wait(3 * SECOND / 10);
    let ended = world.answer(1);
    assert!(has(&ended, "grpc-status: 4") && has(&ended, "grpc-message: context deadline exceeded"), "{ended:?}");
    world.port.end_stall();
    world.wait(SECOND);
    assert_eq!(world.answer(1), ended, "the late outcome is nobody's");
    assert_eq!(world.node.replica().keyspace().published().revision, 2, "what was asked for still happened");
}

#[test]
fn many_calls_with_deadlines_that_were_answered_are_forgotten() {
    let mut world = World::new();
    for number in 0..1_500 {
        let stream = 2 * number + 1;
        world.say([head(stream, PUT_PATH, &[("grpc-timeout", "1000S")]), body(stream, PUT, 0)].concat());
    }
    assert!(has(&world.answer(2_999), "grpc-status: 0"));
    assert!(world.node.deadlines_kept() < 1_100, "{}", world.node.deadlines_kept());
}

#[test]
fn keep_alive_requests_are_answered_in_their_order_and_the_stream_ends_after_the_last() {
    let mut world = World::new();
    world.say(head(1, KEEP_ALIVE, &[]));
    for id in [7, -3] {
        world.message(1, &encoded(&pb::LeaseKeepAliveRequest { id }));
    }
    let answers = world.messages(1);
    let answers: Vec<_> = answers.iter().map(|bytes| pb::LeaseKeepAliveResponse::decode(bytes).unwrap()).collect();
    assert_eq!(answers.iter().map(|answer| (answer.id, answer.ttl)).collect::<Vec<_>>(), [(7, 0), (-3, 0)]);
    assert!(!has(&world.answer(1), "grpc-status: 0"), "it goes on");
    let last = encoded(&pb::LeaseKeepAliveRequest { id: 1 });
    world.say(frame(0, 1, 1, &prefixed(&last, 0)));
    assert_eq!(world.messages(1).len(), 3);
    assert!(has(&world.answer(1), "grpc-status: 0"));
}

#[test]
fn a_message_that_is_none_ends_its_stream_alone() {
    let mut world = World::new();
    for stream in [1, 3] {
        world.say(head(stream, KEEP_ALIVE, &[]));
    }
    world.message(1, b"\x0a");
    let refused = world.answer(1);
    assert!(has(&refused, "grpc-status: 13"), "{refused:?}");
    world.message(3, &encoded(&pb::LeaseKeepAliveRequest { id: 1 }));
    assert_eq!((world.messages(1).len(), world.messages(3).len()), (0, 1));
}

#[test]
fn a_stop_waits_for_no_open_call() {
    let mut world = World::new();
    for stream in [1, 3] {
        world.say(head(stream, KEEP_ALIVE, &[]));
    }
    world.say(frame(RST_STREAM, 0, 3, &8_u32.to_be_bytes()));
    world.port.push(Event::StopRequested { signal: 15 });
    world.wait(SECOND);
    let ended = world.answer(1);
    assert!(has(&ended, "grpc-status: 14") && has(&ended, "grpc-message: etcdserver: server stopped"), "{ended:?}");
    assert!(!has(&world.answer(3), "grpc-status: 14"));
}

const WATCH: &str = "/etcdserverpb.Watch/Watch";
const DELETE_PATH: &str = "/etcdserverpb.KV/DeleteRange";

impl World {
    /// A call with one message, on a connection of its own.
    pub(crate) fn ask(&mut self, number: u64, path: &str, message: &[u8]) {
        let connection = self.port.accept(number);
        let bytes = [greeting(), call(1, path, message, 0)].concat();
        self.port.push(Event::Received { connection, bytes });
        self.wait(SECOND / 10);
        let answer = answer(&self.port, connection, 1);
        assert!(has(&answer, "grpc-status: 0"), "{answer:?}");
    }

    /// Puts 300 keys, 3 MB in all; the value of each.
    fn fill(&mut self) -> Vec<u8> {
        let value = vec![b'v'; 10 << 10];
        for number in 0..300_u64 {
            let key = format!("{number:03}");
            let put = pb::PutRequest { key: key.as_bytes(), value: &value, ..Default::default() };
            self.ask(2 + number, PUT_PATH, &encoded(&put));
        }
        value
    }

    /// Deletes all keys in one revision.
    fn delete_all(&mut self) {
        let delete = pb::DeleteRangeRequest { key: b"\0", range_end: b"\0", ..Default::default() };
        self.ask(900, DELETE_PATH, &encoded(&delete));
    }

    /// The client takes whatever comes, on the connection and on stream 1.
    pub(crate) fn open_windows(&mut self) {
        let open = (1_u32 << 28).to_be_bytes();
        self.say([frame(WINDOW_UPDATE, 0, 0, &open), frame(WINDOW_UPDATE, 0, 1, &open)].concat());
    }

    pub(crate) fn watch(&mut self, stream: u32, request: pb::WatchRequestRequestUnion<'_>) {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.message(stream, &encoded(&request));
    }
}

/// Watches all keys from `start_revision` on.
pub(crate) fn all_from(start_revision: i64) -> pb::WatchRequestRequestUnion<'static> {
    let create = pb::WatchCreateRequest { key: b"\0", range_end: b"\0", start_revision, ..Default::default() };
    pb::WatchRequestRequestUnion::Create(create)
}

/// The revisions of a response's events, in their order.
pub(crate) fn revisions(response: &pb::WatchResponse<'_>) -> Vec<i64> {
    response.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).collect()
}

#[test]
fn a_watch_is_created_sees_its_events_and_ends() {
    let mut world = World::new();
    world.say(head(1, WATCH, &[]));
    world.watch(1, all_from(0));
    world.ask(2, PUT_PATH, PUT);
    world.watch(1, pb::WatchRequestRequestUnion::Progress(pb::WatchProgressRequest {}));
    world.watch(1, pb::WatchRequestRequestUnion::Cancel(pb::WatchCancelRequest { watch_id: 0 }));
    world.ask(3, PUT_PATH, PUT);
    let messages = world.messages(1);
    let responses: Vec<_> = messages.iter().map(|bytes| pb::WatchResponse::decode(bytes).unwrap()).collect();
    let [created, seen, progress, canceled] = &responses[..] else { panic!("{responses:?}") };
    assert!(created.created && created.events.is_empty(), "{created:?}");
    assert_eq!(revisions(seen), [2]);
    assert_eq!((progress.watch_id, progress.header.map(|header| header.revision)), (-1, Some(2)));
    assert!(canceled.canceled && canceled.cancel_reason.is_empty(), "{canceled:?}");
    assert!(!has(&world.answer(1), "grpc-status: 0"), "the stream stays open");
}

#[test]
fn a_slow_watch_gets_everything_once_it_reads() {
    let mut world = World::new();
    world.say(head(1, WATCH, &[]));
    world.watch(1, all_from(0));
    let value = vec![b'v'; 10 << 10];
    for number in 0..60_u64 {
        let put = pb::PutRequest { key: b"k", value: &value, ..Default::default() };
        world.ask(2 + number, PUT_PATH, &encoded(&put));
    }
    let len = |world: &World| frames(&world.port.sent[&world.connection]).iter().map(|frame| frame.2.len()).sum();
    let before: usize = len(&world);
    assert!(before < 70 << 10, "no more than the window was sent: {before}");
    world.open_windows();
    world.wait(SECOND);
    let messages = world.messages(1);
    let seen: Vec<_> =
        messages.iter().flat_map(|bytes| revisions(&pb::WatchResponse::decode(bytes).unwrap())).collect();
    assert_eq!(seen, (2..62).collect::<Vec<_>>());
}

#[test]
fn the_events_of_one_revision_come_in_one_message_however_many() {
    let mut world = World::new();
    let value = world.fill();
    world.say(head(1, WATCH, &[]));
    world.open_windows();
    let create = pb::WatchCreateRequest { key: b"\0", range_end: b"\0", prev_kv: true, ..Default::default() };
    world.watch(1, pb::WatchRequestRequestUnion::Create(create));
    world.delete_all();
    world.wait(SECOND);
    let messages = world.messages(1);
    assert_eq!(messages.len(), 2, "created, and all events");
    let response = pb::WatchResponse::decode(&messages[1]).unwrap();
    assert_eq!(revisions(&response), [302; 300]);
    assert!(response.events.iter().all(|event| event.prev_kv.as_ref().is_some_and(|kv| kv.value == value)));
}

#[test]
fn a_client_that_stalls_within_a_long_response_loses_its_call() {
    let mut world = World::new();
    world.fill();
    let open = 1_u32 << 28;
    world.say([head(1, WATCH, &[]), frame(WINDOW_UPDATE, 0, 0, &open.to_be_bytes())].concat());
    let create = pb::WatchCreateRequest { key: b"\0", range_end: b"\0", prev_kv: true, ..Default::default() };
    world.watch(1, pb::WatchRequestRequestUnion::Create(create));
    world.delete_all();
    world.wait(599 * SECOND);
    let is_reset = |world: &World| {
        frames(&world.port.sent[&world.connection]).iter().any(|(kind, stream, _)| (*kind, *stream) == (RST_STREAM, 1))
    };
    assert!(!is_reset(&world));
    assert!(world.node.replica().keyspace().oldest_pin().is_some());
    world.wait(2 * SECOND);
    assert!(is_reset(&world), "a status would wait behind what is not taken");
    assert_eq!(world.node.replica().keyspace().oldest_pin(), None);
}

#[test]
fn who_asks_much_and_reads_nothing_loses_its_call() {
    let mut world = World::new();
    world.say(head(1, WATCH, &[]));
    let request = encoded(&pb::WatchRequest { request_union: Some(all_from(0)) });
    let messages = prefixed(&request, 0).repeat(500);
    for _ in 0..140 {
        world.say(frame(0, 0, 1, &messages));
    }
    world.open_windows();
    world.wait(SECOND);
    assert!(has(&world.answer(1), "grpc-message: etcdserver: too many requests"), "{:?}", world.answer(1));
}

#[test]
fn progress_comes_by_itself_to_those_who_asked_for_it() {
    let mut world = World::new();
    world.say(head(1, WATCH, &[]));
    let create = pb::WatchCreateRequest { key: b"k", progress_notify: true, ..Default::default() };
    world.watch(1, pb::WatchRequestRequestUnion::Create(create));
    world.wait(590 * SECOND);
    assert_eq!(world.messages(1).len(), 1, "not before its time");
    world.wait(80 * SECOND);
    let messages = world.messages(1);
    let [_, progress] = &messages[..] else { panic!("{} messages", messages.len()) };
    let progress = pb::WatchResponse::decode(progress).unwrap();
    assert_eq!((progress.watch_id, progress.events.len()), (0, 0));
    assert_eq!(progress.header.map(|header| header.revision), Some(1));
}

#[test]
fn metrics_count_watches() {
    let mut world = World::new();
    world.say(head(1, WATCH, &[]));
    world.watch(1, all_from(0));
    world.watch(1, all_from(100));
    world.ask(2, PUT_PATH, PUT);
    let connection = world.port.accept(3);
    let bytes = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n".to_vec();
    world.port.push(Event::Received { connection, bytes });
    world.wait(SECOND / 10);
    let text = String::from_utf8(world.port.sent[&connection].clone()).unwrap();
    for line in ["etcd_debugging_mvcc_watcher_total 2", "etcd_debugging_mvcc_events_total 1"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

#[test]
fn leadership_moves_to_the_member_that_has_it() {
    let mut world = World::new();
    let (_, member) = options().initial.ids();
    for (stream, target_id, status) in [(1, member.0, 0), (3, 7, 9), (5, 0, 9)] {
        let request = encoded(&pb::MoveLeaderRequest { target_id });
        world.say(call(stream, "/etcdserverpb.Maintenance/MoveLeader", &request, 0));
        let answer = world.answer(stream);
        assert!(has(&answer, &format!("grpc-status: {status}")), "{target_id}: {answer:?}");
        assert_eq!(has(&answer, "grpc-message: etcdserver: bad leader transferee"), status == 9, "{answer:?}");
    }
    assert_eq!(world.messages(1), [[0; 0]], "an answer without a header, as etcd's");
}

#[test]
fn health_is_listed() {
    let mut world = World::new();
    world.say(call(1, "/grpc.health.v1.Health/List", b"", 0));
    assert!(has(&world.answer(1), "grpc-status: 0"));
    let response = world.messages(1).remove(0);
    let statuses = health::HealthListResponse::decode(&response).unwrap().statuses;
    let status = Some(health::HealthCheckResponse { status: health::ServingStatus::SERVING });
    assert_eq!(statuses, [health::HealthListEntry { service: "", status }]);
}

#[test]
fn health_is_watched() {
    let mut world = World::new();
    let request = encoded(&health::HealthCheckRequest::default());
    world.say(call(1, "/grpc.health.v1.Health/Watch", &request, 0));
    let messages = world.messages(1);
    let states: Vec<_> =
        messages.iter().map(|bytes| health::HealthCheckResponse::decode(bytes).unwrap().status).collect();
    assert_eq!(states, [health::ServingStatus::SERVING]);
    assert!(!has(&world.answer(1), "grpc-status: 0"), "it goes on");
}
