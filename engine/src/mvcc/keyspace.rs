//! The keyspace: layers, apply, publication.

use crate::command::{DeleteRange, Put, RangeQuery, Txn};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::outcome::{CompactOutcome, DeleteOutcome, MvccError, PutOutcome, RangeOutcome, RowView, TxnOutcome};
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::Revision;
use crate::store::overlay::Overlay;
use crate::store::row_log::RowLog;

/// What apply and range return: the outer error suspends (nothing has changed, retry after the pages are loaded), the
/// inner one is the client's answer.
pub type Evaluated<T> = Result<Result<T, MvccError>, Unavailable>;

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

/// What readers may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The newest visible revision: a response header's.
    pub revision: i64,
    /// The raft index it includes.
    pub applied: u64,
}

/// The MVCC state of one shard.
#[derive(Debug)]
pub struct Keyspace<T> {
    tree: T,
    frozen: Option<Overlay>,
    overlay: Overlay,
    rows: RowLog,
    state: KeyspaceState,
    published: Published,
}

impl<T: KeyTree> Keyspace<T> {
    /// The state a checkpoint describes; `applied` is its index.
    #[must_use]
    pub fn new(tree: T, rows: RowLog, state: KeyspaceState, applied: u64) -> Self {
        todo!()
    }

    /// Applies a put.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn apply_put(&mut self, put: &Put<'_>, pages: &dyn PageSource) -> Evaluated<PutOutcome> {
        todo!()
    }

    /// Applies a delete.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn apply_delete_range(&mut self, del: &DeleteRange<'_>, pages: &dyn PageSource) -> Evaluated<DeleteOutcome> {
        todo!()
    }

    /// Applies a transaction.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn apply_txn(&mut self, txn: &Txn<'_>, pages: &dyn PageSource) -> Evaluated<TxnOutcome> {
        todo!()
    }

    /// Sets the compacted revision.
    ///
    /// # Errors
    /// Already compacted, or in the future.
    pub fn apply_compact(&mut self, revision: i64) -> Result<CompactOutcome, MvccError> {
        todo!()
    }

    /// Evaluates a transaction that holds only ranges (any depth), without the log.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn read_txn(&self, txn: &Txn<'_>, pages: &dyn PageSource) -> Evaluated<TxnOutcome> {
        todo!()
    }

    /// Reads the published state.
    ///
    /// # Errors
    /// See [`Evaluated`].
    pub fn range<'a>(&'a self, query: &RangeQuery<'_>, pages: &'a dyn PageSource) -> Evaluated<RangeOutcome<'a>> {
        todo!()
    }

    /// The row at an address an outcome named.
    ///
    /// # Errors
    /// Its block is not usable now.
    pub fn row<'a>(&'a self, at: Revision, pages: &'a dyn PageSource) -> Result<RowView<'a>, Unavailable> {
        todo!()
    }

    /// Makes everything applied visible, as of raft index `applied`.
    pub fn publish(&mut self, applied: u64) {
        todo!()
    }

    /// What readers see.
    #[must_use]
    pub fn published(&self) -> Published {
        self.published
    }

    /// The applied state (a checkpoint's scalars when nothing is unpublished).
    #[must_use]
    pub fn state(&self) -> KeyspaceState {
        self.state
    }

    /// Starts a checkpoint: the overlay becomes the frozen one in O(1). The row log's part is
    /// `rows_mut().handle_checkpoint()`, in the same step.
    pub fn freeze(&mut self) {
        todo!()
    }

    /// The changes the running checkpoint merges.
    #[must_use]
    pub fn frozen(&self) -> Option<&Overlay> {
        self.frozen.as_ref()
    }

    /// Ends a checkpoint: `tree` holds the old one and the frozen changes. Returns the frozen overlay, so that its
    /// memory may be freed in slices.
    pub fn install_tree(&mut self, tree: T) -> Option<Overlay> {
        todo!()
    }

    /// The tree below the overlays.
    #[must_use]
    pub fn tree(&self) -> &T {
        &self.tree
    }

    /// The changes since the last freeze, for their size.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// The row log.
    #[must_use]
    pub fn rows(&self) -> &RowLog {
        &self.rows
    }

    /// The row log, to drive its writes.
    pub fn rows_mut(&mut self) -> &mut RowLog {
        &mut self.rows
    }
}
