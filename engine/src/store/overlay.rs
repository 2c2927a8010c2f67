//! The ordered changes since the last checkpoint.
//!
//! Owns: an in-memory B-tree from key to [`KeyEntry`], its memory account, and what each change adds to the number of
//! live keys. Does not know: rows' bytes, pages, or the merge into the key tree.
//!
//! Invariants
//! - I1: a key enters once and never leaves (a delete is a tombstone entry), so node and entry ids stay valid for the
//!   overlay's life and a cursor into a frozen overlay may be kept between steps.
//! - I2: `live_delta` of a key is live(now) - live(below); the sum over a subtree stands beside its pointer, so a
//!   count over a range costs O(log n).
//! - I3: `bytes` counts every heap byte the overlay holds, including slack of its chunks.

use crate::mvcc::KeyRange;
use crate::store::key_entry::KeyEntry;

/// The changes since a checkpoint, by key.
#[derive(Debug, Default)]
pub struct Overlay {}

/// A place in an overlay that stays good as long as no key enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayCursor {
    node: u32,
    slot: u32,
}

impl Overlay {
    /// The entry of a key that changed.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&KeyEntry> {
        todo!()
    }

    /// Installs a key's newest entry. `live_below` says whether the layers below hold the key alive; it is used when
    /// the key enters and ignored later.
    pub fn put(&mut self, key: &[u8], entry: KeyEntry, live_below: bool) {
        todo!()
    }

    /// The first key at or above `from`.
    #[must_use]
    pub fn seek(&self, from: &[u8]) -> OverlayCursor {
        todo!()
    }

    /// The key and entry at a cursor, and the cursor after it.
    #[must_use]
    pub fn next(&self, at: OverlayCursor) -> Option<(&[u8], &KeyEntry, OverlayCursor)> {
        todo!()
    }

    /// What this layer adds to the number of live keys in `range`: O(log n).
    #[must_use]
    pub fn live_delta(&self, range: KeyRange<'_>) -> i64 {
        todo!()
    }

    /// Heap bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        todo!()
    }

    /// Keys held.
    #[must_use]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
