//! What cores say to each other: one parcel for a destination and turn.
//!
//! Owns: the two kinds of parcels and the bounds of what is on its way. Does not know: connections, the service, how a
//! parcel travels.
//!
//! A parcel is a list of small records and one buffer of bytes, which the records take from in their order: neither a
//! request nor an answer allocates anything of its own.
//!
//! Invariants
//! - I1: what a connection core has sent and the sequencer has not taken is bounded: [`REQUESTS_MAX`] and
//!   [`REQUEST_BYTES_MAX`], exceeded by one request at most. The sequencer gives credit back as it takes requests, but
//!   not while answers of more than [`ANSWER_BYTES_MAX`] are on their way to that core. So what waits between two cores
//!   is at most those answers and the answers to what was admitted before: the room for them is reserved with the
//!   request.
//! - I2: what only ends or frees something (a closed connection, bytes taken) needs no credit: there is never more of
//!   it than of what it ends. An order needs none, and answers are always taken.

use std::collections::BTreeMap;

use trilith_engine::shard::ShardJob;
use trilith_engine::store::Tree;
use trilith_reactor::ConnectionId;
use trilith_wire::api::methods::Method;
use trilith_wire::connection::StreamId;

use crate::front::FrontMetrics;
use crate::front::errands::Errand;
use crate::http::{Audience, Response};
use crate::metrics::calls::SlowCall;
use crate::service::CallFacts;

/// Requests of a connection core that the sequencer has not taken.
pub const REQUESTS_MAX: usize = 16_384;
/// Their bytes.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Bytes of answers on their way to a core above which it gets no further credit.
pub const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Bytes of answers that a core takes before it says so for that alone.
pub const ANSWERS_TOLD_BYTES: usize = ANSWER_BYTES_MAX / 8;

/// What requests cost, or how many may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Requests.
    pub requests: usize,
    /// Bytes of their messages.
    pub bytes: usize,
}

impl Credit {
    /// Adds one request.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.requests += 1;
        self.bytes += bytes;
    }

    /// Adds what another one counts.
    pub(crate) fn add_all(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
    }

    /// Takes back what another one counts.
    pub(crate) fn give_back(&mut self, other: Self) {
        self.requests = self.requests.checked_sub(other.requests).expect("I1: credit is given back once");
        self.bytes = self.bytes.checked_sub(other.bytes).expect("I1: credit is given back once");
    }

    /// Whether one more request may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.requests < REQUESTS_MAX && self.bytes < REQUEST_BYTES_MAX
    }
}

/// What one stream of a connection, or the connection itself, has to say.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) slot: u32,
    pub(crate) connection: ConnectionId,
    pub(crate) stream: StreamId,
    pub(crate) what: Said,
}

/// See [`Request`].
#[derive(Debug)]
pub(crate) enum Said {
    /// A call with its only message, or at its head.
    Call { method: Method, facts: CallFacts, len: usize },
    /// A put that passed the checks of its arguments, in its log form, and what it costs of the quota.
    Put { facts: CallFacts, cost: u64, len: usize },
    /// A further message of an open call.
    Message { len: usize },
    /// The client sends no more on a call.
    HalfClose,
    /// The client gave a call up.
    Reset,
    /// So many bytes of what was sent on a call are out of the connection's queue.
    Taken { bytes: usize },
    /// An HTTP request: the lengths of method, path and query.
    Http { audience: Audience, lens: [usize; 3] },
    /// The connection is gone.
    Closed,
}

/// A turn of a connection core, for the sequencer.
#[derive(Debug, Default)]
pub struct Requests {
    pub(crate) items: Vec<Request>,
    pub(crate) bytes: Vec<u8>,
    /// What the items take of the core's credit.
    pub(crate) cost: Credit,
    /// Bytes of answers taken since the last parcel.
    pub(crate) answers_taken: usize,
    /// Calls that took long, for the log.
    pub(crate) slow: Vec<SlowCall>,
    /// The counters, for those who asked by these numbers.
    pub(crate) counters: Vec<(u64, Box<FrontMetrics>)>,
    /// Jobs of shards, done or in want of a page.
    pub(crate) jobs: Vec<ShardJob<Tree>>,
}

impl Requests {
    /// Whether there is reason to send it.
    pub(crate) fn is_due(&self) -> bool {
        !self.items.is_empty()
            || !self.slow.is_empty()
            || !self.counters.is_empty()
            || !self.jobs.is_empty()
            || self.answers_taken >= ANSWERS_TOLD_BYTES
    }

    /// An empty one with room for as much as this one holds.
    pub(crate) fn successor(&self) -> Self {
        Self {
            items: Vec::with_capacity(self.items.len()),
            bytes: Vec::with_capacity(self.bytes.len()),
            ..Self::default()
        }
    }
}

/// One call of a connection's response methods.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) slot: u32,
    pub(crate) connection: ConnectionId,
    pub(crate) stream: StreamId,
    pub(crate) what: Told,
}

/// See [`Answer`]; lengths are of the bytes taken from the parcel.
#[derive(Debug)]
pub(crate) enum Told {
    Unary { len: usize },
    Message { len: usize },
    Begin { len: usize },
    Part { len: usize },
    Finish { code: u32, len: usize },
    Reset,
    Http(Box<Response>),
}

/// What a connection core is to do as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Service begins: look at what clients say. The data may be of another member than the options would make.
    Serve { member_id: u64 },
    /// End every connection gracefully.
    Drain,
    /// End.
    Stop,
    /// Tell the counters, by this number.
    Count(u64),
}

/// A turn of the sequencer, for a connection core.
#[derive(Debug, Default)]
pub struct Answers {
    pub(crate) items: Vec<Answer>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) credit: Credit,
    pub(crate) orders: Vec<Order>,
    /// Jobs of shards: one round's at most, so they need no credit.
    pub(crate) errands: Vec<Errand>,
}

impl Answers {
    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.orders.is_empty() && self.errands.is_empty() && self.credit == Credit::default()
    }

    /// Bytes of messages in it, for inspection; bodies that answers share count once.
    #[must_use]
    pub fn message_bytes(&self) -> usize {
        let bodies = self.items.iter().filter_map(|answer| match &answer.what {
            Told::Http(response) => Some((response.body.as_ptr(), response.body.len())),
            _ => None,
        });
        self.bytes.len() + BTreeMap::from_iter(bodies).values().sum::<usize>()
    }

    /// What it takes of memory, roughly; not nothing.
    pub(crate) fn weight(&self) -> usize {
        self.bytes.len() + self.items.len() * size_of::<Answer>()
    }

    /// An empty one with room for as much as this one holds.
    pub(crate) fn successor(&self) -> Self {
        Self {
            items: Vec::with_capacity(self.items.len()),
            bytes: Vec::with_capacity(self.bytes.len()),
            ..Self::default()
        }
    }
}

/// Takes the next `len` bytes.
pub(crate) fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(len);
    *bytes = rest;
    taken
}
