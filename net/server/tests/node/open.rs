//! Calls that stay open, and calls with a deadline of their own.

use trilith_reactor::{ConnectionId, Event};
use trilith_server::Node;
use trilith_wire::proto::{Message, etcdserverpb as pb};

use crate::port::MemoryPort;
use crate::{PUT, PUT_PATH, SECOND, answer, body, frame, frames, greeting, has, head, options, prefixed, serving};

const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const RST_STREAM: u8 = 3;

/// A node and one connection to it.
struct World {
    port: MemoryPort,
    node: Node,
    connection: ConnectionId,
}

impl World {
    fn new() -> Self {
        let mut port = MemoryPort::default();
        let node = serving(&mut port, options());
        let connection = port.accept(1);
        let mut world = Self { port, node, connection };
        world.say(greeting());
        world
    }

    /// Sends bytes, and lets some time pass.
    fn say(&mut self, bytes: Vec<u8>) {
        self.port.push(Event::Received { connection: self.connection, bytes });
        self.wait(SECOND / 10);
    }

    fn wait(&mut self, time: u64) {
        let until = self.port.now + time;
        self.port.run(&mut self.node, until);
        self.port.now = until;
    }

    fn message(&mut self, stream: u32, message: &[u8]) {
        self.say(frame(0, 0, stream, &prefixed(message, 0)));
    }

    /// The messages received on a stream.
    fn messages(&self, stream: u32) -> Vec<Vec<u8>> {
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

    fn answer(&self, stream: u32) -> Vec<String> {
        answer(&self.port, self.connection, stream)
    }
}

fn encoded<'a>(message: &impl Message<'a>) -> Vec<u8> {
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
