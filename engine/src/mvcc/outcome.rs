//! What apply and range answer.
//!
//! Owns: the result types. Does not know: protobuf or headers' member and cluster ids.
//!
//! Apply answers with addresses of rows instead of copies: after installation every row, old or just written, is
//! readable through [`Keyspace::row`](crate::mvcc::Keyspace::row). The addresses are good until the next compaction
//! or handled completion; a server encodes the reply in the step that applied the command.

use crate::store::key_entry::Revision;

/// A client's fault, in etcd's terms. The server maps it to code and string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MvccError {
    /// `etcdserver: key is not provided`.
    EmptyKey,
    /// `etcdserver: key not found`.
    KeyNotFound,
    /// `etcdserver: value is provided`.
    ValueProvided,
    /// `etcdserver: lease is provided`.
    LeaseProvided,
    /// `etcdserver: too many operations in txn request`.
    TooManyOperations,
    /// `etcdserver: duplicate key given in txn request`.
    DuplicateKey,
    /// `etcdserver: invalid sort option`.
    InvalidSortOption,
    /// `etcdserver: mvcc: required revision has been compacted`.
    Compacted,
    /// `etcdserver: mvcc: required revision is a future revision`.
    FutureRevision,
    /// `etcdserver: requested lease not found`.
    LeaseNotFound,
    /// `etcdserver: lease already exists`.
    LeaseExists,
    /// `etcdserver: too large lease TTL`.
    LeaseTtlTooLarge,
}

/// One key-value, borrowed from memory or pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowView<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value; empty when left out.
    pub value: &'a [u8],
    /// Creation revision.
    pub create: i64,
    /// Modification revision.
    pub modified: i64,
    /// Version.
    pub version: i64,
    /// Lease; 0 when none or left out.
    pub lease: i64,
}

/// The answer to a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeOutcome<'a> {
    /// The rows, filtered, sorted and cut.
    pub rows: Vec<RowView<'a>>,
    /// Keys in the range at that revision, before filters and limit.
    pub count: i64,
    /// Whether the limit cut something.
    pub more: bool,
}

/// The answer to a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutOutcome {
    /// Header revision: the new revision.
    pub revision: i64,
    /// The row before, if asked for and present.
    pub prev: Option<Revision>,
}

/// The answer to a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteOutcome {
    /// Header revision: the new one if anything was deleted, else the current.
    pub revision: i64,
    /// Number of keys deleted.
    pub deleted: i64,
    /// The rows before, in key order, if asked for.
    pub prev: Vec<Revision>,
}

/// The answer to a transaction. A nested one's header is all zero in etcd: the server ignores its `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Header revision.
    pub revision: i64,
    /// Which branch ran.
    pub succeeded: bool,
    /// One per operation of that branch.
    pub responses: Vec<OpOutcome>,
}

/// The answer to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpOutcome {
    /// Of a range.
    Range(TxnRange),
    /// Of a put.
    Put(PutOutcome),
    /// Of a delete.
    DeleteRange(DeleteOutcome),
    /// Of a nested transaction.
    Txn(TxnOutcome),
}

/// The answer to a range inside a transaction; view each row with
/// [`Keyspace::row`](crate::mvcc::Keyspace::row), then [`Self::shape`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnRange {
    /// Revision of its own header.
    pub revision: i64,
    /// The rows.
    pub rows: Vec<Revision>,
    /// Keys in the range, before filters and limit.
    pub count: i64,
    /// Whether the limit cut something.
    pub more: bool,
    /// What the rows show.
    pub shape: RowShape,
}

/// What of a row is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowShape {
    /// Everything.
    Whole,
    /// No value.
    WithoutValue,
    /// Neither value nor lease: keys_only as 3.7 answers it unless sorted by value.
    KeyOnly,
}

impl RowShape {
    /// The row as the client sees it.
    #[must_use]
    pub fn show<'a>(self, row: RowView<'a>) -> RowView<'a> {
        match self {
            Self::Whole => row,
            Self::WithoutValue => RowView { value: &[], ..row },
            Self::KeyOnly => RowView { value: &[], lease: 0, ..row },
        }
    }
}

/// The answer to the end of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRevokeOutcome {
    /// Header revision: the new one if keys were deleted, else the current.
    pub revision: i64,
    /// Keys deleted.
    pub deleted: i64,
}

/// The answer to a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactOutcome {
    /// Header revision: the current one.
    pub revision: i64,
}
