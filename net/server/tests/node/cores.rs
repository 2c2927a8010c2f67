//! All cores of a process over one port in memory, and what only several cores can get wrong.
//!
//! Every test of this program runs on one core; with `TRILITH_TEST_CORES=N` in the environment it runs on N, and
//! clients are served by all but the sequencer.

use std::collections::BTreeSet;
use std::ops::Deref;

use trilith_engine::shard::ShardOptions;
use trilith_reactor::{CloseReason, ConnectionId, CoreId, CoreLoop, Event, Port, Turn};
use trilith_server::front::message::{REQUEST_BYTES_MAX, REQUESTS_MAX};
use trilith_server::{BootError, Front, Node, NodeOptions};
use trilith_wire::proto::{Message, etcdserverpb as pb};

use crate::open::{World, all_from, encoded, revisions};
use crate::port::MemoryPort;
use crate::{
    PUT, PUT_PATH, SECOND, WINDOW_UPDATE, answer, body, call, frame, frames, greeting, has, head, options, prefixed,
};

/// The cores of a process. They take turns; what one has posted reaches the others in the next.
#[derive(Debug)]
pub(crate) struct Cores {
    node: Node,
    pub(crate) fronts: Vec<Front>,
    deadlines: Vec<Option<u64>>,
    /// Of connections accepted in this turn, which may be given away: for the next.
    early: Vec<Event>,
    /// Cores whose queues are full: what is sent to them waits.
    pub(crate) stuck: BTreeSet<CoreId>,
}

impl Deref for Cores {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Cores {
    /// Boots on as many cores as the options, or else the environment, say.
    pub(crate) fn boot(options: NodeOptions, port: &mut MemoryPort) -> Result<Self, BootError> {
        let mut options = options;
        let wanted = std::env::var("TRILITH_TEST_CORES").ok().and_then(|text| text.parse::<usize>().ok());
        if let Some(cores) = wanted.filter(|&cores| cores > 1 && options.connection_cores == 0) {
            (options.connection_cores, options.sequencer_serves) = (cores - 1, false);
            // As small as they may be: most batches of a test are.
            options.replica.shards =
                ShardOptions { shards: cores, gain_commands_min: 1, load_stride: 1, ..ShardOptions::default() };
        }
        let fronts: Vec<Front> = (0..options.connection_cores).map(|_| Front::new(options.front())).collect();
        let deadlines = vec![None; 1 + fronts.len()];
        Ok(Self { node: Node::boot(options, port)?, fronts, deadlines, early: Vec::new(), stuck: BTreeSet::new() })
    }

    /// Sets aside what comes with the acceptance of its connection.
    fn set_early_aside(&mut self, events: &mut Vec<Event>) {
        events.splice(0..0, std::mem::take(&mut self.early));
        let accepted: BTreeSet<_> = events
            .iter()
            .filter_map(|event| if let Event::Accepted { connection, .. } = event { Some(*connection) } else { None })
            .collect();
        let is_early =
            |event: &mut Event| connection_of(event).is_some_and(|connection| accepted.contains(&connection));
        self.early = events.extract_if(.., is_early).collect();
    }

    /// Sorts a turn's events by core.
    fn events_of(&self, core: CoreId, port: &mut MemoryPort, events: &mut Vec<Event>) -> Vec<Event> {
        let owner = |port: &MemoryPort, event: &Event| {
            connection_of(event).and_then(|connection| port.owners.get(&connection).copied()).unwrap_or(CoreId(0))
        };
        let mut mine: Vec<Event> = Vec::new();
        let mut rest = Vec::new();
        for event in events.drain(..) {
            if matches!(event, Event::Timer) {
                rest.push(Event::Timer);
            } else if owner(port, &event) == core {
                mine.push(event);
            } else {
                rest.push(event);
            }
        }
        *events = rest;
        if !self.stuck.contains(&core) {
            mine.splice(0..0, port.take_freight(core));
        }
        if self.deadlines[core.0].is_some_and(|deadline| deadline <= port.now) {
            mine.push(Event::Timer);
        }
        mine
    }
}

impl CoreLoop<MemoryPort> for Cores {
    fn handle_turn(&mut self, port: &mut MemoryPort, events: &mut Vec<Event>) -> Turn {
        let mut stopped = None;
        if !self.fronts.is_empty() {
            self.set_early_aside(events);
        }
        for number in 0..=self.fronts.len() {
            let mut mine = self.events_of(CoreId(number), port, events);
            port.turning = CoreId(number);
            let turn = match number.checked_sub(1) {
                None => self.node.handle_turn(port, &mut mine),
                Some(front) => self.fronts[front].handle_turn(port, &mut mine),
            };
            self.deadlines[number] = port.take_deadline();
            if number == 0
                && let Turn::Stop(status) = turn
            {
                stopped = Some(status);
            }
        }
        // What is left is the timer, of which every core has its own.
        events.clear();
        port.turning = CoreId(0);
        if let Some(status) = stopped {
            return Turn::Stop(status);
        }
        let has_freight = |core| port.has_freight(core) && !self.stuck.contains(&core);
        let is_due = !self.early.is_empty() || (0..=self.fronts.len()).map(CoreId).any(has_freight);
        let next = if is_due { Some(port.now) } else { self.deadlines.iter().flatten().min().copied() };
        port.set_deadline(next);
        Turn::Continue
    }
}

fn connection_of(event: &Event) -> Option<ConnectionId> {
    match event {
        Event::Received { connection, .. } | Event::Sent { connection, .. } | Event::Closed { connection, .. } => {
            Some(*connection)
        }
        _ => None,
    }
}

/// One connection core beside a sequencer that serves none.
fn two_cores() -> NodeOptions {
    NodeOptions { connection_cores: 1, sequencer_serves: false, ..options() }
}

const FRONT: CoreId = CoreId(1);
const SEQUENCER: CoreId = CoreId(0);

#[test]
fn calls_on_a_connection_core_are_answered_there() {
    let mut world = World::with(two_cores());
    world.say([call(1, PUT_PATH, PUT, 0), call(3, PUT_PATH, b"\x12\x01v", 0), call(5, PUT_PATH, b"\x0a", 0)].concat());
    world.say([call(7, "/etcdserverpb.KV/Nope", PUT, 0), call(9, "/etcdserverpb.KV/Range", b"\x0a\x01k", 0)].concat());
    assert_eq!(world.port.owners.values().collect::<Vec<_>>(), [&FRONT]);
    assert!(has(&world.answer(1), "grpc-status: 0"));
    assert!(has(&world.answer(3), "grpc-message: etcdserver: key is not provided"), "{:?}", world.answer(3));
    assert!(has(&world.answer(5), "grpc-status: 13") && has(&world.answer(7), "grpc-status: 12"));
    let [range] = &world.messages(9)[..] else { panic!("one answer") };
    let range = pb::RangeResponse::decode(range).unwrap();
    assert_eq!((range.count, range.kvs[0].value), (1, &b"v"[..]));
    assert_eq!(world.node.replica().keyspace().published().revision, 2);
}

#[test]
fn connections_go_where_there_are_fewest() {
    let mut world = World::with(NodeOptions { connection_cores: 2, ..options() });
    assert!(world.port.owners.is_empty(), "a lone one stays where it pays no hop");
    for number in 2..=9 {
        world.port.accept(number);
    }
    world.wait(SECOND / 10);
    let of = |core| world.port.owners.values().filter(|owner| **owner == core).count();
    assert_eq!([of(CoreId(1)), of(CoreId(2))], [3, 3], "and three stay");
}

#[test]
fn the_counters_of_all_cores_are_added() {
    let mut world = World::with(NodeOptions { connection_cores: 2, ..options() });
    for number in 2..=9 {
        world.ask(number, PUT_PATH, PUT);
    }
    for number in 10..=12 {
        let connection = world.port.accept(number);
        let bytes = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
        world.port.push(Event::Received { connection, bytes });
        world.wait(SECOND / 10);
    }
    // Whichever core the scraper comes to.
    for number in 13..=15 {
        let connection = world.port.accept(number);
        let bytes = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
        world.port.push(Event::Received { connection, bytes });
        world.wait(SECOND / 10);
        let text = String::from_utf8(world.port.sent[&connection].clone()).unwrap();
        for line in [
            "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",\
             grpc_type=\"unary\"} 8",
            "etcd_network_client_grpc_received_bytes_total 48",
            "etcd_server_health_success 3",
            "etcd_mvcc_put_total 8",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}

#[test]
fn what_waits_for_a_sequencer_that_does_not_turn_is_bounded() {
    let mut world = World::with(two_cores());
    world.node.stuck.insert(SEQUENCER);
    let calls: Vec<u32> = (0..40_000).map(|number| 2 * number + 1).collect();
    for part in calls.chunks(4_000) {
        world.say(part.iter().flat_map(|&stream| call(stream, PUT_PATH, PUT, 0)).collect());
    }
    assert_eq!(world.node.fronts[0].used_credit().requests, REQUESTS_MAX);
    let value = vec![b'v'; 12 << 10];
    let put = encoded(&pb::PutRequest { key: b"k", value: &value, ..Default::default() });
    world.node.stuck.clear();
    world.open_windows();
    world.wait(SECOND);
    assert_eq!(world.node.fronts[0].used_credit(), Default::default());
    assert_eq!(world.node.replica().keyspace().published().revision, 40_001, "every put was made, once");
    // Long ones reach the bound of bytes first.
    world.node.stuck.insert(SEQUENCER);
    let count = 3 * REQUEST_BYTES_MAX / put.len() / 2;
    for part in (40_000..40_000 + count as u32).collect::<Vec<_>>().chunks(50) {
        world.say(part.iter().flat_map(|&number| call(2 * number + 1, PUT_PATH, &put, 0)).collect());
    }
    let used = world.node.fronts[0].used_credit().bytes;
    assert!((REQUEST_BYTES_MAX..REQUEST_BYTES_MAX + 2 * put.len()).contains(&used), "{used}");
    world.node.stuck.clear();
    world.wait(2 * SECOND);
    assert_eq!(world.node.fronts[0].used_credit(), Default::default());
    // The log takes a mebibyte at once here; the others were told so.
    let last = world.answer(2 * (40_000 + count as u32) - 1);
    assert!(has(&last, "grpc-message: etcdserver: too many requests"), "{last:?}");
}

#[test]
fn a_core_that_does_not_turn_gets_its_answers_and_its_credit_later() {
    let mut world = World::with(two_cores());
    for number in 0..100 {
        world.say(call(2 * number + 1, PUT_PATH, PUT, 0));
    }
    world.node.stuck.insert(FRONT);
    world.say((100..200).flat_map(|number| call(2 * number + 1, PUT_PATH, PUT, 0)).collect());
    assert_eq!(world.node.replica().keyspace().published().revision, 201);
    assert_eq!(world.answer(399), [""; 0]);
    assert_eq!(world.node.fronts[0].used_credit().requests, 100);
    world.node.stuck.clear();
    world.wait(SECOND / 10);
    assert!(has(&world.answer(399), "grpc-status: 0"));
    assert_eq!(world.node.fronts[0].used_credit().requests, 0);
}

#[test]
fn a_connection_that_closes_while_answers_are_under_way_leaves_nothing_behind() {
    let mut world = World::with(two_cores());
    world.say(head(1, "/etcdserverpb.Watch/Watch", &[]));
    world.watch(1, all_from(0));
    world.say(call(3, PUT_PATH, PUT, 0));
    assert_eq!(world.node.fronts[0].streams_accounted(), 1);
    world.node.stuck.insert(FRONT);
    world.say(call(5, PUT_PATH, PUT, 0));
    world.port.push(Event::Closed { connection: world.connection, reason: CloseReason::Failed });
    world.wait(SECOND / 10);
    // The sequencer knows it first, while its answers wait.
    world.node.stuck.clear();
    world.wait(SECOND / 10);
    assert_eq!(world.node.fronts[0].streams_accounted(), 0);
    world.ask(2, PUT_PATH, PUT);
    world.port.push(Event::Closed { connection: ConnectionId(2), reason: CloseReason::Failed });
    world.port.push(Event::StopRequested { signal: 15 });
    let until = world.port.now + SECOND;
    assert_eq!(world.port.run(&mut world.node, until), Some(143), "nobody is waited for");
}

#[test]
fn a_slow_reader_on_another_core_is_bounded_and_gets_everything_once_it_reads() {
    let mut world = World::with(two_cores());
    world.say(head(1, "/etcdserverpb.Watch/Watch", &[]));
    world.watch(1, all_from(0));
    let value = vec![b'v'; 10 << 10];
    let put = pb::PutRequest { key: b"k", value: &value, ..Default::default() };
    world.port.freight_bytes = 0;
    for number in 0..100_u64 {
        world.ask(2 + number, PUT_PATH, &encoded(&put));
    }
    // The window, what may wait, and one message more; and the hundred answers, which are short.
    let crossed = world.port.freight_bytes;
    assert!(crossed < (64 << 10) + (64 << 10) + (20 << 10) + 100 * 100, "{crossed} bytes went to the other core");
    world.open_windows();
    world.wait(SECOND);
    let messages = world.messages(1);
    let responses = messages.iter().map(|bytes| pb::WatchResponse::decode(bytes).unwrap());
    let seen: Vec<_> = responses.flat_map(|response| revisions(&response)).collect();
    assert_eq!(seen, (2..102).collect::<Vec<_>>());
}

#[test]
fn a_stop_drains_every_core() {
    let mut world = World::with(NodeOptions { connection_cores: 2, ..options() });
    let mut connections = vec![world.connection];
    for number in 2..=6 {
        let connection = world.port.accept(number);
        world.port.push(Event::Received { connection, bytes: greeting() });
        connections.push(connection);
    }
    world.wait(SECOND / 10);
    for &connection in &connections {
        let bytes = [head(1, "/etcdserverpb.Lease/LeaseKeepAlive", &[]), call(3, PUT_PATH, PUT, 0)].concat();
        world.port.push(Event::Received { connection, bytes });
    }
    world.wait(SECOND / 10);
    world.port.push(Event::StopRequested { signal: 15 });
    let until = world.port.now + 20 * SECOND;
    assert_eq!(world.port.run(&mut world.node, until), Some(143));
    for connection in connections {
        assert!(has(&answer(&world.port, connection, 3), "grpc-status: 0"));
        let ended = answer(&world.port, connection, 1);
        assert!(has(&ended, "grpc-message: etcdserver: server stopped"), "{connection:?}: {ended:?}");
        let kinds: Vec<u8> = frames(&world.port.sent[&connection]).iter().map(|frame| frame.0).collect();
        assert!(kinds.contains(&7), "a farewell: {kinds:?}");
    }
}

#[test]
fn nothing_is_served_on_any_core_before_service_begins() {
    let mut port = MemoryPort::default();
    let mut cores = Cores::boot(two_cores(), &mut port).unwrap();
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: [greeting(), head(1, PUT_PATH, &[]), body(1, PUT, 0)].concat() });
    port.is_stalled = true;
    port.run(&mut cores, 0);
    port.run(&mut cores, SECOND / 2);
    assert!(!cores.is_serving() && cores.fronts[0].used_credit().requests == 0);
    port.end_stall();
    port.run(&mut cores, 4 * SECOND);
    assert!(has(&answer(&port, connection, 1), "grpc-status: 0"));
}

#[test]
fn windows_of_thousands_of_streams_open_and_close() {
    const STREAMS: u32 = 3_000;
    let mut world = World::with(two_cores());
    let create = encoded(&pb::WatchRequest { request_union: Some(all_from(0)) });
    for number in 0..STREAMS {
        let stream = 2 * number + 1;
        let bytes =
            [head(stream, "/etcdserverpb.Watch/Watch", &[]), frame(0, 0, stream, &prefixed(&create, 0))].concat();
        world.port.push(Event::Received { connection: world.connection, bytes });
    }
    world.say(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
    for number in 0..20 {
        world.ask(2 + number, PUT_PATH, PUT);
    }
    assert_eq!(world.messages(1).len(), 21);
    assert_eq!(world.messages(2 * STREAMS - 1).len(), 21);
    let resets = (0..STREAMS).flat_map(|number| frame(3, 0, 2 * number + 1, &8_u32.to_be_bytes())).collect();
    // Events are on their way to streams that are given up before they come.
    world.node.stuck.insert(FRONT);
    world.say(call(2 * STREAMS + 1, PUT_PATH, PUT, 0));
    world.say(resets);
    world.node.stuck.clear();
    world.wait(SECOND / 10);
    assert!(has(&world.answer(2 * STREAMS + 1), "grpc-status: 0"));
    assert_eq!(world.node.fronts[0].streams_accounted(), 0);
}

#[test]
fn a_connection_that_asks_without_end_leaves_credit_to_the_others_of_its_core() {
    let mut world = World::with(two_cores());
    let other = world.port.accept(2);
    world.port.push(Event::Received { connection: other, bytes: greeting() });
    world.node.stuck.insert(SEQUENCER);
    let calls: Vec<u32> = (0..40_000).map(|number| 2 * number + 1).collect();
    for part in calls.chunks(4_000) {
        world.say(part.iter().flat_map(|&stream| call(stream, PUT_PATH, PUT, 0)).collect());
    }
    assert_eq!(world.node.fronts[0].used_credit().requests, REQUESTS_MAX, "nothing is left");
    let put = encoded(&pb::PutRequest { key: b"other", ..Default::default() });
    world.port.push(Event::Received { connection: other, bytes: call(1, PUT_PATH, &put, 0) });
    world.wait(SECOND / 10);
    world.node.stuck.clear();
    world.wait(SECOND);
    assert!(has(&answer(&world.port, other, 1), "grpc-status: 0"));
    assert_eq!(world.node.replica().keyspace().published().revision, 40_002);
    world.ask(3, "/etcdserverpb.KV/Range", b"\x0a\x05other");
    let sent = &frames(&world.port.sent[&ConnectionId(3)]).into_iter().find(|frame| frame.0 == 0).unwrap().2;
    let made = pb::RangeResponse::decode(&sent[5..]).unwrap().kvs[0].mod_revision;
    let first = i64::try_from(REQUESTS_MAX).unwrap();
    assert!(made < first + first / 2, "it had its turn with the second credit, not at revision {made}");
}

#[test]
fn what_scrapers_are_told_crosses_once_however_many_they_are() {
    let mut world = World::with(two_cores());
    let bytes = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    let scrapers: Vec<ConnectionId> = (2..102).map(|number| world.port.accept(number)).collect();
    world.wait(SECOND / 10);
    for &connection in &scrapers {
        world.port.push(Event::Received { connection, bytes: bytes.to_vec() });
    }
    world.port.freight_bytes = 0;
    world.wait(SECOND / 10);
    let told = scrapers.iter().map(|scraper| world.port.sent[scraper].len());
    assert!(told.clone().all(|len| len > 4 << 10), "each has the text");
    let (crossed, longest) = (world.port.freight_bytes, told.max().unwrap());
    assert!((1..2 * longest).contains(&crossed), "{crossed} bytes of texts of {longest}");
}

#[test]
fn scrapers_that_come_while_counters_are_told_are_answered_with_the_next() {
    let mut world = World::with(NodeOptions { connection_cores: 1, ..options() });
    let bytes = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    // Every other connection stays with the sequencer.
    let scrapers: Vec<ConnectionId> = (2..42).map(|number| world.port.accept(number)).collect();
    world.wait(SECOND / 10);
    let own: Vec<_> = scrapers.into_iter().filter(|scraper| !world.port.owners.contains_key(scraper)).collect();
    world.node.stuck.insert(FRONT);
    for &connection in &own {
        world.port.push(Event::Received { connection, bytes: bytes.to_vec() });
        world.wait(SECOND / 10);
    }
    assert!(own.len() > 10 && own.iter().all(|scraper| !world.port.sent.contains_key(scraper)));
    assert_eq!(world.port.freight_len(FRONT), 1, "the core is asked once");
    world.node.stuck.clear();
    world.wait(SECOND / 10);
    assert!(own.iter().all(|scraper| world.port.sent[scraper].len() > 4 << 10));
}
