//! etcd's argument checks of KV requests, before anything is proposed.
//!
//! Owns: which request is malformed and which fault is named first. Does not know: state, quota, permissions, size.
//!
//! Invariants
//! - I1: a request that passes can be encoded and applied: no empty key, no unknown sort, no unset op, bounded depth.
//! - I2: the order of faults is etcd's: op counts, compare keys, ops of success then failure, then duplicate keys of
//!   success, then of failure.

use crate::command::{DeleteRange, Put, RangeQuery, Txn};
use crate::mvcc::MvccError;

/// Checks a range request.
///
/// # Errors
/// The first fault etcd would name.
pub fn check_range(query: &RangeQuery<'_>) -> Result<(), MvccError> {
    todo!()
}

/// Checks a put request.
///
/// # Errors
/// The first fault etcd would name.
pub fn check_put(put: &Put<'_>) -> Result<(), MvccError> {
    todo!()
}

/// Checks a delete request.
///
/// # Errors
/// The first fault etcd would name.
pub fn check_delete_range(del: &DeleteRange<'_>) -> Result<(), MvccError> {
    todo!()
}

/// Checks a transaction and all it nests against `--max-txn-ops`.
///
/// # Errors
/// The first fault etcd would name.
pub fn check_txn(txn: &Txn<'_>, txn_ops_max: usize) -> Result<(), MvccError> {
    todo!()
}
