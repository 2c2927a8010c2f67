//! Nothing is left of a connection: descriptors are counted, so this process runs no other test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{SECOND, serve};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use trilith_reactor::{Event, GlommioPort, Port, Turn};

const CYCLES: usize = 1000;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// One connection's life, in one of five ways.
fn cycle(address: SocketAddr, number: usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    match number % 5 {
        // The server closes; the peer reads to the end.
        0 => {
            stream.write_all(b"close").unwrap();
            assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 6);
        }
        // The server closes; the peer resets it.
        1 => {
            stream.write_all(b"close").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        // The peer closes at once, or after an answer, or with one unread.
        2 => {}
        3 => {
            stream.write_all(b"answer").unwrap();
            stream.read_exact(&mut [0; 6]).unwrap();
        }
        _ => stream.write_all(b"answer").unwrap(),
    }
}

#[test]
fn a_thousand_cycles_leave_no_descriptor_open() {
    static CLIENT_IS_DONE: AtomicBool = AtomicBool::new(false);
    let mut ids = BTreeSet::new();
    let mut open = BTreeSet::new();
    let mut before = 0;
    let mut since = None;
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            None => {
                before = open_descriptors();
                port.set_deadline(Some(port.now() + SECOND / 50));
            }
            Some(Event::Accepted { connection, .. }) => {
                assert!(ids.insert(connection), "an id is never used again");
                open.insert(connection);
            }
            Some(Event::Received { connection, bytes }) => {
                port.send(connection, b"answer".to_vec());
                if bytes == b"close" {
                    port.close(connection);
                }
            }
            Some(Event::Sent { .. }) => {}
            Some(Event::Closed { connection, .. }) => assert!(open.remove(&connection), "closed once"),
            Some(Event::Timer) => {
                port.set_deadline(Some(port.now() + SECOND / 50));
                if CLIENT_IS_DONE.load(Ordering::Acquire) {
                    let now = open_descriptors();
                    if ids.len() == CYCLES && open.is_empty() && now <= before {
                        return Turn::Stop(0);
                    }
                    let start = *since.get_or_insert_with(|| port.now());
                    assert!(port.now() - start < 20 * SECOND, "{before} descriptors before, {now} now; {open:?}");
                }
            }
            Some(other) => panic!("{other:?}"),
        }
        Turn::Continue
    };
    serve(handle, |address| {
        (0..CYCLES).for_each(|number| cycle(address, number));
        CLIENT_IS_DONE.store(true, Ordering::Release);
    });
    assert_eq!(ids.len(), CYCLES);
}
