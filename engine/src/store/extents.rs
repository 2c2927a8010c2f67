//! Which units of the index files are in use.
//!
//! Owns: allocation in contiguous extents, what was freed by which checkpoint, pins, the persisted map. Does not know:
//! what stands in a page.

use crate::store::page::PageRef;

/// What the superblock names of the map: a run of units like a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRoot(pub PageRef);
