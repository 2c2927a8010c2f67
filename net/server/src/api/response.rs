//! Engine outcomes to wire responses.
//!
//! Owns: headers and bodies of KV responses as etcd fills them (api: nested headers carry the revision alone, a nested
//! transaction's header is present and empty). Does not know: connections; a response is a message to be encoded.
//!
//! Invariants
//! - I1: keys and values are borrowed from the store until the encoder copies them into the connection's output.

use trilith_engine::mvcc::{DeleteOutcome, OpOutcome, PutOutcome, RangeOutcome, RowView, TxnOutcome, TxnRange};
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

/// The answer to a put.
///
/// # Errors
/// The previous row is not usable now.
pub fn put<'a>(
    header: pb::ResponseHeader,
    outcome: &PutOutcome,
    rows: &dyn Rows<'a>,
) -> Result<pb::PutResponse<'a>, Unavailable> {
    let prev_kv = outcome.prev.map(|at| rows.row(at)).transpose()?.map(|row| key_value(&row));
    Ok(pb::PutResponse { header: Some(header), prev_kv })
}

/// The answer to a delete.
///
/// # Errors
/// A previous row is not usable now.
pub fn delete_range<'a>(
    header: pb::ResponseHeader,
    outcome: &DeleteOutcome,
    rows: &dyn Rows<'a>,
) -> Result<pb::DeleteRangeResponse<'a>, Unavailable> {
    let prev_kvs = outcome.prev.iter().map(|&at| rows.row(at).map(|row| key_value(&row))).collect::<Result<_, _>>()?;
    Ok(pb::DeleteRangeResponse { header: Some(header), deleted: outcome.deleted, prev_kvs })
}

/// The answer to a transaction, nested ones included.
///
/// # Errors
/// A row is not usable now.
pub fn txn<'a>(
    header: pb::ResponseHeader,
    outcome: &TxnOutcome,
    rows: &dyn Rows<'a>,
) -> Result<pb::TxnResponse<'a>, Unavailable> {
    let responses = outcome.responses.iter().map(|op| nested(op, rows)).collect::<Result<_, _>>()?;
    Ok(pb::TxnResponse { header: Some(header), succeeded: outcome.succeeded, responses })
}

fn nested<'a>(outcome: &OpOutcome, rows: &dyn Rows<'a>) -> Result<pb::ResponseOp<'a>, Unavailable> {
    let bare = |revision| pb::ResponseHeader { revision, ..pb::ResponseHeader::default() };
    let response = match outcome {
        OpOutcome::Range(inner) => pb::ResponseOpResponse::Range(nested_range(inner, rows)?),
        OpOutcome::Put(inner) => pb::ResponseOpResponse::Put(put(bare(inner.revision), inner, rows)?),
        OpOutcome::DeleteRange(inner) => {
            pb::ResponseOpResponse::DeleteRange(delete_range(bare(inner.revision), inner, rows)?)
        }
        OpOutcome::Txn(inner) => pb::ResponseOpResponse::Txn(txn(pb::ResponseHeader::default(), inner, rows)?),
    };
    Ok(pb::ResponseOp { response: Some(response) })
}

fn nested_range<'a>(outcome: &TxnRange, rows: &dyn Rows<'a>) -> Result<pb::RangeResponse<'a>, Unavailable> {
    let shown = |&at: &Revision| rows.row(at).map(|row| key_value(&outcome.shape.show(row)));
    Ok(pb::RangeResponse {
        header: Some(pb::ResponseHeader { revision: outcome.revision, ..pb::ResponseHeader::default() }),
        kvs: outcome.rows.iter().map(shown).collect::<Result<_, _>>()?,
        more: outcome.more,
        count: outcome.count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct OneRow;

    impl Rows<'static> for OneRow {
        fn row(&self, at: Revision) -> Result<RowView<'static>, Unavailable> {
            Ok(RowView { key: b"k", value: b"v", create: at.main, modified: at.main, version: 1, lease: 5 })
        }
    }

    #[test]
    fn nested_headers_carry_the_revision_alone() {
        let prev = Some(Revision { main: 3, sub: 0 });
        let inner = TxnOutcome { revision: 9, succeeded: true, responses: vec![] };
        let outcome = TxnOutcome {
            revision: 9,
            succeeded: false,
            responses: vec![OpOutcome::Put(PutOutcome { revision: 9, prev }), OpOutcome::Txn(inner)],
        };
        let identity = Identity { cluster_id: 1, member_id: 2, raft_term: 3 };
        let response = txn(identity.header(9), &outcome, &OneRow).expect("rows are there");
        assert_eq!(response.header.expect("present").raft_term, 3);
        let Some(pb::ResponseOpResponse::Put(put)) = &response.responses[0].response else { panic!("a put") };
        assert_eq!(put.header, Some(pb::ResponseHeader { revision: 9, ..pb::ResponseHeader::default() }));
        assert_eq!(put.prev_kv.as_ref().expect("asked for").mod_revision, 3);
        let Some(pb::ResponseOpResponse::Txn(nested)) = &response.responses[1].response else { panic!("a txn") };
        assert_eq!(nested.header, Some(pb::ResponseHeader::default()));
    }
}
