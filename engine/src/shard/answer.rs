//! What commands and reads are answered.
//!
//! Owns: the types that the coordinator answers with. Does not know: how an answer is made.

use crate::mvcc::{CompactOutcome, LeaseRevokeOutcome, MvccError, OpOutcome};

/// What a command or a read answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of a put, a delete, a transaction. A read of a range is answered as the only operation of one.
    Op(OpOutcome),
    /// Of a compaction.
    Compact(CompactOutcome),
    /// Of a lease that was granted.
    LeaseGrant,
    /// Of a lease that was ended.
    LeaseRevoke(LeaseRevokeOutcome),
    /// Of a note of how much of a lease is left.
    LeaseCheckpoint,
}

/// An answer and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// As its command or read was handed in.
    pub id: u64,
    /// What came of it. Rows are named by address: they stand in the row log.
    pub result: Result<Answer, MvccError>,
}
