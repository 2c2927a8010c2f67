//! Watching: what watchers ask for and what they are told, in messages of the API.
//!
//! Owns: requests and responses of Watch.Watch and their bytes. Does not know: connections and streams ([`client`]),
//! whether an event is right ([`ledger`]).

pub mod client;
pub mod ledger;
mod stream;

use trilith_wire::proto::codec::Limits;
use trilith_wire::proto::etcdserverpb as pb;
use trilith_wire::proto::{Message, mvccpb};

use crate::codec::owned;
use crate::model::{KeyRange, KeyValue};

/// What a watcher is to see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct WatchSpec {
    pub range: KeyRange,
    pub start_revision: i64,
    /// The client's own id; 0: the server chooses.
    pub watch_id: i64,
    pub prev_kv: bool,
    pub no_put: bool,
    pub no_delete: bool,
    pub fragment: bool,
    pub progress_notify: bool,
}

impl WatchSpec {
    /// Whether a change of `key` is one that the watcher wants: a put, or a deletion.
    #[must_use]
    pub fn wants(&self, key: &[u8], is_put: bool) -> bool {
        self.range.contains(key) && !(if is_put { self.no_put } else { self.no_delete })
    }

    /// Why it cannot be created, whatever else is watched.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let KeyRange { key, range_end } = &self.range;
        match range_end.as_slice() {
            _ if self.start_revision < 0 => Some("etcdserver: mvcc: required revision has been compacted"),
            [] | [0] => None,
            end => (key.as_slice() >= end).then_some("mvcc: watcher range is empty"),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut filters = Vec::new();
        filters.extend(self.no_put.then_some(pb::FilterType::NOPUT));
        filters.extend(self.no_delete.then_some(pb::FilterType::NODELETE));
        let create = pb::WatchCreateRequest {
            key: &self.range.key,
            range_end: &self.range.range_end,
            start_revision: self.start_revision,
            progress_notify: self.progress_notify,
            filters,
            prev_kv: self.prev_kv,
            watch_id: self.watch_id,
            fragment: self.fragment,
        };
        encode(pb::WatchRequestRequestUnion::Create(create))
    }
}

fn encode(union: pb::WatchRequestRequestUnion<'_>) -> Vec<u8> {
    pb::WatchRequest { request_union: Some(union) }.encode_to_vec()
}

fn encode_cancel(watch_id: i64) -> Vec<u8> {
    encode(pb::WatchRequestRequestUnion::Cancel(pb::WatchCancelRequest { watch_id }))
}

fn encode_progress() -> Vec<u8> {
    encode(pb::WatchRequestRequestUnion::Progress(pb::WatchProgressRequest {}))
}

/// A change as a watcher was told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenEvent {
    /// The revision that made it.
    pub revision: i64,
    /// The key.
    pub key: Vec<u8>,
    /// The pair; `None`: it was deleted.
    pub pair: Option<KeyValue>,
    /// The pair before.
    pub previous: Option<KeyValue>,
}

/// What the server says on a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct WatchReply {
    pub cluster_id: u64,
    pub member_id: u64,
    pub raft_term: u64,
    pub revision: i64,
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub cancel_reason: String,
    pub fragment: bool,
    pub events: Vec<SeenEvent>,
}

impl WatchReply {
    /// Reads a message.
    ///
    /// # Errors
    /// It is malformed, has no header, or an event has not the form that events have.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let message = pb::WatchResponse::decode_within(bytes, Limits::RESPONSE)
            .map_err(|error| format!("malformed watch response: {error}"))?;
        let header = message.header.ok_or("watch response without a header")?;
        Ok(Self {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            raft_term: header.raft_term,
            revision: header.revision,
            watch_id: message.watch_id,
            created: message.created,
            canceled: message.canceled,
            compact_revision: message.compact_revision,
            cancel_reason: message.cancel_reason.to_owned(),
            fragment: message.fragment,
            events: message.events.iter().map(event).collect::<Result<_, _>>()?,
        })
    }
}

fn event(event: &mvccpb::Event<'_>) -> Result<SeenEvent, String> {
    let pair = owned(event.kv.as_ref().ok_or("event without a pair")?);
    let previous = event.prev_kv.as_ref().map(owned);
    let (revision, key) = (pair.mod_revision, pair.key.clone());
    if event.event_type == mvccpb::EventType::PUT {
        return Ok(SeenEvent { revision, key, pair: Some(pair), previous });
    }
    let bare = KeyValue { key: key.clone(), mod_revision: revision, ..KeyValue::default() };
    if event.event_type != mvccpb::EventType::DELETE || pair != bare {
        return Err(format!("an event of type {:?} shows {pair:?}", event.event_type));
    }
    Ok(SeenEvent { revision, key, pair: None, previous })
}
