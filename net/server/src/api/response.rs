//! Engine outcomes to wire responses.
//!
//! Owns: headers, rows, and the answer to a range as etcd fills them. Does not know: connections; answers that are made
//! of row addresses ([`super::parts`]).
//!
//! Invariants
//! - I1: keys and values are borrowed from the store until the encoder copies them into the connection's output.

use trilith_engine::mvcc::{RangeOutcome, RowView};
use trilith_engine::page_source::Unavailable;
use trilith_engine::store::key_entry::Revision;
use trilith_wire::proto::etcdserverpb as pb;
use trilith_wire::proto::mvccpb::KeyValue;

/// What every top-level header says besides the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Cluster identifier.
    pub cluster_id: u64,
    /// Identifier of the answering member.
    pub member_id: u64,
    /// Its raft term.
    pub raft_term: u64,
}

impl Identity {
    /// A header with this revision.
    #[must_use]
    pub fn header(self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: self.raft_term,
        }
    }
}

/// How rows named by an outcome are read.
pub trait Rows<'a> {
    /// The row at an address of an outcome of the same step.
    ///
    /// # Errors
    /// Its block is not usable now.
    fn row(&self, at: Revision) -> Result<RowView<'a>, Unavailable>;
}

/// A row as etcd shows it.
#[must_use]
pub fn key_value<'a>(row: &RowView<'a>) -> KeyValue<'a> {
    KeyValue {
        key: row.key,
        create_revision: row.create,
        mod_revision: row.modified,
        version: row.version,
        value: row.value,
        lease: row.lease,
    }
}

/// The answer to a range.
#[must_use]
pub fn range<'a>(header: pb::ResponseHeader, outcome: &RangeOutcome<'a>) -> pb::RangeResponse<'a> {
    pb::RangeResponse {
        header: Some(header),
        kvs: outcome.rows.iter().map(key_value).collect(),
        more: outcome.more,
        count: outcome.count,
    }
}
