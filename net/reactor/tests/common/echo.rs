//! A core that sends back what it receives, connection by connection, in order.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use trilith_reactor::{ConnectionId, Event, GlommioPort, Port, Turn};

/// Echoes; stops when the last of `clients` has gone.
pub(crate) fn echo(clients: usize) -> impl FnMut(&mut GlommioPort, Option<Event>) -> Turn {
    let mut waiting: BTreeMap<ConnectionId, (bool, Vec<u8>)> = BTreeMap::new();
    let mut closed = 0;
    move |port, event| {
        match event {
            None | Some(Event::Timer) => {}
            Some(Event::Accepted { connection, peer, .. }) => {
                assert!(peer.starts_with("127.0.0.1:"), "{peer}");
                assert!(waiting.insert(connection, (false, Vec::new())).is_none(), "an id is new");
            }
            Some(Event::Received { connection, bytes }) => {
                assert!(!bytes.is_empty());
                let (sending, queue) = waiting.get_mut(&connection).unwrap();
                queue.extend_from_slice(&bytes);
                if !std::mem::replace(sending, true) {
                    port.send(connection, std::mem::take(queue));
                }
            }
            Some(Event::Sent { connection, buffer }) => {
                assert!(buffer.is_empty());
                let (sending, queue) = waiting.get_mut(&connection).unwrap();
                *sending = !queue.is_empty();
                if *sending {
                    port.send(connection, std::mem::replace(queue, buffer));
                }
            }
            Some(Event::Closed { connection, .. }) => {
                assert!(waiting.remove(&connection).is_some(), "closed once");
                closed += 1;
                if closed == clients {
                    return Turn::Stop(0);
                }
            }
            other => panic!("{other:?}"),
        }
        Turn::Continue
    }
}
