//! Requests to messages and messages to answers.
//!
//! Owns: paths, the protobuf form of every request, and the reading of every answer. Does not know: whether an answer
//! is right.

use trilith_wire::proto::codec::Limits;
use trilith_wire::proto::etcdserverpb as pb;
use trilith_wire::proto::{Message, mvccpb};

use crate::history::{
    AlarmAction, Answer, Compare, LeaseFacts, Put, Range, Relation, Request, Response, SortOrder, SortTarget, Target,
    Txn,
};
use crate::model::KeyValue;
use crate::value::Value;

/// Where leases are kept alive.
pub(crate) const KEEP_ALIVE_PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

impl Relation {
    fn encode(self) -> pb::CompareResult {
        match self {
            Self::Equal => pb::CompareResult::EQUAL,
            Self::Greater => pb::CompareResult::GREATER,
            Self::Less => pb::CompareResult::LESS,
            Self::NotEqual => pb::CompareResult::NOT_EQUAL,
            Self::Unknown => pb::CompareResult(9),
        }
    }
}

impl Compare {
    fn encode(&self) -> pb::Compare<'_> {
        use pb::CompareTargetUnion as Union;
        let (target, union) = match &self.target {
            Target::Version(version) => (pb::CompareTarget::VERSION, Some(Union::Version(*version))),
            Target::VersionMismatched => (pb::CompareTarget::VERSION, Some(Union::ModRevision(3))),
            Target::Create(revision) => (pb::CompareTarget::CREATE, Some(Union::CreateRevision(*revision))),
            Target::Mod(revision) => (pb::CompareTarget::MOD, Some(Union::ModRevision(*revision))),
            Target::Lease(lease) => (pb::CompareTarget::LEASE, Some(Union::Lease(*lease))),
            Target::Value(value) => (pb::CompareTarget::VALUE, Some(Union::Value(value))),
            Target::ValueMismatched => (pb::CompareTarget::VALUE, Some(Union::Version(3))),
            Target::Unknown => (pb::CompareTarget(9), None),
        };
        pb::Compare {
            result: self.relation.encode(),
            target,
            key: &self.range.key,
            range_end: &self.range.range_end,
            target_union: union,
        }
    }
}

fn encode_put(put: &Put) -> pb::PutRequest<'_> {
    pb::PutRequest {
        key: &put.key,
        value: &put.value,
        lease: put.lease,
        prev_kv: put.prev_kv,
        ignore_value: put.ignore_value,
        ignore_lease: put.ignore_lease,
    }
}

fn encode_range(range: &Range) -> pb::RangeRequest<'_> {
    pb::RangeRequest {
        key: &range.range.key,
        range_end: &range.range.range_end,
        limit: range.limit,
        revision: range.revision,
        sort_order: match range.order {
            SortOrder::None => pb::SortOrder::NONE,
            SortOrder::Ascend => pb::SortOrder::ASCEND,
            SortOrder::Descend => pb::SortOrder::DESCEND,
            SortOrder::Unknown => pb::SortOrder(7),
        },
        sort_target: match range.target {
            SortTarget::Key => pb::SortTarget::KEY,
            SortTarget::Version => pb::SortTarget::VERSION,
            SortTarget::Create => pb::SortTarget::CREATE,
            SortTarget::Mod => pb::SortTarget::MOD,
            SortTarget::Value => pb::SortTarget::VALUE,
            SortTarget::Unknown => pb::SortTarget(7),
        },
        serializable: range.serializable,
        keys_only: range.keys_only,
        count_only: range.count_only,
        min_mod_revision: range.min_mod,
        max_mod_revision: range.max_mod,
        min_create_revision: range.min_create,
        max_create_revision: range.max_create,
    }
}

fn encode_txn(txn: &Txn) -> pb::TxnRequest<'_> {
    pb::TxnRequest {
        compare: txn.compares.iter().map(Compare::encode).collect(),
        success: txn.success.iter().map(Request::encode_operation).collect(),
        failure: txn.failure.iter().map(Request::encode_operation).collect(),
    }
}

impl Request {
    /// The gRPC path and the request message.
    #[must_use]
    pub fn encode(&self) -> (&'static str, Vec<u8>) {
        match self {
            Self::Put(put) => ("/etcdserverpb.KV/Put", encode_put(put).encode_to_vec()),
            Self::Delete(delete) => {
                let (key, range_end) = (&delete.range.key, &delete.range.range_end);
                let message = pb::DeleteRangeRequest { key, range_end, prev_kv: delete.prev_kv };
                ("/etcdserverpb.KV/DeleteRange", message.encode_to_vec())
            }
            Self::Range(range) => ("/etcdserverpb.KV/Range", encode_range(range).encode_to_vec()),
            Self::Txn(txn) => ("/etcdserverpb.KV/Txn", encode_txn(txn).encode_to_vec()),
            Self::Compact { revision, physical } => {
                let message = pb::CompactionRequest { revision: *revision, physical: *physical };
                ("/etcdserverpb.KV/Compact", message.encode_to_vec())
            }
            Self::Alarm { action, member, kind } => {
                let action = match action {
                    AlarmAction::Get => pb::AlarmAction::GET,
                    AlarmAction::Activate => pb::AlarmAction::ACTIVATE,
                    AlarmAction::Deactivate => pb::AlarmAction::DEACTIVATE,
                };
                let message = pb::AlarmRequest { action, member_id: *member, alarm: pb::AlarmType(*kind) };
                ("/etcdserverpb.Maintenance/Alarm", message.encode_to_vec())
            }
            Self::Status => ("/etcdserverpb.Maintenance/Status", Vec::new()),
            Self::Hash => ("/etcdserverpb.Maintenance/Hash", Vec::new()),
            Self::HashKv { revision } => {
                let message = pb::HashKVRequest { revision: *revision };
                ("/etcdserverpb.Maintenance/HashKV", message.encode_to_vec())
            }
            Self::Defragment => ("/etcdserverpb.Maintenance/Defragment", Vec::new()),
            Self::MemberList { linearizable } => {
                let message = pb::MemberListRequest { linearizable: *linearizable };
                ("/etcdserverpb.Cluster/MemberList", message.encode_to_vec())
            }
            Self::Unset => unreachable!("only an operation of a transaction says nothing"),
            about_lease => about_lease.encode_about_lease(),
        }
    }

    fn encode_about_lease(&self) -> (&'static str, Vec<u8>) {
        match *self {
            Self::LeaseGrant { id, ttl } => {
                ("/etcdserverpb.Lease/LeaseGrant", pb::LeaseGrantRequest { id, ttl }.encode_to_vec())
            }
            Self::LeaseRevoke { id } => {
                ("/etcdserverpb.Lease/LeaseRevoke", pb::LeaseRevokeRequest { id }.encode_to_vec())
            }
            Self::LeaseKeepAlive { id, .. } => (KEEP_ALIVE_PATH, pb::LeaseKeepAliveRequest { id }.encode_to_vec()),
            Self::LeaseTimeToLive { id, keys } => {
                ("/etcdserverpb.Lease/LeaseTimeToLive", pb::LeaseTimeToLiveRequest { id, keys }.encode_to_vec())
            }
            Self::LeaseLeases => ("/etcdserverpb.Lease/LeaseLeases", Vec::new()),
            ref other => unreachable!("{other:?} is encoded by its own kind"),
        }
    }

    fn encode_operation(&self) -> pb::RequestOp<'_> {
        let request = match self {
            Self::Put(put) => Some(pb::RequestOpRequest::Put(encode_put(put))),
            Self::Delete(delete) => Some(pb::RequestOpRequest::DeleteRange(pb::DeleteRangeRequest {
                key: &delete.range.key,
                range_end: &delete.range.range_end,
                prev_kv: delete.prev_kv,
            })),
            Self::Range(range) => Some(pb::RequestOpRequest::Range(encode_range(range))),
            Self::Txn(txn) => Some(pb::RequestOpRequest::Txn(encode_txn(txn))),
            Self::Unset => None,
            other => unreachable!("{other:?} is not an operation of a transaction"),
        };
        pb::RequestOp { request }
    }

    /// Reads the answer to this request.
    ///
    /// # Errors
    /// The bytes are not the message, or it has no header.
    pub fn decode_response(&self, bytes: &[u8]) -> Result<Response, String> {
        let (header, answer) = match self {
            Self::Put(_) => {
                let message = decode::<pb::PutResponse<'_>>(bytes)?;
                (message.header, put_answer(&message))
            }
            Self::Delete(_) => {
                let message = decode::<pb::DeleteRangeResponse<'_>>(bytes)?;
                (message.header, delete_answer(&message))
            }
            Self::Range(_) => {
                let message = decode::<pb::RangeResponse<'_>>(bytes)?;
                (message.header, range_answer(&message))
            }
            Self::Txn(txn) => {
                let message = decode::<pb::TxnResponse<'_>>(bytes)?;
                (message.header, txn_answer(txn, &message)?)
            }
            other => other.decode_maintenance(bytes)?,
        };
        let header = header.ok_or("response without a header")?;
        let pb::ResponseHeader { cluster_id, member_id, raft_term, .. } = header;
        Ok(Response { cluster_id, member_id, raft_term, answer })
    }

    fn decode_maintenance(&self, bytes: &[u8]) -> Result<(Option<pb::ResponseHeader>, Answer), String> {
        let plain = |header| (header, Answer { revision: revision_of(header), ..Answer::default() });
        Ok(match self {
            Self::Compact { .. } => plain(decode::<pb::CompactionResponse>(bytes)?.header),
            Self::Status => plain(decode::<pb::StatusResponse<'_>>(bytes)?.header),
            Self::MemberList { .. } => plain(decode::<pb::MemberListResponse<'_>>(bytes)?.header),
            Self::Hash => plain(decode::<pb::HashResponse>(bytes)?.header),
            // Its answer has no header at all.
            Self::Defragment => {
                let message = decode::<pb::DefragmentResponse>(bytes)?;
                plain(message.header.or_else(|| Some(pb::ResponseHeader::default())))
            }
            Self::HashKv { .. } => {
                let message = decode::<pb::HashKVResponse>(bytes)?;
                let (header, mut answer) = plain(message.header);
                answer.count = i64::from(message.hash);
                answer.hashed = (message.hash_revision, message.compact_revision);
                (header, answer)
            }
            Self::Alarm { .. } => {
                let message = decode::<pb::AlarmResponse>(bytes)?;
                let (header, mut answer) = plain(message.header);
                answer.alarms = message.alarms.iter().map(|alarm| alarm.alarm.0).collect();
                (header, answer)
            }
            about_lease => return about_lease.decode_about_lease(bytes),
        })
    }

    fn decode_about_lease(&self, bytes: &[u8]) -> Result<(Option<pb::ResponseHeader>, Answer), String> {
        let answer = |header: Option<pb::ResponseHeader>, lease| {
            (header, Answer { revision: revision_of(header), lease, ..Answer::default() })
        };
        Ok(match self {
            Self::LeaseGrant { .. } => {
                let pb::LeaseGrantResponse { header, id, ttl, error } = decode(bytes)?;
                if !error.is_empty() {
                    return Err(format!("a grant with the error {error}"));
                }
                answer(header, LeaseFacts { id, ttl, ..LeaseFacts::default() })
            }
            Self::LeaseRevoke { .. } => answer(decode::<pb::LeaseRevokeResponse>(bytes)?.header, LeaseFacts::default()),
            Self::LeaseKeepAlive { .. } => {
                let pb::LeaseKeepAliveResponse { header, id, ttl } = decode(bytes)?;
                answer(header, LeaseFacts { id, ttl, ..LeaseFacts::default() })
            }
            Self::LeaseTimeToLive { .. } => {
                let pb::LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys } = decode(bytes)?;
                let keys = keys.into_iter().map(<[u8]>::to_vec).collect();
                answer(header, LeaseFacts { id, ttl, granted_ttl, keys, ids: Vec::new() })
            }
            Self::LeaseLeases => {
                let pb::LeaseLeasesResponse { header, leases } = decode(bytes)?;
                let ids = leases.iter().map(|lease| lease.id).collect();
                answer(header, LeaseFacts { ids, ..LeaseFacts::default() })
            }
            other => unreachable!("{other:?} is decoded by its own kind"),
        })
    }
}

fn decode<'a, M: Message<'a>>(bytes: &'a [u8]) -> Result<M, String> {
    M::decode_within(bytes, Limits::RESPONSE).map_err(|error| format!("malformed response: {error}"))
}

fn revision_of(header: Option<pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

fn put_answer(message: &pb::PutResponse<'_>) -> Answer {
    let kvs = message.prev_kv.iter().map(owned).collect();
    Answer { revision: revision_of(message.header), kvs, ..Answer::default() }
}

fn delete_answer(message: &pb::DeleteRangeResponse<'_>) -> Answer {
    let kvs = message.prev_kvs.iter().map(owned).collect();
    Answer { revision: revision_of(message.header), kvs, count: message.deleted, ..Answer::default() }
}

fn range_answer(message: &pb::RangeResponse<'_>) -> Answer {
    let kvs = message.kvs.iter().map(owned).collect();
    let (count, more) = (message.count, message.more);
    Answer { revision: revision_of(message.header), kvs, count, more, ..Answer::default() }
}

fn txn_answer(txn: &Txn, message: &pb::TxnResponse<'_>) -> Result<Answer, String> {
    let operations = txn.branch(message.succeeded);
    if operations.len() != message.responses.len() {
        let (asked, answered) = (operations.len(), message.responses.len());
        return Err(format!("{answered} answers to {asked} operations of a transaction"));
    }
    let mut inner = Vec::new();
    for (operation, response) in operations.iter().zip(&message.responses) {
        inner.push(match (operation, &response.response) {
            (Request::Put(_), Some(pb::ResponseOpResponse::Put(message))) => put_answer(message),
            (Request::Delete(_), Some(pb::ResponseOpResponse::DeleteRange(message))) => delete_answer(message),
            (Request::Range(_), Some(pb::ResponseOpResponse::Range(message))) => range_answer(message),
            (Request::Txn(txn), Some(pb::ResponseOpResponse::Txn(message))) => txn_answer(txn, message)?,
            (_, other) => return Err(format!("{operation:?} in a transaction is answered by {other:?}")),
        });
    }
    let (revision, succeeded) = (revision_of(message.header), message.succeeded);
    Ok(Answer { revision, succeeded, inner, ..Answer::default() })
}

pub(crate) fn owned(pair: &mvccpb::KeyValue<'_>) -> KeyValue {
    KeyValue {
        key: pair.key.to_vec(),
        value: Value::of(pair.value),
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision,
        version: pair.version,
        lease: pair.lease,
    }
}
