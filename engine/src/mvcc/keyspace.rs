//! The keyspace: layers, apply, publication.
//!
//! Owns: the layers and the scalars of the state, and the only code that changes them. Does not know: how a request is
//! evaluated (`view`, `range`, `txn`), how a checkpoint merges.
//!
//! Invariants: those of the module above.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use crate::budget::{Budget, Pause};
use crate::command::RangeQuery;
use crate::lease::{Lease, Leases};
use crate::mvcc::apply::Pending;
use crate::mvcc::changes::Change;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::outcome::{MvccError, RangeOutcome, RowView};
use crate::mvcc::pins::{Pin, Pins};
use crate::mvcc::view::{Layers, MISSING_ROW, View, row_view};
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::Revision;
use crate::store::overlay::Overlay;
use crate::store::row_log::{Row, RowLog};

/// What apply and range return: the outer error pauses (call again with the same arguments, after the pages are loaded
/// if some are missing), the inner one is the client's answer.
pub type Evaluated<T> = Result<Result<T, MvccError>, Pause>;

/// The scalars of the state; a checkpoint stores them, a start restores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyspaceState {
    /// The newest revision; 1 in a fresh store.
    pub revision: i64,
    /// The compacted revision; -1 in a fresh store.
    pub compacted: i64,
    /// The sum of hashes of all changes ever applied.
    pub digest: u128,
}

impl KeyspaceState {
    /// A store that nothing was ever written to.
    pub const FRESH: Self = Self { revision: 1, compacted: -1, digest: 0 };
}

/// What readers may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The newest visible revision: a response header's.
    pub revision: i64,
    /// The raft index it includes.
    pub applied: u64,
}

/// The MVCC state.
#[derive(Debug)]
pub struct Keyspace<T> {
    held: Arc<Held<T>>,
    published: Published,
    pins: Pins,
    pub(super) pending: Option<Box<Pending>>,
}

/// What an evaluation reads. It changes only while nobody else has it.
#[derive(Debug)]
struct Held<T> {
    tree: T,
    frozen: Option<Overlay>,
    overlay: Overlay,
    rows: RowLog,
    state: KeyspaceState,
    leases: Leases<T>,
}

/// The state, lent to whoever evaluates beside its owner. Until it is dropped nothing in it changes.
#[derive(Debug)]
pub(crate) struct Lent<T> {
    held: Arc<Held<T>>,
    floor: i64,
}

impl<T> Lent<T> {
    /// The newest revision in it.
    pub(crate) fn revision(&self) -> i64 {
        self.held.state.revision
    }

    /// What a view of it merges.
    pub(crate) fn layers(&self) -> Layers<'_, T> {
        self.held.layers(self.floor)
    }
}

impl<T> Held<T> {
    fn layers(&self, floor: i64) -> Layers<'_, T> {
        Layers {
            tree: &self.tree,
            frozen: self.frozen.as_ref(),
            fresh: &self.overlay,
            rows: &self.rows,
            leases: &self.leases,
            state: self.state,
            floor,
        }
    }
}

impl<T: KeyTree> Keyspace<T> {
    /// The state a checkpoint describes; `applied` is its index.
    #[must_use]
    pub fn new(tree: T, rows: RowLog, state: KeyspaceState, applied: u64) -> Self {
        assert!(rows.newest().main <= state.revision, "no row is newer than the state");
        assert!(state.compacted <= state.revision, "the future is not compacted");
        let published = Published { revision: state.revision, applied };
        let leases = Leases::default();
        let held = Held { tree, frozen: None, overlay: Overlay::new(), rows, state, leases };
        Self { held: Arc::new(held), published, pins: Pins::default(), pending: None }
    }

    /// Takes over the leases of a checkpoint.
    #[must_use]
    pub fn with_leases(mut self, leases: Leases<T>) -> Self {
        self.held_mut().leases = leases;
        self
    }

    /// Lends the state to an evaluation elsewhere.
    pub(crate) fn lend(&self) -> Lent<T> {
        assert!(self.pending.is_none(), "the state is lent between commands");
        self.assert_published();
        Lent { held: Arc::clone(&self.held), floor: self.reclaim_bound() }
    }

    fn held_mut(&mut self) -> &mut Held<T> {
        Arc::get_mut(&mut self.held).expect("I5: what is lent does not change")
    }

    /// Reads the published state in one step.
    ///
    /// # Errors
    /// See [`Evaluated`]. After [`Pause::Budget`] it is too large for one step: take a [`RangeCursor`].
    ///
    /// [`Pause::Budget`]: crate::budget::Pause::Budget
    /// [`RangeCursor`]: crate::mvcc::RangeCursor
    pub fn range<'a>(
        &'a self,
        query: &RangeQuery<'_>,
        budget: &mut Budget,
        pages: &'a dyn PageSource,
    ) -> Evaluated<RangeOutcome<'a>> {
        self.assert_published();
        let view = View { layers: self.layers(), changes: None, pages };
        let ranged = view.range(query, self.held.state.revision, budget)?;
        Ok(ranged.map(|ranged| RangeOutcome {
            rows: ranged.rows.into_iter().map(|found| found.view).collect(),
            count: ranged.count,
            more: ranged.more,
        }))
    }

    /// The row at an address an outcome named.
    ///
    /// # Errors
    /// Its block is not usable now.
    pub fn row<'a>(&'a self, at: Revision, pages: &'a dyn PageSource) -> Result<RowView<'a>, Unavailable> {
        let row = self.held.rows.row(at, pages)?.ok_or(MISSING_ROW)?;
        Ok(row_view(&row))
    }

    /// Makes everything applied visible, as of raft index `applied`.
    pub fn publish(&mut self, applied: u64) {
        assert!(applied >= self.published.applied, "I3: the applied index never goes back");
        assert!(self.held.state.revision >= self.published.revision, "I3: the published revision never goes back");
        self.published = Published { revision: self.held.state.revision, applied };
    }

    /// Holds on to the published revision.
    pub fn pin(&mut self) -> Pin {
        self.pin_at(self.published.revision)
    }

    /// Holds on to a revision that may be read now: what is visible at it or later stays readable, also after it is
    /// compacted, until the pin is given back.
    pub fn pin_at(&mut self, revision: i64) -> Pin {
        assert!(revision >= self.reclaim_bound(), "what is reclaimed cannot be held");
        self.pins.take(revision)
    }

    /// Gives a pin back.
    pub fn unpin(&mut self, pin: Pin) {
        self.pins.give_back(&pin);
    }

    /// The oldest revision held.
    #[must_use]
    pub fn oldest_pin(&self) -> Option<i64> {
        self.pins.oldest()
    }

    /// Rows that no reader at this revision or above sees may be reclaimed.
    #[must_use]
    pub fn reclaim_bound(&self) -> i64 {
        self.pins.oldest().map_or(self.held.state.compacted, |pinned| pinned.min(self.held.state.compacted))
    }

    /// What readers see.
    #[must_use]
    pub fn published(&self) -> Published {
        self.published
    }

    /// The applied state (a checkpoint's scalars when nothing is unpublished).
    #[must_use]
    pub fn state(&self) -> KeyspaceState {
        self.held.state
    }

    /// Starts a checkpoint: the overlay becomes the frozen one in O(1). The row log's part is
    /// `rows_mut().handle_checkpoint()`, in the same step.
    pub fn freeze(&mut self) {
        assert!(self.held.frozen.is_none(), "one checkpoint at a time");
        self.assert_published();
        assert!(self.pending.is_none(), "a checkpoint is taken between commands");
        let held = self.held_mut();
        held.frozen = Some(std::mem::take(&mut held.overlay));
        held.leases.freeze();
    }

    /// The changes the running checkpoint merges.
    #[must_use]
    pub fn frozen(&self) -> Option<&Overlay> {
        self.held.frozen.as_ref()
    }

    /// Ends a checkpoint: `keys` and `leases` hold the old trees and the frozen changes. Returns the frozen overlay, so
    /// that its memory may be freed in slices.
    pub fn install_trees(&mut self, keys: T, leases: T) -> Option<Overlay> {
        let held = self.held_mut();
        held.tree = keys;
        held.leases.install_tree(leases);
        held.frozen.take()
    }

    /// The changes of leases that the running checkpoint merges.
    #[must_use]
    pub fn frozen_leases(&self) -> Arc<Overlay> {
        self.held.leases.frozen().map(Arc::clone).unwrap_or_default()
    }

    /// Leases and attachments. Attachments may include those of a command that has paused.
    #[must_use]
    pub fn leases(&self) -> &Leases<T> {
        &self.held.leases
    }

    /// The tree below the overlays.
    #[must_use]
    pub fn tree(&self) -> &T {
        &self.held.tree
    }

    /// The changes since the last freeze, for their size.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        &self.held.overlay
    }

    /// The row log.
    #[must_use]
    pub fn rows(&self) -> &RowLog {
        &self.held.rows
    }

    /// The row log, to drive its writes.
    pub fn rows_mut(&mut self) -> &mut RowLog {
        &mut self.held_mut().rows
    }

    /// Lets a deleted key whose tombstone is compacted leave the index with the next checkpoint.
    pub(crate) fn erase(&mut self, key: &[u8]) {
        self.held_mut().overlay.erase(key);
    }

    /// What a view of this keyspace merges.
    pub(super) fn layers(&self) -> Layers<'_, T> {
        self.held.layers(self.reclaim_bound())
    }

    /// Installs one change above the present revision.
    pub(crate) fn install(&mut self, change: &Change<'_>) {
        let (entry, held) = (&change.entry, self.held_mut());
        assert_eq!(entry.row.main, held.state.revision + 1, "I2: one revision");
        let row = Row {
            at: entry.row,
            key: &change.key,
            value: &change.value,
            create: entry.create,
            version: entry.version,
            lease: entry.lease,
            prev: change.prev,
            jump: change.jump,
        };
        let stored = held.rows.append(&row);
        held.state.digest = held.state.digest.wrapping_add(change_digest(&row, stored));
        held.overlay.put(&change.key, entry.clone(), change.was_live);
        held.leases.attach(&change.key, change.lease_before, entry.lease);
    }

    /// A lease begins or ends.
    pub(super) fn change_lease(&mut self, id: i64, ttl: Option<i64>) {
        let held = self.held_mut();
        let ended = held.leases.get(id).map_or(0, |lease| lease.ttl);
        match ttl {
            Some(ttl) => held.leases.grant(id, Lease::granted(ttl)),
            None => held.leases.remove(id),
        }
        let change = lease_digest(id, ttl.unwrap_or(ended), ttl.is_some(), held.state.revision);
        held.state.digest = held.state.digest.wrapping_add(change);
    }

    /// Notes how much of a lease is left, if it exists.
    pub(super) fn note_remaining(&mut self, id: i64, remaining: i64) {
        let held = self.held_mut();
        if held.leases.checkpoint(id, remaining) {
            let change = checkpoint_digest(id, remaining, held.state.revision);
            held.state.digest = held.state.digest.wrapping_add(change);
        }
    }

    /// Everything of the next revision is installed.
    pub(crate) fn move_to(&mut self, revision: i64) {
        let state = &mut self.held_mut().state;
        assert_eq!(revision, state.revision + 1, "I2: one revision after the other");
        state.revision = revision;
    }

    pub(super) fn compact(&mut self, revision: i64) {
        self.held_mut().state.compacted = revision;
    }

    /// Reads between apply and publication would see a half-installed batch.
    fn assert_published(&self) {
        assert_eq!(
            self.published.revision, self.held.state.revision,
            "I3: what is applied is published before it is read"
        );
    }
}

/// The hash of a lease's beginning or end after a revision.
fn lease_digest(id: i64, ttl: i64, begins: bool, revision: i64) -> u128 {
    digest_of_lease(id, ttl, revision, u8::from(begins))
}

/// The hash of a note of how much of a lease is left.
fn checkpoint_digest(id: i64, remaining: i64, revision: i64) -> u128 {
    digest_of_lease(id, remaining, revision, 2)
}

fn digest_of_lease(id: i64, seconds: i64, revision: i64, what: u8) -> u128 {
    let mut bytes = [0; 25];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8..16].copy_from_slice(&seconds.to_le_bytes());
    bytes[16..24].copy_from_slice(&revision.to_le_bytes());
    bytes[24] = what;
    xxh3_128(&bytes)
}

/// The hash of one change; `stored` is its key and value back to back. Pointers of the chain are left out: they depend
/// on when compactions were applied between changes, not on what the change is.
fn change_digest(row: &Row<'_>, stored: &[u8]) -> u128 {
    let mut bytes = [0; 56];
    bytes[..8].copy_from_slice(&row.at.main.to_le_bytes());
    bytes[8..12].copy_from_slice(&row.at.sub.to_le_bytes());
    bytes[12..16].copy_from_slice(&(row.key.len() as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&row.create.to_le_bytes());
    bytes[24..32].copy_from_slice(&row.version.to_le_bytes());
    bytes[32..40].copy_from_slice(&row.lease.to_le_bytes());
    bytes[40..56].copy_from_slice(&xxh3_128(stored).to_le_bytes());
    xxh3_128(&bytes)
}
