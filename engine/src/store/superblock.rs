//! The superblock: the one place that names everything a checkpoint consists of.
//!
//! Owns: its bytes (docs/format/store.md section 2) and the choice between the two copies. Does not know: how the
//! things it names are read, or when a checkpoint happens.
//!
//! Invariants
//! - I1: the copy of sequence n is number n % 2, so a write never touches the newest valid copy.
//! - I2: a copy is used only if magic, format, checksum, copy number and identity are right.

use trilith_raftlog::{Identity, LogPosition};

use crate::mvcc::KeyspaceState;
use crate::store::extents::MapRoot;
use crate::store::row_log::RowLogRoot;
use crate::store::tree::TreeRoot;

/// Everything a checkpoint names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Number of the checkpoint, from 1.
    pub sequence: u64,
    /// What the data directory is bound to.
    pub identity: Identity,
    /// The last raft entry the checkpoint includes.
    pub position: LogPosition,
    /// Revision, compacted revision, state digest.
    pub keyspace: KeyspaceState,
    /// Bytes of every index file.
    pub index_file_bytes: u64,
    /// Index files in use: numbers below this.
    pub index_files: u32,
    /// Key -> entry; `None` while empty.
    pub keys: Option<TreeRoot>,
    /// (lease, key); `None` while empty.
    pub leases: Option<TreeRoot>,
    /// Members, alarms and other small tables; `None` while empty.
    pub tables: Option<TreeRoot>,
    /// Which pages of the index files are in use.
    pub map: MapRoot,
    /// The row log's segment table.
    pub rows: RowLogRoot,
}
