//! What reclaim asks of the key index.
//!
//! Owns: the newest entry of a key, the newest row at a bound, and the mark that lets a deleted key leave the index.
//! Does not know: when rows are looked at, what is done with dead ones (`store::reclaim`).
//!
//! Invariants
//! - I1: nothing here changes what any reader at or above the compacted revision, or at a pin, can see.

use std::borrow::Cow;

use crate::budget::Budget;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::Keyspace;
use crate::mvcc::view::View;
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::{KeyEntry, Revision};

impl<T: KeyTree> Keyspace<T> {
    /// The newest entry of a key, tombstones included.
    pub(crate) fn newest_entry<'a>(
        &'a self,
        key: &[u8],
        pages: &'a dyn PageSource,
    ) -> Result<Option<Cow<'a, KeyEntry>>, Unavailable> {
        View { layers: self.layers(), changes: None, pages }.entry(key)
    }

    /// The address of the newest row of a key at or below revision `bound`, tombstones included; it may be gone.
    pub(crate) fn newest_row_at(
        &self,
        key: &[u8],
        bound: i64,
        pages: &dyn PageSource,
    ) -> Result<Option<Revision>, Unavailable> {
        let view = View { layers: self.layers(), changes: None, pages };
        let Some(entry) = view.entry(key)? else { return Ok(None) };
        view.place_at(&entry, bound, &mut Budget::unlimited())
    }
}
