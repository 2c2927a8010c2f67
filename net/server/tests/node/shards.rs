//! Batches that connection cores evaluate: what is answered, and what waits while the state is lent.

use trilith_engine::shard::ShardOptions;
use trilith_reactor::{CoreId, Event};
use trilith_server::NodeOptions;
use trilith_wire::proto::{Message, etcdserverpb as pb};

use crate::open::{World, encoded};
use crate::{PUT_PATH, SECOND, call, has, options};

/// Puts of a burst, each of another key.
const PUTS: u32 = 100;

/// A client of a process of two connection cores, each with a shard.
struct Client {
    world: World,
    next_stream: u32,
}

/// The new revision of a put and the one of the pair before.
type Numbers = (i64, Option<i64>);

impl Client {
    /// After two bursts, so that boundaries are known and every key exists.
    fn new() -> Self {
        let mut options = NodeOptions { connection_cores: 2, sequencer_serves: false, ..options() };
        options.replica.shards =
            ShardOptions { shards: 2, gain_commands_min: 4, load_stride: 1, ..ShardOptions::default() };
        let mut client = Self { world: World::with(options), next_stream: 1 };
        client.burst();
        client.burst();
        assert!(client.rounds() > 0, "shared as soon as there is a load to share");
        client
    }

    fn call(&mut self, path: &str, message: &[u8]) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.world.say(call(stream, path, message, 0));
        stream
    }

    /// Puts that arrive in one turn; the first of their streams.
    fn burst(&mut self) -> u32 {
        let first = self.next_stream;
        self.next_stream += 2 * PUTS;
        let put = |number| {
            let key = format!("k{number:04}").into_bytes();
            let put = encoded(&pb::PutRequest { key: &key, prev_kv: true, ..Default::default() });
            call(first + 2 * number, PUT_PATH, &put, 0)
        };
        self.world.say((0..PUTS).flat_map(put).collect());
        first
    }

    /// What the puts of a burst were answered, as far as they were.
    fn numbers(&self, first: u32) -> Vec<Numbers> {
        let number = |place| {
            let messages = self.world.messages(first + 2 * place);
            let put = pb::PutResponse::decode(messages.first()?).unwrap();
            Some((put.header?.revision, put.prev_kv.map(|pair| pair.mod_revision)))
        };
        (0..PUTS).filter_map(number).collect()
    }

    /// The core that was stuck turns again: a burst over `revision` is made, and the call on `stream` ends, which has
    /// waited.
    fn turn_and_end(&mut self, stream: u32, revision: i64) {
        assert_eq!(self.world.answer(stream), [""; 0]);
        self.world.node.stuck.clear();
        self.world.wait(SECOND);
        assert!(has(&self.world.answer(stream), "grpc-status: 0"), "{:?}", self.world.answer(stream));
        assert_eq!(self.revision(), revision + i64::from(PUTS));
    }

    fn revision(&self) -> i64 {
        self.world.node.replica().keyspace().published().revision
    }

    fn rounds(&self) -> u64 {
        self.world.node.replica().shard_rounds()
    }
}

/// What the puts of a burst over `revision` are to be answered.
fn wanted(revision: i64) -> Vec<Numbers> {
    let puts = i64::from(PUTS);
    (1..=puts).map(|place| (revision + place, Some(revision + place - puts))).collect()
}

#[test]
fn a_large_batch_is_evaluated_by_the_cores_of_its_shards() {
    let mut client = Client::new();
    let (revision, rounds) = (client.revision(), client.rounds());
    let first = client.burst();
    assert!(client.rounds() > rounds);
    assert_eq!(client.numbers(first), wanted(revision));
}

#[test]
fn a_batch_waits_for_a_core_that_does_not_turn_and_readers_do_not() {
    let mut client = Client::new();
    let revision = client.revision();
    // The client itself is served by the first core.
    client.world.node.stuck.insert(CoreId(2));
    let first = client.burst();
    assert!(client.world.node.replica().is_lent());
    assert_eq!(client.numbers(first), []);
    let read = encoded(&pb::RangeRequest { key: b"k0007", serializable: true, ..Default::default() });
    let stream = client.call("/etcdserverpb.KV/Range", &read);
    let [range] = &client.world.messages(stream)[..] else { panic!("one answer") };
    assert_eq!(pb::RangeResponse::decode(range).unwrap().kvs[0].mod_revision, revision - 92);
    let second = client.burst();
    client.world.node.stuck.clear();
    client.world.wait(SECOND / 10);
    assert!(!client.world.node.replica().is_lent());
    assert_eq!(client.numbers(first), wanted(revision));
    assert_eq!(client.numbers(second), wanted(revision + i64::from(PUTS)));
}

#[test]
fn what_the_disk_has_done_while_the_state_was_lent_counts_afterwards() {
    let mut client = Client::new();
    let revision = client.revision();
    client.world.node.stuck.insert(CoreId(2));
    client.burst();
    // It takes checkpoints, whose writes may be under way by now.
    let stream = client.call("/etcdserverpb.Maintenance/Defragment", b"");
    client.world.wait(SECOND);
    client.turn_and_end(stream, revision);
}

#[test]
fn a_checkpoint_that_is_under_way_when_the_state_is_lent_goes_on_afterwards() {
    let mut client = Client::new();
    let revision = client.revision();
    let stream = client.next_stream;
    client.next_stream += 2;
    let connection = client.world.connection;
    let defragment = call(stream, "/etcdserverpb.Maintenance/Defragment", b"", 0);
    client.world.port.push(Event::Received { connection, bytes: defragment });
    // Its first writes are on their way; the log's are held up no longer.
    client.world.port.is_stalled = true;
    client.world.wait(SECOND / 10);
    client.world.port.is_stalled = false;
    client.world.node.stuck.insert(CoreId(2));
    client.burst();
    assert!(client.world.node.replica().is_lent());
    client.world.port.end_stall();
    client.world.wait(SECOND / 10);
    client.turn_and_end(stream, revision);
}

#[test]
fn a_stop_waits_for_a_batch_that_is_with_its_shards() {
    let mut client = Client::new();
    client.world.node.stuck.insert(CoreId(2));
    let first = client.burst();
    let revision = client.revision();
    client.world.port.push(Event::StopRequested { signal: 15 });
    client.world.wait(SECOND / 10);
    client.world.node.stuck.clear();
    let until = client.world.port.now + 20 * SECOND;
    assert_eq!(client.world.port.run(&mut client.world.node, until), Some(143));
    assert_eq!(client.numbers(first), wanted(revision));
}
