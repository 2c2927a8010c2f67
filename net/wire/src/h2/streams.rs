//! The open streams of a connection: a slab of states, and the order in which the client opened them.
//!
//! Owns: allocation, lookup by number, memory of the recently closed. Does not know: frames.
//!
//! Stream numbers only grow, so `order` is sorted by construction and lookup is a binary search, with the newest stream
//! (whose DATA follows its HEADERS) looked at first. No hash, hence no collisions to provoke.
//!
//! Invariants
//! - I1: `order` is strictly increasing; its living entries are exactly the open streams.
//! - I2: a slot's `number` is zero exactly while it is free, so a [`StreamId`] of a closed stream never matches.

use std::collections::VecDeque;

use crate::connection::StreamId;
use crate::connection::limits::{BUFFER_KEPT_BYTES_MAX, CLOSED_STREAMS_REMEMBERED};
use crate::h2::heads::HeadRef;

const DEAD: u32 = u32::MAX;

/// How the payload of DATA frames is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Intake {
    /// Exactly one gRPC message, delivered with the request.
    #[default]
    SingleMessage,
    /// gRPC messages, each delivered as it completes.
    Messages,
    /// A whole HTTP body.
    Body,
    /// Nobody reads it: an unknown method, about to be refused by the owner.
    Discard,
}

/// How far the response has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Response {
    /// Nothing sent.
    #[default]
    Awaited,
    /// Head sent; more may follow.
    Begun,
    /// The owner has finished it; queued bytes or the end still have to leave.
    Ending,
}

/// What ends a response after its queued bytes.
#[derive(Debug)]
pub(super) enum End {
    /// gRPC trailers: code and message.
    Grpc(u32, String),
    /// END_STREAM on the last DATA frame.
    Http,
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) number: u32,
    pub(super) intake: Intake,
    /// Messages may come compressed.
    pub(super) is_gzip: bool,
    pub(super) response: Response,
    pub(super) head: Option<HeadRef>,
    /// The request event has been delivered.
    pub(super) delivered: bool,
    /// END_STREAM was received.
    pub(super) request_ended: bool,
    /// A response to HEAD has no body.
    pub(super) is_head_request: bool,
    /// The only message of a `SingleMessage` stream is complete in `assembly`.
    pub(super) message_complete: bool,
    /// The stream is in the list of those that wait for the assembly budget.
    pub(super) waits_for_budget: bool,
    /// Since when a request, or a message of a stream, has been arriving.
    pub(super) arriving_since: Option<u64>,
    /// The stream is in the list of those with something to send.
    pub(super) is_ready: bool,
    /// `StreamWritable` is owed once the queue has drained.
    pub(super) was_full: bool,
    /// Bytes the client may still send.
    pub(super) receive_window: i64,
    /// Bytes we may still send.
    pub(super) send_window: i64,
    /// What content-length still promises.
    pub(super) content_left: Option<u64>,
    /// Partly received message (prefix included) or body.
    pub(super) assembly: Vec<u8>,
    /// Budget held for `assembly`, bytes granted ahead included.
    pub(super) held_bytes: usize,
    /// Budget held for the head.
    pub(super) head_bytes: usize,
    /// Response bytes from `queue_at` wait for windows.
    pub(super) queue: Vec<u8>,
    pub(super) queue_at: usize,
    pub(super) end: Option<Box<End>>,
    /// Bytes still owed to a message that is sent in parts.
    pub(super) message_left: usize,
    /// Since when the stream's window has blocked its queue.
    pub(super) blocked_at: Option<u64>,
}

impl Stream {
    /// Response bytes that wait.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.len() - self.queue_at
    }

    fn recycle(&mut self) {
        let keep = |mut buffer: Vec<u8>| {
            buffer.clear();
            if buffer.capacity() <= BUFFER_KEPT_BYTES_MAX { buffer } else { Vec::new() }
        };
        let assembly = keep(std::mem::take(&mut self.assembly));
        let queue = keep(std::mem::take(&mut self.queue));
        *self = Self { assembly, queue, ..Self::default() };
    }
}

/// How a stream that is no longer open ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// Both sides were done, or the client reset it: more frames are an error.
    ByClient,
    /// We reset it while the client may still have been sending: late frames are ignored.
    ByUs,
}

/// All open streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    free: Vec<u32>,
    order: VecDeque<(u32, u32)>,
    dead: usize,
    /// Apart, so that the many that end in order do not displace those that may still have frames in flight.
    closed_by_client: VecDeque<u32>,
    closed_by_us: VecDeque<u32>,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.order.len() - self.dead
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens stream `number`, above all earlier ones.
    #[inline]
    pub(super) fn open(&mut self, number: u32) -> StreamId {
        assert!(number != 0 && self.order.back().is_none_or(|(last, _)| *last < number), "I1");
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Stream::default());
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize].number = number;
        self.order.push_back((number, slot));
        StreamId { number, slot }
    }

    /// The open stream of that number.
    #[inline]
    pub(super) fn find(&self, number: u32) -> Option<StreamId> {
        let (last, mut slot) = *self.order.back()?;
        if last != number {
            let at = self.position(number)?;
            slot = self.order[at].1;
        }
        (slot != DEAD).then_some(StreamId { number, slot })
    }

    #[inline]
    pub(super) fn get(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.slots.get_mut(id.slot as usize).filter(|stream| stream.number == id.number)
    }

    #[inline]
    pub(super) fn peek(&self, id: StreamId) -> Option<&Stream> {
        self.slots.get(id.slot as usize).filter(|stream| stream.number == id.number)
    }

    /// Closes an open stream and frees its slot.
    #[inline]
    pub(super) fn close(&mut self, id: StreamId, how: Closed) {
        let stream = self.get(id).expect("I2: only open streams are closed");
        stream.recycle();
        self.free.push(id.slot);
        let at = self.position(id.number).expect("I1: an open stream is in the order");
        self.order[at].1 = DEAD;
        self.dead += 1;
        while self.order.front().is_some_and(|(_, slot)| *slot == DEAD) {
            self.order.pop_front();
            self.dead -= 1;
        }
        if self.dead > 64 && self.dead > self.order.len() / 2 {
            self.order.retain(|(_, slot)| *slot != DEAD);
            self.dead = 0;
        }
        self.remember_closed(id.number, how);
    }

    /// Notes how a stream ended, also one that was never opened here.
    #[inline]
    pub(super) fn remember_closed(&mut self, number: u32, how: Closed) {
        let closed = match how {
            Closed::ByClient => &mut self.closed_by_client,
            Closed::ByUs => &mut self.closed_by_us,
        };
        if closed.len() == CLOSED_STREAMS_REMEMBERED {
            closed.pop_front();
        }
        closed.push_back(number);
    }

    /// How a stream that is no longer open ended, if that is remembered.
    pub(super) fn closed(&self, number: u32) -> Option<Closed> {
        if self.closed_by_us.contains(&number) {
            return Some(Closed::ByUs);
        }
        self.closed_by_client.contains(&number).then_some(Closed::ByClient)
    }

    /// The open streams, oldest first.
    pub(super) fn ids(&self) -> impl Iterator<Item = StreamId> {
        let alive = self.order.iter().filter(|(_, slot)| *slot != DEAD);
        alive.map(|&(number, slot)| StreamId { number, slot })
    }

    fn position(&self, number: u32) -> Option<usize> {
        self.order.binary_search_by_key(&number, |(number, _)| *number).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Against a map: opens, closes and lookups in a mixed but fixed order.
    #[test]
    fn behaves_like_a_map() {
        let (mut streams, mut model) = (Streams::default(), BTreeMap::new());
        let mut random = 7u64;
        let mut next = 1u32;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = (random >> 33) as u32;
            if model.len() < 3 || (pick.is_multiple_of(2) && model.len() < 300) {
                model.insert(next, streams.open(next));
                next += 2 + pick % 3 * 2;
            } else {
                let nth = pick as usize / 2 % model.len();
                let (number, id) = model.iter().nth(nth).map(|(number, id)| (*number, *id)).unwrap();
                model.remove(&number);
                streams.close(id, Closed::ByClient);
                assert!(streams.find(number).is_none() && streams.peek(id).is_none());
            }
            let probe = 1 + pick % next;
            assert_eq!(streams.find(probe), model.get(&probe).copied());
            assert_eq!(streams.len(), model.len());
        }
        assert!(streams.ids().eq(model.values().copied()));
        assert!(streams.slots.len() <= 301, "slots are reused");
    }
}
