//! Requests and responses as the clients saw them, and their protobuf form.
//!
//! Owns: the operations of the workload. Does not know: whether an answer is right (see [`crate::checker`]).

use std::cmp::Ordering;
use std::fmt;

use trilith_wire::proto::codec::Limits;
use trilith_wire::proto::etcdserverpb as pb;
use trilith_wire::proto::{Message, mvccpb};

use crate::model::{KeyRange, KeyValue};

/// How a compare relates what is stored to what it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Stored equals named.
    Equal,
    /// Stored is greater.
    Greater,
    /// Stored is less.
    Less,
    /// They differ.
    NotEqual,
}

impl Relation {
    /// Whether stored-to-named `order` satisfies it.
    #[must_use]
    pub fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Greater => order.is_gt(),
            Self::Less => order.is_lt(),
            Self::NotEqual => order.is_ne(),
        }
    }

    fn encode(self) -> pb::CompareResult {
        match self {
            Self::Equal => pb::CompareResult::EQUAL,
            Self::Greater => pb::CompareResult::GREATER,
            Self::Less => pb::CompareResult::LESS,
            Self::NotEqual => pb::CompareResult::NOT_EQUAL,
        }
    }
}

/// A condition of a transaction on one key.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Compare {
    /// On the version; 0 for a missing key.
    Version { key: Vec<u8>, relation: Relation, version: i64 },
    /// On the creation revision; 0 for a missing key.
    Created { key: Vec<u8>, relation: Relation, revision: i64 },
    /// On the modification revision; 0 for a missing key.
    Modified { key: Vec<u8>, relation: Relation, revision: i64 },
    /// On the value; false for a missing key.
    Value { key: Vec<u8>, relation: Relation, value: Vec<u8> },
}

impl fmt::Debug for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(self.key());
        match self {
            Self::Version { relation, version, .. } => write!(f, "version({key}) {relation:?} {version}"),
            Self::Created { relation, revision, .. } => write!(f, "create({key}) {relation:?} {revision}"),
            Self::Modified { relation, revision, .. } => write!(f, "mod({key}) {relation:?} {revision}"),
            Self::Value { relation, value, .. } => {
                write!(f, "value({key}) {relation:?} {}", String::from_utf8_lossy(value))
            }
        }
    }
}

impl Compare {
    /// The key it looks at.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Version { key, .. }
            | Self::Created { key, .. }
            | Self::Modified { key, .. }
            | Self::Value { key, .. } => key,
        }
    }

    fn encode(&self) -> pb::Compare<'_> {
        let (relation, target, union) = match self {
            Self::Version { relation, version, .. } => {
                (relation, pb::CompareTarget::VERSION, pb::CompareTargetUnion::Version(*version))
            }
            Self::Created { relation, revision, .. } => {
                (relation, pb::CompareTarget::CREATE, pb::CompareTargetUnion::CreateRevision(*revision))
            }
            Self::Modified { relation, revision, .. } => {
                (relation, pb::CompareTarget::MOD, pb::CompareTargetUnion::ModRevision(*revision))
            }
            Self::Value { relation, value, .. } => {
                (relation, pb::CompareTarget::VALUE, pb::CompareTargetUnion::Value(value))
            }
        };
        pb::Compare {
            result: relation.encode(),
            target,
            key: self.key(),
            target_union: Some(union),
            ..pb::Compare::default()
        }
    }
}

/// What a client asked.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Request {
    /// Put one pair. Values are unique in a run, so that every version names the request that made it.
    Put { key: Vec<u8>, value: Vec<u8>, prev_kv: bool },
    /// Delete a range.
    DeleteRange { range: KeyRange, prev_kv: bool },
    /// Read a range; `revision` 0 is the newest, `limit` 0 none.
    Range { range: KeyRange, limit: i64, revision: i64, serializable: bool, keys_only: bool, count_only: bool },
    /// If all `compares` hold, `success`, else `failure`: lists of the three kinds above.
    Txn { compares: Vec<Compare>, success: Vec<Self>, failure: Vec<Self> },
    /// Forget what is older than `revision`.
    Compact { revision: i64 },
}

impl fmt::Debug for Request {
    /// Short enough for a report: values by their beginning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        match self {
            Self::Put { key, value, prev_kv } => {
                let beginning = text(&value[..value.len().min(11)]);
                write!(f, "put {} = {beginning} ({} bytes, prev_kv {prev_kv})", text(key), value.len())
            }
            Self::DeleteRange { range, prev_kv } => write!(f, "delete {range:?} (prev_kv {prev_kv})"),
            Self::Range { range, limit, revision, serializable, keys_only, count_only } => write!(
                f,
                "read {range:?} at {revision} (limit {limit}, serializable {serializable}, keys_only {keys_only}, \
                 count_only {count_only})"
            ),
            Self::Txn { compares, success, failure } => {
                write!(f, "txn if {compares:?} then {success:?} else {failure:?}")
            }
            Self::Compact { revision } => write!(f, "compact {revision}"),
        }
    }
}

impl Request {
    /// Whether it may change the store.
    #[must_use]
    pub fn is_write(&self) -> bool {
        match self {
            Self::Put { .. } | Self::DeleteRange { .. } => true,
            Self::Range { .. } | Self::Compact { .. } => false,
            Self::Txn { success, failure, .. } => success.iter().chain(failure).any(Self::is_write),
        }
    }

    /// Whether it may be answered from the past (as long as its connection saw nothing newer).
    #[must_use]
    pub fn is_serializable(&self) -> bool {
        match self {
            Self::Range { serializable, .. } => *serializable,
            // Read-only transactions are as serializable as all of their reads, vacuously so without any.
            Self::Txn { success, failure, .. } => success.iter().chain(failure).all(Self::is_serializable),
            _ => false,
        }
    }

    /// Whether the answer says that the request changed the store.
    #[must_use]
    pub fn has_changed(&self, answer: &Answer) -> bool {
        match self {
            Self::Put { .. } => true,
            Self::DeleteRange { .. } => answer.count > 0,
            Self::Range { .. } | Self::Compact { .. } => false,
            Self::Txn { .. } => {
                self.executed(answer).iter().zip(&answer.inner).any(|(operation, inner)| operation.has_changed(inner))
            }
        }
    }

    /// The operations that an answered request stands for: itself, or the branch that its transaction took.
    #[must_use]
    pub fn executed(&self, answer: &Answer) -> &[Self] {
        match self {
            Self::Txn { success, failure, .. } => {
                if answer.succeeded {
                    success
                } else {
                    failure
                }
            }
            other => std::slice::from_ref(other),
        }
    }

    /// A full read at `revision`.
    #[must_use]
    pub fn read_everything(revision: i64) -> Self {
        Self::Range {
            range: KeyRange::everything(),
            limit: 0,
            revision,
            serializable: false,
            keys_only: false,
            count_only: false,
        }
    }

    /// The gRPC path and the request message.
    #[must_use]
    pub fn encode(&self) -> (&'static str, Vec<u8>) {
        match self {
            Self::Txn { compares, success, failure } => {
                let message = pb::TxnRequest {
                    compare: compares.iter().map(Compare::encode).collect(),
                    success: success.iter().map(Self::encode_operation).collect(),
                    failure: failure.iter().map(Self::encode_operation).collect(),
                };
                ("/etcdserverpb.KV/Txn", message.encode_to_vec())
            }
            Self::Compact { revision } => {
                let message = pb::CompactionRequest { revision: *revision, ..pb::CompactionRequest::default() };
                ("/etcdserverpb.KV/Compact", message.encode_to_vec())
            }
            operation => match operation.encode_operation().request.expect("an operation") {
                pb::RequestOpRequest::Put(message) => ("/etcdserverpb.KV/Put", message.encode_to_vec()),
                pb::RequestOpRequest::DeleteRange(message) => ("/etcdserverpb.KV/DeleteRange", message.encode_to_vec()),
                pb::RequestOpRequest::Range(message) => ("/etcdserverpb.KV/Range", message.encode_to_vec()),
                pb::RequestOpRequest::Txn(_) => unreachable!("encoded above"),
            },
        }
    }

    fn encode_operation(&self) -> pb::RequestOp<'_> {
        let request = match self {
            Self::Put { key, value, prev_kv } => {
                pb::RequestOpRequest::Put(pb::PutRequest { key, value, prev_kv: *prev_kv, ..pb::PutRequest::default() })
            }
            Self::DeleteRange { range, prev_kv } => pb::RequestOpRequest::DeleteRange(pb::DeleteRangeRequest {
                key: &range.key,
                range_end: &range.range_end,
                prev_kv: *prev_kv,
            }),
            Self::Range { range, limit, revision, serializable, keys_only, count_only } => {
                pb::RequestOpRequest::Range(pb::RangeRequest {
                    key: &range.key,
                    range_end: &range.range_end,
                    limit: *limit,
                    revision: *revision,
                    serializable: *serializable,
                    keys_only: *keys_only,
                    count_only: *count_only,
                    ..pb::RangeRequest::default()
                })
            }
            Self::Txn { .. } | Self::Compact { .. } => unreachable!("not an operation of a transaction"),
        };
        pb::RequestOp { request: Some(request) }
    }

    /// Reads the answer to this request.
    ///
    /// # Errors
    /// The bytes are not the message, or it has no header.
    pub fn decode_response(&self, bytes: &[u8]) -> Result<Response, String> {
        fn decode<'a, M: Message<'a>>(bytes: &'a [u8]) -> Result<M, String> {
            M::decode_within(bytes, Limits::RESPONSE).map_err(|error| format!("malformed response: {error}"))
        }
        let (header, answer) = match self {
            Self::Put { .. } => {
                let message = decode::<pb::PutResponse<'_>>(bytes)?;
                (message.header, put_answer(&message))
            }
            Self::DeleteRange { .. } => {
                let message = decode::<pb::DeleteRangeResponse<'_>>(bytes)?;
                (message.header, delete_answer(&message))
            }
            Self::Range { .. } => {
                let message = decode::<pb::RangeResponse<'_>>(bytes)?;
                (message.header, range_answer(&message))
            }
            Self::Txn { .. } => {
                let message = decode::<pb::TxnResponse<'_>>(bytes)?;
                (message.header, self.txn_answer(&message)?)
            }
            Self::Compact { .. } => {
                let header = decode::<pb::CompactionResponse>(bytes)?.header;
                (header, Answer { revision: revision_of(header), ..Answer::default() })
            }
        };
        let header = header.ok_or("response without a header")?;
        let pb::ResponseHeader { cluster_id, member_id, raft_term, .. } = header;
        Ok(Response { cluster_id, member_id, raft_term, answer })
    }

    fn txn_answer(&self, message: &pb::TxnResponse<'_>) -> Result<Answer, String> {
        let revision = revision_of(message.header);
        let mut answer = Answer { revision, succeeded: message.succeeded, ..Answer::default() };
        let operations = self.executed(&answer);
        if operations.len() != message.responses.len() {
            return Err(format!("{} answers to {} operations", message.responses.len(), operations.len()));
        }
        let mut inner = Vec::new();
        for (operation, response) in operations.iter().zip(&message.responses) {
            inner.push(match (operation, &response.response) {
                (Self::Put { .. }, Some(pb::ResponseOpResponse::Put(message))) => put_answer(message),
                (Self::DeleteRange { .. }, Some(pb::ResponseOpResponse::DeleteRange(message))) => {
                    delete_answer(message)
                }
                (Self::Range { .. }, Some(pb::ResponseOpResponse::Range(message))) => range_answer(message),
                (_, other) => return Err(format!("{operation:?} in a transaction is answered by {other:?}")),
            });
        }
        answer.inner = inner;
        Ok(answer)
    }
}

/// What an answer says about the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The header's revision.
    pub revision: i64,
    /// Pairs read, or the previous pairs of a write.
    pub kvs: Vec<KeyValue>,
    /// Pairs counted (Range) or deleted (DeleteRange).
    pub count: i64,
    /// Whether a limit cut the pairs.
    pub more: bool,
    /// Whether a transaction's compares held.
    pub succeeded: bool,
    /// The answers of a transaction's operations.
    pub inner: Vec<Self>,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The cluster.
    pub cluster_id: u64,
    /// The answering member.
    pub member_id: u64,
    /// The term.
    pub raft_term: u64,
    /// The rest.
    pub answer: Answer,
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

fn owned(pair: &mvccpb::KeyValue<'_>) -> KeyValue {
    KeyValue {
        key: pair.key.to_vec(),
        value: pair.value.to_vec(),
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision,
        version: pair.version,
        lease: pair.lease,
    }
}
