//! The requests of the workload and their protobuf form.
//!
//! Owns: encoding requests, reading revisions from answers. Does not know: what a right answer is
//! ([`crate::ledger`]).

use std::fmt;

use trilith_wire::proto::Message;
use trilith_wire::proto::codec::Limits;
use trilith_wire::proto::etcdserverpb as pb;

/// One change within a transaction.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Change {
    /// Put a pair.
    Put { key: Vec<u8>, value: Vec<u8> },
    /// Delete the keys in `key..end`; an empty end is the key alone.
    Delete { key: Vec<u8>, end: Vec<u8> },
}

/// The end of a key, which tells it from others.
#[must_use]
pub fn key_text(key: &[u8]) -> String {
    key[key.len().saturating_sub(4)..].escape_ascii().to_string()
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value } => write!(f, "put {} ({} bytes)", key_text(key), value.len()),
            Self::Delete { key, end } => write!(f, "delete {}..{}", key_text(key), key_text(end)),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(change) => write!(f, "{change:?}"),
            Self::Txn { key, version, success, failure } => {
                write!(f, "if version({}) is {version} {success:?} else {failure:?}", key_text(key))
            }
            Self::Compact { revision } => write!(f, "compact {revision}"),
            Self::Alarm { active } => write!(f, "alarm {active}"),
            Self::Count { serializable } => write!(f, "count (serializable: {serializable})"),
        }
    }
}

/// What a client asks.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Request {
    /// One change as a call of its own.
    Change(Change),
    /// If `key` has `version` (0: is missing), the first list, else the second.
    Txn { key: Vec<u8>, version: i64, success: Vec<Change>, failure: Vec<Change> },
    /// Forget what is older.
    Compact { revision: i64 },
    /// Raise or clear the alarm about space.
    Alarm { active: bool },
    /// Count all keys; `serializable` reads may be answered from the past.
    Count { serializable: bool },
}

impl Change {
    fn encode(&self) -> pb::RequestOpRequest<'_> {
        match self {
            Self::Put { key, value } => {
                pb::RequestOpRequest::Put(pb::PutRequest { key, value, ..pb::PutRequest::default() })
            }
            Self::Delete { key, end } => pb::RequestOpRequest::DeleteRange(pb::DeleteRangeRequest {
                key,
                range_end: end,
                ..pb::DeleteRangeRequest::default()
            }),
        }
    }
}

impl Request {
    /// Whether it goes through the log.
    #[must_use]
    pub fn is_command(&self) -> bool {
        !matches!(self, Self::Count { .. })
    }

    /// The gRPC path and the message.
    #[must_use]
    pub fn encode(&self) -> (&'static str, Vec<u8>) {
        match self {
            Self::Change(change) => match change.encode() {
                pb::RequestOpRequest::Put(message) => ("/etcdserverpb.KV/Put", message.encode_to_vec()),
                pb::RequestOpRequest::DeleteRange(message) => ("/etcdserverpb.KV/DeleteRange", message.encode_to_vec()),
                _ => unreachable!("a change puts or deletes"),
            },
            Self::Txn { key, version, success, failure } => {
                let compare = pb::Compare {
                    result: pb::CompareResult::EQUAL,
                    target: pb::CompareTarget::VERSION,
                    key,
                    target_union: Some(pb::CompareTargetUnion::Version(*version)),
                    ..pb::Compare::default()
                };
                ("/etcdserverpb.KV/Txn", encode_txn(vec![compare], encode_all(success), encode_all(failure)))
            }
            Self::Compact { revision } => {
                let message = pb::CompactionRequest { revision: *revision, ..pb::CompactionRequest::default() };
                ("/etcdserverpb.KV/Compact", message.encode_to_vec())
            }
            Self::Alarm { active } => {
                let action = if *active { pb::AlarmAction::ACTIVATE } else { pb::AlarmAction::DEACTIVATE };
                let message = pb::AlarmRequest { action, member_id: 1, alarm: pb::AlarmType::NOSPACE };
                ("/etcdserverpb.Maintenance/Alarm", message.encode_to_vec())
            }
            Self::Count { serializable } => {
                let everything = everything();
                let message = pb::RangeRequest { count_only: true, serializable: *serializable, ..everything };
                ("/etcdserverpb.KV/Range", message.encode_to_vec())
            }
        }
    }

    /// The revision in the answer's header, if it has one.
    ///
    /// # Errors
    /// The bytes are not the message.
    pub fn revision(&self, bytes: &[u8]) -> Result<i64, String> {
        let header = match self {
            Self::Change(Change::Put { .. }) => decode::<pb::PutResponse<'_>>(bytes)?.header,
            Self::Change(Change::Delete { .. }) => decode::<pb::DeleteRangeResponse<'_>>(bytes)?.header,
            Self::Txn { .. } => decode::<pb::TxnResponse<'_>>(bytes)?.header,
            Self::Compact { .. } => decode::<pb::CompactionResponse>(bytes)?.header,
            Self::Alarm { .. } => decode::<pb::AlarmResponse>(bytes)?.header,
            Self::Count { .. } => decode::<pb::RangeResponse<'_>>(bytes)?.header,
        };
        header.map(|header| header.revision).ok_or_else(|| format!("an answer to {self:?} without a header"))
    }
}

fn encode_all(changes: &[Change]) -> Vec<pb::RequestOpRequest<'_>> {
    changes.iter().map(Change::encode).collect()
}

fn encode_txn(
    compare: Vec<pb::Compare<'_>>,
    success: Vec<pb::RequestOpRequest<'_>>,
    failure: Vec<pb::RequestOpRequest<'_>>,
) -> Vec<u8> {
    fn operation(request: pb::RequestOpRequest<'_>) -> pb::RequestOp<'_> {
        pb::RequestOp { request: Some(request) }
    }
    let success = success.into_iter().map(operation).collect();
    pb::TxnRequest { compare, success, failure: failure.into_iter().map(operation).collect() }.encode_to_vec()
}

/// A read of every key.
#[must_use]
pub fn everything() -> pb::RangeRequest<'static> {
    pb::RangeRequest { key: b"\0", range_end: b"\0", ..pb::RangeRequest::default() }
}

/// The path and the message of several reads at once.
#[must_use]
pub fn encode_reads(reads: Vec<pb::RangeRequest<'_>>) -> (&'static str, Vec<u8>) {
    let reads = reads.into_iter().map(pb::RequestOpRequest::Range).collect();
    ("/etcdserverpb.KV/Txn", encode_txn(Vec::new(), reads, Vec::new()))
}

/// The path and the message of a question for alarms.
#[must_use]
pub fn encode_alarms() -> (&'static str, Vec<u8>) {
    ("/etcdserverpb.Maintenance/Alarm", pb::AlarmRequest::default().encode_to_vec())
}

/// Reads an answer.
///
/// # Errors
/// The bytes are not the message.
pub fn decode<'a, M: Message<'a>>(bytes: &'a [u8]) -> Result<M, String> {
    M::decode_within(bytes, Limits::RESPONSE).map_err(|error| format!("malformed answer: {error}"))
}
