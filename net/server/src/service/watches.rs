//! Watch streams: requests in, responses out.
//!
//! Owns: which call a stream of `trilith_engine::watch` belongs to, and the form of a response. Does not know: who sees
//! which event.
//!
//! Events come from the engine as bytes of the wire, encoded once for all who see them; a response is a short head and
//! copies of those bytes.
//!
//! Invariants
//! - I1: a call takes a further response only while what it has not sent is short: a slow client costs itself.
//! - I2: a response that leaves in parts holds rows; a client that does not take it in [`LONG_RESPONSE_TIME_MAX`] loses
//!   its call, and one that asks much and reads nothing does, too.

use std::collections::BTreeMap;

use trilith_engine::budget::Budget;
use trilith_engine::page_source::{PageSource, Unavailable};
use trilith_engine::watch::{CreateWatch, Outlet, ResponseHead, StreamKey, WatchLimits, WatchStep, Watches};
use trilith_wire::api::status::{self, Status};
use trilith_wire::connection::limits::STREAM_BACKLOG_LOW_BYTES;
use trilith_wire::proto::Message;
use trilith_wire::proto::etcdserverpb as pb;

use crate::api::response::Identity;
use crate::clients::{Caller, Clients};
use crate::metrics::streams::WatchMetrics;
use crate::service::jobs::AGE_MAX;
use crate::service::streams::OpenCall;
use crate::service::{Service, Verdict, decode_streamed, refuse};

/// How long a response in parts may take, in nanoseconds.
const LONG_RESPONSE_TIME_MAX: u64 = AGE_MAX;
/// Answers to requests of one stream that wait for its client. A turn's input cannot hold so many requests.
const ANSWERS_WAITING_MAX: usize = 65_536;

/// All watch streams of a core.
#[derive(Debug)]
pub(super) struct WatchCalls {
    pub(super) watches: Watches,
    callers: BTreeMap<StreamKey, Caller>,
    /// Responses that leave in parts.
    long: BTreeMap<StreamKey, LongResponse>,
}

#[derive(Debug)]
struct LongResponse {
    since: u64,
    bytes_left: usize,
}

impl WatchCalls {
    /// None yet.
    pub(super) fn new(limits: WatchLimits) -> Self {
        Self { watches: Watches::new(limits), callers: BTreeMap::new(), long: BTreeMap::new() }
    }

    /// A call has ended.
    pub(super) fn close(&mut self, stream: StreamKey) {
        self.callers.remove(&stream);
        self.long.remove(&stream);
        self.watches.close_stream(stream);
    }

    /// When a client will have taken too long.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.long.values().map(|long| long.since.saturating_add(LONG_RESPONSE_TIME_MAX)).min()
    }
}

impl Service {
    /// Begins a stream of watch requests.
    pub(super) fn open_watch(&mut self, caller: Caller) -> Verdict {
        let stream = self.watch_calls.watches.open_stream();
        self.watch_calls.callers.insert(stream, caller);
        self.open_calls.insert(caller, OpenCall::Watch(stream));
        Verdict::Pending
    }

    /// One request of such a stream.
    pub(super) fn handle_watch(&mut self, stream: StreamKey, message: &[u8]) -> Result<(), Status> {
        let request = decode_streamed::<pb::WatchRequest<'_>>(message)?;
        let watches = &mut self.watch_calls.watches;
        match request.request_union {
            Some(pb::WatchRequestRequestUnion::Create(create)) => {
                let create = CreateWatch {
                    key: create.key,
                    range_end: create.range_end,
                    start_revision: create.start_revision,
                    watch_id: create.watch_id,
                    prev_kv: create.prev_kv,
                    no_put: create.filters.contains(&pb::FilterType::NOPUT),
                    no_delete: create.filters.contains(&pb::FilterType::NODELETE),
                    fragment: create.fragment,
                    progress_notify: create.progress_notify,
                };
                self.replica.create_watch(watches, stream, &create);
            }
            Some(pb::WatchRequestRequestUnion::Cancel(cancel)) => {
                watches.cancel(stream, cancel.watch_id, self.replica.keyspace());
            }
            Some(pb::WatchRequestRequestUnion::Progress(_)) => {
                watches.request_progress(stream, self.replica.keyspace());
            }
            None => {}
        }
        if watches.answers_waiting(stream) > ANSWERS_WAITING_MAX {
            return Err(status::TOO_MANY_REQUESTS);
        }
        Ok(())
    }

    /// Ends the calls of clients that take too long over one response (I2); they may go on from where they were.
    pub(super) fn end_slow_watches(&mut self, clients: &mut Clients, now: u64) {
        let WatchCalls { callers, long, .. } = &self.watch_calls;
        let is_slow = |long: &LongResponse| long.since.saturating_add(LONG_RESPONSE_TIME_MAX) <= now;
        let slow: Vec<Caller> = long.iter().filter(|(_, long)| is_slow(long)).map(|(key, _)| callers[key]).collect();
        for caller in slow {
            self.handle_call_ended(caller);
            if let Some(connection) = clients.answer(caller) {
                refuse(connection, caller, &status::TIMEOUT);
            }
        }
    }

    /// Hands out what watchers are to see, as much as the budget allows.
    ///
    /// # Errors
    /// A page is needed first.
    pub fn step_watches(
        &mut self,
        clients: &mut Clients,
        pages: &dyn PageSource,
        budget: &mut Budget,
        now: u64,
    ) -> Result<WatchStep, Unavailable> {
        let identity = self.identity();
        let WatchCalls { watches, callers, long } = &mut self.watch_calls;
        self.replica.step_watches(watches, pages, budget, now, &mut Calls { clients, callers, long, identity, now })
    }

    /// The figures of the moment.
    #[must_use]
    pub fn watch_metrics(&self) -> WatchMetrics {
        let counts = self.watch_calls.watches.counts();
        WatchMetrics {
            streams: counts.streams as u64,
            watchers: counts.watchers as u64,
            watchers_behind: counts.slow as u64,
            // Nothing is kept for a slow client but where it stands.
            events_pending: 0,
            events_sent: counts.events,
        }
    }

    /// Whether somebody who watches might be handed something.
    #[must_use]
    pub fn has_watch_work(&self) -> bool {
        let watches = &self.watch_calls.watches;
        !watches.is_empty() && watches.has_work(self.replica.keyspace())
    }
}

/// The calls behind the engine's streams.
struct Calls<'a> {
    clients: &'a mut Clients,
    callers: &'a BTreeMap<StreamKey, Caller>,
    long: &'a mut BTreeMap<StreamKey, LongResponse>,
    identity: Identity,
    now: u64,
}

impl Calls<'_> {
    fn caller(&self, stream: StreamKey) -> Caller {
        *self.callers.get(&stream).expect("a stream has its call until it is closed")
    }

    fn head(&self, head: &ResponseHead) -> pb::WatchResponse<'static> {
        pb::WatchResponse {
            header: Some(self.identity.header(head.revision)),
            watch_id: head.watch_id,
            created: head.created,
            canceled: head.canceled,
            compact_revision: head.compact_revision,
            cancel_reason: head.cancel_reason,
            fragment: head.fragment,
            events: Vec::new(),
        }
    }
}

impl Outlet for Calls<'_> {
    fn has_room(&mut self, stream: StreamKey) -> bool {
        let caller = self.caller(stream);
        self.clients.backlog_bytes(caller) <= STREAM_BACKLOG_LOW_BYTES
    }

    fn send(&mut self, stream: StreamKey, head: &ResponseHead, events: &[&[u8]]) {
        let (caller, head) = (self.caller(stream), self.head(head));
        let Some(mut connection) = self.clients.answer(caller) else { return };
        let events_bytes: usize = events.iter().map(|slice| slice.len()).sum();
        connection.send_message(caller.stream, head.encoded_len() + events_bytes, |out| {
            head.encode_into(out);
            events.iter().for_each(|slice| out.extend_from_slice(slice));
        });
    }

    fn begin(&mut self, stream: StreamKey, head: &ResponseHead, events_bytes: usize) {
        let (caller, head) = (self.caller(stream), self.head(head));
        let Some(mut connection) = self.clients.answer(caller) else { return };
        let bytes = head.encode_to_vec();
        connection.begin_message(caller.stream, bytes.len() + events_bytes);
        connection.send_part(caller.stream, &bytes);
        self.long.insert(stream, LongResponse { since: self.now, bytes_left: events_bytes });
    }

    fn part(&mut self, stream: StreamKey, events: &[u8]) {
        let caller = self.caller(stream);
        if let Some(mut connection) = self.clients.answer(caller) {
            connection.send_part(caller.stream, events);
        }
        let Some(long) = self.long.get_mut(&stream) else { return };
        long.bytes_left = long.bytes_left.checked_sub(events.len()).expect("parts are as long as announced");
        if long.bytes_left == 0 {
            self.long.remove(&stream);
        }
    }
}
