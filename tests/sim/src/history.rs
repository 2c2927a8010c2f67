//! Requests and responses as the clients saw them, and their protobuf form.
//!
//! Owns: the operations of the workload. Does not know: whether an answer is right (see [`crate::checker`]).

use trilith_wire::proto::codec::Limits;
use trilith_wire::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader,
};
use trilith_wire::proto::{Message, mvccpb};

use crate::model::{KeyRange, KeyValue};

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Request {
    /// Put one pair. Values are unique in a run, so that every version names the request that made it.
    Put { key: Vec<u8>, value: Vec<u8>, prev_kv: bool },
    /// Delete a range.
    DeleteRange { range: KeyRange, prev_kv: bool },
    /// Read a range; `revision` 0 is the newest, `limit` 0 none.
    Range { range: KeyRange, limit: i64, revision: i64, serializable: bool, keys_only: bool, count_only: bool },
}

impl Request {
    /// Whether it may change the store.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Range { .. })
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
            Self::Put { key, value, prev_kv } => {
                let message = PutRequest { key, value, prev_kv: *prev_kv, ..PutRequest::default() };
                ("/etcdserverpb.KV/Put", message.encode_to_vec())
            }
            Self::DeleteRange { range, prev_kv } => {
                let message = DeleteRangeRequest { key: &range.key, range_end: &range.range_end, prev_kv: *prev_kv };
                ("/etcdserverpb.KV/DeleteRange", message.encode_to_vec())
            }
            Self::Range { range, limit, revision, serializable, keys_only, count_only } => {
                let message = RangeRequest {
                    key: &range.key,
                    range_end: &range.range_end,
                    limit: *limit,
                    revision: *revision,
                    serializable: *serializable,
                    keys_only: *keys_only,
                    count_only: *count_only,
                    ..RangeRequest::default()
                };
                ("/etcdserverpb.KV/Range", message.encode_to_vec())
            }
        }
    }

    /// Reads the answer to this request.
    ///
    /// # Errors
    /// The bytes are not the message, or it has no header.
    pub fn decode_response(&self, bytes: &[u8]) -> Result<Response, String> {
        let malformed = |error| format!("malformed response: {error}");
        match self {
            Self::Put { .. } => {
                let message = PutResponse::decode_within(bytes, Limits::RESPONSE).map_err(malformed)?;
                let prev_kvs = message.prev_kv.iter().map(owned).collect();
                Ok(Response { header: header(message.header)?, kvs: prev_kvs, count: 0, more: false })
            }
            Self::DeleteRange { .. } => {
                let message = DeleteRangeResponse::decode_within(bytes, Limits::RESPONSE).map_err(malformed)?;
                let prev_kvs = message.prev_kvs.iter().map(owned).collect();
                Ok(Response { header: header(message.header)?, kvs: prev_kvs, count: message.deleted, more: false })
            }
            Self::Range { .. } => {
                let message = RangeResponse::decode_within(bytes, Limits::RESPONSE).map_err(malformed)?;
                let kvs = message.kvs.iter().map(owned).collect();
                Ok(Response { header: header(message.header)?, kvs, count: message.count, more: message.more })
            }
        }
    }
}

/// What a response header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster_id: u64,
    /// The answering member.
    pub member_id: u64,
    /// The store's revision.
    pub revision: i64,
    /// The term.
    pub raft_term: u64,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The header.
    pub header: Header,
    /// Pairs read, or the previous pairs of a write.
    pub kvs: Vec<KeyValue>,
    /// Pairs counted (Range) or deleted (DeleteRange).
    pub count: i64,
    /// Whether a limit cut the pairs.
    pub more: bool,
}

fn header(header: Option<ResponseHeader>) -> Result<Header, String> {
    let header = header.ok_or("response without a header")?;
    Ok(Header {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision,
        raft_term: header.raft_term,
    })
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
