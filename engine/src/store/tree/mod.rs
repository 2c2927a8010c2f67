//! The copy-on-write B+tree of the index files.
//!
//! Owns: reading a tree. Does not know: what a value means, who writes pages.

use crate::mvcc::KeyRange;
use crate::page_source::{PageSource, Unavailable};
use crate::store::page::PageRef;

/// Which tree a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum TreeId {
    /// Key -> entry.
    Keys = 1,
    /// (lease, key) -> nothing.
    Leases = 2,
    /// Small tables: members, alarms and the like.
    Tables = 3,
}

/// What a superblock names of a tree that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRoot {
    /// The root page.
    pub page: PageRef,
    /// Levels above the leaves; 0 if the root is a leaf.
    pub height: u8,
    /// Entries of the tree, live or not.
    pub entries: u64,
}

/// A tree of one checkpoint, for reading. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tree {}

impl Tree {
    /// Entries, live or not.
    #[must_use]
    pub fn entries(&self) -> u64 {
        todo!()
    }

    /// The value of a key.
    ///
    /// # Errors
    /// A page is not usable now.
    pub fn get<'a>(&self, key: &[u8], pages: &'a dyn PageSource) -> Result<Option<&'a [u8]>, Unavailable> {
        todo!()
    }

    /// The number of live entries in `range`: O(log n).
    ///
    /// # Errors
    /// A page is not usable now.
    pub fn count_live(&self, range: KeyRange<'_>, pages: &dyn PageSource) -> Result<u64, Unavailable> {
        todo!()
    }

    /// Starts at the first key at or above `from`.
    ///
    /// # Errors
    /// A page is not usable now.
    pub fn scan<'a>(&'a self, from: &[u8], pages: &'a dyn PageSource) -> Result<TreeScan<'a>, Unavailable> {
        todo!()
    }
}

/// An ascending walk.
pub struct TreeScan<'a> {
    pages: &'a dyn PageSource,
}

impl<'a> TreeScan<'a> {
    /// The next key and value.
    ///
    /// # Errors
    /// A page is not usable now; the walk stays where it is and the call may be repeated.
    pub fn next_entry(&mut self) -> Result<Option<(&'a [u8], &'a [u8])>, Unavailable> {
        todo!()
    }
}
