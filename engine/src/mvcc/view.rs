//! The state as one reader sees it: the layers, merged.
//!
//! Owns: lookup, ordered scan, key-at-revision and counts over (own changes, overlay, frozen overlay, key tree, rows).
//! Does not know: requests, limits, sorting.
//!
//! Invariants
//! - I1: the upper layer wins; a tombstone in it hides the key below.
//! - I2: a read at R never shows a row above R, and walks a chain in O(log versions) rows.
//! - I3: a reader with changes of its own stands above all rows.

use std::borrow::Cow;

use crate::budget::{Budget, price};
use crate::lease::Leases;
use crate::mvcc::KeyRange;
use crate::mvcc::changes::{ChangeScan, Changes};
use crate::mvcc::key_tree::{KeyScan, KeyTree};
use crate::mvcc::keyspace::KeyspaceState;
use crate::mvcc::outcome::RowView;
use crate::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use crate::store::key_entry::{KeyEntry, Revision};
use crate::store::overlay::{Overlay, OverlayCursor};
use crate::store::row_log::{Row, RowLog};

/// The layers that a view merges, and the scalars it goes by.
pub(crate) struct Layers<'v, T> {
    pub(crate) tree: &'v T,
    pub(crate) frozen: Option<&'v Overlay>,
    pub(crate) fresh: &'v Overlay,
    pub(crate) rows: &'v RowLog,
    pub(crate) leases: &'v Leases<T>,
    pub(crate) state: KeyspaceState,
    /// No reader asks for less: chains are linked down to here.
    pub(crate) floor: i64,
}

impl<T> Clone for Layers<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Layers<'_, T> {}

impl<T> Layers<'_, T> {
    /// Whether rows are installed that a reader at `at` does not see.
    pub(crate) fn is_above(&self, at: i64) -> bool {
        self.rows.newest().main > at
    }
}

impl<T: KeyTree> Layers<'_, T> {
    /// Whether a lease exists.
    pub(crate) fn lease_exists(&self, lease: i64) -> bool {
        self.leases.get(lease).is_some()
    }
}

/// A reader's view.
pub(crate) struct View<'v, T> {
    pub(crate) layers: Layers<'v, T>,
    /// The changes that are not installed yet and that this reader sees: of its own transaction, of its own round.
    pub(crate) changes: Option<&'v Changes<'v>>,
    pub(crate) pages: &'v dyn PageSource,
}

impl<'v, T: KeyTree> View<'v, T> {
    /// The newest entry of a key, tombstones included.
    pub(crate) fn entry(&self, key: &[u8]) -> Result<Option<Cow<'v, KeyEntry>>, Unavailable> {
        if let Some(entry) = self.changes.and_then(|changes| changes.get(key)) {
            return Ok(Some(Cow::Borrowed(entry)));
        }
        let above = self.layers.fresh.get(key).or_else(|| self.layers.frozen?.get(key));
        match above {
            Some(entry) => Ok(Some(Cow::Borrowed(entry))),
            None => Ok(self.layers.tree.get(key, self.pages)?.map(Cow::Owned)),
        }
    }

    /// The number of live keys in a range, now: O(log n) and the transaction's own changes.
    pub(crate) fn count(&self, range: KeyRange<'_>) -> Result<i64, Unavailable> {
        let below = i64::try_from(self.layers.tree.count_live(range, self.pages)?).expect("keys are fewer than 2^63");
        let delta = self.layers.fresh.live_delta(range)
            + self.layers.frozen.map_or(0, |frozen| frozen.live_delta(range))
            + self.changes.map_or(0, |changes| changes.live_delta(range));
        assert!(below + delta >= 0, "layers cannot remove more keys than there are");
        Ok(below + delta)
    }

    /// Starts a walk over all entries at or above `from`, tombstones included.
    pub(crate) fn scan(&self, from: &[u8]) -> Result<Scan<'v, T>, Unavailable> {
        let mut tree = self.layers.tree.scan(from, self.pages)?;
        let tree_head = tree.next()?;
        let mut changes = self.changes.map(|changes| changes.scan(from));
        let changes_head = changes.as_mut().and_then(Iterator::next);
        Ok(Scan {
            changes,
            changes_head,
            fresh: Walk::new(self.layers.fresh, from),
            frozen: self.layers.frozen.map(|frozen| Walk::new(frozen, from)),
            tree,
            tree_head,
        })
    }

    /// What a reader at `at` sees of a key, without its value, and the row's address; `None` if it is not alive.
    pub(crate) fn shown<'k>(
        &self,
        key: &'k [u8],
        entry: &KeyEntry,
        at: i64,
        budget: &mut Budget,
    ) -> Result<Option<(Revision, RowView<'k>)>, Unavailable> {
        if entry.row.main <= at {
            return Ok((!entry.is_tombstone()).then(|| (entry.row, entry_view(key, entry))));
        }
        let row = self.row_at(entry, at, budget)?;
        Ok(row.map(|row| {
            let view = RowView {
                key,
                value: &[],
                create: row.create,
                modified: row.at.main,
                version: row.version,
                lease: row.lease,
            };
            (row.at, view)
        }))
    }

    /// The row of a key that a reader at `at`, below the newest row, sees, if it is a live one: the newest at or below.
    pub(crate) fn row_at(
        &self,
        entry: &KeyEntry,
        at: i64,
        budget: &mut Budget,
    ) -> Result<Option<Row<'v>>, Unavailable> {
        if entry.row.main <= at {
            return if entry.is_tombstone() { Ok(None) } else { self.present(entry.row).map(Some) };
        }
        let Some(place) = self.place_at(entry, at, budget)? else { return Ok(None) };
        // At or below the compacted revision a missing row means absent.
        let row = self.layers.rows.row(place, self.pages)?;
        Ok(row.filter(|row| !row.is_tombstone()))
    }

    /// The address of a key's newest row at or below `at`, tombstones included; at or below the compacted revision the
    /// row may be gone.
    pub(crate) fn place_at(
        &self,
        entry: &KeyEntry,
        at: i64,
        budget: &mut Budget,
    ) -> Result<Option<Revision>, Unavailable> {
        // The oldest root above `at` heads the tree that holds the answer or is followed by it.
        let older = entry.chain.older();
        let above = older.partition_point(|root| root.main > at);
        let mut place = if above > 0 { older[above - 1] } else { entry.row };
        while place.main > at {
            let row = self.present(place)?;
            budget.spend(price::ROW);
            place = if row.jump.main > at { row.jump } else { row.prev };
        }
        Ok((!place.is_none()).then_some(place))
    }

    /// The value of a row this view showed.
    pub(crate) fn value(&self, at: Revision) -> Result<&'v [u8], Unavailable> {
        match self.changes.and_then(|changes| changes.at(at)) {
            Some(change) => Ok(&change.value),
            None => Ok(self.present(at)?.value),
        }
    }

    /// A row this view showed.
    pub(crate) fn row(&self, at: Revision) -> Result<RowView<'v>, Unavailable> {
        match self.changes.and_then(|changes| changes.at(at)) {
            Some(change) => Ok(RowView { value: &change.value, ..entry_view(&change.key, &change.entry) }),
            None => Ok(row_view(&self.present(at)?)),
        }
    }

    /// Looks whether a row is there, so that the page source learns that it will be needed.
    pub(crate) fn probe(&self, at: Revision) {
        let _: Result<RowView<'_>, Unavailable> = self.row(at);
    }

    /// A row that must exist.
    pub(crate) fn present(&self, at: Revision) -> Result<Row<'v>, Unavailable> {
        self.layers.rows.row(at, self.pages)?.ok_or(MISSING_ROW)
    }
}

/// A row that the index or a chain names is not in the log: no block can be blamed.
pub(crate) const MISSING_ROW: Unavailable =
    Unavailable::Corrupt(Block { file: StoreFile { kind: FileKind::Rows, number: u32::MAX }, offset: 0, len: 0 });

/// What an entry says to a client, without the value.
pub(crate) fn entry_view<'v>(key: &'v [u8], entry: &KeyEntry) -> RowView<'v> {
    let (create, modified) = (entry.create, entry.row.main);
    RowView { key, value: &[], create, modified, version: entry.version, lease: entry.lease }
}

/// What a row says to a client.
pub(crate) fn row_view<'v>(row: &Row<'v>) -> RowView<'v> {
    let (create, modified) = (row.create, row.at.main);
    RowView { key: row.key, value: row.value, create, modified, version: row.version, lease: row.lease }
}

/// A merged ascending walk over all layers.
pub(crate) struct Scan<'v, T: KeyTree + 'v> {
    changes: Option<ChangeScan<'v>>,
    changes_head: Option<(&'v [u8], &'v KeyEntry)>,
    fresh: Walk<'v>,
    frozen: Option<Walk<'v>>,
    tree: T::Scan<'v>,
    tree_head: Option<(&'v [u8], KeyEntry)>,
}

/// What a walk yields.
type KeyAndEntry<'v> = (&'v [u8], Cow<'v, KeyEntry>);

impl<'v, T: KeyTree> Scan<'v, T> {
    /// The next key and its newest entry.
    pub(crate) fn next(&mut self) -> Result<Option<KeyAndEntry<'v>>, Unavailable> {
        let heads = [
            self.changes_head.map(|(key, _)| key),
            self.fresh.key(),
            self.frozen.as_ref().and_then(Walk::key),
            self.tree_head.as_ref().map(|(key, _)| *key),
        ];
        let Some(key) = heads.into_iter().flatten().min() else { return Ok(None) };
        let [changed, fresh, frozen, tree] = heads.map(|head| head == Some(key));
        let mut entry = None;
        if changed {
            entry = self.changes_head.map(|(_, entry)| Cow::Borrowed(entry));
            self.changes_head = self.changes.as_mut().and_then(Iterator::next);
        }
        if fresh {
            let below = self.fresh.advance().map(Cow::Borrowed);
            entry = entry.or(below);
        }
        if frozen {
            let below = self.frozen.as_mut().and_then(Walk::advance).map(Cow::Borrowed);
            entry = entry.or(below);
        }
        if tree {
            let below = self.tree_head.take().map(|(_, entry)| Cow::Owned(entry));
            entry = entry.or(below);
            self.tree_head = self.tree.next()?;
        }
        Ok(entry.map(|entry| (key, entry)))
    }
}

/// A walk over one overlay with its head read.
struct Walk<'v> {
    overlay: &'v Overlay,
    head: Option<(&'v [u8], &'v KeyEntry, OverlayCursor)>,
}

impl<'v> Walk<'v> {
    fn new(overlay: &'v Overlay, from: &[u8]) -> Self {
        Self { overlay, head: overlay.next(overlay.seek(from)) }
    }

    fn key(&self) -> Option<&'v [u8]> {
        self.head.map(|(key, ..)| key)
    }

    fn advance(&mut self) -> Option<&'v KeyEntry> {
        let (_, entry, after) = self.head?;
        self.head = self.overlay.next(after);
        Some(entry)
    }
}
