//! Many connections at once against the real kernel: pauses, resets, half-closed peers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/echo.rs"]
mod echo;

use common::{SECOND, serve};
use echo::echo;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;
use trilith_reactor::{CloseReason, ConnectionId, Event, GlommioPort, Port, Turn};

/// Longer than anything here takes; a client that waits in vain fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Byte `position` of what client `seed` sends.
fn pattern(seed: usize, position: usize) -> u8 {
    ((seed * 31 + position) % 251) as u8
}

/// Pseudo-random numbers below `bound`.
fn random(state: &mut u64, bound: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % bound
}

/// Echoes on many connections; sends `ROUNDS` parts of `PART` bytes on each before it reads any of them back.
fn echo_on_many(address: SocketAddr, first: usize, connections: usize) {
    const ROUNDS: usize = 3;
    const PART: usize = 24_001;
    let mut streams: Vec<_> = (0..connections).map(|_| connect(address)).collect();
    let mut got = vec![0; PART];
    for round in 0..ROUNDS {
        let part = |number| (0..PART).map(move |at| pattern(first + number, round * PART + at));
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&part(number).collect::<Vec<_>>()).unwrap();
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.read_exact(&mut got).unwrap();
            assert!(got.iter().copied().eq(part(number)), "round {round} of client {}", first + number);
        }
    }
}

#[test]
fn a_thousand_connections_keep_their_order_through_pauses() {
    const THREADS: usize = 4;
    const EACH: usize = 250;
    let mut echo = echo(THREADS * EACH);
    let mut paused: BTreeMap<ConnectionId, u64> = BTreeMap::new();
    let (mut pauses, mut seed) = (0, 88_172_645_463_325_252);
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        match &event {
            Some(Event::Received { connection, .. }) => {
                if let Some(&since) = paused.get(connection) {
                    assert_eq!(since, port.now(), "nothing arrives in a later turn than that of the pause");
                }
                if random(&mut seed, 3) == 0 {
                    paused.entry(*connection).or_insert_with(|| port.now());
                    pauses += 1;
                    port.set_receiving(*connection, false);
                    port.set_deadline(Some(port.now() + SECOND / 500));
                }
            }
            Some(Event::Timer) => {
                for connection in std::mem::take(&mut paused).into_keys() {
                    port.set_receiving(connection, true);
                    // Twice in a row, and off and on within a turn.
                    if random(&mut seed, 2) == 0 {
                        port.set_receiving(connection, false);
                        port.set_receiving(connection, true);
                    }
                }
            }
            _ => {}
        }
        echo(port, event)
    };
    serve(handle, |address| {
        let client = move |thread| move || echo_on_many(address, thread * EACH, EACH);
        let clients: Vec<_> = (0..THREADS).map(|thread| thread::spawn(client(thread))).collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert!(pauses > THREADS * EACH / 2, "{pauses} pauses");
}

#[test]
fn peers_that_reset_in_the_middle_of_a_send_end_alone() {
    const RESETTING: usize = 60;
    let mut ids = BTreeSet::new();
    let mut closed = BTreeSet::new();
    let mut patient = None;
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Accepted { connection, .. }) => assert!(ids.insert(connection), "an id is new"),
            Some(Event::Received { connection, bytes }) => {
                if bytes == b"patient" {
                    patient = Some(connection);
                }
                port.send(connection, vec![7; 8 << 20]);
            }
            Some(Event::Sent { connection, .. }) => assert_eq!(Some(connection), patient, "the others read a part"),
            Some(Event::Closed { connection, reason }) => {
                let expected = if Some(connection) == patient { CloseReason::EndOfStream } else { CloseReason::Failed };
                assert_eq!(reason, expected);
                assert!(closed.insert(connection), "closed once");
                if closed.len() == RESETTING + 1 {
                    return Turn::Stop(0);
                }
                // Too late for either; both are dropped.
                port.send(connection, vec![1]);
                port.close(connection);
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        Turn::Continue
    };
    serve(handle, |address| {
        let mut patient = connect(address);
        patient.write_all(b"patient").unwrap();
        for _ in 0..RESETTING {
            let mut stream = connect(address);
            stream.write_all(b"much, please").unwrap();
            stream.read_exact(&mut [0; 1000]).unwrap();
            // Dropped with unread input: the kernel resets the connection.
        }
        let mut got = vec![0; 8 << 20];
        patient.read_exact(&mut got).unwrap();
        assert!(got.iter().all(|&byte| byte == 7));
    });
}

#[test]
fn a_peer_that_half_closes_during_an_answer_gets_all_of_it() {
    const ANSWER: usize = 12 << 20;
    let mut events = Vec::new();
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Received { connection, .. }) => port.send(connection, vec![5; ANSWER]),
            Some(Event::Sent { buffer, .. }) => events.push(format!("sent {}", buffer.len())),
            Some(Event::Closed { reason, .. }) => {
                events.push(format!("{reason:?}"));
                return Turn::Stop(0);
            }
            Some(Event::Accepted { .. }) | None => {}
            Some(other) => panic!("{other:?}"),
        }
        Turn::Continue
    };
    let got = serve(handle, |address| {
        let mut stream = connect(address);
        stream.write_all(b"ask").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        rest.len()
    });
    assert_eq!(got, ANSWER - 1);
    assert_eq!(events, ["sent 0", "EndOfStream"]);
}

#[test]
fn bytes_held_back_come_before_the_end() {
    let mut got = Vec::new();
    let mut paused = None;
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Accepted { connection, .. }) => {
                paused = Some(connection);
                port.set_receiving(connection, false);
                port.send(connection, b"go".to_vec());
            }
            // Everything, the end included, has long arrived by the second timer.
            Some(Event::Sent { .. }) => port.set_deadline(Some(port.now() + SECOND / 5)),
            Some(Event::Timer) => port.set_receiving(paused.take().unwrap(), true),
            Some(Event::Received { bytes, .. }) => {
                assert!(paused.is_none(), "nothing is delivered while paused");
                got.extend_from_slice(&bytes);
            }
            Some(Event::Closed { reason, .. }) => {
                assert_eq!(reason, CloseReason::EndOfStream);
                assert_eq!(got.len(), 100_000, "everything came before the end");
                return Turn::Stop(0);
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        Turn::Continue
    };
    serve(handle, |address| {
        let mut stream = connect(address);
        // Half of it is there when the connection is accepted, or soon after.
        stream.write_all(&[1; 50_000]).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        stream.write_all(&[2; 50_000]).unwrap();
    });
}

#[test]
fn nothing_but_closed_follows_a_close_of_a_paused_connection() {
    let mut events = Vec::new();
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Accepted { connection, .. }) => {
                port.set_receiving(connection, false);
                port.set_deadline(Some(port.now() + SECOND / 20));
                assert_eq!(connection, ConnectionId(0));
            }
            Some(Event::Timer) if events.is_empty() => {
                // What is held would be delivered with the next turn.
                port.set_receiving(ConnectionId(0), true);
                port.close(ConnectionId(0));
                port.close(ConnectionId(0));
                port.set_receiving(ConnectionId(0), false);
                events.push("closing".to_owned());
            }
            Some(Event::Closed { reason, .. }) => {
                events.push(format!("{reason:?}"));
                port.set_deadline(Some(port.now() + SECOND / 20));
            }
            Some(Event::Timer) => return Turn::Stop(0),
            Some(other) => events.push(format!("{other:?}")),
            None => {}
        }
        Turn::Continue
    };
    serve(handle, |address| {
        let mut stream = connect(address);
        stream.write_all(&[1; 200_000]).unwrap();
        // The end, not a reset: what is unread is taken in after the close.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    assert_eq!(events, ["closing", "Requested"]);
}
