//! What the keyspace asks of the key index below the overlays.
//!
//! Owns: the question. Does not know: pages. The store's tree answers in the server, an ordered map in the model test.

use crate::mvcc::KeyRange;
use crate::page_source::{PageSource, Unavailable};
use crate::store::key_entry::KeyEntry;

/// An immutable ordered map from key to entry, tombstones included.
pub trait KeyTree {
    /// A position in it.
    type Scan<'a>: KeyScan<'a>
    where
        Self: 'a;

    /// The entry of one key.
    ///
    /// # Errors
    /// A page is not usable now.
    fn get(&self, key: &[u8], pages: &dyn PageSource) -> Result<Option<KeyEntry>, Unavailable>;

    /// The number of keys in `range` whose entry is not a tombstone, from the subtree counts: O(log n).
    ///
    /// # Errors
    /// A page is not usable now.
    fn count_live(&self, range: KeyRange<'_>, pages: &dyn PageSource) -> Result<u64, Unavailable>;

    /// Starts at the first key at or above `from`.
    ///
    /// # Errors
    /// A page is not usable now.
    fn scan<'a>(&'a self, from: &[u8], pages: &'a dyn PageSource) -> Result<Self::Scan<'a>, Unavailable>;
}

/// A key and what is stored under it.
pub type RawEntry<'a> = (&'a [u8], &'a [u8]);

/// An ascending walk over a [`KeyTree`].
pub trait KeyScan<'a> {
    /// The next key and entry.
    ///
    /// # Errors
    /// A page is not usable now; the walk is then abandoned.
    fn next(&mut self) -> Result<Option<(&'a [u8], KeyEntry)>, Unavailable>;

    /// The next key and what is stored under it, for a tree of something else.
    ///
    /// # Errors
    /// A page is not usable now; the walk is then abandoned.
    fn next_raw(&mut self) -> Result<Option<RawEntry<'a>>, Unavailable>;
}
