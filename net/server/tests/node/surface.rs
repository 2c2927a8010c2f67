//! What an operator sees: counters after work, words about slow work, automatic compaction.

use trilith_reactor::Event;
use trilith_server::NodeOptions;
use trilith_server::auto_compaction::Retention;
use trilith_server::journal::{Format, Journal, Level};
use trilith_server::surface::Surface;

use crate::cores::Cores;
use crate::port::MemoryPort;
use crate::{PUT, PUT_PATH, SECOND, answer, call, greeting, has, options, serving};

fn talkative(surface: Surface) -> NodeOptions {
    NodeOptions { surface, journal: Journal { level_min: Level::Info, format: Format::Json }, ..options() }
}

/// Puts so many times, one after the other.
fn put(node: &mut Cores, port: &mut MemoryPort, times: u32) {
    let connection = port.accept(1);
    port.push(Event::Received { connection, bytes: greeting() });
    for number in 0..times {
        let stream = 2 * number + 1;
        port.push(Event::Received { connection, bytes: call(stream, PUT_PATH, PUT, 0) });
        let until = port.now + SECOND;
        port.run(node, until);
        assert!(has(&answer(port, connection, stream), "grpc-status: 0"));
    }
}

#[test]
fn history_beyond_the_retention_is_compacted() {
    let mut port = MemoryPort::default();
    let surface = Surface { auto_compaction: Retention::Revisions(3), ..Surface::default() };
    let mut node = serving(&mut port, talkative(surface));
    put(&mut node, &mut port, 10);
    let state = |node: &Cores| node.replica().keyspace().state();
    assert_eq!((state(&node).revision, state(&node).compacted), (11, -1));
    let until = port.now + 300 * SECOND;
    port.run(&mut node, until);
    assert_eq!(state(&node).compacted, 8);
    let said = |port: &MemoryPort, text: &str| port.journal.iter().filter(|record| record.contains(text)).count();
    assert_eq!(said(&port, "starting auto revision compaction"), 1);
    assert_eq!(said(&port, "completed auto revision compaction"), 1);
    let until = port.now + 900 * SECOND;
    port.run(&mut node, until);
    assert_eq!(said(&port, "starting auto revision compaction"), 1, "nothing was written since");
}

#[test]
fn work_shows_in_the_metrics() {
    let mut port = MemoryPort::default();
    let mut node = serving(&mut port, options());
    put(&mut node, &mut port, 3);
    let connection = port.accept(2);
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    port.push(Event::Received { connection, bytes: request });
    let until = port.now + SECOND;
    port.run(&mut node, until);
    let text = String::from_utf8(port.sent[&connection].clone()).unwrap();
    let head = text.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores"), "{head}");
    for line in [
        "\ngrpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\
         \"unary\"} 3\n",
        "\ngrpc_server_msg_received_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\
         \"unary\"} 3\n",
        "\netcd_network_client_grpc_received_bytes_total 18\n",
        "\netcd_mvcc_put_total 3\n",
        "\netcd_debugging_mvcc_current_revision 4\n",
        "\netcd_server_has_leader 1\n",
        "\netcd_server_leader_changes_seen_total 1\n",
        "\netcd_server_request_duration_seconds_count{success=\"true\",type=\"Put\"} 3\n",
        "\netcd_server_apply_duration_seconds_count{op=\"Put\",success=\"true\",version=\"v3\"} 3\n",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("\netcd_disk_wal_fsync_duration_seconds_count 0\n"), "every put was made durable");
}

#[test]
fn a_call_that_took_too_long_is_told_of() {
    let mut port = MemoryPort::default();
    let surface = Surface { slow_call_after: 1_000_000_000, ..Surface::default() };
    let mut node = serving(&mut port, talkative(surface));
    put(&mut node, &mut port, 1);
    let slow = |port: &MemoryPort| port.journal.iter().filter(|record| record.contains("request stats")).count();
    assert_eq!(slow(&port), 0);
    port.is_stalled = true;
    let connection = port.accept(2);
    let bytes = [greeting(), call(1, PUT_PATH, PUT, 0)].concat();
    port.push(Event::Received { connection, bytes });
    let until = port.now + SECOND;
    port.run(&mut node, until);
    port.now += 2 * SECOND;
    port.end_stall();
    let until = port.now + SECOND;
    port.run(&mut node, until);
    assert!(has(&answer(&port, connection, 1), "grpc-status: 0"));
    assert_eq!(slow(&port), 1);
    let record = port.journal.iter().find(|record| record.contains("request stats")).unwrap();
    assert!(
        record.contains("\"response type\":\"/etcdserverpb.KV/Put\"") && record.contains("key:\\\"k\\\""),
        "{record}"
    );
}
