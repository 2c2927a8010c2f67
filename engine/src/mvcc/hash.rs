//! Hashes of the history: HashKV as etcd 3.7 defines it, and Hash as we do.
//!
//! Owns: what is hashed, in which form. Does not know: RPCs, which members are compared.
//!
//! HashKV at revision R is the CRC-32C of the bytes `key`, then of each row in order of revision: main, `_`, sub
//! (big-endian, 8 bytes each), `t` for a tombstone; then the row as a protobuf `mvccpb.KeyValue`, of a tombstone the
//! key alone. Rows are those in (C, R], C being the compacted revision, and of those at or below C the ones live at R,
//! or the ones live at C if no key is live at R.
//!
//! Hash is the CRC-32C of the bytes `trilith`, of the whole visible history in the same form, tombstones at C included,
//! after revision, compacted revision and the sum of the leases' hashes (big-endian, 8 bytes each).

use crate::budget::{Budget, Pause};
use crate::command::{RangeQuery, SortOrder, SortTarget};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::Keyspace;
use crate::mvcc::logical_rows::LogicalRows;
use crate::mvcc::outcome::MvccError;
use crate::mvcc::range_walk::RangeWalk;
use crate::mvcc::view::View;
use crate::page_source::PageSource;
use crate::store::row_log::Row;

/// A hash under way. Owns what it needs.
#[derive(Debug)]
pub struct HashCursor {
    published: i64,
    revision: i64,
    compacted: i64,
    stage: Stage,
    hasher: Hasher,
}

#[derive(Debug)]
enum Stage {
    /// Whether any key is live at the revision.
    Live(RangeWalk),
    Rows(LogicalRows),
}

/// The number of all keys.
pub(super) const EVERYTHING: RangeQuery<'static> = RangeQuery {
    key: b"\0",
    range_end: b"\0",
    limit: 0,
    revision: 0,
    sort_order: SortOrder::None,
    sort_target: SortTarget::Key,
    serializable: false,
    keys_only: false,
    count_only: true,
    min_mod_revision: 0,
    max_mod_revision: 0,
    min_create_revision: 0,
    max_create_revision: 0,
};

impl HashCursor {
    /// Begins HashKV at a revision; 0 is the newest. To go on after anything was applied, [`Self::revision_held`] must
    /// be pinned.
    ///
    /// # Errors
    /// The revision is in the future or compacted.
    pub fn new<T: KeyTree>(keyspace: &Keyspace<T>, revision: i64) -> Result<Self, MvccError> {
        let (published, compacted) = (keyspace.published().revision, keyspace.state().compacted);
        if revision > published {
            return Err(MvccError::FutureRevision);
        }
        if revision > 0 && revision < compacted {
            return Err(MvccError::Compacted);
        }
        let revision = if revision == 0 { published } else { revision };
        // Nothing was compacted away, or nothing is looked at: every row counts.
        let all = compacted < 1 || revision < 1;
        let stage = if all {
            Stage::Rows(LogicalRows::new(keyspace, revision))
        } else {
            Stage::Live(RangeWalk::new(&EVERYTHING, revision))
        };
        Ok(Self { published, revision, compacted, stage, hasher: Hasher::new(b"key", compacted, false) })
    }

    /// Begins the hash of the whole store at the published revision.
    #[must_use]
    pub fn whole<T: KeyTree>(keyspace: &Keyspace<T>) -> Self {
        let (revision, compacted) = (keyspace.published().revision, keyspace.state().compacted);
        let stage = Stage::Rows(LogicalRows::new(keyspace, revision));
        let mut hasher = Hasher::new(b"trilith", compacted, true);
        hasher.add(&revision.to_be_bytes());
        hasher.add(&compacted.to_be_bytes());
        hasher.add(&keyspace.leases().sum().to_be_bytes());
        Self { published: revision, revision, compacted, stage, hasher }
    }

    /// The revision to be pinned.
    #[must_use]
    pub fn revision_held(&self) -> i64 {
        self.compacted
    }

    /// The published revision when it began: the header's.
    #[must_use]
    pub fn published(&self) -> i64 {
        self.published
    }

    /// The revision hashed.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compacted revision when it began; -1 if there was none.
    #[must_use]
    pub fn compacted(&self) -> i64 {
        self.compacted
    }
}

impl<T: KeyTree> Keyspace<T> {
    /// Goes on with a hash.
    ///
    /// # Errors
    /// The hash is not at its end: call again.
    pub fn hash_kv_step(
        &self,
        cursor: &mut HashCursor,
        budget: &mut Budget,
        pages: &dyn PageSource,
    ) -> Result<u32, Pause> {
        if let Stage::Live(walk) = &mut cursor.stage {
            let view = View { layers: self.layers(), changes: None, pages };
            walk.step(&view, &EVERYTHING, budget, &mut |_| {})?;
            let live = walk.count();
            let rows = LogicalRows::between(cursor.compacted, cursor.revision);
            cursor.stage = Stage::Rows(if live > 0 { rows.live_at_end() } else { rows });
        }
        if let Stage::Rows(rows) = &mut cursor.stage {
            let hasher = &mut cursor.hasher;
            rows.step(self, budget, pages, &mut |row| hasher.row(row))?;
        }
        Ok(cursor.hasher.sum)
    }
}

#[derive(Debug)]
struct Hasher {
    sum: u32,
    compacted: i64,
    /// Tombstones at the compacted revision are hashed.
    tombstones: bool,
    scratch: Vec<u8>,
}

impl Hasher {
    fn new(start: &[u8], compacted: i64, tombstones: bool) -> Self {
        Self { sum: crc32c::crc32c(start), compacted, tombstones, scratch: Vec::new() }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.sum = crc32c::crc32c_append(self.sum, bytes);
    }

    fn row(&mut self, row: &Row<'_>) {
        if row.is_tombstone() && row.at.main <= self.compacted && !self.tombstones {
            return;
        }
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        bytes.extend_from_slice(&row.at.main.to_be_bytes());
        bytes.push(b'_');
        bytes.extend_from_slice(&u64::from(row.at.sub).to_be_bytes());
        if row.is_tombstone() {
            bytes.push(b't');
        }
        put_bytes_tag(&mut bytes, 1, row.key.len());
        bytes.extend_from_slice(row.key);
        if !row.is_tombstone() {
            put_number(&mut bytes, 2, row.create);
            put_number(&mut bytes, 3, row.at.main);
            put_number(&mut bytes, 4, row.version);
            put_bytes_tag(&mut bytes, 5, row.value.len());
        }
        self.add(&bytes);
        self.add(row.value);
        bytes.clear();
        put_number(&mut bytes, 6, row.lease);
        self.add(&bytes);
        self.scratch = bytes;
    }
}

/// The tag and length of a bytes field, which is left out if it is empty.
pub(crate) fn put_bytes_tag(out: &mut Vec<u8>, field: u8, len: usize) {
    if len > 0 {
        out.push(field << 3 | 2);
        put_varint(out, len as u64);
    }
}

/// An int64 field, which is left out if it is 0.
pub(crate) fn put_number(out: &mut Vec<u8>, field: u8, number: i64) {
    if number != 0 {
        out.push(field << 3);
        put_varint(out, number.cast_unsigned());
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
