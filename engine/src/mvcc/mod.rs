//! The MVCC state machine: apply, range, publication.
//!
//! Owns: etcd's revision rules, the visible state (overlay, frozen overlay, key tree, row chains), the compacted and
//! the published revision. Does not know: raft, the wire, files, time, or how a checkpoint writes.
//!
//! Invariants
//! - I1: a command that pauses keeps what it has done, is called again with the same arguments, and is the only one
//!   until it has ended; nothing of it is visible before.
//! - I2: a command that changes at least one key takes exactly one new main revision, its changes subs 0, 1, 2...
//! - I3: the published revision and applied index never go backwards; visibility follows the compacted revision, never
//!   the rows that happen to remain.
//! - I4: apply depends on replicated state alone.
//! - I5: while the state is lent (to shards), nothing in it changes.

mod apply;
mod change_list;
pub(crate) mod changes;
pub mod check;
pub(crate) mod compare;
pub(crate) mod delete;
pub(crate) mod hash;
mod key_index;
pub mod key_range;
pub mod key_tree;
pub mod keyspace;
mod logical_rows;
pub mod outcome;
pub(crate) mod pins;
pub(crate) mod range;
pub(crate) mod range_walk;
mod reclaim;
pub(crate) mod sort;
pub(crate) mod txn;
pub(crate) mod view;

pub use apply::TxnCursor;
pub use hash::HashCursor;
pub use key_range::KeyRange;
pub use key_tree::{KeyScan, KeyTree};
pub use keyspace::{Evaluated, Keyspace, KeyspaceState, Published};
pub use logical_rows::LogicalRows;
pub use outcome::{
    CompactOutcome, DeleteOutcome, LeaseRevokeOutcome, MvccError, OpOutcome, PutOutcome, RangeOutcome, RowShape,
    RowView, TxnOutcome, TxnRange,
};
pub use pins::Pin;
pub use range_walk::{RangeCursor, RowList};

#[cfg(test)]
mod hash_test;
#[cfg(test)]
pub(crate) mod map_tree;
#[cfg(test)]
mod model;
#[cfg(test)]
mod model_bed;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod slices_test;
